"""The common part of every loss over the candidate pool of a batch, which all ranks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_xmc.distributed import gather_pool, rows_per_rank
from hf_xmc.encoders.packing import embed
from hf_xmc.losses.pool.targets import PoolTargets


def uses_pool(loss: nn.Module | None) -> bool:
    """Whether batches for a loss need a pool of candidates, drawn by the collator.

    A loss that has the label texts itself, as those over all labels do, declares it with a class attribute
    ``uses_pool = False`` and is given queries and their labels' ids alone. Any other gets a pool. A loss that wraps
    another, as ``loss``, needs what that one needs.
    """
    inner = getattr(loss, "loss", None)
    return getattr(loss, "uses_pool", uses_pool(inner) if isinstance(inner, nn.Module) else True)


class PoolLoss(nn.Module, ABC):
    """A loss between B queries and the C candidates of all ranks; subclasses say what becomes of the scores.

    Args:
        model: A ``SentenceTransformer``, plain or an :class:`~hf_xmc.XMCEncoder`.
        scale: Inverse temperature; scores are ``scale * cosine``.
    """

    def __init__(self, model: nn.Module, scale: float = 20.0) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"scale (the inverse temperature) must be positive, got {scale}")
        self.model = model
        self.scale = scale

    @abstractmethod
    def score_loss(self, scores: Tensor, relevance: Tensor, excluded: Tensor | None, num_rows: Tensor) -> Tensor:
        """Scalar loss; scores, relevance, excluded: (B, C); num_rows: the divisor of the sum over rows."""

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss () of a batch; ``labels`` (B, P) int64 are ids, padded with -1, None for plain text columns."""
        features = list(sentence_features)
        targets = PoolTargets.from_features(features, labels)
        # Queries first: DDP judges by the last forward which parameters a step uses.
        queries, *candidates = [embed(self.model, feature)["sentence_embedding"] for feature in features]
        return self.pool_loss(queries, torch.cat(candidates), targets)

    def pool_loss(self, queries: Tensor, candidates: Tensor, targets: PoolTargets) -> Tensor:
        """The loss () between queries (B, D) and candidates (C_rank, D) of this rank, of any length."""
        queries, candidates = F.normalize(queries, dim=-1), F.normalize(candidates, dim=-1)
        candidates, candidate_ids = gather_pool(candidates, targets.candidate_ids)
        relevance = targets.relevance(candidate_ids)  # (B, C)
        num_rows = rows_per_rank((relevance > 0).any(1).sum())
        scores = self.scale * queries @ candidates.T  # (B, C)
        excluded = targets.excluded(candidate_ids)
        return self.score_loss(*self.more_negatives(queries, targets, scores, relevance, excluded), num_rows)

    def more_negatives(
        self, queries: Tensor, targets: PoolTargets, scores: Tensor, relevance: Tensor, excluded: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Place for columns beside the labels of the pool; queries: (B, D) of unit length, the others (B, C)."""
        return scores, relevance, excluded

    def get_config_dict(self) -> dict[str, Any]:
        """The settings that a model card shows."""
        return {"scale": self.scale}
