"""Decoupled softmax over the in-batch pool."""

from __future__ import annotations

from torch import Tensor

from hf_xmc.losses.functional import decoupled_softmax
from hf_xmc.losses.pool.base import PoolLoss


class DecoupledSoftmaxLoss(PoolLoss):
    """The mean over positives of ``softplus(logsumexp_{j in N_i} s_ij - s_ip)``, N_i the pool without i's positives.

    Every known positive of a row leaves its denominator, sampled or not, and so does every pair of the filter file;
    with one positive per row this is cross-entropy. The pool is shared by all ranks.

    Args:
        model: A ``SentenceTransformer``, plain or an :class:`~hf_xmc.XMCEncoder`.
        scale: Inverse temperature; scores are ``scale * cosine``.

    References:
        Gupta et al., Dual-Encoders for Extreme Multi-Label Classification, ICLR 2024, https://arxiv.org/abs/2310.10636

    Inputs:
        +-------------------------------------------------+--------+
        | Texts                                           | Labels |
        +=================================================+========+
        | batches of an XMCDataCollator                   | ids    |
        +-------------------------------------------------+--------+
        | (anchor, positive[, negative, ...]) text columns| none   |
        +-------------------------------------------------+--------+

    Example::

        trainer = XMCTrainer(model=model, train_dataset=data, loss=DecoupledSoftmaxLoss(model))
    """

    def score_loss(self, scores: Tensor, relevance: Tensor, excluded: Tensor | None, num_rows: Tensor) -> Tensor:
        """:func:`~hf_xmc.losses.functional.decoupled_softmax` of the scores."""
        return decoupled_softmax(scores, relevance, excluded, num_rows=num_rows)

    @property
    def citation(self) -> str:
        """BibTeX of the paper."""
        return """
@inproceedings{gupta2024dexml,
    title = "Dual-Encoders for Extreme Multi-Label Classification",
    author = "Nilesh Gupta and Devvrit Khatri and Ankit S. Rawat and
              Srinadh Bhojanapalli and Prateek Jain and Inderjit Dhillon",
    booktitle = "International Conference on Learning Representations",
    year = "2024",
    url = "https://arxiv.org/abs/2310.10636",
}
"""
