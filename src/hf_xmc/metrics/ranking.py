"""Rankings, with filter pairs removed by structure: what is dropped leaves no trace, not even a low score."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from hf_xmc.hub import filters_xmc
from hf_xmc.hub.filters_xmc import contains
from hf_xmc.metrics.inputs import (
    MAX_CUTOFF,
    IntArray,
    Truth,
    as_array,
    as_count,
    as_ids,
    as_pairs,
    as_scores,
    as_truth,
    chunks,
)


def top_k(scores: sp.csr_array | sp.csr_matrix, k: int, drop: Any = None) -> IntArray:
    """The ``k`` best labels of each row: by score descending, then label id ascending.

    Stored entries are the predictions, also those that are 0 or negative; an entry that is not stored is none.

    Args:
        scores: SciPy sparse (N, L), higher is better. Duplicate entries are summed, as scipy does.
        k: How many to keep, at least 1.
        drop: (n, 2) filter pairs of (row, label id), removed before ranking, or None.

    Returns:
        (N, k) int64, padded with -1.

    Raises:
        ValueError: If k < 1, scores are NaN, or pairs lie outside of the matrix.
    """
    width = as_count("k", k, most=MAX_CUTOFF)
    scores = as_scores(scores)
    ids = np.full((scores.shape[0], width), -1, dtype=np.int64)
    dropped = None if drop is None else _pair_keys(as_pairs(drop, scores.shape[0]), scores.shape[1])
    for rows in chunks(scores.shape[0]):
        entries = slice(scores.indptr[rows.start], scores.indptr[rows.stop])
        row = np.repeat(np.arange(rows.start, rows.stop), np.diff(scores.indptr[rows.start : rows.stop + 1]))
        label, value = scores.indices[entries].astype(np.int64), scores.data[entries]
        if dropped is not None:
            kept = ~contains(dropped, row * (scores.shape[1] + 1) + label)
            row, label, value = row[kept], label[kept], value[kept]
        order = np.lexsort((-value, row))  # stable: ties keep the ascending label ids of the CSR
        row, label = row[order], label[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        ids[row[rank < width], rank[rank < width]] = label[rank < width]
    return ids


def drop_pairs(ids: Any, scores: Any, pairs: Any) -> tuple[IntArray, NDArray[Any]]:
    """Remove filter pairs from a ranking; what follows moves up, the end is padded with id -1 and score -inf.

    Args:
        ids: (N, K) integers, -1 is a pad.
        scores: (N, K) floats.
        pairs: (n, 2) of (row, label id); pairs that are not predicted change nothing.

    Returns:
        New arrays (N, K) int64 and (N, K) of the dtype of ``scores``.

    Raises:
        ValueError: If ids and scores have different shapes, or pairs name other rows.
    """
    ids, scores = as_ids(ids), as_array(scores)
    if ids.shape != scores.shape or scores.dtype.kind != "f":
        raise ValueError(f"scores are {scores.dtype} {scores.shape}; expected floats {ids.shape}, one for each id")
    pairs = as_pairs(pairs, len(ids))
    return filters_xmc.drop_pairs(ids, scores, pairs)


def filter_truth(truth: Truth, pairs: Any, *, num_labels: int | None = None) -> sp.csr_array:
    """Truth (N, L) as bool CSR without filter pairs (n, 2) of (row, label id). No metric does this by itself."""
    matrix = as_truth(truth, num_labels).copy()
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    keys = _pair_keys(as_pairs(pairs, matrix.shape[0]), matrix.shape[1])
    matrix.data = ~contains(keys, row * (matrix.shape[1] + 1) + matrix.indices)
    matrix.eliminate_zeros()
    return matrix


def _pair_keys(pairs: IntArray, num_labels: int) -> IntArray:
    """Pairs (n, 2) -> sorted keys (n,), row * (num_labels + 1) + label; the spare column keeps a pad (-1) apart."""
    inside = pairs[pairs[:, 1] < num_labels]
    return np.sort(inside[:, 0] * (num_labels + 1) + inside[:, 1])
