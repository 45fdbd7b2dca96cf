"""Slow twins: every value the library computes, once more, as loops that a student can check with pen and paper.

The losses take and return float64 tensors, so that autograd differentiates the loops too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def slow_decoupled_softmax(scores: Tensor, relevance: Tensor, excluded: Tensor | None = None) -> Tensor:
    """mean_i sum_p w_ip log(1 + sum_{j in N_i} exp(S_ij - S_ip))."""

    def row_loss(row: Tensor, targets: dict[int, float], negatives: list[int]) -> Tensor:
        total = row.sum() * 0
        for p, y in targets.items():
            odds = row.sum() * 0
            for j in negatives:
                odds = odds + torch.exp(row[j] - row[p])
            total = total + y / sum(targets.values()) * torch.log1p(odds)
        return total

    return _mean_over_rows(row_loss, scores, relevance, excluded)


def slow_info_nce(scores: Tensor, relevance: Tensor, excluded: Tensor | None = None) -> Tensor:
    """mean_i sum_p w_ip log(sum_j exp(S_ij - S_ip)), positives among the j."""

    def row_loss(row: Tensor, targets: dict[int, float], negatives: list[int]) -> Tensor:
        return _cross_entropies(row, targets, negatives) / sum(targets.values())

    return _mean_over_rows(row_loss, scores, relevance, excluded)


def slow_info_nce_sum(scores: Tensor, relevance: Tensor, excluded: Tensor | None = None) -> Tensor:
    """mean_i sum_p y_ip log(sum_j exp(S_ij - S_ip)), positives among the j."""
    return _mean_over_rows(_cross_entropies, scores, relevance, excluded)


def slow_binary_cross_entropy(scores: Tensor, relevance: Tensor, excluded: Tensor | None = None) -> Tensor:
    """The mean over entries that are not excluded of -y log sigma(S) - (1 - y) log sigma(-S)."""
    total, count = scores.sum() * 0, 0
    for i in range(len(scores)):
        for j in range(scores.shape[1]):
            if excluded is None or not excluded[i, j]:
                y = float(relevance[i, j])
                total = total + y * torch.log1p(torch.exp(-scores[i, j]))
                total = total + (1 - y) * torch.log1p(torch.exp(scores[i, j]))
                count += 1
    return total / max(1, count)


def slow_soft_top_k(
    scores: Tensor, relevance: Tensor, k: float, alpha: float = 2.0, excluded: Tensor | None = None
) -> Tensor:
    """mean_i sum_p w_ip (-log sigma(alpha (S_ip + t_i))), t_i by 200 bisections."""

    def row_loss(row: Tensor, targets: dict[int, float], negatives: list[int]) -> Tensor:
        visible = sorted([*targets, *negatives])
        threshold = slow_threshold([row[j].item() for j in visible], k, alpha)
        # One Newton step from the root stays there and carries dt/dS = -v_j / sum v (implicit differentiation).
        excess, slope = row.sum() * 0 - k, 0.0
        for j in visible:
            probability = torch.sigmoid(alpha * (row[j] + threshold))
            excess = excess + probability
            slope += alpha * (probability * (1 - probability)).item()
        threshold = threshold - excess / slope
        total = row.sum() * 0
        for p, y in targets.items():
            total = total + y / sum(targets.values()) * torch.log1p(torch.exp(-alpha * (row[p] + threshold)))
        return total

    return _mean_over_rows(row_loss, scores, relevance, excluded)


def slow_threshold(scores: list[float], k: float, alpha: float) -> float:
    """t with sum_j sigma(alpha (S_j + t)) = k."""
    values = torch.tensor(scores, dtype=torch.float64)
    lower, upper = -max(scores) - 100 / alpha, -min(scores) + 100 / alpha
    for _ in range(200):
        middle = (lower + upper) / 2
        if float(torch.sigmoid(alpha * (values + middle)).sum()) < k:
            lower = middle
        else:
            upper = middle
    return (lower + upper) / 2


def finite_differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of a scalar function, one entry at a time, by central differences."""
    gradient = torch.zeros_like(at)
    for place in range(at.numel()):
        shift = torch.zeros_like(at)
        shift.view(-1)[place] = step
        gradient.view(-1)[place] = (function(at + shift) - function(at - shift)) / (2 * step)
    return gradient


def _cross_entropies(row: Tensor, targets: dict[int, float], negatives: list[int]) -> Tensor:
    total = row.sum() * 0
    for p, y in targets.items():
        odds = row.sum() * 0
        for j in [*targets, *negatives]:
            odds = odds + torch.exp(row[j] - row[p])
        total = total + y * torch.log(odds)
    return total


def _mean_over_rows(
    row_loss: Callable[[Tensor, dict[int, float], list[int]], Tensor],
    scores: Tensor,
    relevance: Tensor,
    excluded: Tensor | None,
) -> Tensor:
    total, count = scores.sum() * 0, 0
    for i in range(len(scores)):
        visible = [j for j in range(scores.shape[1]) if excluded is None or not excluded[i, j]]
        targets = {j: float(relevance[i, j]) for j in visible if relevance[i, j] > 0}
        if targets:
            total = total + row_loss(scores[i], targets, [j for j in visible if j not in targets])
            count += 1
    return total / max(1, count)


def slow_label_rows(rows: list[list[int]], num_labels: int, delta: float, prior: float = 0.0) -> list[list[float]]:
    """Line j: G_ij / (n_j + prior) where above delta, G the rows with both labels; 1 on the diagonal."""

    def target(j: int, i: int) -> float:
        together = sum(1 for row in rows if i in row and j in row)
        if i == j:
            return 1.0
        share = together / (sum(1 for row in rows if j in row) + prior) if together else 0.0
        return share if share > delta else 0.0

    return [[target(j, i) for i in range(num_labels)] for j in range(num_labels)]


def slow_symmetric_label_rows(rows: list[list[int]], num_labels: int, delta: float) -> list[list[float]]:
    """S_ij = (G_ij / n_j + G_ij / n_i) / 2 where above delta; 1 on the diagonal."""
    one_way = slow_label_rows(rows, num_labels, 0.0)
    both = [[(one_way[j][i] + one_way[i][j]) / 2 for i in range(num_labels)] for j in range(num_labels)]
    return [[share if share > delta else 0.0 for share in line] for line in both]
