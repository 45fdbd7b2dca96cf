"""The training loss of RAE-XMC: other queries are negatives too, as they will be keys of the same memory."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from hf_xmc.distributed import PAD, is_distributed, pad_gather
from hf_xmc.losses.pool.decoupled_softmax import DecoupledSoftmaxLoss
from hf_xmc.losses.pool.targets import PoolTargets, membership


class RetrievalAugmentedLoss(DecoupledSoftmaxLoss):
    """Decoupled softmax whose denominator also holds the batch's queries that share no label with the row.

        -log e^{s q.z_p} / (e^{s q.z_p} + sum_{j in N_i} e^{s q.z_j} + sum_{j != i, P_j disjoint from P_i} e^{s q.x_j})

    Where a :class:`~hf_xmc.memory.KnowledgeMemory` puts training rows and labels into one search, rows that vote for
    other labels must be far away as well. The published form samples one positive a row (``positives_per_row=1``) and
    mines hard negatives (``hard_negatives``). Queries and candidates of all ranks are shared.

    Args:
        model: A ``SentenceTransformer``, plain or an :class:`~hf_xmc.XMCEncoder`.
        scale: Inverse temperature; scores are ``scale * cosine``.

    References:
        Retrieval-augmented Encoders for Extreme Multi-label Text Classification, https://arxiv.org/abs/2502.10615

    Inputs: as :class:`~hf_xmc.losses.DecoupledSoftmaxLoss`.
    """

    def more_negatives(
        self, queries: Tensor, targets: PoolTargets, scores: Tensor, relevance: Tensor, excluded: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append the queries of all ranks; those that share a label with the row, itself among them, are excluded."""
        everyone = pad_gather(queries, 0.0, with_grad=True)  # (W B, D)
        of_all, present = targets.of_all_ranks()
        ids = of_all.positive_ids
        known = torch.unique(ids[ids != PAD])
        if known.numel() == 0:  # a batch without labels has no positive to push anything away from
            return scores, relevance, excluded
        shares = membership(targets.positive_ids, known) @ membership(ids, known).T > 0  # (B, W B)
        first = dist.get_rank() * (len(everyone) // dist.get_world_size()) if is_distributed() else 0
        own = torch.arange(len(queries), device=queries.device)
        shares[own, first + own] = True
        nobody = torch.zeros_like(relevance, dtype=torch.bool) if excluded is None else excluded
        return (
            torch.cat([scores, self.scale * queries @ everyone.T], 1),
            torch.cat([relevance, torch.zeros_like(shares, dtype=relevance.dtype)], 1),
            torch.cat([nobody, shares | ~present], 1),
        )

    @property
    def citation(self) -> str:
        """BibTeX of the paper."""
        return """
@misc{raexmc2025,
    title = "Retrieval-augmented Encoders for Extreme Multi-label Text Classification",
    year = "2025",
    url = "https://arxiv.org/abs/2502.10615",
}
"""
