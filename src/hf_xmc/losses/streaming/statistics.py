"""The statistics of a row that the blockwise losses stand on, each over all labels of all ranks.

Axes: R rows of one chunk, K columns of one k each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_xmc.losses.functional import solve_threshold
from hf_xmc.losses.streaming.chunks import Chunk, Derivative, Shape
from hf_xmc.losses.streaming.top_scores import TopScores


class LogSumExp:
    """a_i = lse_j S_ij over all ranks, and da_i/dS_ij = exp(S_ij - a_i)."""

    def observe(self, chunk: Chunk) -> tuple[Tensor]:
        """The log-sum-exp a (R,)."""
        return (_over_ranks(chunk, *chunk.log_sum_exp()),)

    def derivative(self, observed: tuple[Tensor, ...], grad: Tensor) -> Derivative:
        """As the head of this class says, times ``grad``."""
        (own,) = observed
        # A row without visible labels has S = a = -inf; with a = 0 its derivative is exp(-inf) = 0.
        return Derivative(Shape.EXP, 1.0, -own.masked_fill(own == -torch.inf, 0)[:, None], grad[:, None])


class SoftplusSum:
    """b_i = sum_j softplus(S_ij) over all ranks, and db_i/dS_ij = sigma(S_ij)."""

    def observe(self, chunk: Chunk) -> tuple[Tensor]:
        """The sum b (R,)."""
        total = chunk.new_full(0)  # (R,)
        for scores, _ in chunk.sweep():
            total -= F.logsigmoid(-scores).sum(dim=1)
        return (chunk.batch.sum(total),)

    def derivative(self, observed: tuple[Tensor, ...], grad: Tensor) -> Derivative:
        """As the head of this class says, times ``grad``."""
        return Derivative(Shape.SIGMOID, 1.0, torch.zeros_like(grad)[:, None], grad[:, None])


@dataclass(frozen=True)
class Threshold:
    """t_i with sum_j sigma(alpha (S_ij + t_i)) = k_i for every column of k (A, K), the sum over all ranks.

    dt_i/dS_ij = -v_ij / sum_j v_ij, v = sigma (1 - sigma).
    """

    k: Tensor
    alpha: float

    def observe(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """The thresholds t and sum_j v_ij, each (R, K)."""
        k = self.k[chunk.rows]  # (R, K)
        # Below the m-th best score sigma <= k/m: with m = 12 k the three power sums are good to (1/11)^3.
        summary = chunk.top_scores(max(32, int(12 * k.max())), self.alpha)
        log_sum = _over_ranks(chunk, *(chunk.log_sum_exp(self.alpha) if summary is None else summary.log_sum()))
        found = [self._solve(chunk, summary, log_sum, num_top) for num_top in k.unbind(dim=1)]
        thresholds, slopes = zip(*found, strict=True)
        return torch.stack(thresholds, dim=1), torch.stack(slopes, dim=1) / self.alpha

    def derivative(self, observed: tuple[Tensor, ...], grad: Tensor) -> Derivative:
        """As the head of this class says, times ``grad``."""
        threshold, slope = observed
        # On a plateau v and its sum underflow together: 0 / 0 becomes 0.
        factor = -grad / slope.clamp_min(torch.finfo(slope.dtype).tiny)  # (R, K)
        return Derivative(Shape.BELL, self.alpha, self.alpha * threshold, factor)

    def _solve(self, chunk: Chunk, summary: TopScores | None, log_sum: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        def over_ranks(total: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
            both = chunk.batch.sum(torch.stack([total, slope]))
            return both[0], both[1]

        def by_sweep(threshold: Tensor) -> tuple[Tensor, Tensor]:
            return over_ranks(*chunk.sigmoid_sums(threshold, self.alpha))

        lower = (k.log() - log_sum) / self.alpha  # below the root, as sigma(u) < exp(u)
        upper = torch.full_like(lower, torch.inf)
        if summary is None:
            return solve_threshold(by_sweep, lower, lower, upper, k)
        threshold, slope = solve_threshold(lambda t: over_ranks(*summary.sums(t)), lower, lower, upper, k)
        tolerance = 2e-6 if k.dtype == torch.float32 else 1e-12
        # Where the summary's series is cut too early for this row, its root is a start for sweeps over the scores.
        if bool((chunk.batch.sum(summary.error(threshold)) > tolerance * k).any()):
            threshold, slope = solve_threshold(by_sweep, threshold, lower, upper, k)
        return threshold, slope


def _over_ranks(chunk: Chunk, largest: Tensor, total: Tensor) -> Tensor:
    """The log-sum-exp (R,) of all ranks from the largest value and the scaled sum of each."""
    overall = chunk.batch.max(largest)  # (R,)
    return overall + chunk.batch.sum(total * (largest - overall).exp()).log()
