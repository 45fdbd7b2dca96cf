"""Checked arrays from whatever users hand to the metrics: predictions, truth, filter pairs, cut-offs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from hf_xmc.hub.filters_xmc import checked_pairs

IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]
FloatArray: TypeAlias = NDArray[np.float64]
Truth: TypeAlias = "sp.csr_array | sp.csr_matrix | Sequence[Sequence[int]]"

ROWS_PER_CHUNK = 2048  # the tables of ``contains`` for this many rows fit the second-level cache
# Arrays with a number for each label, or each place, would take gigabytes beyond these.
MAX_LABELS = 2**25
MAX_CUTOFF = 2**20
_GAINS = 1e-100, 1e100  # sums and quotients of inverse propensities stay inside of float64


def as_array(values: Any) -> NDArray[Any]:
    """As numpy reads it; rows of different lengths, gaps of a mask, or what has no array: an object without axes."""
    if np.ma.is_masked(values):  # numpy would read what stands behind the mask
        return np.asarray(None)
    try:
        return np.asarray(values)
    except (ValueError, TypeError, OverflowError):
        return np.asarray(None)


def as_count(name: str, value: Any, *, least: int = 1, most: int = MAX_LABELS) -> int:
    """A whole number, of Python or numpy.

    Raises:
        ValueError: Unless it is one in [least, most].
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; expected an integer from {least} to {most:,}")
    return int(value)


def as_cutoffs(k: int | Iterable[int]) -> IntArray:
    """The distinct cut-offs, ascending: (num_cutoffs,) int64.

    Raises:
        ValueError: For none, or one that is no integer of at least 1.
    """
    single = isinstance(k, str | bytes | Mapping | np.ndarray) or not isinstance(k, Iterable)
    values = np.atleast_1d(as_array(k if single else list(k)))  # type: ignore[arg-type]
    if values.size == 0 or values.ndim != 1 or values.dtype.kind not in "iu" or values.min() < 1:
        raise ValueError(f"k is {k!r}; expected one or more integers >= 1, such as k=(1, 3, 5)")
    as_count("k", values.max(), most=MAX_CUTOFF)
    return np.unique(values).astype(np.int64)


def as_gains(inverse_propensities: Any) -> FloatArray:
    """Inverse propensities (L,) float64.

    Raises:
        ValueError: Unless they are one number a label, all finite and above 0.
    """
    weights = as_array(inverse_propensities)
    if weights.ndim != 1 or weights.dtype.kind not in "iuf":
        raise ValueError(
            f"inverse_propensities are a {type(inverse_propensities).__name__} of shape {weights.shape}; expected a "
            "number for each label, from inverse_propensities(train_truth, a, b)"
        )
    weights = weights.astype(np.float64)
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError("inverse_propensities hold NaN, infinite, zero or negative values; expected all above 0")
    if len(weights) and not _GAINS[0] <= weights.min() <= weights.max() <= _GAINS[1]:
        raise ValueError(f"inverse_propensities run from {weights.min()} to {weights.max()}; expected {_GAINS}")
    return weights


def pad(rows: Sequence[Sequence[int]]) -> IntArray:
    """Ragged rows of label ids -> (N, longest row) int64, padded with -1 at the end."""
    counts, flat = _flatten(rows, "predictions")
    ids = np.full((len(rows), int(counts.max(initial=0))), -1, dtype=np.int64)  # (N, K)
    ids[np.arange(ids.shape[1]) < counts[:, None]] = flat
    return ids


def as_ids(ids: Any) -> IntArray:
    """Predictions (N, K) or ragged rows of label ids -> (N, K) int64; what is masked was not predicted.

    Raises:
        ValueError: Unless they are integers in two axes.
    """
    rows = _rows(ids)
    if rows is not None:
        return pad(rows)
    array = as_array(ids.filled(-1) if isinstance(ids, np.ma.MaskedArray) and ids.dtype.kind == "i" else ids)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(
            f"ids have shape {array.shape} and dtype {array.dtype}; expected integers (N, K), best first, -1 where "
            "nothing was predicted. Turn a CSR matrix of scores into ids with top_k"
        )
    return _int64(array, "ids")


