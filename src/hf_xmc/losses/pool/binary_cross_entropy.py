"""Binary cross-entropy over the in-batch pool."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_xmc.distributed import rows_per_rank
from hf_xmc.losses.functional import binary_cross_entropy
from hf_xmc.losses.pool.base import PoolLoss


class BinaryCrossEntropyLoss(PoolLoss):
    """The mean over all pairs of query and candidate of ``softplus(s_ij) - y_ij s_ij``; a baseline.

    Alone it hardly trains a dual encoder: nothing separates the scores of one row from those of another.

    Args:
        model: A ``SentenceTransformer``, plain or an :class:`~hf_xmc.XMCEncoder`.
        scale: Inverse temperature; scores are ``scale * cosine``.

    Inputs: as :class:`~hf_xmc.losses.DecoupledSoftmaxLoss`.
    """

    def score_loss(self, scores: Tensor, relevance: Tensor, excluded: Tensor | None, num_rows: Tensor) -> Tensor:
        """:func:`~hf_xmc.losses.functional.binary_cross_entropy` of the scores."""
        entries = torch.tensor(scores.numel(), device=scores.device)
        if excluded is not None:
            entries = entries - excluded.sum()
        return binary_cross_entropy(scores, relevance, excluded, num_entries=rows_per_rank(entries))
