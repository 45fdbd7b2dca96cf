"""Slow twin of losses/label_terms.py: loops over the labels of a pool."""

from __future__ import annotations

import torch
from torch import Tensor


def slow_label_terms(
    ids: list[int],
    texts: list[str],
    vectors: Tensor,
    heads: Tensor,
    rows: Tensor,
    targets: list[list[float]],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Decoupled softmax of labels against labels, and of labels against rows; a scalar each.

    Args:
        ids: Label ids of the pool.
        texts: Their texts.
        vectors: (C, De) of unit length.
        heads, rows: (C, Dc).
        targets: (L, L) soft targets, rows are queries.
        scale: Inverse temperature.
    """
    between, against_rows = [], []
    for a, j in enumerate(ids):
        positives, negatives = [], []
        for b, i in enumerate(ids):
            if texts[a] == texts[b]:
                continue  # also b = a: a cosine that nothing can change
            score = scale * torch.dot(vectors[a], vectors[b])
            if targets[j][i] > 0:
                positives.append((targets[j][i], score))
            else:
                negatives.append(score)
        if positives:
            between.append(_decoupled(positives, negatives))
        positives, negatives = [], []
        for b, i in enumerate(ids):
            score = scale * torch.dot(heads[a], rows[b])
            target = 1.0 if i == j else targets[j][i]
            if target > 0:
                positives.append((target, score))
            elif texts[a] != texts[b]:
                negatives.append(score)
        against_rows.append(_decoupled(positives, negatives))
    none = vectors.sum() * 0
    return sum(between, none) / max(1, len(between)), sum(against_rows, none) / max(1, len(against_rows))


def slow_mixed_targets(
    counts: list[list[float]], neighbors: list[dict[int, float]], share: float
) -> list[list[float]]:
    """(1 - share) counts + share cosine, 1 on the diagonal; neighbors: of each label, id -> cosine."""
    num_labels = len(counts)
    return [
        [1.0 if i == j else (1 - share) * counts[j][i] + share * neighbors[j].get(i, 0.0) for i in range(num_labels)]
        for j in range(num_labels)
    ]


def _decoupled(positives: list[tuple[float, Tensor]], negatives: list[Tensor]) -> Tensor:
    total = sum(weight for weight, _ in positives)
    loss = torch.zeros((), dtype=torch.float64)
    for weight, score in positives:
        odds = sum((torch.exp(n - score) for n in negatives), torch.zeros((), dtype=torch.float64))
        loss = loss + weight / total * torch.log1p(odds)
    return loss
