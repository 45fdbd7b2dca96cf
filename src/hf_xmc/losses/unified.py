"""UniDEC: the dual encoder and the classifier trained on one pool, queries to labels and labels to queries."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hf_xmc.distributed import gather_pool, is_distributed, pad_gather, rows_per_rank
from hf_xmc.encoders.packing import embed
from hf_xmc.losses.functional import binary_cross_entropy, decoupled_softmax
from hf_xmc.losses.label_terms import LabelPool, LabelTerms, keys_of_pool
from hf_xmc.losses.pool.targets import PoolTargets, text_keys

ENCODER_WEIGHT = 0.5


class UnifiedLoss(nn.Module):
    """``lam L_D + (1 - lam) (L_C + bce_weight BCE)`` over the pool of all ranks.

    L_D compares the dual encoder's vectors of queries and label texts by cosine, L_C the classifier head's query
    vector with the labels' free rows, not normalized. Either is ``(1 - s) PSL(query -> label) + s PSL(label ->
    query)``, the pick-some-labels loss over the pool in both directions; in the second a label without a positive
    query in the batch does not count. Without a classifier only L_D remains: that is DePSL.

    The two published balances have names: :meth:`precision` and :meth:`tail`.

    Args:
        model: An :class:`~hf_xmc.XMCEncoder`, with a classifier or (DePSL) without.
        scale: Inverse temperature of both terms.
        encoder_loss: Of ``hf_xmc.losses.functional``, for L_D.
        classifier_loss: The same, for L_C.
        encoder_weight: lam in [0, 1].
        symmetric_weight: s in [0, 1], the share of label -> query.
        bce_weight: Weight of a binary cross-entropy over the classifier's scores, at least 0.
        label_terms: Terms between the labels of the pool, beside L_D and L_C; None for none.

    Returns (forward):
        A dict of scalars, ``encoder`` and, with a classifier, ``classifier`` and ``bce``, with label terms also
        ``label_encoder`` and ``label_classifier``; the trainer adds them up and logs each.

    References:
        Kharbanda et al., UniDEC: Unified Dual Encoder and Classifier Training for Extreme Multi-Label Classification,
        WWW 2025, https://arxiv.org/abs/2405.03714

    Inputs: batches of an ``XMCDataCollator``.
    """

    def __init__(
        self,
        model: nn.Module,
        scale: float = 18.0,
        encoder_loss: Callable[..., Tensor] = decoupled_softmax,
        classifier_loss: Callable[..., Tensor] = decoupled_softmax,
        encoder_weight: float = ENCODER_WEIGHT,
        symmetric_weight: float = 0.0,
        bce_weight: float = 0.0,
        label_terms: LabelTerms | None = None,
    ) -> None:
        super().__init__()
        for name, share in (("encoder_weight", encoder_weight), ("symmetric_weight", symmetric_weight)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}")
        if scale <= 0 or bce_weight < 0:
            raise ValueError(f"scale must be above 0 and bce_weight at least 0, got {scale} and {bce_weight}")
        self.model = model
        self.scale = scale
        self.encoder_loss = encoder_loss
        self.classifier_loss = classifier_loss
        self.encoder_weight = encoder_weight
        self.symmetric_weight = symmetric_weight
        self.bce_weight = bce_weight
        self.label_terms = label_terms

    @property
    def needs_classifier(self) -> bool:
        """Whether a weight of its terms other than the default was asked for; without a classifier there are none."""
        terms = 1.0 if self.label_terms is None else self.label_terms.classifier_weight
        return self.bce_weight > 0 or self.encoder_weight not in (ENCODER_WEIGHT, 1) or terms not in (0, 1)

    @classmethod
    def precision(cls, model: nn.Module, scale: float = 18.0) -> UnifiedLoss:
        """Decoupled softmax for both terms plus BCE, one direction: the most precise of the published balances."""
        return cls(model, scale, bce_weight=1.0)

    @classmethod
    def tail(cls, model: nn.Module, scale: float = 18.0) -> UnifiedLoss:
        """Decoupled softmax for both terms in both directions, no BCE: the best for rare labels."""
        return cls(model, scale, symmetric_weight=0.5)

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> dict[str, Tensor]:
        """The terms of the loss, each (); ``labels`` (B, P) int64 are ids, padded with -1."""
        features = list(sentence_features)
        targets = PoolTargets.from_features(features, labels)
        tokens = dict(features[1])  # the model may write into its own
        # Queries first: DDP judges by the last forward which parameters a step uses.
        query, candidate = (embed(self.model, feature) for feature in features)
        queries = F.normalize(query["sentence_embedding"], dim=-1)
        gathered, candidate_ids = _gather(candidate, targets.candidate_ids, self.label_terms is not None)
        vectors, rows = gathered["sentence_embedding"], gathered.get("label_weight")
        pool = _Pool(targets, candidate_ids)
        share, rest = (1.0, 0.0) if rows is None else (self.encoder_weight, 1 - self.encoder_weight)
        losses = {"encoder": share * self._two_ways(self.encoder_loss, queries, vectors, pool)}
        if rows is not None:
            losses |= self._classifier_losses(query["classifier_embedding"], rows, pool, rest)
        if self.label_terms is not None:
            keys = keys_of_pool(text_keys(tokens), targets.candidate_ids, candidate_ids)
            heads = gathered.get("classifier_embedding", vectors)
            more = self.label_terms(
                LabelPool(candidate_ids, pool.own_labels, keys, vectors, heads, rows),
                encoder_loss=self.encoder_loss,
                classifier_loss=self.classifier_loss,
                scale=self.scale,
            )
            weights = {"label_encoder": share, "label_classifier": rest}
            losses |= {name: weights[name] * term for name, term in more.items()}
        return losses

    def _classifier_losses(self, heads: Tensor, rows: Tensor, pool: _Pool, weight: float) -> dict[str, Tensor]:
        """L_C and its BCE, from queries (B, Dc) of this rank and rows (C, Dc) of all ranks."""
        losses = {"classifier": weight * self._two_ways(self.classifier_loss, heads, rows, pool)}
        if self.bce_weight:
            scores = self.scale * heads @ rows.T
            entries = rows_per_rank(scores.new_tensor(scores.numel()) - pool.num_excluded)
            bce = binary_cross_entropy(scores, pool.relevance, pool.excluded, num_entries=entries)
            losses["bce"] = weight * self.bce_weight * bce
        return losses

    def _two_ways(self, loss: Callable[..., Tensor], queries: Tensor, vectors: Tensor, pool: _Pool) -> Tensor:
        """A loss () in both directions, from queries (B, D) of this rank and vectors (C, D) of all ranks."""
        share = self.symmetric_weight
        total = queries.new_zeros(())
        if share < 1:
            scores = self.scale * queries @ vectors.T  # (B, C)
            total = total + (1 - share) * loss(scores, pool.relevance, pool.excluded, num_rows=pool.num_queries)
        if share > 0:
            # Each rank answers for its part of the labels, against the queries of all ranks.
            scores = self.scale * vectors[pool.own_labels] @ pad_gather(queries, 0.0, with_grad=True).T
            relevance, excluded, num_labels = pool.transposed()
            total = total + share * loss(scores, relevance, excluded, num_rows=num_labels)
        return total

    def get_config_dict(self) -> dict[str, Any]:
        """The settings that a model card shows."""
        return {
            "scale": self.scale,
            "encoder_loss": self.encoder_loss.__name__,
            "classifier_loss": self.classifier_loss.__name__,
            "encoder_weight": self.encoder_weight,
            "symmetric_weight": self.symmetric_weight,
            "bce_weight": self.bce_weight,
        } | ({} if self.label_terms is None else {"label_terms": self.label_terms.get_config_dict()})

    @property
    def citation(self) -> str:
        """BibTeX of the paper."""
        return """
