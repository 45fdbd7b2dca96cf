"""
Slow loops, the truth for hf_xmc.metrics: one row, one rank, one label at a time, straight from the definitions.

The tests compare every fast path with these, and benchmarks/metrics.py uses them as its baseline.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence


def inverse_propensities(train: Sequence[set[int]], num_labels: int, a: float, b: float) -> list[float]:
    """q_l = 1 + (ln N - 1) (b + 1)^a (n_l + b)^(-a)."""
    scale = (math.log(len(train)) - 1) * (b + 1) ** a
    return [1 + scale * (sum(label in row for row in train) + b) ** -a for label in range(num_labels)]


def rank(scores: Mapping[int, float], k: int, dropped: Iterable[int] = ()) -> list[int]:
    """The k best labels of one row: score descending, then label id ascending, without the dropped ones."""
    kept = [label for label in scores if label not in set(dropped)]
    return sorted(kept, key=lambda label: (-scores[label], label))[:k]


def discount(place: int) -> float:
    """1 / log2(place + 1), for places from 1."""
    return 1 / math.log2(place + 1)


def row_ratios(ranking: Sequence[int], truth: set[int], k: int, q: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Numerator and denominator of one row for each metric that is a ratio of sums over rows; -1 is a pad."""
    ideal = sum(discount(place) for place in range(1, min(k, len(truth)) + 1)) if truth else 1.0
    hits, dcg, gain, weighted_dcg = 0, 0.0, 0.0, 0.0
    for place, label in enumerate(ranking[:k], start=1):
        if label in truth:
            hits += 1
            dcg += discount(place)
            gain += q[label]
            weighted_dcg += q[label] * discount(place)
    best = sorted((q[label] for label in truth), reverse=True)[:k]
    return {
        "precision": (hits / k, 1.0),
        "ndcg": (dcg / ideal, 1.0),
        "recall": (hits / len(truth) if truth else 0.0, 1.0),
        "psp": (gain, sum(best)),
        "psndcg": (
            weighted_dcg / ideal,
            sum(value * discount(place) for place, value in enumerate(best, start=1)) / ideal,
        ),
    }


def coverage(rankings: Sequence[Sequence[int]], truth: Sequence[set[int]], k: int) -> float:
    """Share of the labels in some row's truth that are hit in the top k of some row."""
    found = {label for ranking, row in zip(rankings, truth, strict=True) for label in ranking[:k] if label in row}
    return len(found) / len(set().union(*truth))


def macro_f1(
    rankings: Sequence[Sequence[int]], truth: Sequence[set[int]], k: int, num_labels: int, skip_absent: bool = False
) -> float:
    """Mean F1 of the labels, 0/0 is 0; over all labels, or over those with a positive only."""
    total = 0.0
    for label in range(num_labels):
        predicted = [label in ranking[:k] for ranking in rankings]
        wanted = [label in row for row in truth]
        true_positives = sum(p and w for p, w in zip(predicted, wanted, strict=True))
        if true_positives:
            total += 2 * true_positives / (sum(predicted) + sum(wanted))
    return total / (len(set().union(*truth)) if skip_absent else num_labels)


def metrics(
    rankings: Sequence[Sequence[int]],
    truth: Sequence[set[int]],
    cutoffs: Iterable[int],
    q: Sequence[float],
    skip_empty: bool = False,
    skip_absent: bool = False,
) -> dict[str, float]:
    """Every metric at every cut-off, with the keys of hf_xmc.metrics.functional.xmc_metrics."""
    values: dict[str, float] = {}
    for k in cutoffs:
        rows = [row_ratios(ranking, row, k, q) for ranking, row in zip(rankings, truth, strict=True)]
        for name in rows[0]:
            values[f"{name}@{k}"] = sum(row[name][0] for row in rows) / sum(row[name][1] for row in rows)
        if skip_empty:
            values[f"recall@{k}"] *= len(truth) / sum(bool(row) for row in truth)
        values[f"coverage@{k}"] = coverage(rankings, truth, k)
        values[f"macro_f1@{k}"] = macro_f1(rankings, truth, k, len(q), skip_absent)
    return values
