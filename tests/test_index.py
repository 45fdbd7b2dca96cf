from __future__ import annotations

import numpy as np
import pytest

import hf_xmc.index_kinds
from hf_xmc import LabelIndex


def slow_search(vectors: np.ndarray, queries: np.ndarray, top_k: int, removed: set[int]) -> list[list[int]]:
    """Every score by a loop, sorted by score descending, then id ascending."""
    found = []
    for query in queries:
        scored = [(-float(np.dot(v, query)), i) for i, v in enumerate(vectors) if i not in removed]
        ids = [i for _, i in sorted(scored)][:top_k]
        found.append(ids + [-1] * (top_k - len(ids)))
    return found


@pytest.fixture(params=["faiss", "torch"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(hf_xmc.index_kinds, "faiss", None)
    else:
        pytest.importorskip("faiss")
    return request.param


@pytest.mark.parametrize(
    "num_labels,num_queries,top_k", [(1, 1, 1), (7, 3, 3), (50, 5, 50), (50, 5, 60), (300, 9, 10)]
)
def test_search_equals_the_slow_loop_with_ties(num_labels: int, num_queries: int, top_k: int) -> None:
    rng = np.random.default_rng(num_labels)
    # Small integers make many exact ties.
    vectors = rng.integers(-1, 2, (num_labels, 4)).astype(np.float32)
    queries = rng.integers(-1, 2, (num_queries, 4)).astype(np.float32)
    ids, scores = LabelIndex(vectors).search(queries, top_k)
    assert ids.tolist() == slow_search(vectors, queries, top_k, set())
    assert ids.dtype == np.int64 and scores.dtype == np.float32
    present = ids >= 0
    np.testing.assert_array_equal(scores[~present], -np.inf)
    np.testing.assert_allclose(scores[present], np.einsum("nkd,nd->nk", vectors[ids], queries)[present], atol=1e-6)


def test_removed_labels_are_never_found_and_the_other_ids_stay() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, 4), dtype=np.float32)
    queries = rng.standard_normal((6, 4), dtype=np.float32)
    index = LabelIndex(vectors)
    index.search(queries, 3)
    index.remove(np.array([0, 7, 39]))
    ids, _ = index.search(queries, 40)
    assert ids.tolist() == slow_search(vectors, queries, 40, {0, 7, 39})
    assert index.num_alive == 37 and len(index) == 40
    with pytest.raises(ValueError, match=r"cannot remove label ids \[7, 40\]"):
        index.remove(np.array([7, 40]))


def test_added_labels_get_the_next_ids() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((10, 4), dtype=np.float32)
    new = rng.standard_normal((3, 4), dtype=np.float32)
    index = LabelIndex(vectors)
    index.search(new, 2)
    assert index.add(new).tolist() == [10, 11, 12]
    ids, _ = index.search(new * 100, 13)
    assert ids.tolist() == slow_search(np.vstack([vectors, new]), new * 100, 13, set())


def test_bad_input_is_refused_with_what_came() -> None:
    index = LabelIndex(np.eye(3, dtype=np.float32))
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        index.search(np.eye(3, dtype=np.float32), 0)
    with pytest.raises(ValueError, match=r"queries must have shape \(N, 3\), got \(2, 4\)"):
        index.search(np.zeros((2, 4), dtype=np.float32), 1)
    with pytest.raises(ValueError, match="the vector of label 1 is not finite"):
        LabelIndex(np.array([[0, 1], [np.nan, 0]], dtype=np.float32))
    assert index.search(np.zeros((0, 3), dtype=np.float32), 2)[0].shape == (0, 2)
