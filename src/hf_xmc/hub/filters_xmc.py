"""Pairs of a query and a label that no ranking may hold: dropped by structure, not by a low score. In numpy alone.

This file travels inside every published repo.
"""

from __future__ import annotations

import numpy as np

MISSING_ID, MISSING_SCORE = -1, -np.inf


def most_of_a_row(pairs: np.ndarray | None) -> int:
    """The most pairs (n, 2) that one row has: so much deeper must be searched for places to remain."""
    return int(np.bincount(pairs[:, 0]).max()) if pairs is not None and len(pairs) else 0


def drop_pairs(ids: np.ndarray, scores: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A ranking without some of its labels; what follows moves up, the end is padded with id -1 and score -inf.

    Args:
        ids: (N, K) int64, -1 is a pad.
        scores: (N, K) floats.
        pairs: (n, 2) int64 of (row, id); pairs that are not in the ranking change nothing.

    Returns:
        New arrays (N, K).
    """
    ids, scores = ids.copy(), scores.copy()
    if not len(pairs) or not ids.size:
        return ids, scores
    width = int(max(ids.max(), pairs[:, 1].max())) + 2  # the spare column keeps a pad apart
    rows = np.unique(pairs[:, 0])
    dropped = contains(np.sort(pairs[:, 0] * width + pairs[:, 1]), rows[:, None] * width + ids[rows])
    order = np.argsort(dropped, axis=1, kind="stable")
    gone = np.take_along_axis(dropped, order, axis=1)
    ids[rows] = np.where(gone, MISSING_ID, np.take_along_axis(ids[rows], order, axis=1))
    scores[rows] = np.where(gone, MISSING_SCORE, np.take_along_axis(scores[rows], order, axis=1))
    return ids, scores


def contains(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Which ``queries`` (any shape, int64) occur in ``keys`` (n,) int64, sorted ascending: bool of their shape.

    Equals ``np.isin(queries, keys)``. Most queries are misses, and a hashed bitmap rules out nearly all of them before
    the binary search: half the time of searching for all.
    """
    if not len(keys):
        return np.zeros(queries.shape, dtype=bool)
    shift = np.uint64(64 - max((16 * len(keys)).bit_length(), 6))

    def slots(values: np.ndarray) -> np.ndarray:  # Fibonacci hashing: the top bits of the product
        return ((values.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> shift).view(np.int64)

    occupied = np.zeros(1 << (64 - int(shift)), dtype=bool)
    occupied[slots(keys)] = True
    found = occupied[slots(queries)]
    candidates = queries[found]
    nearest = np.minimum(np.searchsorted(keys, candidates), len(keys) - 1)
    found[found] = keys[nearest] == candidates
    return found
