"""Where the hits come from: precision and recall by label frequency, head to tail (as in Gandalf, KDD 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_xmc.metrics.inputs import MAX_CUTOFF, FloatArray, IntArray, Truth, as_array, as_count
from hf_xmc.metrics.judged import judge

MAX_BINS = 10_000


@dataclass(frozen=True)
class FrequencyBin:
    """Labels of similar frequency, and what the predictions do with them."""

    num_labels: int
    min_count: int  # train rows of the rarest label
    max_count: int  # train rows of the most frequent label
    num_positives: int  # in the test truth
    precision_share: float  # hits of these labels / (N k): the shares of all bins add up to precision@k
    recall: float  # hits of these labels in the top k / positives of these labels; 0 without positives
    coverage: float  # labels hit in some row / labels positive in some row; 0 without positives


def frequency_bins(ids: Any, truth: Truth, train_counts: Any, k: int = 5, *, num_bins: int = 5) -> list[FrequencyBin]:
    """Bins with equally many train positives, head first: few frequent labels, then ever more rare ones.

    A label belongs to the bin that holds the middle of its train positives when labels are sorted by count descending,
    then id ascending. Labels without train rows are in the last bin.

    Args:
        ids: As in :func:`~hf_xmc.metrics.xmc_metrics`.
        truth: The same; with lists, L is the length of ``train_counts``.
        train_counts: (L,) train rows of each label, from ``label_counts(train_truth)``.
        k: One cut-off.
        num_bins: How many bins.
    """
    counts, order = _sorted(train_counts)
    volume = counts[order].cumsum()
    middle = (volume - counts[order] / 2) / volume[-1]
    return _breakdown(ids, truth, counts, order, middle, k, num_bins)


def frequency_deciles(ids: Any, truth: Truth, train_counts: Any, k: int = 5) -> list[FrequencyBin]:
    """Ten bins of equally many labels, give or take one, most frequent first; see :func:`frequency_bins`."""
    counts, order = _sorted(train_counts)
    return _breakdown(ids, truth, counts, order, np.arange(len(order)) / len(order), k, 10)


def _sorted(train_counts: Any) -> tuple[IntArray, IntArray]:
    """Checked counts (L,), and label ids (L,) by count descending, then id ascending."""
    counts = as_array(train_counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.sum() <= 0 or counts.min() < 0:
        raise ValueError(
            f"train_counts are {counts.dtype} {counts.shape}; expected integers (L,), none below 0 and some above, "
            "from label_counts(train_truth)"
        )
    return counts.astype(np.int64), np.argsort(-counts.astype(np.int64), kind="stable")


def _breakdown(
    ids: Any, truth: Truth, counts: IntArray, order: IntArray, place: FloatArray, k: int, num_bins: int
) -> list[FrequencyBin]:
    """Bins of labels: label ``order[i]`` is at the relative place ``place[i]`` in [0, 1], in bin place * num_bins."""
    k = as_count("k", k, most=MAX_CUTOFF)
    num_bins = as_count("num_bins", num_bins, most=MAX_BINS)
    judged = judge(ids, truth, k, None, len(counts))
    bin_of = np.empty(len(counts), dtype=np.int64)  # (L,)
    bin_of[order] = np.minimum(place * num_bins, num_bins - 1).astype(np.int64)
    hit_labels, true_labels = judged.ids[judged.hits], judged.truth.indices

    def per_bin(labels: IntArray) -> IntArray:
        return np.bincount(bin_of[labels], minlength=num_bins)  # (num_bins,)

    hits, positives = per_bin(hit_labels), per_bin(true_labels)
    covered, present = per_bin(np.unique(hit_labels)), per_bin(np.unique(true_labels))
    bins = []
    for number in range(num_bins):
        members = counts[bin_of == number]
        bins.append(
            FrequencyBin(
                num_labels=len(members),
                min_count=int(members.min()) if len(members) else 0,
                max_count=int(members.max(initial=0)),
                num_positives=int(positives[number]),
                precision_share=float(hits[number] / (len(judged.ids) * k)),
                recall=float(hits[number] / max(positives[number], 1)),
                coverage=float(covered[number] / max(present[number], 1)),
            )
        )
    return bins
