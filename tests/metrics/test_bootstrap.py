"""Intervals equal a loop that draws test sets one by one, contain what they should, and see differences in pairs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from hf_xmc.metrics import bootstrap
from hf_xmc.metrics.bootstrap import bootstrap_differences, bootstrap_intervals
from hf_xmc.metrics.functional import xmc_metrics
from hf_xmc.metrics.inputs import as_truth

NUM_LABELS = 12


def random_case(num_rows: int = 40, seed: int = 0):
    random = np.random.default_rng(seed)
    truth = as_truth(
        [random.choice(NUM_LABELS, size=random.integers(0, 4), replace=False).tolist() for _ in range(num_rows)],
        NUM_LABELS,
    )
    ids = random.permuted(np.tile(np.arange(NUM_LABELS), (num_rows, 1)), axis=1)[:, :5]
    return ids, truth, random.uniform(1, 9, size=NUM_LABELS)


def drawn_metrics(ids, truth, q, num_samples: int, seed: int) -> dict[str, np.ndarray]:
    """Every metric of each drawn test set, by calling `xmc_metrics` on it."""
    random = np.random.default_rng(seed)
    samples = []
    for _ in range(num_samples):
        rows = random.integers(len(ids), size=len(ids))
        samples.append(xmc_metrics(ids[rows], truth[rows], (1, 3), q))
    return {key: np.array([sample[key] for sample in samples]) for key in samples[0]}


def test_intervals_equal_drawing_one_test_set_at_a_time():
    ids, truth, q = random_case()
    intervals = bootstrap_intervals(ids, truth, (1, 3), q, num_samples=50, seed=7)
    values, samples = xmc_metrics(ids, truth, (1, 3), q), drawn_metrics(ids, truth, q, 50, seed=7)
    assert intervals.keys() == values.keys()
    for key, interval in intervals.items():
        assert interval.value == pytest.approx(values[key])
        shift = values[key] - samples[key].mean() if key.startswith(("coverage", "macro_f1")) else 0.0
        low, high = np.clip(np.quantile(samples[key] + shift, [0.025, 0.975]), 0, 1)
        assert (interval.low, interval.high) == pytest.approx((low, high)), key
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_differences_equal_drawing_both_on_the_same_rows():
    ids, truth, q = random_case()
    baseline = np.roll(ids, 1, axis=1)
    intervals = bootstrap_differences(ids, baseline, truth, (1, 3), q, num_samples=50, seed=7)
    one, other = (drawn_metrics(each, truth, q, 50, seed=7) for each in (ids, baseline))
    for key in ("precision@1", "ndcg@3", "recall@3", "psp@3", "psndcg@1"):
        low, high = np.quantile(one[key] - other[key], [0.025, 0.975])
        assert (intervals[key].low, intervals[key].high) == pytest.approx((low, high))


@pytest.mark.parametrize("per_block", [1, 7, 64])
def test_intervals_do_not_depend_on_how_many_test_sets_are_counted_at_once(monkeypatch, per_block):
    ids, truth, q = random_case()
    expected = bootstrap_intervals(ids, truth, (1, 3), q, num_samples=20)
    monkeypatch.setattr(bootstrap, "SAMPLES_PER_BLOCK", per_block)
    for key, interval in bootstrap_intervals(ids, truth, (1, 3), q, num_samples=20).items():
        for name in ("value", "low", "high"):
            assert getattr(interval, name) == pytest.approx(getattr(expected[key], name), abs=1e-14), key


def test_many_rows_take_less_than_700_bytes_each():
    num_rows = 60_000
    random = np.random.default_rng(0)
    indices = random.integers(1000, size=(num_rows, 10))
    truth = sp.csr_array((np.ones(indices.size, bool), indices.ravel(), np.arange(0, indices.size + 1, 10)))
    truth.sum_duplicates()
    ids = np.stack([random.integers(j * 200, (j + 1) * 200, size=num_rows) for j in range(5)], axis=1)
    tracemalloc.start()
    bootstrap_intervals(ids, truth, (1, 3, 5), np.ones(1000), num_samples=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 200 < peak / num_rows < 700


def test_the_standard_error_of_precision_is_that_of_a_mean():
    random = np.random.default_rng(0)
    hit = random.random(4000) < 0.3
    ids, truth = np.where(hit, 0, 1)[:, None], [[0]] * 4000
    interval = bootstrap_intervals(ids, truth, 1, num_samples=400)["precision@1"]
    error = np.sqrt(hit.mean() * (1 - hit.mean()) / 4000)
    assert interval.value == pytest.approx(hit.mean())
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(error, rel=0.12)


def test_a_paired_difference_is_narrower_than_two_intervals_and_none_for_equal_predictions():
    ids, truth, q = random_case(num_rows=300)
    improved = ids.copy()
    improved[:60, 0] = np.array([row[0] if row else 0 for row in truth[:60].tolil().rows])
    improved[:60, 1:] = -1
    narrow = bootstrap_differences(improved, ids, truth, 1, q, num_samples=200)["precision@1"]
    wide = bootstrap_intervals(ids, truth, 1, q, num_samples=200)["precision@1"]
    assert narrow.low > 0 and narrow.high - narrow.low < wide.high - wide.low
    for interval in bootstrap_differences(ids, ids, truth, 1, q, num_samples=20).values():
        assert (interval.value, interval.low, interval.high) == (0, 0, 0)


def test_the_seed_decides_the_draws():
    ids, truth, q = random_case()
    first, same, other = (bootstrap_intervals(ids, truth, 3, q, num_samples=30, seed=seed) for seed in (1, 1, 2))
    assert first == same and first != other


def test_drawn_test_sets_without_positives_count_as_zero():
    interval = bootstrap_intervals([[0], [0], [0]], [[0], [], []], 1, [2.0], num_samples=200)["psp@1"]
    assert (interval.low, interval.value, interval.high) == (0.0, 1.0, 1.0)


def test_lists_of_truth_need_num_labels_for_a_difference():
    with pytest.raises(ValueError, match="num_labels is missing"):
        bootstrap_differences([[0]], [[1]], [[0]])
