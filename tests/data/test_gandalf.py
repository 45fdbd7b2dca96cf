from __future__ import annotations

from dataclasses import replace
from functools import partial

import datasets
import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference.losses import slow_label_rows, slow_symmetric_label_rows

from hf_xmc.data import XMCDataset, cooccurrence
from hf_xmc.data.gandalf import (
    gandalf,
    label_row_statistics,
    label_rows,
    only_label_rows,
    random_walk_label_rows,
    self_label_rows,
    symmetric_label_rows,
    tail_labels,
    with_label_rows,
)
from hf_xmc.hub.filters_xmc import NO_PAIRS
from hf_xmc.training.collator import XMCDataCollator

GOLDEN = sp.csr_matrix(np.array([[1, 1, 0], [1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=np.float32))


def truth_of(rows: list[list[int]], num_labels: int) -> sp.csr_matrix:
    dense = np.zeros((len(rows), num_labels), np.float32)
    for line, row in zip(dense, rows, strict=True):
        line[row] = 1
    return sp.csr_matrix(dense)


def random_truth(num_rows: int, num_labels: int, density: float, seed: int = 0) -> sp.csr_matrix:
    dense = np.random.default_rng(seed).random((num_rows, num_labels))
    return sp.csr_matrix((dense < density * np.linspace(0, 2, num_labels)).astype(np.float32))


@pytest.fixture
def data() -> XMCDataset:
    """The golden rows with texts, in a shuffled order under a mapping, and one filter pair."""
    points = {
        "text": ["e", "d", "c", "b", "a"],
        "label_ids": pa.array([[0], [2], [0, 1], [0, 2], [0, 1]], pa.list_(pa.int32())),
        "uid": [f"p{row}" for row in (4, 3, 2, 1, 0)],
    }
    train = datasets.Dataset(pa.table(points)).select([4, 3, 2, 1, 0])
    labels = datasets.Dataset(pa.table({"text": ["zero", "one", "two"], "uid": ["l0", "l1", "l2"]}))
    filters = {"train": np.array([[1, 1]]), "test": np.array([[0, 2]])}
    return XMCDataset(train=train, test=train.select([0]), labels=labels, filters=filters)


def test_golden_targets():
    assert label_rows(GOLDEN).toarray().tolist() == [[1, 0.5, 0.25], [1, 1, 0], [0.5, 0, 1]]
    assert label_rows(GOLDEN, 0.3).toarray().tolist() == [[1, 0.5, 0], [1, 1, 0], [0.5, 0, 1]]
    assert label_rows(GOLDEN, 0.5).toarray().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_golden_symmetric_targets():
    targets = symmetric_label_rows(GOLDEN).toarray()
    assert targets.tolist() == [[1, 0.75, 0.375], [0.75, 1, 0], [0.375, 0, 1]]
    sigma = 1 / (1 + np.exp(-targets[[0, 0, 1], [1, 2, 2]].astype(float)))
    np.testing.assert_allclose(sigma, [0.679179, 0.592667, 0.5], atol=1e-6)


def test_prior_shrinks_targets_but_not_the_diagonal():
    expected = [[1, 2 / 6, 1 / 6], [2 / 4, 1, 0], [1 / 4, 0, 1]]
    np.testing.assert_array_equal(label_rows(GOLDEN, prior=2).toarray(), np.float32(expected))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(st.integers(0, 6), unique=True, max_size=7), min_size=1, max_size=14),
    delta=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]),
    prior=st.sampled_from([0.0, 1.0, 2.5]),
    block=st.sampled_from([1, 5, 2**22]),
)
@example(rows=[[0]], delta=0.1, prior=0.0, block=1)
@example(rows=[list(range(7))] * 3, delta=0.0, prior=0.0, block=5)
@example(rows=[[0, 1]] + [[0]] * 9, delta=0.1, prior=0.0, block=2**22)  # 1 of 10 is not above 0.1
def test_blocks_equal_the_loop_and_the_dense_product(rows, delta, prior, block):
    if not any(rows):
        return
    truth = truth_of(rows, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "BLOCK_ADDITIONS", block)
        patch.setattr(cooccurrence, "PART_ENTRIES", block)
        patch.setattr(cooccurrence, "ENTRIES_MOVED", block)
        targets = label_rows(truth, delta, prior=prior)
        symmetric = symmetric_label_rows(truth, delta)
    np.testing.assert_array_equal(targets.toarray(), np.float32(slow_label_rows(rows, 7, delta, prior)))
    np.testing.assert_array_equal(symmetric.toarray(), np.float32(slow_symmetric_label_rows(rows, 7, delta)))
    counts = (truth.T @ truth).toarray().astype(float)
    shares = counts / (np.diag(counts)[:, None] + prior + (np.diag(counts)[:, None] == 0))
    np.fill_diagonal(shares, 1)
    np.testing.assert_array_equal(targets.toarray(), np.float32(np.where(shares > delta, shares, 0)))
    assert targets.dtype == np.float32
    assert targets.has_canonical_format
    assert targets.data.all()