@inproceedings{kharbanda2025unidec,
    title = "UniDEC: Unified Dual Encoder and Classifier Training for Extreme Multi-Label Classification",
    author = "Siddhant Kharbanda and others",
    booktitle = "The Web Conference",
    year = "2025",
    url = "https://arxiv.org/abs/2405.03714",
}
"""


def _gather(candidate: dict[str, Tensor], ids: Tensor, with_heads: bool) -> tuple[dict[str, Tensor], Tensor]:
    """The vectors of the pool of all ranks by kind, each (C, D), the dual encoder's normalized, and the ids (C,)."""
    parts = {"sentence_embedding": F.normalize(candidate["sentence_embedding"], dim=-1)}
    if "label_weight" in candidate:
        names = ("label_weight", "classifier_embedding") if with_heads else ("label_weight",)
        parts |= {name: candidate[name] for name in names if name in candidate}
    # All vectors of a label travel together: one exchange, whatever their number.
    gathered, candidate_ids = gather_pool(torch.cat(list(parts.values()), 1), ids)
    widths = [part.size(1) for part in parts.values()]
    return dict(zip(parts, gathered.split(widths, 1), strict=True)), candidate_ids


class _Pool:
    """Who is relevant to whom, in both directions."""

    def __init__(self, targets: PoolTargets, candidate_ids: Tensor) -> None:
        self.targets = targets
        self.candidate_ids = candidate_ids
        self.relevance = targets.relevance(candidate_ids)  # (B, C)
        self.excluded = targets.excluded(candidate_ids)
        self.num_excluded = 0 if self.excluded is None else self.excluded.sum()
        self.num_queries = rows_per_rank((self.relevance > 0).any(1).sum())
        world_size, rank = (dist.get_world_size(), dist.get_rank()) if is_distributed() else (1, 0)
        self.own_labels = torch.arange(rank, len(candidate_ids), world_size, device=candidate_ids.device)

    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Relevance and exclusion of this rank's labels against all queries (C_rank, W B), and the labels' divisor."""
        everyone, present = self.targets.of_all_ranks()
        relevance = everyone.relevance(self.candidate_ids)[:, self.own_labels].T  # (C_rank, W B)
        excluded = everyone.excluded(self.candidate_ids)
        # Pads of shorter ranks are no queries.
        nobody = (~present).expand(len(self.own_labels), -1)
        excluded = nobody if excluded is None else excluded[:, self.own_labels].T | nobody
        return relevance, excluded, rows_per_rank((relevance > 0).any(1).sum())
