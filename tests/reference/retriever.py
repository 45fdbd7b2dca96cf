"""The slow twins of a retriever's answers and of the measures of calibration: loops over labels and bins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def slow_predict(
    scores: np.ndarray, top_k: int, candidates: Sequence[int] | None = None, threshold: float = -np.inf
) -> list[tuple[int, float]]:
    """(id, score) of the best labels of one query, scores (L,), one label at a time."""
    found: list[tuple[int, float]] = []
    for label, score in enumerate(scores.tolist()):
        if candidates is not None and label not in candidates:
            continue
        if score >= threshold:
            found.append((label, score))
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:top_k]


def slow_calibration_error(probabilities: Sequence[float], right: Sequence[bool], num_bins: int) -> float:
    """Sort, deal out into bins as equal as can be, larger ones first, and add up the gaps."""
    pairs = sorted(zip(probabilities, right, strict=True), key=lambda pair: pair[0])
    error, start = 0.0, 0
    for number in range(num_bins):
        size = len(pairs) // num_bins + (number < len(pairs) % num_bins)
        part = pairs[start : start + size]
        start += size
        if part:
            error += abs(sum(p for p, _ in part) - sum(hit for _, hit in part)) / len(pairs)
    return error
