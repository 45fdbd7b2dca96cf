from __future__ import annotations

import copy
import json
import logging
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import hf_xmc.index.faiss_kinds
import hf_xmc.index.label_index
from hf_xmc import LabelIndex
from hf_xmc.hub import search_xmc
from hf_xmc.hub.search_xmc import best_of_rows
from hf_xmc.index.label_index import KINDS
from hf_xmc.index.torch_kinds import TableSearcher

CPU_KINDS = [kind for kind in KINDS if kind != "cuda"]
COMPLETE_KINDS = ["exact", "half", "int8"]


@pytest.fixture(autouse=True)
def needs_faiss(request: pytest.FixtureRequest) -> None:
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("kind") in ("hnsw", "ivf", "pq"):
        pytest.importorskip("faiss")


def slow_search(vectors: np.ndarray, queries: np.ndarray, top_k: int, present: set[int]) -> list[list[int]]:
    """Every score by a loop, sorted by score descending, then id ascending."""
    found = []
    for query in queries:
        scored = [(-float(np.dot(v, query)), i) for i, v in enumerate(vectors) if i in present]
        ids = [i for _, i in sorted(scored)][:top_k]
        found.append(ids + [-1] * (top_k - len(ids)))
    return found


def uneven(seed: int, rows: int, dim: int) -> np.ndarray:
    """Vectors of very different lengths, as classifier rows are."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, dim), dtype=np.float32) * rng.lognormal(size=(rows, 1)).astype(np.float32)


def overlap(ids: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(ids, wanted, strict=True)]))


@pytest.mark.parametrize("kind", COMPLETE_KINDS)
@pytest.mark.parametrize(
    "num_labels,num_queries,top_k", [(1, 1, 1), (7, 3, 3), (50, 5, 50), (50, 5, 60), (300, 9, 10), (9001, 2, 3)]
)
def test_search_equals_the_slow_loop_with_ties(num_labels: int, num_queries: int, top_k: int, kind: str) -> None:
    rng = np.random.default_rng(num_labels)
    # Small integers make many exact ties.
    vectors = rng.integers(-1, 2, (num_labels, 4)).astype(np.float32)
    queries = rng.integers(-1, 2, (num_queries, 4)).astype(np.float32)
    ids, scores = LabelIndex(vectors, kind=kind).search(queries, top_k)
    assert ids.tolist() == slow_search(vectors, queries, top_k, set(range(num_labels)))
    assert ids.dtype == np.int64 and scores.dtype == np.float32
    present = ids >= 0
    np.testing.assert_array_equal(scores[~present], -np.inf)
    np.testing.assert_allclose(scores[present], np.einsum("nkd,nd->nk", vectors[ids], queries)[present], atol=1e-6)


@pytest.mark.parametrize("kind", CPU_KINDS)
def test_every_kind_finds_nearly_all_and_scores_by_the_float32_vectors(kind: str) -> None:
    vectors, queries = uneven(0, 3000, 16), uneven(1, 40, 16)
    index = LabelIndex(vectors, kind=kind, recall_queries=queries)
    ids, scores = index.search(queries, 100)
    wanted, _ = LabelIndex(vectors, kind="exact").search(queries, 100)
    least = 0.999 if kind in COMPLETE_KINDS else 0.99
    assert overlap(ids, wanted) >= least
    assert index.recall == pytest.approx(overlap(ids, wanted), abs=1e-3)
    np.testing.assert_allclose(scores, np.einsum("nkd,nd->nk", vectors[ids], queries), rtol=1e-4, atol=1e-4)
    assert (np.diff(scores) <= 0).all()
    assert index.num_bytes == {"exact": 3000 * 64, "half": 3000 * 32, "int8": 3000 * 20}.get(kind, index.num_bytes)
    if kind == "hnsw":
        assert 16 + 256 < index.num_bytes / 3000 <= 16 + 300


@pytest.mark.parametrize("kind", CPU_KINDS)
def test_removed_labels_are_never_found_and_the_other_ids_stay(kind: str) -> None:
    vectors, queries = uneven(0, 400, 4), uneven(1, 6, 4)
    index = LabelIndex(vectors, kind=kind)
    best, _ = index.search(queries, 3)
    gone = np.union1d(best.ravel(), np.arange(0, 400, 3))
    index.remove(gone)
    assert index.num_alive == 400 - len(gone) and len(index) == 400
    # As many places as there are labels: a graph or lists alone would leave some empty.
    ids, _ = index.search(queries, index.num_alive)
    assert ids.tolist() == slow_search(vectors, queries, index.num_alive, set(range(400)) - set(gone.tolist()))
    with pytest.raises(ValueError, match=rf"label ids \[{gone[0]}, 400\] are not among"):
        index.remove(np.array([gone[0], 400]))


@pytest.mark.parametrize("kind", CPU_KINDS)
def test_added_labels_get_the_next_ids(kind: str) -> None:
    vectors, new = uneven(0, 200, 4), uneven(1, 3, 4)
    index = LabelIndex(vectors, kind=kind)
    index.search(new, 2)
    assert index.add(new).tolist() == [200, 201, 202]
    index.remove(np.array([201]))
    ids, _ = index.search(new * 100, 202)
    assert ids.tolist() == slow_search(np.vstack([vectors, new]), new * 100, 202, set(range(203)) - {201})
    with pytest.raises(ValueError, match="the vector of label 203 is not finite"):
        index.add(np.full((1, 4), np.nan, dtype=np.float32))


def test_adding_labels_again_copies_no_vector() -> None:
    vectors = uneven(0, 20_000, 16)
    index = LabelIndex(vectors, kind="exact")
    index.add(uneven(1, 1, 16))
    before = index.vectors
    tracemalloc.start()
    for seed in range(3):
        index.add(uneven(seed, 2, 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.shares_memory(index.vectors, before) and len(index) == 20_007 and len(before) == 20_001
    np.testing.assert_array_equal(index.vectors[:20_000], vectors)
    assert peak < vectors.nbytes / 4


@pytest.mark.parametrize("kind", ["half", "int8"])
def test_labels_that_are_there_are_not_compressed_again(kind: str) -> None:
    index = LabelIndex(uneven(0, 500, 8), kind=kind)
    index.build()
    tables = []
    for seed in range(3):
        index.add(uneven(seed, 2, 8) / 100)
        tables.append(index.build().table)
    assert tables[0].data_ptr() == tables[2].data_ptr()
    again = LabelIndex(index.vectors.copy(), kind=kind).build()
    if kind == "int8":
        assert torch.equal(again.table, tables[2]) and torch.equal(again.scale, index.build().scale)
    index.add(uneven(9, 2, 8) * 1e8)  # beyond the range of what is there
    best, _ = index.search(index.vectors[-2:], 1)
    assert best.ravel().tolist() == slow_search_best(index.vectors, index.vectors[-2:])


@pytest.mark.parametrize("kind", COMPLETE_KINDS)
def test_copies_of_an_index_grow_apart(kind: str) -> None:
    vectors, new = uneven(0, 300, 4), uneven(1, 6, 4) * 100
    first = LabelIndex(vectors, kind=kind)
    first.build()
    first.add(new[:1])
    second = copy.copy(first)
    first.add(new[1:3])
    second.add(new[3:5])  # as many
    first.add(new[5:])
    for index, rows in ((first, [0, 1, 2, 5]), (second, [0, 3, 4])):
        whole = np.vstack([vectors, new[rows]])
        np.testing.assert_array_equal(index.vectors, whole)
        assert index.search(new, 1)[0].ravel().tolist() == slow_search_best(whole, new)


def test_removed_labels_are_looked_for_once() -> None:
    index = LabelIndex(uneven(0, 300, 4), kind="int8")
    index.remove([3, 7])
    searcher = index.build()
    assert searcher._dead_of(index.alive).tolist() == [3, 7]
    assert searcher._dead_of(index.alive) is searcher._dead_of(index.alive)
    index.remove([5])
    assert searcher._dead_of(index.alive).tolist() == [3, 5, 7]
    changing = np.ones(300, dtype=bool)
    assert searcher._dead_of(changing).tolist() == []
    changing[4] = False
    assert searcher._dead_of(changing).tolist() == [4]


@pytest.mark.parametrize("kind", CPU_KINDS)
@pytest.mark.parametrize("num_candidates", [0, 1, 20, 250])
def test_candidates_are_searched_as_if_there_were_no_other_labels(kind: str, num_candidates: int) -> None:
    vectors, queries = uneven(0, 300, 4), uneven(1, 5, 4)
    index = LabelIndex(vectors, kind=kind)
    index.remove(np.arange(10))
    chosen = np.random.default_rng(2).permutation(np.arange(10, 300))[:num_candidates]
    ids, scores = index.search(queries, 15, candidates=np.repeat(chosen, 2))
    assert ids.tolist() == slow_search(vectors, queries, 15, set(chosen.tolist()))
    assert np.isfinite(scores[ids >= 0]).all()
    with pytest.raises(ValueError, match=r"candidates \[3, 300\] are not among"):
        index.search(queries, 1, candidates=np.array([3, 20, 300]))


@pytest.mark.parametrize("kind", CPU_KINDS)
@pytest.mark.parametrize("mmap", [True, False])
def test_a_saved_index_is_loaded_with_kind_and_recall_and_goes_on(kind: str, mmap: bool, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    vectors, queries = uneven(0, 2000, 16), uneven(1, 7, 16)
    index = LabelIndex(vectors, kind=kind)
    index.remove(np.array([5]))
    wanted = index.search(queries, 20)
    index.save(tmp_path / "index.faiss")
    loaded = LabelIndex.load(tmp_path / "index.faiss", vectors, index.alive, mmap)
    assert (loaded.kind, loaded.recall) == (kind, index.recall)
    assert loaded.num_bytes == index.num_bytes
    for found, own in zip(loaded.search(queries, 20), wanted, strict=True):
        np.testing.assert_array_equal(found, own)
    assert loaded.add(queries * 100).tolist() == list(range(2000, 2007))
    assert loaded.search(queries, 1)[0].ravel().tolist() == slow_search_best(
        np.vstack([vectors, queries * 100]), queries
    )
    assert 5 not in loaded.search(vectors[5:6], 2000)[0]


def slow_search_best(vectors: np.ndarray, queries: np.ndarray) -> list[int]:
    return [row for [row] in slow_search(vectors, queries, 1, set(range(len(vectors))))]


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf", "pq"])
def test_a_damaged_or_stale_file_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    vectors = uneven(0, 500, 8)
    path, note = tmp_path / "index.faiss", tmp_path / "index.json"
    LabelIndex(vectors, kind=kind).save(path)
    about = note.read_text()
    with pytest.raises(ValueError, match=r"index.json tells of other vectors; build"):
        LabelIndex.load(path, vectors[::-1].copy())
    with pytest.raises(ValueError, match=r"index.json tells of \[500, 8\] vectors, got \[499, 8\]"):
        LabelIndex.load(path, vectors[:-1])
    assert path.exists() == (kind != "exact")  # what is made of the vectors in no time is not written
    if path.exists():
        whole = path.read_bytes()
        for content in (whole[:-100], b"", whole[:1000] + b"\0" * 50 + whole[1050:]):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"index.faiss is damaged.*build the index anew"):
                LabelIndex.load(path, vectors)
        path.unlink()
        with pytest.raises(ValueError, match="index.faiss is missing; build the index anew"):
            LabelIndex.load(path, vectors)
        path.write_bytes(whole)
    for text, words in (("{", "is damaged"), ("{}", "is damaged"), (about.replace(kind, "tree"), "kind 'tree'")):
        note.write_text(text)
        with pytest.raises(ValueError, match=f"index.json .*{words}"):
            LabelIndex.load(path, vectors)
    note.unlink()
    with pytest.raises(ValueError, match="index.json is missing; build the index anew"):
        LabelIndex.load(path, vectors)
    note.write_text(about)
    assert LabelIndex.load(path, vectors).kind == json.loads(about)["kind"] == kind


@pytest.mark.parametrize(
    "shape,count,group", [((3, 7), 7, 32), ((2, 1000), 3, 8), ((5, 1037), 11, 16), ((1, 64), 1, 4)]
)
def test_selection_by_groups_equals_a_sort(
    shape: tuple[int, int], count: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_xmc, "_GROUP", group)
    scores = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    columns, values = best_of_rows(scores, count)
    np.testing.assert_array_equal(columns, np.argsort(-scores, axis=1, kind="stable")[:, :count])
    np.testing.assert_array_equal(np.take_along_axis(scores, columns, 1), values)
    tied = np.round(scores)  # few values, many times each
    tied[:, ::3] = -np.inf
    columns, values = best_of_rows(tied, count)
    np.testing.assert_array_equal(columns, np.argsort(-tied, axis=1, kind="stable")[:, :count])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_16_bits_are_near_those_of_32_at_any_length_of_the_vectors(dtype: torch.dtype) -> None:
    vectors, queries = uneven(0, 5000, 16) * 1e6, uneven(1, 3, 16) * 1e6  # far beyond the range of float16
    ids, _ = TableSearcher(vectors, dtype, dtype).search(queries, 100, np.ones(5000, dtype=bool))
    wanted, _ = LabelIndex(vectors, kind="exact").search(queries, 100)
    assert overlap(ids, wanted) > 0.95


def test_auto_is_exact_up_to_200_000_labels_then_a_graph_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    many = np.zeros((200_001, 1), dtype=np.float32)
    assert LabelIndex(many[1:]).kind == "exact"
    monkeypatch.setattr(hf_xmc.index.label_index, "faiss", None)
    monkeypatch.setattr(hf_xmc.index.faiss_kinds, "faiss", None)
    assert LabelIndex(many).kind == "half"
    with pytest.raises(ImportError, match=r"faiss is required for kind 'hnsw': pip install hf_xmc\[faiss\]"):
        LabelIndex(many, kind="hnsw").build()
    monkeypatch.undo()
    pytest.importorskip("faiss")
    if not torch.cuda.is_available():
        assert LabelIndex(many).kind == "hnsw"
    index = LabelIndex(uneven(0, 1000, 8), kind="hnsw")
    with caplog.at_level(logging.INFO, "hf_xmc.index.label_index"):
        index.search(uneven(1, 2, 8), 5)
        index.search(uneven(1, 2, 8), 5)
    [line] = caplog.messages
    assert line.startswith("label index: hnsw, 1,000 labels x 8, 0.3 MB, recall@100 0.99") or line.endswith("1.0000")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kind exists here")
def test_a_gpu_index_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="kind 'cuda' needs a GPU"):
        LabelIndex(np.eye(3, dtype=np.float32), kind="cuda").build()


def test_bad_input_is_refused_with_what_came() -> None:
    index = LabelIndex(np.eye(3, dtype=np.float32))
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        index.search(np.eye(3, dtype=np.float32), 0)
    with pytest.raises(ValueError, match=r"queries must have shape \(N, 3\), got \(2, 4\)"):
        index.search(np.zeros((2, 4), dtype=np.float32), 1)
    with pytest.raises(ValueError, match="the vector of label 1 is not finite"):
        LabelIndex(np.array([[0, 1], [np.nan, 0]], dtype=np.float32))
    with pytest.raises(
        ValueError, match="kind must be 'auto' or one of exact, half, int8, cuda, hnsw, ivf, pq; got 'tree'"
    ):
        LabelIndex(np.eye(3, dtype=np.float32), kind="tree")
    assert index.search(np.zeros((0, 3), dtype=np.float32), 2)[0].shape == (0, 2)
