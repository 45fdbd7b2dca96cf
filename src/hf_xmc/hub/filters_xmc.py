"""Label ids, and pairs of a query and a label that no ranking may hold: checked, and dropped by structure.

With numpy alone. This file travels inside every published repo.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

MISSING_ID, MISSING_SCORE = -1, -np.inf
NO_PAIRS = np.zeros((0, 2), dtype=np.int64)


def missing(num_rows: int, num_places: int, dtype: type[np.floating] = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores (num_rows, num_places) of nothing."""
    shape = (num_rows, num_places)
    return np.full(shape, MISSING_ID, dtype=np.int64), np.full(shape, MISSING_SCORE, dtype=dtype)


def checked_ids(ids: Iterable[int]) -> np.ndarray:
    """Label ids as (n,) int64: from a list, an iterator, an array or a column of integers.

    Raises:
        ValueError: For anything else, such as label texts, a mask or fractions.
    """
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise ValueError(f"label ids must be integers, got {type(ids).__name__} {ids!r:.80}")
    try:
        is_array = isinstance(ids, np.ndarray) and (ids.dtype != object or not ids.ndim)
        array = np.asarray(ids if is_array else as_list(ids))
    except ValueError as error:  # lists of different lengths
        raise ValueError(f"label ids must be integers, one for each label, got nested lists ({error})") from error
    if np.ma.is_masked(ids):
        raise ValueError("label ids must be integers, got an array with gaps; give ids.compressed()")
    if array.dtype.kind == "b":
        raise ValueError(f"label ids must be integers, got a mask of {array.size} bools; give np.flatnonzero(mask)")
    if array.size and (array.ndim != 1 or array.dtype.kind not in "iu"):
        shape = f" of shape {array.shape}" if array.ndim != 1 else ""
        raise ValueError(f"label ids must be integers, got {array.dtype}{shape}")
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"label ids must lie below 2^63, got {array.max()}")
    return array.astype(np.int64).reshape(-1)


def checked_pairs(pairs: Any, num_rows: int, num_labels: int, where: str = "pairs") -> np.ndarray:
    """Pairs as (n, 2) int64 of a row below ``num_rows`` and a label id below ``num_labels``.

    Raises:
        ValueError: For anything else, with ``where`` as the name of what came.
    """
    if np.ma.is_masked(pairs):
        raise ValueError(f"{where} have gaps; expected integers (n, 2): row, label id")
    pairs = np.asarray(pairs)
    if pairs.size == 0 and pairs.ndim:
        return NO_PAIRS
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(f"{where} are {pairs.dtype} {pairs.shape}; expected integers (n, 2): row, label id")
    outside = np.flatnonzero((pairs < 0).any(1) | (pairs >= (num_rows, num_labels)).any(1))
    if len(outside):
        row, label = pairs[outside[0]]
        raise ValueError(
            f"{where}, pair {outside[0]}: (row {row}, label id {label}) is out of range; there are {num_rows} rows "
            f"and {num_labels} labels. Are these the filter pairs of another split?"
        )
    return pairs.astype(np.int64, copy=False)


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


def checked_filters(filters: Any, num_rows: int, num_labels: int) -> np.ndarray:
    """What a caller filters, as :func:`checked_pairs`; none for None."""
    return NO_PAIRS if filters is None else checked_pairs(filters, num_rows, num_labels, "filters")


def pairs_within(pairs: np.ndarray | None, rows: slice) -> np.ndarray:
    """The pairs (n, 2) of some rows, counted from the first of them; none for None."""
    if pairs is None or not len(pairs):
        return NO_PAIRS
    return pairs[(pairs[:, 0] >= rows.start) & (pairs[:, 0] < rows.stop)] - [[rows.start, 0]]


def runs_of(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """``starts[0], ..., starts[0] + sizes[0] - 1, starts[1], ...``: where some rows of a CSR matrix lie, (sum,)."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + sizes, sizes)


def best_of_each(query: np.ndarray, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``count`` entries of the largest score of each query, equal ones in the order given.

    Args:
        query: (n,) integers, ascending.
        scores: (n,) floats.
        count: At least 1.

    Returns:
        The entries' places in ``query``, their queries, and the place 0 .. count - 1 that each has there, (m,) each.
    """
    order = np.lexsort((-scores, query))  # stable
    query = query[order]
    column = np.arange(len(query)) - np.searchsorted(query, query)
    kept = column < count
    return order[kept], query[kept], column[kept]


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


def as_list(values: Iterable[Any]) -> list[Any]:
    """Python objects, also of Arrow arrays, whose entries are scalars of their own."""
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)


def is_integer(value: Any) -> bool:
    """Whether it is a whole number, of Python or numpy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