def as_truth(truth: Any, num_labels: int | None = None) -> sp.csr_array:
    """:func:`read_truth`, with a positive somewhere.

    Raises:
        ValueError: For what is no truth, or one without any positive.
    """
    matrix = read_truth(truth, num_labels)
    if matrix.nnz == 0:
        raise ValueError(
            f"truth {matrix.shape} has no positive label in any row, and every metric would be 0 or 0/0; expected one "
            "row with a label at least"
        )
    return matrix


def read_truth(truth: Any, num_labels: int | None = None) -> sp.csr_array:
    """Truth as a binary CSR array (N, L) bool with sorted, distinct columns; the input is not changed.

    Explicit zeros are dropped first, every value above becomes True, duplicates are merged.

    Args:
        truth: SciPy sparse (N, L), or N lists of label ids (-1 is a pad), also as a column of a data set.
        num_labels: L where ``truth`` is lists; by default the largest label id plus one.

    Raises:
        ValueError: For anything else, such as dense arrays, masks or rows of 0 and 1 for each label; for values that
            are NaN or negative, or ids outside of 0 .. L-1.
    """
    if num_labels is not None:
        as_count("num_labels", num_labels)
    rows = _rows(truth)
    if sp.issparse(truth):
        matrix = _csr_from_sparse(truth, num_labels)
    elif rows is not None:
        matrix = _csr_from_lists(rows, num_labels)
    else:
        raise ValueError(
            f"truth is a {type(truth).__name__}; expected a scipy sparse matrix (N, L) or N lists of label ids. "
            "Wrap a dense 0/1 array in scipy.sparse.csr_array"
        )
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return matrix


def as_scores(scores: Any) -> sp.csr_array:
    """Scores as a CSR array (N, L) of floats with sorted, distinct columns; the input is not changed.

    Raises:
        ValueError: Unless they are a scipy sparse matrix of numbers, none of them NaN.
    """
    if not sp.issparse(scores):
        raise ValueError(f"scores are a {type(scores).__name__}; expected a scipy sparse matrix (N, L)")
    scores = _csr("scores", scores)
    if scores.dtype.kind != "f":
        scores = scores.astype(np.float64)
    if np.isnan(scores.data).any():
        row = np.searchsorted(scores.indptr, np.isnan(scores.data).argmax(), side="right") - 1
        raise ValueError(f"scores have NaN in row {row}; expected numbers. Drop these entries or mend the model")
    if not scores.has_canonical_format:
        scores = scores.copy()
        scores.sum_duplicates()
    return scores


def as_pairs(pairs: Any, num_rows: int) -> IntArray:
    """Filter pairs (n, 2) int64 of (row, label id).

    Raises:
        ValueError: If they have another shape, or name other rows than those.
    """
    return checked_pairs(as_array(pairs), num_rows, MAX_LABELS)


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


def _int64(array: NDArray[Any], what: str) -> IntArray:
    """Integers of any type as int64.

    Raises:
        ValueError: For one that does not fit.
    """
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{what} hold {array.max()}; expected label ids below {MAX_LABELS:,}")
    return array.astype(np.int64, copy=False)


def _rows(values: Any) -> Sequence[Any] | None:
    """Values as a sequence of rows where they are one: a list, a tuple, a column of a data set, frame or table.

    Arrays, matrices, tables, mappings and iterators, which can be read but once, are none: None.
    """
    if isinstance(values, list | tuple):
        return values
    if isinstance(values, np.ndarray | str | bytes | Mapping | Iterator) or sp.issparse(values):
        return None
    if hasattr(values, "to_pylist") and not hasattr(values, "column_names"):  # Arrow's, of one column
        return values.to_pylist()
    if hasattr(values, "columns") or hasattr(values, "column_names"):  # of pandas, of datasets
        return None
    is_series = hasattr(values, "index") and getattr(getattr(values, "dtype", None), "kind", None) == "O"
    return list(values) if is_series or isinstance(values, Sequence) else None


