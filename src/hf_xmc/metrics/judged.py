"""Predictions judged against the truth: hits, sums over rows, sums over labels. Definitions are in ``functional``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from hf_xmc.hub.filters_xmc import contains
from hf_xmc.metrics.inputs import (
    BoolArray,
    FloatArray,
    IntArray,
    Truth,
    as_cutoffs,
    as_gains,
    as_ids,
    as_scores,
    as_truth,
    check_ids,
    chunks,
)
from hf_xmc.metrics.ranking import top_k

Ratio = tuple[FloatArray, FloatArray]


@dataclass(frozen=True)
class Gains:
    """What a hit is worth in the propensity-scored metrics."""

    of_label: FloatArray  # (L,) inverse propensities
    best: FloatArray  # (truth.nnz,) those of the positives, largest first in each row


@dataclass(frozen=True)
class Judged:
    """Predictions with their hits, cut to the largest cut-off."""

    ids: IntArray  # (N, K), -1 is a pad
    hits: BoolArray  # (N, K)
    truth: sp.csr_array  # (N, L) bool, canonical
    cutoffs: IntArray  # (num_cutoffs,), ascending
    gains: Gains | None  # None without inverse propensities


def judge(
    ids: Any, truth: Truth, k: int | Iterable[int], inverse_propensities: Any = None, num_labels: int | None = None
) -> Judged:
    """Check the arguments of :func:`~hf_xmc.metrics.xmc_metrics` and find the hits."""
    cutoffs = as_cutoffs(k)
    if sp.issparse(ids):
        ids = as_scores(ids)
        ids = top_k(ids, min(cutoffs[-1], max(ids.shape[1], 1)))
    ids = as_ids(ids)[:, : cutoffs[-1]]
    weights = None if inverse_propensities is None else as_gains(inverse_propensities)
    if not sp.issparse(truth) and num_labels is None:
        known = as_truth(truth).shape[1]
        num_labels = max(known, int(ids.max(initial=-1)) + 1) if weights is None else len(weights)
    matrix = as_truth(truth, num_labels)
    check_ids(ids, *matrix.shape)
    gains = None
    if weights is not None:
        if len(weights) != matrix.shape[1]:
            raise ValueError(
                f"inverse_propensities have shape {weights.shape}, truth has {matrix.shape[1]} labels; expected one "
                "per label, from inverse_propensities(train_truth, a, b)"
            )
        gains = Gains(weights, _best_gains(matrix, weights))
    return Judged(ids, _find_hits(ids, matrix), matrix, cutoffs, gains)


def ranking_totals(judged: Judged, *, skip_empty: bool = False) -> dict[str, Ratio]:
    """Numerator and denominator (num_cutoffs,), summed over rows, of each metric that is a ratio of sums over rows.

    Rows with equally many positives share every divisor, so their hits are counted together: no (N, K) float array,
    and a hundred cut-offs cost little more than one.
    """
    totals: dict[str, Ratio] = {}
    for rows in chunks(len(judged.ids)):
        sizes, group = np.unique(np.diff(judged.truth.indptr[rows.start : rows.stop + 1]), return_inverse=True)
        for name, (top, bottom) in _ratios(judged, rows, group, sizes, skip_empty).items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = before[0] + top.sum(axis=0), before[1] + bottom.sum(axis=0)
    return totals


def ranking_ratios(judged: Judged, *, skip_empty: bool = False) -> dict[str, Ratio]:
    """Numerator and denominator (N, num_cutoffs) of each row, for each metric that is a ratio of sums over rows."""
    parts = [part for _, part in ratio_blocks(judged, skip_empty=skip_empty)]
    return {
        name: (np.concatenate([part[name][0] for part in parts]), np.concatenate([part[name][1] for part in parts]))
        for name in parts[0]
    }


def ratio_blocks(judged: Judged, *, skip_empty: bool = False) -> Iterator[tuple[slice, dict[str, Ratio]]]:
    """As :func:`ranking_ratios`, some rows at a time."""
    for rows in chunks(len(judged.ids)):
        sizes = np.diff(judged.truth.indptr[rows.start : rows.stop + 1])
        yield rows, _ratios(judged, rows, np.arange(len(sizes)), sizes, skip_empty)


def label_metrics(judged: Judged, *, skip_absent: bool = False) -> dict[str, FloatArray]:
    """Coverage and macro-F1 (num_cutoffs,). Only labels with a hit are counted one by one: F1 of all others is 0."""
    ids, hits, num_labels = judged.ids, judged.hits, judged.truth.shape[1]
    is_hit, is_present = np.zeros(num_labels, dtype=bool), np.zeros(num_labels, dtype=bool)
    is_hit[ids[hits]] = True
    is_present[judged.truth.indices] = True
    hit_labels = np.flatnonzero(is_hit)
    num_present = int(is_present.sum())
    # Labels without a hit, and pads (-1 is the last index too), all count in one last place that is then cut off.
    place = np.full(num_labels + 1, len(hit_labels))
    place[hit_labels] = np.arange(len(hit_labels))

    def count(labels: IntArray) -> IntArray:
        return np.bincount(place[labels], minlength=len(hit_labels) + 1)[:-1]  # (num_hit_labels,)

    denominator = count(judged.truth.indices)  # tp + fn, then + tp + fp of each further column
    true_positives = np.zeros_like(denominator)
    coverage, macro_f1, start = [], [], 0
    for stop in judged.cutoffs:
        columns = ids[:, start:stop]
        true_positives += count(columns[hits[:, start:stop]])
        denominator += count(columns.ravel())
        coverage.append(np.count_nonzero(true_positives) / num_present)
        macro_f1.append((2 * true_positives / denominator).sum() / (num_present if skip_absent else num_labels))
        start = stop
    return {"coverage": np.array(coverage), "macro_f1": np.array(macro_f1)}


def _best_gains(truth: sp.csr_array, weights: FloatArray) -> FloatArray:
    """``weights`` (L,) of the positives of ``truth``, largest first in each row: (truth.nnz,)."""
    order = np.argsort(-weights)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    descending, gains = weights[order], np.empty(truth.nnz)
    for rows in chunks(truth.shape[0]):
        row, label = _truth_entries(truth, rows)
        offset = row * len(weights)
        gains[truth.indptr[rows.start] : truth.indptr[rows.stop]] = descending[np.sort(offset + place[label]) - offset]
    return gains


def _find_hits(ids: IntArray, truth: sp.csr_array) -> BoolArray:
    """Whether ids (N, K) are in the truth (N, L) of their row: (N, K) bool."""
    hits = np.empty(ids.shape, dtype=bool)
    stride = truth.shape[1] + 1  # one spare column, so that a pad (-1) is no key of the row before
    for rows in chunks(len(ids)):
        row, label = _truth_entries(truth, rows)
        offset = np.arange(rows.stop - rows.start) * stride
        hits[rows] = contains(offset[row] + label, offset[:, None] + ids[rows])
    return hits


def _truth_entries(truth: sp.csr_array, rows: slice) -> tuple[IntArray, IntArray]:
    """Row (counted from ``rows.start``) and label of each positive of ``rows``, both (n,)."""
    indptr = truth.indptr[rows.start : rows.stop + 1]
    return np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), truth.indices[indptr[0] : indptr[-1]]


def _ratios(judged: Judged, rows: slice, group: IntArray, sizes: IntArray, skip_empty: bool) -> dict[str, Ratio]:
    """Numerators and denominators of ``rows``, (G, num_cutoffs) each, added up over the rows of a group.

    ``group`` (num_rows,) is in 0 .. G-1; rows of one group have equally many positives, ``sizes`` (G,) that number.
    """
    cutoffs, gains = judged.cutoffs, judged.gains
    discount = 1 / np.log2(np.arange(cutoffs[-1]) + 2)  # (K,)
    first_cutoff = np.searchsorted(cutoffs, np.arange(cutoffs[-1]), side="right")  # (K,) the first to include a rank

    def add_up(row: IntArray, rank: IntArray, gain: FloatArray | None) -> FloatArray:
        cell = group[row] * len(cutoffs) + first_cutoff[rank]
        table = np.bincount(cell, gain, minlength=len(sizes) * len(cutoffs))
        return table.reshape(len(sizes), len(cutoffs)).cumsum(axis=1, dtype=np.float64)  # (G, num_cutoffs)

    row, rank = np.nonzero(judged.hits[rows])
    num_hits = add_up(row, rank, None)
    num_rows = np.bincount(group, minlength=len(sizes))[:, None] * np.ones(len(cutoffs))  # (G, num_cutoffs)
    num_counted = num_rows * (sizes > 0)[:, None] if skip_empty else num_rows
    ideal = np.concatenate([[1.0], discount.cumsum()])[np.minimum(sizes[:, None], cutoffs)]  # 1 where all sums are 0
    ratios = {
        "precision": (num_hits / cutoffs, num_rows),
        "ndcg": (add_up(row, rank, discount[rank]) / ideal, num_rows),
        "recall": (num_hits / np.maximum(sizes, 1)[:, None], num_counted),
    }
    if gains is not None:
        gain = gains.of_label[judged.ids[rows][row, rank]]
        starts = judged.truth.indptr[rows.start : rows.stop + 1]
        true_row, _ = _truth_entries(judged.truth, rows)
        best_rank = np.arange(starts[0], starts[-1]) - starts[true_row]
        kept = best_rank < cutoffs[-1]
        true_row, best_rank, best = true_row[kept], best_rank[kept], gains.best[starts[0] : starts[-1]][kept]
        ratios["psp"] = (add_up(row, rank, gain), add_up(true_row, best_rank, best))
        ratios["psndcg"] = (
            add_up(row, rank, gain * discount[rank]) / ideal,
            add_up(true_row, best_rank, best * discount[best_rank]) / ideal,
        )
    return ratios
