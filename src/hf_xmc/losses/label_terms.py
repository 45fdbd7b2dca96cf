"""In-batch Gandalf: the label texts of a pool, encoded anyway, are queries too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from hf_xmc.distributed import PAD, pad_gather, rows_per_rank
from hf_xmc.losses.pool.targets import membership


class LabelNeighbors(nn.Module):
    """The nearest labels of each label by the current encoder; written by the mining callback, read by LabelTerms.

    Empty until the first refresh.

    Args:
        num_labels: L.
        num_neighbors: K, the most neighbors of a label, itself not among them.
        min_cosine: In (0, 1); labels less alike are no neighbors.
    """

    ids: Tensor
    cosines: Tensor

    def __init__(self, num_labels: int, num_neighbors: int = 10, min_cosine: float = 0.5) -> None:
        super().__init__()
        if num_labels < 1 or num_neighbors < 1 or not 0 < min_cosine < 1:
            raise ValueError(
                f"got {num_labels} labels, {num_neighbors} neighbors and min_cosine {min_cosine}; expected at least "
                "one of each and a cosine in (0, 1)"
            )
        self.num_neighbors = num_neighbors
        self.min_cosine = min_cosine
        self.register_buffer("ids", torch.full((num_labels, num_neighbors), PAD, dtype=torch.int32), persistent=False)
        self.register_buffer("cosines", torch.zeros(num_labels, num_neighbors), persistent=False)

    @property
    def num_labels(self) -> int:
        """L."""
        return len(self.ids)

    def write(self, ids: np.ndarray, cosines: np.ndarray) -> None:
        """Replace all neighbors by ids (L, K), integers, -1 where there are fewer, and their cosines (L, K)."""
        kept = (ids >= 0) & (cosines >= self.min_cosine)
        self.ids.copy_(torch.from_numpy(np.where(kept, ids, PAD).astype(np.int32)))
        self.cosines.copy_(torch.from_numpy(np.where(kept, cosines.clip(max=1), 0).astype(np.float32)))

    @property
    def is_empty(self) -> bool:
        """Whether no label has a neighbor, as before the first refresh."""
        return not bool((self.ids >= 0).any())

    def among(self, label_ids: Tensor, candidate_ids: Tensor) -> Tensor:
        """The cosines (n, C) float32 in [0, 1] of labels (n,) int64 and candidates (C,) int64, ascending; else 0."""
        return membership(self.ids[label_ids].long(), candidate_ids, self.cosines[label_ids])


@dataclass(frozen=True)
class LabelPool:
    """The labels of a pool, those of all ranks.

    Args:
        candidate_ids: (C,) int64, ascending.
        own: (C_rank,) int64, the places in it that this rank answers for.
        keys: (C,) int64, equal for equal texts.
        vectors: (C, De) of unit length, the dual encoder's.
        heads: (C, Dc), the classifier head's; ``vectors`` where there is none of its own.
        rows: (C, Dc), the classifier's, or None without a classifier.
    """

    candidate_ids: Tensor
    own: Tensor
    keys: Tensor
    vectors: Tensor
    heads: Tensor
    rows: Tensor | None


class LabelTerms(nn.Module):
    """Two more terms of a :class:`~hf_xmc.losses.UnifiedLoss`, from the labels of its pool alone; nothing is encoded.

    With z_j the vector of label j's text, c_j its classifier head's vector, w_i the classifier's row of label i, all
    of one pool, and y_ji the soft target of label i for the text of label j::

        label_encoder     loss(scale z_j . z_i, y_ji)   over i other than j
        label_classifier  loss(scale c_j . w_i, y_ji)   over all i, y_jj = 1

    In the first a label is no positive of its own, as no gradient could change that cosine; labels of the same text
    are left out for the same reason. In the second they are left out where they are no positives. A label without a
    positive in the pool does not count. Every rank answers for its part of the pool.

    With neighbors, ``y = (1 - s) y_counts + s cosine``, s the similarity weight: LEVER's idea (Buvanesh et al.,
    ICLR 2024) with the model that is trained as its own teacher. Until the first refresh y is that of the counts.

    Args:
        targets: (L, L) CSR, row j the soft targets in (0, 1] of label j's text, as of
            :func:`hf_xmc.data.gandalf.label_rows`.
        encoder_weight: Weight of the first term beside L_D, at least 0.
        classifier_weight: Weight of the second beside L_C, at least 0; for an encoder with a classifier.
        neighbors: Similar labels, refreshed by the trainer every ``refresh_epochs``; None for counts alone.
        similarity_weight: s in [0, 1].

    Raises:
        ValueError: If a weight is out of range, or the targets are.

    References:
        Kharbanda et al., Learning label-label correlations in Extreme Multi-label Classification via Label Features,
        KDD 2024, https://arxiv.org/abs/2405.04545
    """

    def __init__(
        self,
        targets: sp.csr_matrix,
        encoder_weight: float = 1.0,
        classifier_weight: float = 1.0,
        neighbors: LabelNeighbors | None = None,
        similarity_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if encoder_weight < 0 or classifier_weight < 0 or not 0 <= similarity_weight <= 1:
            raise ValueError(
                f"got encoder_weight {encoder_weight}, classifier_weight {classifier_weight} and similarity_weight "
                f"{similarity_weight}; expected two weights of at least 0 and a share in [0, 1]"
            )
        if targets.shape[0] != targets.shape[1] or (neighbors and len(neighbors.ids) != targets.shape[0]):
            other = f" beside neighbors of {len(neighbors.ids)} labels" if neighbors else ""
            raise ValueError(f"targets is {targets.shape}{other}; expected labels x labels")
        self.targets = sp.csr_matrix(targets)
        if self.targets.nnz and not 0 < self.targets.data.min() <= self.targets.data.max() <= 1:
            raise ValueError("targets has values outside (0, 1]; use those of hf_xmc.data.gandalf")
        self.encoder_weight = encoder_weight
        self.classifier_weight = classifier_weight
        self.neighbors = neighbors
        self.similarity_weight = similarity_weight

    @property
    def num_labels(self) -> int:
        """L."""
        return self.targets.shape[0]

    def relevance(self, label_ids: Tensor, candidate_ids: Tensor) -> Tensor:
        """Soft targets (n, C) float32 in [0, 1] for labels (n,) int64 and candidates (C,) int64, ascending."""
        if len(candidate_ids) and int(candidate_ids[-1]) >= self.targets.shape[0]:
            raise ValueError(
                f"label id {int(candidate_ids[-1])} in the pool, targets of {self.targets.shape[0]} labels; "
                "make the targets of the data set that is trained on, and batches with an XMCDataCollator"
            )
        # The graph stays in host memory: at a million labels it is a gigabyte, of which a pool needs little.
        rows = self.targets[label_ids.cpu().numpy()]
        columns = torch.from_numpy(rows.indices.astype(np.int64)).to(label_ids.device)  # (nnz,)
        owner = torch.from_numpy(np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))).to(label_ids.device)
        values = torch.from_numpy(rows.data.astype(np.float32)).to(label_ids.device)
        place = torch.searchsorted(candidate_ids, columns).clamp_(max=len(candidate_ids) - 1)
        here = candidate_ids[place] == columns
        relevance = torch.zeros(len(label_ids), len(candidate_ids), device=label_ids.device)
        relevance[owner[here], place[here]] = values[here]
        if self.neighbors is not None and not self.neighbors.is_empty:
            relevance = torch.lerp(
                relevance, self.neighbors.among(label_ids, candidate_ids), weight=self.similarity_weight
            )
        return relevance.masked_fill_(label_ids.unsqueeze(1) == candidate_ids, 1.0)

    def forward(
        self,
        pool: LabelPool,
        *,
        encoder_loss: Callable[..., Tensor],
        classifier_loss: Callable[..., Tensor],
        scale: float,
    ) -> dict[str, Tensor]:
        """The terms with their weights, as scalars.

        Args:
            pool: The labels.
            encoder_loss: Of ``hf_xmc.losses.functional``, for the first term.
            classifier_loss: The same, for the second.
            scale: Inverse temperature.
        """
        own = pool.own
        relevance = self.relevance(pool.candidate_ids[own], pool.candidate_ids)  # (C_rank, C)
        same_text = pool.keys[own].unsqueeze(1) == pool.keys
        terms: dict[str, Tensor] = {}
        if self.encoder_weight:
            others = relevance.masked_fill(same_text, 0)
            counted = (others > 0).any(1)  # the rest would be multiplied for nothing
            scores = scale * pool.vectors[own[counted]] @ pool.vectors.T
            num_rows = rows_per_rank(counted.sum())
            term = encoder_loss(scores, others[counted], same_text[counted], num_rows=num_rows)
            terms["label_encoder"] = self.encoder_weight * term
        if self.classifier_weight and pool.rows is not None:
            scores = scale * pool.heads[own] @ pool.rows.T
            num_rows = rows_per_rank(torch.tensor(len(own), device=own.device))
            term = classifier_loss(scores, relevance, same_text & (relevance == 0), num_rows=num_rows)
            terms["label_classifier"] = self.classifier_weight * term
        return terms

    def get_config_dict(self) -> dict[str, Any]:
        """The settings that a model card shows."""
        config: dict[str, Any] = {"encoder_weight": self.encoder_weight, "classifier_weight": self.classifier_weight}
        if self.neighbors is not None:
            config |= {
                "similarity_weight": self.similarity_weight,
                "num_neighbors": self.neighbors.num_neighbors,
                "min_cosine": self.neighbors.min_cosine,
            }
        return config


def keys_of_pool(keys: Tensor, ids: Tensor, candidate_ids: Tensor) -> Tensor:
    """The text keys (C,) of the pool of all ranks, from those of this rank's candidates; keys and ids: (C_rank,)."""
    ids, keys = pad_gather(ids, PAD), pad_gather(keys, PAD)
    pooled = torch.empty_like(candidate_ids)
    pooled[torch.searchsorted(candidate_ids, ids[ids != PAD])] = keys[ids != PAD]
    return pooled
