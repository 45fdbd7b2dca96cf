"""Bins of label frequency: their bounds, and that their shares add up to the metric."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_xmc.metrics.frequency import FrequencyBin, frequency_bins, frequency_deciles
from hf_xmc.metrics.functional import xmc_metrics

COUNTS = np.array([4, 1, 8, 1, 2, 0])  # sorted: 2, 0, 4, 1, 3, 5
TRUTH = [[2, 0], [0, 4], [5]]
IDS = np.array([[2, 4], [4, 0], [1, 5]])


def test_two_bins_cut_the_train_positives_in_half():
    head, tail = frequency_bins(IDS, TRUTH, COUNTS, 2, num_bins=2)
    assert head == FrequencyBin(
        num_labels=1, min_count=8, max_count=8, num_positives=1, precision_share=1 / 6, recall=1.0, coverage=1.0
    )
    assert tail == FrequencyBin(
        num_labels=5, min_count=0, max_count=4, num_positives=4, precision_share=3 / 6, recall=3 / 4, coverage=1.0
    )


def test_a_label_larger_than_a_bin_leaves_empty_bins():
    bins = frequency_bins([[0]], [[0]], np.array([100, 1]), 1)
    assert [each.num_labels for each in bins] == [0, 0, 1, 0, 1]
    assert bins[0] == FrequencyBin(0, 0, 0, 0, 0.0, 0.0, 0.0)
    assert bins[2].precision_share == 1.0


def test_bins_hold_equal_train_volume_when_labels_are_small():
    counts = np.random.default_rng(0).integers(1, 30, size=2000)
    bins = frequency_bins([[0]], [[0]], counts, 1)
    assert [each.num_labels for each in bins] == sorted(each.num_labels for each in bins)
    edges = np.cumsum([0] + [each.num_labels for each in bins])
    ordered = np.sort(counts)[::-1]
    volumes = [ordered[start:stop].sum() for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    np.testing.assert_allclose(volumes, counts.sum() / 5, atol=30)


def test_deciles_hold_a_tenth_of_the_labels_each():
    bins = frequency_deciles([[0]], [[0]], np.arange(25)[::-1].copy(), 1)
    assert [each.num_labels for each in bins] == [3, 2, 3, 2, 3, 2, 3, 2, 3, 2]
    assert [each.max_count for each in bins] == [24, 21, 19, 16, 14, 11, 9, 6, 4, 1]
    assert [each.min_count for each in bins] == [22, 20, 17, 15, 12, 10, 7, 5, 2, 0]


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_shares_add_up_to_precision_and_recall_to_the_hits(seed, k):
    random = np.random.default_rng(seed)
    counts = random.integers(0, 9, size=15) + (np.arange(15) == 3)
    truth = [random.choice(15, size=random.integers(0, 5), replace=False).tolist() for _ in range(9)] + [[3]]
    ids = random.permuted(np.tile(np.arange(15), (10, 1)), axis=1)[:, :5]
    precision = xmc_metrics(ids, truth, k, num_labels=15)[f"precision@{k}"]
    for bins in (frequency_bins(ids, truth, counts, k), frequency_deciles(ids, truth, counts, k)):
        assert sum(each.precision_share for each in bins) == pytest.approx(precision)
        assert sum(each.recall * each.num_positives for each in bins) == pytest.approx(precision * 10 * k)
        assert sum(each.num_labels for each in bins) == 15
        assert sum(each.num_positives for each in bins) == sum(map(len, truth))


@pytest.mark.parametrize("counts", [np.array([0, 0]), np.array([0.5, 1]), np.array([[1]]), np.array([2, -1])])
def test_bad_counts_are_named(counts):
    with pytest.raises(ValueError, match="train_counts are"):
        frequency_bins([[0]], [[0]], counts, 1)
