"""The fast metrics equal the slow loops of tests/reference/metrics.py, and golden values computed by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from reference import metrics as reference

from hf_xmc.hub import filters_xmc
from hf_xmc.metrics import inputs
from hf_xmc.metrics.functional import (
    drop_pairs,
    filter_truth,
    inverse_propensities,
    label_counts,
    row_metrics,
    top_k,
    xmc_metrics,
)

TRUTH = [[0, 2], [1], [], [0, 3, 5]]
SCORES = [{2: 0.9, 1: 0.8, 0: 0.7, 4: 0.1}, {4: 0.5, 1: 0.5, 0: 0.2}, {0: 0.3, 1: 0.2, 2: 0.1}, {5: 0.6, 1: 0.4}]
TRAIN_COUNTS = [10, 5, 2, 1, 1, 0]
TRAIN = [[label for label, count in enumerate(TRAIN_COUNTS) if row < count] for row in range(20)]
Q = [1.862155, 2.179959, 2.658563, 2.995732, 2.995732, 3.643133]


def scores_csr(rows: list[dict[int, float]], num_labels: int) -> sp.csr_matrix:
    """Stores what `rows` hold, zeros too."""
    row = [place for place, scores in enumerate(rows) for _ in scores]
    label = [label for scores in rows for label in scores]
    value = [score for scores in rows for score in scores.values()]
    return sp.csr_matrix((np.array(value, dtype=np.float32), (row, label)), shape=(len(rows), num_labels))


@dataclass
class Case:
    scores: list[dict[int, float]]
    truth: list[set[int]]
    train: list[set[int]]
    pairs: list[tuple[int, int]]
    num_labels: int

    @property
    def rankings(self) -> list[list[int]]:
        return [
            reference.rank(scores, self.num_labels, {label for row, label in self.pairs if row == place})
            for place, scores in enumerate(self.scores)
        ]

    @property
    def q(self) -> np.ndarray:
        return inverse_propensities([sorted(row) for row in self.train], 0.55, 1.5, num_labels=self.num_labels)


@st.composite
def cases(draw) -> Case:
    """Small test sets with empty rows, short rows, ties, zero and negative scores, unseen labels and filter pairs."""
    num_labels = draw(st.integers(1, 7))
    num_rows = draw(st.integers(1, 6))
    label = st.integers(0, num_labels - 1)
    score = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 0.5, 1.0])
    return Case(
        scores=draw(st.lists(st.dictionaries(label, score), min_size=num_rows, max_size=num_rows)),
        truth=draw(st.lists(st.sets(label), min_size=num_rows, max_size=num_rows).filter(any)),
        train=draw(st.lists(st.sets(label), min_size=2, max_size=9).filter(any)),
        pairs=draw(st.lists(st.tuples(st.integers(0, num_rows - 1), label), max_size=5)),
        num_labels=num_labels,
    )


def rows_of(ids: np.ndarray) -> list[list[int]]:
    return [[label for label in row if label >= 0] for row in ids.tolist()]


@given(cases(), st.booleans(), st.booleans())
def test_metrics_equal_the_slow_loops(case, skip_empty, skip_absent):
    ids = top_k(scores_csr(case.scores, case.num_labels), 4, drop=case.pairs)
    options = {"skip_empty": skip_empty, "skip_absent": skip_absent}
    values = xmc_metrics(ids, [sorted(row) for row in case.truth], (1, 2, 3, 9), case.q, **options)
    rankings = [ranking[:4] for ranking in case.rankings]
    expected = reference.metrics(rankings, case.truth, (1, 2, 3, 9), case.q, **options)
    assert values == pytest.approx(expected, abs=1e-12)
    assert all(type(value) is float and 0 <= value <= 1 + 1e-12 for value in values.values())


@given(cases())
def test_row_values_equal_the_slow_loops_and_add_up(case):
    truth = [sorted(row) for row in case.truth]
    rows = row_metrics(case.rankings, truth, (1, 3), case.q)
    for k in (1, 3):
        slow = [reference.row_ratios(r, t, k, case.q) for r, t in zip(case.rankings, case.truth, strict=True)]
        for name in slow[0]:
            top, bottom = rows[f"{name}@{k}"]
            np.testing.assert_allclose(np.stack([top, bottom], axis=1), [row[name] for row in slow], atol=1e-12)
    totals = xmc_metrics(case.rankings, truth, (1, 3), case.q)
    for key, (top, bottom) in rows.items():
        assert totals[key] == pytest.approx(top.sum() / bottom.sum(), abs=1e-12)


@given(cases(), st.integers(1, 8))
def test_top_k_ranks_by_score_then_label_without_the_dropped_pairs(case, k):
    ids = top_k(scores_csr(case.scores, case.num_labels), k, drop=case.pairs)
    assert ids.dtype == np.int64 and ids.shape == (len(case.scores), k)
    assert rows_of(ids) == [ranking[:k] for ranking in case.rankings]


@given(cases())
def test_drop_pairs_equals_dropping_before_ranking(case):
    scores = scores_csr(case.scores, case.num_labels)
    ids = top_k(scores, case.num_labels)
    values = np.where(ids >= 0, np.take_along_axis(scores.toarray(), ids, axis=1), -np.inf).astype(np.float32)
    before = ids.copy(), values.copy()
    kept_ids, kept_values = drop_pairs(ids, values, case.pairs)
    np.testing.assert_array_equal(kept_ids, top_k(scores, case.num_labels, drop=case.pairs))
    for ranking, row, value in zip(case.rankings, case.scores, kept_values, strict=True):
        padding = [-np.inf] * (case.num_labels - len(ranking))
        assert value.tolist() == [row[label] for label in ranking] + padding
    assert kept_ids.dtype == np.int64 and kept_values.dtype == np.float32
    np.testing.assert_array_equal(ids, before[0])
    np.testing.assert_array_equal(values, before[1])


@given(cases())
def test_inverse_propensities_equal_the_slow_loop(case):
    expected = reference.inverse_propensities(case.train, case.num_labels, 0.55, 1.5)
    np.testing.assert_allclose(case.q, expected, rtol=1e-12)


@given(st.lists(st.integers(0, 50)), st.lists(st.integers(-60, 60), min_size=1))
def test_contains_equals_isin(keys, queries):
    keys, queries = np.unique(np.array(keys, dtype=np.int64)), np.array(queries, dtype=np.int64)
    np.testing.assert_array_equal(filters_xmc.contains(keys, queries), np.isin(queries, keys))


@pytest.mark.parametrize(
    ("drop", "golden"),
    [
        (
            None,
            {
                "precision": [0.75, 0.375, 0.333333],
                "ndcg": [0.75, 0.556574, 0.597250],
                "psp": [1, 0.635828, 0.680438],
                "psndcg": [1, 0.762809, 0.805207],
                "recall": [0.458333, 0.458333, 0.583333],
                "coverage": [0.6, 0.6, 0.8],
                "macro_f1": [0.5, 0.4, 0.411111],
                "macro_f1 of present": [0.6, 0.48, 0.493333],
            },
        ),
        (
            [(0, 1)],
            {
                "precision": [0.75, 0.5, 0.333333],
                "ndcg": [0.75, 0.653287, 0.617320],
                "psp": [1, 0.775425, 0.680438],
                "psndcg": [1, 0.853731, 0.824971],
                "recall": [0.458333, 0.583333, 0.583333],
                "coverage": [0.6, 0.8, 0.8],
                "macro_f1": [0.5, 0.5, 0.427778],
                "macro_f1 of present": [0.6, 0.6, 0.513333],
            },
        ),
    ],
    ids=["plain", "filtered"],
)
def test_golden_metrics(drop, golden):
    q = inverse_propensities(TRAIN, 0.55, 1.5, num_labels=6)
    np.testing.assert_allclose(q, Q, atol=1e-6)
    ids = top_k(scores_csr(SCORES, 6), 3, drop=drop)
    values = xmc_metrics(ids, TRUTH, (1, 2, 3), q)
    skipped = xmc_metrics(ids, TRUTH, (1, 2, 3), q, skip_empty=True, skip_absent=True)
    for place, k in enumerate((1, 2, 3)):
        for name in ("precision", "ndcg", "psp", "psndcg", "recall", "coverage", "macro_f1"):
            assert values[f"{name}@{k}"] == pytest.approx(golden[name][place], abs=1e-6), (name, k)
        assert skipped[f"recall@{k}"] == pytest.approx(golden["recall"][place] * 4 / 3, abs=1e-6)
        assert skipped[f"macro_f1@{k}"] == pytest.approx(golden["macro_f1 of present"][place], abs=1e-6)


@pytest.mark.parametrize(
    ("num_rows", "a", "b", "golden"),
    [
        (294_805, 0.6, 2.6, [15.093971, 12.594069, 8.405071, 6.467579, 2.553563, 1.395677]),
        (2_248_619, 0.6, 2.6, [17.563814, 14.625827, 9.702744, 7.425724, 2.825812, 1.465016]),
        (693_082, 0.55, 1.5, [17.487238, 13.448904, 8.360304, 6.377919, 2.623461, 1.460935]),
        (1_813_391, 0.5, 0.4, [26.089139, 14.410709, 7.828399, 5.920385, 2.583612, 1.501682]),
        (15_449, 0.55, 1.5, [12.449773, 9.645300, 6.111457, 4.734765, 2.127433, 1.320102]),
    ],
    ids=["amazon-131k", "amazontitles-1.3m", "wikiseealso-320k", "wikipedia-500k", "eurlex-4k"],
)
def test_golden_inverse_propensities(num_rows, a, b, golden):
    counts = [0, 1, 5, 10, 100, 1000]
    row = np.concatenate([np.arange(count) for count in counts])
    train = sp.csr_matrix((np.ones(len(row)), (row, np.repeat(np.arange(6), counts))), shape=(num_rows, 6))
    values = inverse_propensities(train, a, b)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, golden, atol=1e-6)
    assert values[1] == pytest.approx(math.log(num_rows), rel=1e-12)


def test_many_rows_in_many_chunks_equal_one_row_at_a_time():
    random = np.random.default_rng(0)
    num_rows, num_labels = 2 * inputs.ROWS_PER_CHUNK + 3, 50
    truth = sp.random_array((num_rows, num_labels), density=0.05, rng=random, format="csr")
    ids = random.permuted(np.tile(np.arange(num_labels), (num_rows, 1)), axis=1)[:, :10]
    q = random.uniform(1, 9, size=num_labels)
    values = xmc_metrics(ids, truth, range(1, 11), q)
    sets = [set(truth.indices[truth.indptr[row] : truth.indptr[row + 1]].tolist()) for row in range(num_rows)]
    expected = reference.metrics(ids.tolist(), sets, [1, 10], q.tolist())
    assert {key: values[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    rows = row_metrics(ids, truth, (1, 10), q)
    for key, (top, bottom) in rows.items():
        assert top.shape == bottom.shape == (num_rows,)
        assert top.sum() / bottom.sum() == pytest.approx(expected[key], abs=1e-12)


def test_truth_is_binarised_zeros_dropped_duplicates_merged_and_the_input_left_alone():
    row, label = [0, 0, 0, 1, 1, 1], [2, 0, 2, 1, 3, 1]
    value = np.array([0.5, 2.0, 0.25, 7.0, 0.0, 7.0])
    messy = sp.csr_matrix((value, label, [0, 3, 6]), shape=(2, 4))
    assert not messy.has_canonical_format and messy.nnz == len(row)
    ids = np.array([[2, 3], [3, 1]])
    assert xmc_metrics(ids, messy, (1, 2)) == xmc_metrics(ids, [[0, 2], [1]], (1, 2), num_labels=4)
    np.testing.assert_array_equal(messy.data, value)
    np.testing.assert_array_equal(messy.indices, label)
    np.testing.assert_array_equal(label_counts(messy), [1, 1, 1, 0])


@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
def test_index_and_id_dtypes_do_not_matter(index_dtype):
    truth = inputs.as_truth(TRUTH, 6).copy()
    truth.indices, truth.indptr = truth.indices.astype(index_dtype), truth.indptr.astype(index_dtype)
    ids = top_k(scores_csr(SCORES, 6), 3)
    for dtype in (np.int16, np.int32, np.int64, np.uint8):
        cast = np.where(ids < 0, 4, ids).astype(dtype)
        assert xmc_metrics(cast, truth)["precision@3"] == pytest.approx(1 / 3)


def test_scores_ragged_lists_and_padded_arrays_agree():
    scores = scores_csr(SCORES, 6)
    ids = top_k(scores, 5)
    assert xmc_metrics(scores, TRUTH, num_labels=6) == xmc_metrics(ids, TRUTH, num_labels=6)
    assert xmc_metrics(rows_of(ids), TRUTH, num_labels=6) == xmc_metrics(ids, TRUTH, num_labels=6)
    assert xmc_metrics([[], [], [], []], TRUTH)["precision@1"] == 0.0


def test_stored_zeros_are_predictions_and_dropped_pairs_never_come_back():
    scores = scores_csr([{0: 0.0, 1: -1.0, 2: -2.0}], 4)
    assert top_k(scores, 4).tolist() == [[0, 1, 2, -1]]
    assert top_k(scores, 4, drop=[(0, 0)]).tolist() == [[1, 2, -1, -1]]
    assert top_k(scores, 4, drop=np.empty((0, 2), dtype=np.int64)).tolist() == [[0, 1, 2, -1]]


def test_a_pad_at_the_front_of_a_row_is_not_the_last_label_of_the_row_before():
    assert xmc_metrics(np.array([[0], [-1]]), [[3], [0]], 1, num_labels=4)["precision@1"] == 0.0


def test_missing_places_are_misses():
    values = xmc_metrics(np.array([[0], [1]]), [[0], [1]], (1, 4), num_labels=2)
    assert values["precision@1"] == 1.0 and values["precision@4"] == 0.25 and values["recall@4"] == 1.0


def test_psp_keys_need_inverse_propensities():
    names = {key.split("@")[0] for key in xmc_metrics([[0]], [[0]])}
    assert names == {"precision", "ndcg", "recall", "coverage", "macro_f1"}


def test_filter_truth_takes_pairs_out_of_a_copy():
    truth = inputs.as_truth(TRUTH, 6)
    kept = filter_truth(truth, [(0, 2), (3, 1), (3, 5)])
    assert kept.toarray().tolist() == inputs.as_truth([[0], [1], [], [0, 3]], 6).toarray().tolist()
    assert truth.nnz == 6


def test_pairs_with_labels_that_nobody_knows_change_nothing():
    ids, scores = np.array([[2, 1, -1]]), np.array([[0.5, 0.25, -np.inf]])
    kept_ids, kept_scores = drop_pairs(ids, scores, [(0, 9), (0, 0)])
    assert kept_ids.tolist() == [[2, 1, -1]] and kept_scores.tolist() == [[0.5, 0.25, -np.inf]]
    assert top_k(scores_csr([{0: 1.0}, {1: 1.0}], 2), 1, drop=[(0, 3), (1, 2)]).tolist() == [[0], [1]]


GOOD = np.array([[0, 1], [1, -1]])


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("k is 0", lambda: xmc_metrics(GOOD, [[0], [1]], 0)),
        ("k is ()", lambda: xmc_metrics(GOOD, [[0], [1]], ())),
        ("k is 1.5", lambda: xmc_metrics(GOOD, [[0], [1]], 1.5)),
        ("k is -1", lambda: top_k(scores_csr(SCORES, 6), -1)),
        ("ids have 2 rows but truth has 3", lambda: xmc_metrics(GOOD, [[0], [1], [1]])),
        ("ids run from -1 to 1; expected 0 .. 0", lambda: xmc_metrics(GOOD, [[0], [0]], num_labels=1)),
        ("ids run from -2", lambda: xmc_metrics(GOOD - 1, [[0], [1]])),
        ("ids have shape (2, 2) and dtype float64", lambda: xmc_metrics(GOOD * 0.5, [[0], [1]])),
        ("ids have shape (2,)", lambda: xmc_metrics(np.array([0, 1]), [[0], [1]])),
        ("row 1 of ids predicts a label twice", lambda: xmc_metrics([[0, 1], [1, 1]], [[0], [1]])),
        ("no positive label in any row", lambda: xmc_metrics(GOOD, [[], []], num_labels=2)),
        ("no positive label in any row", lambda: xmc_metrics(GOOD, sp.csr_matrix((2, 4)))),
        ("truth has nan in row 0", lambda: xmc_metrics(GOOD, sp.csr_matrix([[np.nan, 1.0], [0.0, 1.0]]))),
        ("truth has -7 in row 1", lambda: label_counts(sp.csr_matrix([[0, 1], [-7, 1]]))),
        ("truth is a ndarray", lambda: xmc_metrics(GOOD, np.eye(2))),
        ("truth lists run from 0 to 5", lambda: xmc_metrics(GOOD, [[0], [5]], num_labels=3)),
        ("truth has 2 columns, num_labels is 3", lambda: xmc_metrics(GOOD, sp.eye(2, format="csr"), num_labels=3)),
        ("inverse_propensities have shape (3,)", lambda: xmc_metrics(GOOD, sp.eye(2, format="csr"), 1, np.ones(3))),
        ("inverse_propensities hold NaN", lambda: xmc_metrics(GOOD, [[0], [1]], 1, [np.nan, 1.0])),
        ("scores have NaN in row 1", lambda: top_k(scores_csr([{0: 1.0}, {2: np.nan}], 3), 1)),
        ("scores are a ndarray", lambda: top_k(np.eye(2), 1)),
        ("scores are float64 (1, 2)", lambda: drop_pairs(GOOD, np.zeros((1, 2)), [(0, 0)])),
        (
            "pair 1: (row 2, label id 0) is out of range; there are 2 rows",
            lambda: drop_pairs(GOOD, GOOD * 0.5, [(0, 0), (2, 0)]),
        ),
        ("pairs are int64 (3,)", lambda: drop_pairs(GOOD, GOOD * 0.5, [0, 1, 2])),
        ("a, b are 0.5, 0", lambda: inverse_propensities([[0]], 0.5, 0)),
        ("no positive label in any row", lambda: inverse_propensities([[], []], 0.5, 1.5, num_labels=2)),
    ],
)
def test_bad_input_is_named(message, call):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
