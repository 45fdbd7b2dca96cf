"""Checked arrays from whatever users hand to the metrics: predictions, truth, filter pairs, cut-offs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from hf_xmc.data.pairs import NO_PAIRS

IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]
FloatArray: TypeAlias = NDArray[np.float64]
Truth: TypeAlias = "sp.csr_array | sp.csr_matrix | Sequence[Sequence[int]]"

ROWS_PER_CHUNK = 2048  # the tables of ``contains`` for this many rows fit the second-level cache


def as_cutoffs(k: int | Iterable[int]) -> IntArray:
    """The distinct cut-offs, ascending: (num_cutoffs,) int64.

    Raises:
        ValueError: For none, or one that is no integer of at least 1.
    """
    values = np.atleast_1d(np.asarray(k if np.ndim(k) == 0 else list(k)))  # type: ignore[arg-type]
    if values.size == 0 or values.ndim != 1 or values.dtype.kind not in "iu" or values.min() < 1:
        raise ValueError(f"k is {k!r}; expected one or more integers >= 1, such as k=(1, 3, 5)")
    return np.unique(values).astype(np.int64)


def pad(rows: Sequence[Sequence[int]]) -> IntArray:
    """Ragged rows of label ids -> (N, longest row) int64, padded with -1 at the end."""
    counts, flat = _flatten(rows, "predictions")
    ids = np.full((len(rows), int(counts.max(initial=0))), -1, dtype=np.int64)  # (N, K)
    ids[np.arange(ids.shape[1]) < counts[:, None]] = flat
    return ids


def as_ids(ids: Any) -> IntArray:
    """Predictions (N, K) or ragged rows of label ids -> (N, K) int64.

    Raises:
        ValueError: Unless they are integers in two axes.
    """
    if isinstance(ids, (list, tuple)):
        return pad(ids)
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"ids have shape {ids.shape} and dtype {ids.dtype}; expected integers (N, K), best first, -1 where "
            "nothing was predicted. Turn a CSR matrix of scores into ids with top_k"
        )
    return ids.astype(np.int64, copy=False)


def as_truth(truth: Truth, num_labels: int | None = None) -> sp.csr_array:
    """Truth as a binary CSR array (N, L) bool with sorted, distinct columns; the input is not changed.

    Explicit zeros are dropped first, every other value becomes True, duplicates are merged.

    Args:
        truth: SciPy sparse (N, L), or N lists of label ids (-1 is a pad).
        num_labels: L where ``truth`` is lists; by default the largest label id plus one.

    Raises:
        ValueError: If there are NaN values, ids outside of 0 .. L-1, or no positive at all.
    """
    if sp.issparse(truth):
        matrix = sp.csr_array(truth)
        if num_labels is not None and num_labels != matrix.shape[1]:
            raise ValueError(f"truth has {matrix.shape[1]} columns, num_labels is {num_labels}; leave num_labels out")
        if matrix.dtype.kind == "f" and np.isnan(matrix.data).any():
            raise ValueError("truth has NaN values; expected non-zero for a positive label. Drop the NaN entries")
        stored = matrix.data != 0
        clean = stored.all()
        matrix = sp.csr_array((stored, matrix.indices, matrix.indptr), shape=matrix.shape, copy=not clean)
    elif isinstance(truth, (list, tuple)):
        matrix = _csr_from_lists(truth, num_labels)
        clean = True
    else:
        raise ValueError(
            f"truth is a {type(truth).__name__}; expected a scipy sparse matrix (N, L) or N lists of label ids. "
            "Wrap a dense 0/1 array in scipy.sparse.csr_array"
        )
    if not clean:
        matrix.eliminate_zeros()
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    if matrix.nnz == 0:
        raise ValueError(f"truth {matrix.shape} has no positive label in any row; every metric would be 0 or 0/0")
    return matrix


def as_pairs(pairs: Any, num_rows: int) -> IntArray:
    """Filter pairs (n, 2) int64 of (row, label id).

    Raises:
        ValueError: If they have another shape, or name other rows than those.
    """
    pairs = np.asarray(pairs)
    if pairs.size == 0:
        return NO_PAIRS
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(f"pairs are {pairs.dtype} {pairs.shape}; expected integers (n, 2): row, label id")
    if pairs.min() < 0 or pairs[:, 0].max() >= num_rows:
        raise ValueError(
            f"pairs name rows {pairs[:, 0].min()} .. {pairs[:, 0].max()} and labels from {pairs[:, 1].min()}; "
            f"expected rows 0 .. {num_rows - 1} and labels >= 0. Are these the filter pairs of another split?"
        )
    return pairs.astype(np.int64, copy=False)


def check_ids(ids: IntArray, num_rows: int, num_labels: int) -> None:
    """Refuse predictions (N, K) that do not fit the truth.

    Raises:
        ValueError: Unless there are ``num_rows`` rows of distinct ids in 0 .. num_labels - 1, or pads (-1).
    """
    if len(ids) != num_rows:
        raise ValueError(f"ids have {len(ids)} rows but truth has {num_rows}; both need one row per query")
    if ids.size and (ids.min() < -1 or ids.max() >= num_labels):
        raise ValueError(
            f"ids run from {ids.min()} to {ids.max()}; expected 0 .. {num_labels - 1}, the label ids of truth, "
            "or -1 where nothing was predicted"
        )
    for rows in chunks(len(ids)):
        ranked = np.sort(ids[rows], axis=1)
        repeated = ((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] >= 0)).any(axis=1)
        if repeated.any():
            raise ValueError(
                f"row {rows.start + int(repeated.argmax())} of ids predicts a label twice, which would count its hit "
                "twice; keep the first of each id"
            )


def chunks(num_rows: int) -> Iterator[slice]:
    """Row slices that cover 0 .. num_rows-1; what is computed on one stays in the cache, and memory stays flat."""
    for start in range(0, num_rows, ROWS_PER_CHUNK):
        yield slice(start, min(start + ROWS_PER_CHUNK, num_rows))


def _flatten(rows: Sequence[Sequence[int]], what: str) -> tuple[IntArray, IntArray]:
    """Length of each row (N,) and all ids in one array (n,), both int64."""
    counts = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    filled = [np.asarray(row) for row in rows if len(row)]
    flat = np.concatenate(filled) if filled else np.empty(0, dtype=np.int64)
    if flat.ndim != 1 or flat.dtype.kind not in "iu":
        raise ValueError(f"{what} hold {flat.dtype} values of {flat.ndim} axes; expected a list of label ids per row")
    return counts, flat.astype(np.int64, copy=False)


def _csr_from_lists(rows: Sequence[Sequence[int]], num_labels: int | None) -> sp.csr_array:
    counts, flat = _flatten(rows, "truth lists")
    width = int(flat.max(initial=-1)) + 1 if num_labels is None else num_labels
    if flat.size and (flat.min() < -1 or flat.max() >= width):
        raise ValueError(f"truth lists run from {flat.min()} to {flat.max()}; expected label ids 0 .. {width - 1}")
    row_of = np.repeat(np.arange(len(rows)), counts)
    kept = flat >= 0
    return sp.csr_array((np.ones(kept.sum(), dtype=bool), (row_of[kept], flat[kept])), shape=(len(rows), width))
