from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_xmc.data.pairs import equal_pairs, reversed_pairs, unique_pairs
from hf_xmc.data.splitting import held_out_rows, label_seen, normalized_texts, title_keys


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A History of Birds, Volume 1 (of 9)", "A history of birds: vol. II"),
        ("The Idler Magazine, Vol III, May 1893", "The Idler Magazine, Vol 12, December 1894"),
        ("Histoire d'une abbaye, no. 4", "Histoire d'une abbaye, No. 17!"),
        ("Über Pflanzen, Teil", "über  pflanzen -- teil (1902)"),
    ],
)
def test_volumes_of_one_work_share_a_key(first, second):
    keys = title_keys(pa.array([first, second])).to_pylist()
    assert keys[0] == keys[1] != ""


def test_keys_keep_what_tells_works_apart():
    titles = ["1984", "2001", "Civil War", "Mixed Marches", "Civil Peace", "", "Volume 3"]
    assert title_keys(pa.array(titles)).to_pylist() == [
        "1984", "2001", "civil war", "mixed marches", "civil peace", "", "volume 3",
    ]  # fmt: skip


def test_normalized_texts_ignore_case_and_punctuation_only():
    texts = ["Coffee, with milk!", "coffee  WITH milk", "Café-bar 2", "!?"]
    assert normalized_texts(pa.array(texts)).to_pylist() == ["coffee with milk", "coffee with milk", "café bar 2", ""]


@settings(deadline=None)
@given(
    groups=st.lists(st.integers(0, 9), min_size=2, max_size=60), fraction=st.floats(0.05, 0.95), seed=st.integers(0, 9)
)
def test_held_out_groups_are_whole_and_never_too_many(groups, fraction, seed):
    keys = pa.array([str(group) for group in groups])
    try:
        held_out = held_out_rows(keys, fraction, seed)
    except ValueError:
        return
    assert not {g for g, out in zip(groups, held_out, strict=True) if out} & {
        g for g, out in zip(groups, held_out, strict=True) if not out
    }
    assert 0 < held_out.sum() <= round(fraction * len(groups))
    assert (held_out_rows(keys, fraction, seed) == held_out).all()


def test_single_rows_are_held_out_to_the_row():
    keys = pa.array(range(1000))
    assert held_out_rows(keys, 0.1, 0).sum() == 100
    assert (held_out_rows(keys, 0.1, 0) != held_out_rows(keys, 0.1, 1)).any()


def test_which_labels_are_seen_is_found_without_a_copy_of_the_truth():
    truth = sp.random(20_000, 50, density=0.2, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    rows = np.arange(20_000) < 3
    tracemalloc.start()
    seen = label_seen(truth, rows), label_seen(truth, ~rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [each.tolist() for each in seen] == [(truth[part].toarray() > 0).any(0).tolist() for part in (rows, ~rows)]
    assert 0 < seen[0].sum() < 50 and peak < truth.indices.nbytes / 2


def test_answerable_rows_are_one_table_and_no_heap_of_rows(tiny):
    test = tiny.hold_out(0.2, by="row", answerable_only=True).test
    assert len(test) > 200 and test.data.column("text").num_chunks == 1
    assert test.features == tiny.train.features


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_a_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(ValueError, match="expected a share of the rows between 0 and 1"):
        held_out_rows(pa.array(range(10)), fraction, 0)


def test_one_group_cannot_be_split():
    with pytest.raises(ValueError, match="leaves one side empty"):
        held_out_rows(pa.array(["a"] * 10), 0.5, 0)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "", None]), max_size=9)


@given(left=WORDS, right=WORDS)
def test_equal_pairs_are_those_a_double_loop_finds(left, right):
    pairs = equal_pairs(pa.array(left, pa.string()), pa.array(right, pa.string()))
    assert pairs.dtype == np.int64 and pairs.shape[1:] == (2,)
    assert pairs.tolist() == [[i, j] for i, a in enumerate(left) for j, b in enumerate(right) if a and a == b]


@given(pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30), cut=st.integers(0, 30))
def test_unique_pairs_are_a_sorted_set(pairs, cut):
    found = unique_pairs(*(np.array(part, np.int32).reshape(-1, 2) for part in (pairs[:cut], pairs[cut:])))
    assert found.dtype == np.int64 and found.shape[1:] == (2,)
    assert list(map(tuple, found.tolist())) == sorted(set(pairs))


def slow_reversed_pairs(test_identity, train_identity, truth):
    """The definition, as loops."""
    return sorted(
        {
            (t, l)
            for t, m in test_identity.tolist()
            for i, l in train_identity.tolist()
            if truth[i, m]
        }
    )  # fmt: skip


@settings(deadline=None)
@given(data=st.data())
def test_reversed_pairs_are_those_of_the_loop(data):
    num_test, num_train, num_labels = (data.draw(st.integers(1, 6)) for _ in range(3))

    def pairs(rows):
        one = st.tuples(st.integers(0, rows - 1), st.integers(0, num_labels - 1))
        return np.array(data.draw(st.lists(one, max_size=8, unique=True)), np.int64).reshape(-1, 2)

    truth = np.zeros((num_train, num_labels), np.float32)
    truth[tuple(pairs(num_train).T)] = 1
    test_identity, train_identity = pairs(num_test), pairs(num_train)
    found = reversed_pairs(test_identity, train_identity, sp.csr_matrix(truth))
    assert found.dtype == np.int64
    assert list(map(tuple, found.tolist())) == slow_reversed_pairs(test_identity, train_identity, truth)
