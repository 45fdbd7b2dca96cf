"""InfoNCE over the in-batch pool, the mean form that SupCon uses."""

from __future__ import annotations

from torch import Tensor

from hf_xmc.losses.functional import info_nce
from hf_xmc.losses.pool.base import PoolLoss


class InfoNCELoss(PoolLoss):
    """The mean over positives of ``logsumexp_j s_ij - s_ip``, the positives in the denominator too.

    With one positive per row this is cross-entropy and equals :class:`~hf_xmc.losses.DecoupledSoftmaxLoss`; with more,
    each positive pushes the others down.

    Args:
        model: A ``SentenceTransformer``, plain or an :class:`~hf_xmc.XMCEncoder`.
        scale: Inverse temperature; scores are ``scale * cosine``.

    References:
        van den Oord et al., 2018, https://arxiv.org/abs/1807.03748; Khosla et al., Supervised Contrastive Learning,
        NeurIPS 2020, https://arxiv.org/abs/2004.11362

    Inputs: as :class:`~hf_xmc.losses.DecoupledSoftmaxLoss`.
    """

    def score_loss(self, scores: Tensor, relevance: Tensor, excluded: Tensor | None, num_rows: Tensor) -> Tensor:
        """:func:`~hf_xmc.losses.functional.info_nce` of the scores."""
        return info_nce(scores, relevance, excluded, num_rows=num_rows)