def test_blocks_do_not_change_larger_graphs_and_counts_outgrow_a_byte(monkeypatch):
    truth = random_truth(2000, 60, 0.3)
    assert np.bincount(truth.indices).max() > 2**8
    whole = label_rows(truth)
    counts = (truth.T @ truth).toarray().astype(float)
    shares = counts / np.maximum(np.diag(counts)[:, None], 1)
    np.fill_diagonal(shares, 1)
    np.testing.assert_array_equal(whole.toarray(), np.float32(np.where(shares > 0.1, shares, 0)))
    monkeypatch.setattr(cooccurrence, "BLOCK_ADDITIONS", 1000)
    monkeypatch.setattr(cooccurrence, "ENTRIES_MOVED", 100)
    assert (label_rows(truth) != whole).nnz == 0


def test_targets_lie_in_0_1_with_a_diagonal_of_1_for_every_variant():
    truth = random_truth(300, 40, 0.1)
    assert (np.bincount(truth.indices, minlength=40) == 0).any()
    for targets in (
        label_rows(truth),
        symmetric_label_rows(truth),
        random_walk_label_rows(truth),
        self_label_rows(sp.csr_matrix((1, 40))),
    ):
        assert (targets.diagonal() == 1).all()
        assert 0 < targets.data.min() <= targets.data.max() <= 1
        assert targets.dtype == np.float32
        unseen = np.bincount(truth.indices, minlength=40) == 0
        assert (np.diff(targets.indptr)[unseen] == 1).all()


def test_walks_that_always_restart_estimate_the_shares_of_rows_of_one_length():
    truth = truth_of([[0, 1], [0, 1], [0, 2], [0, 3], [4, 5]], 6)
    walked = random_walk_label_rows(truth, 0.05, num_hops=20_000, restart=1.0).toarray()
    np.testing.assert_allclose(walked, label_rows(truth, 0.05).toarray(), atol=0.03)


def test_walks_reach_labels_two_rows_apart_and_repeat_by_seed():
    truth = truth_of([[0, 1], [1, 2]], 3)
    walked = random_walk_label_rows(truth, 0.0)
    assert walked[0, 2] > 0
    assert label_rows(truth, 0.0)[0, 2] == 0
    assert (walked != random_walk_label_rows(truth, 0.0)).nnz == 0
    assert (walked != random_walk_label_rows(truth, 0.0, seed=1)).nnz > 0


def test_weights_doubles_and_explicit_zeros_do_not_change_counts_and_the_input_stays():
    truth = sp.csr_matrix(
        (np.array([0.2, 0.3, 0.0, 5], np.float32), np.array([1, 1, 2, 0]), np.array([0, 4])), shape=(1, 3)
    )
    assert label_rows(truth).toarray().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert truth.indices.tolist() == [1, 1, 2, 0]


