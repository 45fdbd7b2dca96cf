"""The metrics of extreme multi-label classification, defined once, in numpy and scipy.

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
set to a low score; the truth is left as it is unless :func:`filter_truth` is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hf_xmc.metrics.inputs import FloatArray, IntArray, Truth, as_array, as_truth
from hf_xmc.metrics.judged import Ratio, judge, label_metrics, ranking_ratios, ranking_totals
from hf_xmc.metrics.ranking import drop_pairs, filter_truth, top_k

__all__ = ["drop_pairs", "filter_truth", "inverse_propensities", "label_counts", "row_metrics", "top_k", "xmc_metrics"]


def label_counts(truth: Truth, *, num_labels: int | None = None) -> IntArray:
    """How many rows of ``truth`` (N, L), or N lists of label ids, carry each label: (L,) int64."""
    matrix = as_truth(truth, num_labels)
    return np.bincount(matrix.indices, minlength=matrix.shape[1])


def inverse_propensities(train_truth: Truth, a: float, b: float, *, num_labels: int | None = None) -> FloatArray:
    """Inverse propensity of every label, q_l = 1 + (ln N - 1) (b + 1)^a (n_l + b)^(-a), from the train rows only.

    A label with one train row gets ln N whatever ``a`` and ``b`` are (Jain et al., KDD 2016).

    Args:
        train_truth: SciPy sparse (N, L) or N lists of label ids; N counts the rows without labels too.
        a: Constant of the data set, above 0.
        b: The other one, above 0.
        num_labels: L where ``train_truth`` is lists.

    Returns:
        (L,) float64.

    Raises:
        ValueError: If a constant is not a finite number above 0, or the truth has no positive.
    """
    numbers = as_array([a, b])
    if numbers.shape != (2,) or numbers.dtype.kind not in "iuf" or not 0 < numbers.min() <= numbers.max() < np.inf:
        raise ValueError(f"a, b are {a}, {b}; expected two finite numbers above 0, such as 0.55, 1.5")
    truth = as_truth(train_truth, num_labels)
    counts = label_counts(truth)  # (L,)
    with np.errstate(over="ignore", invalid="ignore"):
        values = 1 + (np.log(truth.shape[0]) - 1) * np.float64(b + 1) ** a * (counts + b) ** -float(a)
    if not np.isfinite(values).all():
        raise ValueError(f"a, b are {a}, {b}; expected constants like 0.55, 1.5: these leave the range of numbers")
    return values


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
    """Every metric at every cut-off.

    Args:
        ids: (N, K) label ids, best first, distinct in a row, -1 where nothing was predicted; or ragged lists of them;
            or scores as scipy sparse (N, L), which go through :func:`top_k`. With K < k the missing places are misses.
        truth: SciPy sparse (N, L), any non-zero value is a positive, or N lists of label ids.
        k: Cut-offs, each at least 1.
        inverse_propensities: (L,), of the train rows; None leaves out psp and psndcg.
        skip_empty: Recall is the mean over the rows with a positive instead of over all rows.
        skip_absent: Macro-F1 is the mean over the labels with a positive in ``truth`` instead of over all labels.
        num_labels: L where ``truth`` is lists; by default the length of ``inverse_propensities``, or else the largest
            id plus one, which is too few for macro-F1 if the last labels occur nowhere.

    Returns:
        ``precision@k``, ``ndcg@k``, ``recall@k``, ``psp@k``, ``psndcg@k``, ``coverage@k``, ``macro_f1@k`` for each k,
        in [0, 1].

    Raises:
        ValueError: If k < 1, rows differ, ids are out of range or twice in a row, anything is NaN, or the truth has no
            positive.
    """
    judged = judge(ids, truth, k, inverse_propensities, num_labels)
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
    """Numerator and denominator of every row, for the metrics that are a ratio of sums over rows.

    :func:`xmc_metrics` equals ``numerator.sum() / denominator.sum()``. For precision, nDCG and recall the denominator
    is 1 (with ``skip_empty`` 0 for the recall of a row without positives), so the numerator is the metric of that row.
    Arguments as in :func:`xmc_metrics`.

    Returns:
        ``{"precision@1": (numerator (N,), denominator (N,)), ...}``, float64, without coverage and macro-F1.
    """
    judged = judge(ids, truth, k, inverse_propensities, num_labels)
    ratios = ranking_ratios(judged, skip_empty=skip_empty)
    return {
        f"{name}@{cutoff}": (top[:, column], bottom[:, column])
        for name, (top, bottom) in ratios.items()
        for column, cutoff in enumerate(judged.cutoffs)
    }