def _flatten(rows: Sequence[Sequence[int]], what: str) -> tuple[IntArray, IntArray]:
    """Length of each row (N,) and all ids in one array (n,), both int64."""
    filled, counts = [], np.zeros(len(rows), dtype=np.int64)
    for place, row in enumerate(rows):
        ids = row.compressed() if isinstance(row, np.ma.MaskedArray) and row.ndim == 1 else as_array(row)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(
                f"{what} hold a {type(row).__name__} in row {place}, {ids.dtype} values of {ids.ndim} axes; expected "
                "a list of label ids per row"
            )
        if ids.size:
            filled.append(_int64(ids, what))
            counts[place] = ids.size
    return counts, np.concatenate(filled) if filled else np.empty(0, dtype=np.int64)


def _csr(what: str, matrix: Any) -> sp.csr_array:
    """Any scipy sparse matrix of numbers as CSR, of two axes and no more labels than memory holds."""
    if matrix.ndim != 2 or matrix.dtype.kind not in "biuf":
        raise ValueError(f"{what} are sparse {matrix.dtype} {matrix.shape}; expected numbers (N, L)")
    as_count(f"the number of columns of {what}", matrix.shape[1], least=0)
    return sp.csr_array(matrix)


def _csr_from_sparse(truth: Any, num_labels: int | None) -> sp.csr_array:
    matrix = _csr("truth", truth)
    if num_labels is not None and num_labels != matrix.shape[1]:
        raise ValueError(f"truth has {matrix.shape[1]} columns, num_labels is {num_labels}; leave num_labels out")
    wrong = ~(matrix.data >= 0)
    if wrong.any():
        place = int(wrong.argmax())
        row = np.searchsorted(matrix.indptr, place, side="right") - 1
        raise ValueError(
            f"truth has {matrix.data[place]} in row {row}; expected values above 0 for its positive labels. Drop the "
            "entries that are NaN or negative"
        )
    stored = matrix.data != 0
    clean = stored.all()
    matrix = sp.csr_array((stored, matrix.indices, matrix.indptr), shape=matrix.shape, copy=not clean)
    if not clean:
        matrix.eliminate_zeros()
    return matrix


def _csr_from_lists(rows: Sequence[Sequence[int]], num_labels: int | None) -> sp.csr_array:
    counts, flat = _flatten(rows, "truth lists")
    width = int(flat.max(initial=-1)) + 1 if num_labels is None else num_labels
    if flat.size and (flat.min() < -1 or flat.max() >= width or width > MAX_LABELS):
        raise ValueError(
            f"truth lists run from {flat.min()} to {flat.max()}; expected label ids 0 .. {min(width, MAX_LABELS) - 1}"
        )
    row_of = np.repeat(np.arange(len(rows)), counts)
    row = multi_hot_row(row_of, flat)
    if row is not None:
        raise ValueError(
            f"truth lists hold {list(rows[row])[:10]} in row {row}, 0 and 1 several times, as a mark for each label; "
            "expected label ids: give np.flatnonzero(row), or scipy.sparse.csr_array(rows)"
        )
    kept = flat >= 0
    return sp.csr_array((np.ones(kept.sum(), dtype=bool), (row_of[kept], flat[kept])), shape=(len(rows), width))


def multi_hot_row(row_of: IntArray, ids: IntArray) -> int | None:
    """The first row that repeats 0 or 1 and names no other id; None for none.

    Such a row is a mark for each label, not a list of ids. row_of and ids are (n,), the row and id of each entry, rows
    ascending; ids below 0 are pads.
    """
    row_of, ids = row_of[ids >= 0], ids[ids >= 0]
    if not len(ids) or ids.min() > 1:
        return None
    num_rows = int(row_of[-1]) + 1
    counts = [np.bincount(row_of[chosen], minlength=num_rows) for chosen in (ids == 0, ids == 1, ids > 1)]
    marked = ((counts[0] > 1) | (counts[1] > 1)) & (counts[2] == 0)
    return int(marked.argmax()) if marked.any() else None