@pytest.mark.parametrize("delta", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize("make", [label_rows, symmetric_label_rows, random_walk_label_rows])
def test_bad_delta_is_an_error(make, delta):
    with pytest.raises(ValueError, match=r"delta is .*\[0, 1\)"):
        make(GOLDEN, delta)


@pytest.mark.parametrize("shape", [(0, 3), (2, 3), (0, 0)])
def test_truth_without_a_positive_is_an_error(shape):
    with pytest.raises(ValueError, match="no positive"):
        label_rows(sp.csr_matrix(shape, dtype=np.float32))


def test_other_bad_arguments_are_errors(data):
    with pytest.raises(ValueError, match="prior is -1"):
        label_rows(GOLDEN, prior=-1)
    with pytest.raises(ValueError, match="restart is 2"):
        random_walk_label_rows(GOLDEN, restart=2)
    with pytest.raises(ValueError, match="num_rows is 4"):
        tail_labels(GOLDEN, 4)
    with pytest.raises(ValueError, match=r"targets is \(2, 2\)"):
        with_label_rows(data, self_label_rows(sp.csr_matrix((1, 2))))
    with pytest.raises(ValueError, match=r"expected \(0, 1\]"):
        with_label_rows(data, 2 * self_label_rows(sp.csr_matrix((1, 3))))


def test_the_labels_of_fewest_rows_are_the_tail():
    assert tail_labels(truth_of([[0, 1, 3], [0, 3], [0, 1], [4]], 5), 3).tolist() == [1, 2, 4]


def test_label_rows_follow_the_training_rows(data):
    both = with_label_rows(data, label_rows(data.to_csr("train")))
    assert both.train["text"][:] == ["a", "b", "c", "d", "e", "zero", "one", "two"]
    assert both.train["uid"][:] == ["p0", "p1", "p2", "p3", "p4", "l0", "l1", "l2"]
    assert both.to_csr("train").toarray().tolist() == [
        *GOLDEN.toarray().tolist(), [1, 0.5, 0.25], [1, 1, 0], [0.5, 0, 1],
    ]  # fmt: skip
    assert both.filters["train"].tolist() == [[1, 1]]
    assert both.filter_csr("train")[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert both.test is data.test
    assert both.training_rows()["row"][:] == list(range(8))
    assert data.train.column_names == ["text", "label_ids", "uid"]


def test_weights_of_training_rows_stay(data):
    train = datasets.Dataset(pa.table({"text": list("abcde"), "label_ids": data.train["label_ids"][:]}))
    train = train.cast_column("label_ids", datasets.Sequence(datasets.Value("int32")))
    weights = pa.array([[0.5, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0], [1.0]], pa.list_(pa.float32()))
    train = datasets.Dataset(train.data.table.append_column("label_weights", weights))
    weighted = XMCDataset(train=train, test=data.test, labels=data.labels, filters=data.filters)
    both = with_label_rows(weighted, self_label_rows(sp.csr_matrix((1, 3))))
    assert both.to_csr("train").toarray()[0].tolist() == [0.5, 1, 0]
    assert both.to_csr("train").toarray()[5:].tolist() == np.eye(3).tolist()


def test_some_label_rows_and_label_rows_alone(data):
    targets = label_rows(GOLDEN)
    tail = tail_labels(GOLDEN, 2)
    both = with_label_rows(data, targets, tail)
    assert both.train["text"][5:] == ["one", "two"]
    assert both.to_csr("train").toarray()[5:].tolist() == [[1, 1, 0], [0.5, 0, 1]]
    alone = only_label_rows(data, targets)
    assert alone.train["text"][:] == ["zero", "one", "two"]
    assert (alone.to_csr("train") != targets).nnz == 0
    assert alone.filters["train"].shape == (0, 2)
    assert alone.filters["test"] is data.filters["test"]


def test_the_collator_hands_soft_targets_to_the_loss(data):
    both = with_label_rows(data, label_rows(GOLDEN))
    collate = XMCDataCollator(
        preprocess_fn=lambda texts, **_: {"length": torch.tensor([len(text) for text in texts])},
        label_texts=both.label_texts,
        filters=both.filter_csr("train"),
    )
    rows = both.training_rows()
    batch = collate([rows[1], rows[5], rows[7]])
    assert batch["label"].tolist() == [[0, 2, -1], [0, 1, 2], [0, 2, -1]]
    assert batch["query_label_weights"].tolist() == [[1, 1, 0], [1, 0.5, 0.25], [0.5, 1, 0]]
    assert batch["query_filter_ids"].tolist() == [[1], [-1], [-1]]


def test_one_function_makes_the_data_to_train_on_and_logs_what_it_added(data, caplog):
    caplog.set_level("INFO", logger="hf_xmc")
    both = gandalf(data)
    assert (both.to_csr("train") != sp.vstack([GOLDEN, label_rows(GOLDEN)])).nnz == 0
    assert "3 label rows beside 5 training rows (x1.60)" in caplog.text
    tail = gandalf(data, symmetric_label_rows, delta=0.5, num_label_rows=2)
    assert tail.train["text"][5:] == ["one", "two"]
    assert "2 label rows beside 5 training rows (x1.40)" in caplog.text
    assert tail.to_csr("train").toarray()[5:].tolist() == [[0.75, 1, 0], [0, 0, 1]]
    alone = gandalf(data, self_label_rows, with_train_rows=False)
    assert alone.to_csr("train").toarray().tolist() == np.eye(3).tolist()
    shrunk = gandalf(data, partial(label_rows, prior=2))
    assert shrunk.to_csr("train").toarray()[6].tolist() == [0.5, 1, 0]


def test_an_empty_training_split_or_a_delta_of_1_is_an_error(data):
    empty = replace(data, train=data.train.select([]), filters=data.filters | {"train": NO_PAIRS})
    with pytest.raises(ValueError, match=r"train_truth \(0, 3\) has no positive"):
        gandalf(empty)
    with pytest.raises(ValueError, match="delta is 1.0"):
        gandalf(data, delta=1.0)


def test_a_label_without_a_training_row_is_a_row_of_itself(data):
    unseen = replace(data, train=data.train.select([0, 2, 4]))
    assert gandalf(unseen).to_csr("train").toarray()[-1].tolist() == [0, 0, 1]


def test_statistics_count_pairs_and_print(data):
    statistics = label_row_statistics(GOLDEN, label_rows(GOLDEN, 0.3))
    assert (statistics.num_rows, statistics.num_train_rows, statistics.kept_pairs) == (3, 5, 3)
    assert (statistics.possible_pairs, statistics.mean_targets) == (6, 2.0)
    assert (statistics.num_alone, statistics.num_unseen) == (0, 0)
    assert "3 label rows beside 5 training rows (x1.60)" in str(statistics)
    unseen = label_row_statistics(truth_of([[0], [1, 2]], 4), label_rows(truth_of([[0], [1, 2]], 4)))
    assert (unseen.num_alone, unseen.num_unseen) == (2, 1)
