"""Soft top-k over the in-batch pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_xmc.losses.functional import as_sequence, soft_top_k
from hf_xmc.losses.pool.base import PoolLoss
from hf_xmc.losses.pool.decoupled_softmax import DecoupledSoftmaxLoss


class SoftTopKLoss(PoolLoss):
    """The mean over positives of ``-log sigmoid(alpha (s_ip + t_i))``, t_i such that a row's probabilities sum to k.

    Lifts the positives into the first k places without asking for an order among them. See
    :func:`hf_xmc.losses.functional.soft_top_k`.

    Args:
        model: A ``SentenceTransformer``, plain or an :class:`~hf_xmc.XMCEncoder`.
        k: Places, or several (the mean of their losses). A row with no more candidates than places has all of them
            among the best, and a loss of 0.
        alpha: Steepness.
        scale: Inverse temperature; scores are ``scale * cosine``.

    References:
        Gupta et al., Dual-Encoders for Extreme Multi-Label Classification, ICLR 2024, https://arxiv.org/abs/2310.10636

    Inputs: as :class:`~hf_xmc.losses.DecoupledSoftmaxLoss`.
    """

    def __init__(self, model: nn.Module, k: int | Sequence[int] = 5, alpha: float = 2.0, scale: float = 20.0) -> None:
        super().__init__(model, scale)
        self.k = k
        self.alpha = alpha

    def score_loss(self, scores: Tensor, relevance: Tensor, excluded: Tensor | None, num_rows: Tensor) -> Tensor:
        """:func:`~hf_xmc.losses.functional.soft_top_k` of the scores."""
        num_candidates = scores.shape[1] if excluded is None else (~excluded).sum(1, keepdim=True)  # (B, 1)
        parts = [
            soft_top_k(scores, relevance * (num_candidates > k), k, self.alpha, excluded, num_rows=num_rows)
            for k in as_sequence(self.k)
        ]
        return torch.stack(parts).mean()

    def get_config_dict(self) -> dict[str, Any]:
        """The settings that a model card shows."""
        return super().get_config_dict() | {"k": self.k, "alpha": self.alpha}

    citation = DecoupledSoftmaxLoss.citation
