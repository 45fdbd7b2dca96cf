"""
The metrics of extreme multi-label classification, defined once, in numpy and scipy.

For row i of N, with truth T_i and ranking r_i1, r_i2, ...: h_ij = 1 if r_ij is in T_i, d_j = 1 / log2(j + 1), and q_l
is the inverse propensity of label l:

    precision@k = 1/N sum_i 1/k sum_{j<=k} h_ij
    ndcg@k      = 1/N sum_i [sum_{j<=k} h_ij d_j] / I_i,  I_i = sum_{j<=min(k, |T_i|)} d_j         (0 for empty T_i)
    recall@k    = 1/N sum_i sum_{j<=k} h_ij / |T_i|                                                 (0 for empty T_i)
    psp@k       = [sum_i sum_{j<=k} h_ij q_{r_ij}] / [sum_i sum of the k largest q in T_i]          a ratio of sums
    psndcg@k    = [sum_i sum_{j<=k} h_ij q_{r_ij} d_j / I_i] / [sum_i best such sum of row i / I_i]
    coverage@k  = labels hit in the top k of some row / labels in the truth of some row
    macro_f1@k  = mean over all labels of 2 tp / (2 tp + fp + fn) of the top-k lists                (0/0 is 0)

A row with fewer than k predictions has misses in the missing places. A filtered pair is removed before ranking, never
set to a low score; the truth is left as it is unless `filter_truth` is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from hf_xmc.metrics.inputs import FloatArray, IntArray, Truth, as_cutoffs, as_ids, as_pairs, as_truth, chunks, contains
from hf_xmc.metrics.judged import Judged, Ratio, judge, label_metrics, ranking_ratios, ranking_totals


def inverse_propensities(train_truth: Truth, a: float, b: float, *, num_labels: int | None = None) -> FloatArray:
    """
    Inverse propensity of every label, q_l = 1 + (ln N - 1) (b + 1)^a (n_l + b)^(-a), from the train rows only.

    A label with one train row gets ln N whatever `a` and `b` are (Jain et al., KDD 2016).

    Args:
        train_truth: scipy sparse (N, L) or N lists of label ids; N counts the rows without labels too.
        a, b: constants of the data set, both above 0.
        num_labels: L where `train_truth` is lists.

    Returns:
        (L,) float64.
    """
    if not (np.isfinite(a) and np.isfinite(b) and a > 0 and b > 0):
        raise ValueError(f"a, b are {a}, {b}; expected two finite numbers above 0, such as 0.55, 1.5")
    truth = as_truth(train_truth, num_labels)
    counts = np.bincount(truth.indices, minlength=truth.shape[1])  # (L,)
    return 1 + (np.log(truth.shape[0]) - 1) * (b + 1) ** a * (counts + b) ** -a


def top_k(scores: sp.csr_array | sp.csr_matrix, k: int, drop: Any = None) -> IntArray:
    """
    The `k` best labels of each row: by score descending, then label id ascending.

    Stored entries are the predictions, also those that are 0 or negative; an entry that is not stored is none.

    Args:
        scores: scipy sparse (N, L), higher is better. Duplicate entries are summed, as scipy does.
        k: how many to keep, at least 1.
        drop: (n, 2) of (row, label id), removed before ranking, or None.

    Returns:
        (N, k) int64, padded with -1.

    Raises:
        ValueError: k < 1, NaN scores, or pairs outside of the matrix.
    """
    width = int(as_cutoffs(k)[-1])
    if not sp.issparse(scores):
        raise ValueError(f"scores are a {type(scores).__name__}; expected a scipy sparse matrix (N, L)")
    scores = sp.csr_array(scores)
    if scores.dtype.kind not in "f":
        scores = scores.astype(np.float64)
    if np.isnan(scores.data).any():
        row = np.searchsorted(scores.indptr, np.isnan(scores.data).argmax(), side="right") - 1
        raise ValueError(f"scores have NaN in row {row}; expected numbers. Drop these entries or mend the model")
    if not scores.has_canonical_format:
        scores = scores.copy()
        scores.sum_duplicates()
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
    """
    Remove filter pairs from a ranking; what follows moves up, the end is padded with id -1 and score -inf.

    Args:
        ids: (N, K) integers, -1 is a pad.
        scores: (N, K) floats.
        pairs: (n, 2) of (row, label id); pairs that are not predicted change nothing.

    Returns:
        New arrays (N, K) int64 and (N, K) of the dtype of `scores`.
    """
    ids, scores = as_ids(ids).copy(), np.array(scores)
    if ids.shape != scores.shape or scores.dtype.kind != "f":
        raise ValueError(f"scores are {scores.dtype} {scores.shape}; expected floats {ids.shape}, one for each id")
    pairs = as_pairs(pairs, len(ids))
    if not len(pairs) or not ids.size:
        return ids, scores
    num_labels = max(ids.max(), pairs[:, 1].max()) + 1
    rows = np.unique(pairs[:, 0])
    dropped = contains(_pair_keys(pairs, num_labels), rows[:, None] * (num_labels + 1) + ids[rows])
    order = np.argsort(dropped, axis=1, kind="stable")
    gone = np.take_along_axis(dropped, order, axis=1)
    ids[rows] = np.where(gone, -1, np.take_along_axis(ids[rows], order, axis=1))
    scores[rows] = np.where(gone, -np.inf, np.take_along_axis(scores[rows], order, axis=1))
    return ids, scores


def filter_truth(truth: Truth, pairs: Any, *, num_labels: int | None = None) -> sp.csr_array:
    """Truth (N, L) as bool CSR without the filter `pairs` (n, 2) of (row, label id). No metric does this by itself."""
    matrix = as_truth(truth, num_labels).copy()
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    keys = _pair_keys(as_pairs(pairs, matrix.shape[0]), matrix.shape[1])
    matrix.data = ~contains(keys, row * (matrix.shape[1] + 1) + matrix.indices)
    matrix.eliminate_zeros()
    return matrix


def xmc_metrics(
    ids: Any,
    truth: Truth,
    k: int | Iterable[int] = (1, 3, 5),
    inverse_propensities: Any = None,
    *,
    skip_empty: bool = False,
    skip_absent: bool = False,
    num_labels: int | None = None,
) -> dict[str, float]:
    """
    Every metric at every cut-off.

    Args:
        ids: (N, K) label ids, best first, distinct in a row, -1 where nothing was predicted; or ragged lists of them;
            or scores as scipy sparse (N, L), which go through `top_k`. With K < k the missing places are misses.
        truth: scipy sparse (N, L), any non-zero value is a positive, or N lists of label ids.
        k: cut-offs, each at least 1.
        inverse_propensities: (L,), of the train rows; None leaves out psp and psndcg.
        skip_empty: recall is the mean over the rows with a positive instead of over all rows.
        skip_absent: macro-F1 is the mean over the labels with a positive in `truth` instead of over all labels.
        num_labels: L where `truth` is lists; by default the length of `inverse_propensities`, or else the largest id
            plus one, which is too few for macro-F1 if the last labels occur nowhere.

    Returns:
        `precision@k`, `ndcg@k`, `recall@k`, `psp@k`, `psndcg@k`, `coverage@k`, `macro_f1@k` for each k, in [0, 1].

    Raises:
        ValueError: k < 1, rows that differ, ids out of range or twice in a row, NaN, a truth without any positive.
    """
    judged = _judge(ids, truth, k, inverse_propensities, num_labels)
    values = {name: top / bottom for name, (top, bottom) in ranking_totals(judged, skip_empty=skip_empty).items()}
    values |= label_metrics(judged, skip_absent=skip_absent)
    return {
        f"{name}@{cutoff}": float(value)
        for name, row in values.items()
        for cutoff, value in zip(judged.cutoffs, row, strict=True)
    }


def row_metrics(
    ids: Any,
    truth: Truth,
    k: int | Iterable[int] = (1, 3, 5),
    inverse_propensities: Any = None,
    *,
    skip_empty: bool = False,
    num_labels: int | None = None,
) -> dict[str, Ratio]:
    """
    Numerator and denominator of every row, for the metrics that are a ratio of sums over rows.

    `xmc_metrics` equals `numerator.sum() / denominator.sum()`. For precision, nDCG and recall the denominator is 1
    (with `skip_empty` 0 for the recall of a row without positives), so the numerator is the metric of that row.
    Arguments as in `xmc_metrics`.

    Returns:
        `{"precision@1": (numerator (N,), denominator (N,)), ...}`, float64, without coverage and macro-F1.
    """
    judged = _judge(ids, truth, k, inverse_propensities, num_labels)
    ratios = ranking_ratios(judged, skip_empty=skip_empty)
    return {
        f"{name}@{cutoff}": (top[:, column], bottom[:, column])
        for name, (top, bottom) in ratios.items()
        for column, cutoff in enumerate(judged.cutoffs)
    }


def _judge(ids: Any, truth: Truth, k: int | Iterable[int], propensities: Any, num_labels: int | None) -> Judged:
    """`judge`, for scores as well."""
    if sp.issparse(ids):
        ids = top_k(ids, int(as_cutoffs(k)[-1]))
    return judge(ids, truth, k, propensities, num_labels)


def _pair_keys(pairs: IntArray, num_labels: int) -> IntArray:
    """Pairs (n, 2) -> sorted keys (n,), row * (num_labels + 1) + label; the spare column keeps a pad (-1) apart."""
    inside = pairs[pairs[:, 1] < num_labels]
    return np.sort(inside[:, 0] * (num_labels + 1) + inside[:, 1])
