from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from reference.memory import slow_search, slow_votes
from safetensors.torch import load_file, save_file

import hf_xmc.hub.memory_xmc
import hf_xmc.hub.search_xmc
from hf_xmc import LabelIndex
from hf_xmc.memory import MemoryForm
from hf_xmc.memory.knowledge_memory import KnowledgeMemory
from hf_xmc.metrics.functional import drop_pairs


def unit(rng: np.random.Generator, num: int, width: int = 8) -> np.ndarray:
    vectors = rng.standard_normal((num, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_truth(rng: np.random.Generator, num_rows: int, num_labels: int, share: float = 0.2) -> sp.csr_matrix:
    return sp.csr_matrix((rng.random((num_rows, num_labels)) < share).astype(np.float32))


TOY_ROWS = np.array([[0.8, 0.6], [0.6, 0.8]], dtype=np.float32)
TOY_LABELS = np.array([[1, 0], [0, 1], [0.28, 0.96]], dtype=np.float32)
TOY_TRUTH = sp.csr_matrix(np.array([[1, 0, 1], [0, 1, 0]]))
TOY_QUERY = np.array([[1, 0]], dtype=np.float32)


@pytest.mark.parametrize(
    "row_weight,tau,num_keys,votes",
    [
        (0.5, 0.5, 5, (0.335148, 0.117312, 0.182038)),
        (0.5, 0.5, 3, (0.394009, 0.105991, 0.158121)),
        (0.5, 0.04, 5, (0.499977, 0.000023, 0.003346)),
        (0.0, 0.5, 5, (0.728723, 0.098622, 0.172655)),
        (1.0, 0.5, 5, (0.598688, 0.401312, 0.598688)),
    ],
)
def test_votes_of_the_toy_are_those_worked_out_by_hand(
    row_weight: float, tau: float, num_keys: int, votes: tuple[float, ...]
) -> None:
    form = MemoryForm(row_weight, 1 / tau, num_keys)
    ids, scores = KnowledgeMemory(TOY_ROWS, TOY_TRUTH, LabelIndex(TOY_LABELS), form).search(TOY_QUERY, 3)
    assert ids.tolist() == [[0, 2, 1]]
    np.testing.assert_allclose(scores[0], np.array(votes)[ids[0]], atol=1e-6)


@pytest.mark.parametrize("frequency_power", [0.0, 0.7, -0.7])
@pytest.mark.parametrize("row_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "num_rows,num_labels,num_queries,num_keys,top_k",
    [(1, 1, 1, 1, 1), (7, 3, 3, 4, 5), (90, 41, 13, 25, 9), (90, 41, 13, 5, 40)],
)
def test_votes_and_evidence_equal_the_slow_loop(
    num_rows: int,
    num_labels: int,
    num_queries: int,
    num_keys: int,
    top_k: int,
    row_weight: float,
    frequency_power: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Small blocks, so that keys, queries and votes are put together of several.
    monkeypatch.setattr(hf_xmc.hub.search_xmc, "ROWS_AT_ONCE", 16)
    monkeypatch.setattr(hf_xmc.hub.search_xmc, "SCORES_AT_ONCE", 100)
    monkeypatch.setattr(hf_xmc.hub.memory_xmc, "VOTERS_AT_ONCE", 4)
    rng = np.random.default_rng(num_rows)
    # Halves of small integers: many exact ties among the keys.
    rows, labels, queries = (
        rng.integers(-1, 2, (n, 3)).astype(np.float32) / 2 for n in (num_rows, num_labels, num_queries)
    )
    truth = make_truth(rng, num_rows, num_labels, 0.1 if num_labels > 10 else 0.5)
    truth.data *= rng.integers(1, 3, truth.nnz)
    own_rows = rng.integers(-1, num_rows, num_queries)
    filters = np.stack([np.arange(num_queries), rng.integers(0, num_labels, num_queries)], 1)[::2]
    form = MemoryForm(row_weight, 3.0, num_keys, frequency_power)
    memory = KnowledgeMemory(rows, truth, LabelIndex(labels), form)
    ids, scores = memory.search(queries, top_k, own_rows=own_rows, filters=filters)
    evidence = memory.explain(queries, ids, own_rows=own_rows, filters=filters)
    assert ids.dtype == np.int64 and scores.dtype == np.float32
    num_shares, num_filled = 0, 0
    for query in range(num_queries):
        votes = slow_votes(
            queries[query],
            rows,
            truth.toarray(),
            labels,
            row_weight=row_weight,
            scale=3.0,
            num_keys=num_keys,
            frequency_power=frequency_power,
            own_row=int(own_rows[query]),
            filtered=frozenset(filters[filters[:, 0] == query, 1].tolist()),
        )
        removed = set(filters[filters[:, 0] == query, 1].tolist())
        label_scores = {l: float(labels[l] @ queries[query]) for l in range(num_labels) if l not in removed}
        expected_ids, expected_scores = slow_search(votes, label_scores, 3.0, top_k)
        np.testing.assert_allclose(scores[query], expected_scores, atol=1e-6)
        # Sums of the same votes in another order may differ in the last bit, and so swap labels of equal score.
        for i, label in enumerate(ids[query].tolist()):
            if label != expected_ids[i]:
                assert label in votes and np.isclose(sum(votes[label].values()), expected_scores[i])
            num_filled += label >= 0 and label not in votes
        for place, label in enumerate(ids[query].tolist()):
            found, found_scores, shares = evidence.rows(query, place)
            if label < 0:
                assert len(found) == 0 and evidence.label_shares[query, place] == 0
                continue
            if label not in votes:
                assert len(found) == 0 and evidence.label_shares[query, place] == 1
                continue
            total = sum(votes[label].values())
            by_row = {n: v / total for (kind, n), v in votes[label].items() if kind == "row"}
            assert sorted(found.tolist()) == sorted(by_row)
            np.testing.assert_allclose(shares, [by_row[n] for n in found.tolist()], atol=1e-6)
            np.testing.assert_allclose(found_scores, rows[found] @ queries[query], atol=1e-6)
            text_share = votes[label].get(("label", label), 0) / total
            np.testing.assert_allclose(evidence.label_shares[query, place], text_share, atol=1e-6)
            np.testing.assert_allclose(evidence.label_scores[query, place], labels[label] @ queries[query], atol=1e-6)
            num_shares += len(found) + (text_share > 0)
    assert num_shares > 0 or num_rows == 1
    assert num_filled > 0 or top_k < 40


def test_without_row_weight_the_ranking_is_that_of_the_label_search() -> None:
    rng = np.random.default_rng(0)
    labels, rows, queries = unit(rng, 60), unit(rng, 200), unit(rng, 11)
    index = LabelIndex(labels * 3)  # long vectors: the softmax spans many orders of magnitude
    memory = KnowledgeMemory(rows, make_truth(rng, 200, 60), index, MemoryForm(0.0, 40.0, 60))
    filters = np.array([[0, 3], [0, 4], [5, 59]])
    ids, _ = memory.search(queries, 20, filters=filters)
    expected, _ = drop_pairs(*index.search(queries, 22), filters)
    np.testing.assert_array_equal(ids, expected[:, :20])


def test_with_row_weight_one_only_the_nearest_training_rows_vote() -> None:
    rng = np.random.default_rng(1)
    labels, rows, queries = unit(rng, 30), unit(rng, 80), unit(rng, 5)
    truth = make_truth(rng, 80, 30)
    ids, scores = KnowledgeMemory(rows, truth, LabelIndex(labels), MemoryForm(1.0, 1e-6, 7)).search(queries, 30)
    for query, row_ids, row_scores in zip(queries, ids, scores, strict=True):
        nearest = np.argsort(-(rows @ query))[:7]
        counts = np.asarray(truth[nearest].sum(0)).ravel() / 7  # at scale 0 every neighbor has the same vote
        expected = np.argsort(-counts.round(9), kind="stable")[: (counts > 0).sum()]
        num_voted = len(expected)
        assert sorted(row_ids[:num_voted].tolist()) == sorted(expected.tolist())
        np.testing.assert_allclose(row_scores[:num_voted], counts[expected], atol=1e-4)
        rest = [label for label in np.argsort(-(labels @ query)).tolist() if label not in expected]
        assert row_ids[num_voted:].tolist() == rest and rest
        assert (
            (np.diff(row_scores) <= 0).all() and 0 < row_scores[-1] and row_scores[num_voted] < counts[expected].min()
        )


def test_a_training_row_does_not_vote_for_itself() -> None:
    rows = np.eye(3, dtype=np.float32)
    memory = KnowledgeMemory(rows, sp.csr_matrix(np.eye(3)), LabelIndex(rows), MemoryForm(1.0, 5.0, 1))
    assert memory.search(rows, 1)[0].tolist() == [[0], [1], [2]]
    left_out, _ = memory.search(rows, 1, own_rows=np.array([0, -1, 2]))
    assert left_out.tolist() == [[1], [1], [0]]


def test_shares_of_every_label_sum_to_one_and_the_nearest_row_comes_first() -> None:
    rng = np.random.default_rng(2)
    rows, labels, queries = unit(rng, 300), unit(rng, 50), unit(rng, 20)
    memory = KnowledgeMemory(rows, make_truth(rng, 300, 50, 0.05), LabelIndex(labels), MemoryForm(0.3, 10.0, 40))
    ids, _ = memory.search(queries, 5)
    evidence = memory.explain(queries, ids)
    assert (ids >= 0).all() and len(evidence.row_ids) > 100
    for query in range(20):
        for place in range(5):
            _, scores, shares = evidence.rows(query, place)
            assert abs(shares.sum() + evidence.label_shares[query, place] - 1) < 1e-5
            assert (np.diff(shares) <= 0).all() and (np.diff(scores) <= 1e-6).all()
    worst = np.argmin(labels @ queries.T, axis=0)[:, None]
    unvoted = memory.explain(queries, np.where(worst == ids[:, :1], -1, worst))
    np.testing.assert_allclose(
        unvoted.label_scores[worst != ids[:, :1]], (labels @ queries.T).min(0)[(worst != ids[:, :1])[:, 0]], atol=1e-6
    )


def test_labels_added_to_the_index_are_found_and_removed_ones_get_no_vote() -> None:
    rng = np.random.default_rng(3)
    rows, labels = unit(rng, 40), unit(rng, 10)
    index = LabelIndex(labels)
    memory = KnowledgeMemory(rows, make_truth(rng, 40, 10), index, MemoryForm(0.5, 10.0, 50, 0.3))
    new = unit(rng, 1)
    index.add(new)
    assert memory.search(new, 1)[0].tolist() == [[10]]
    index.remove(np.array([2, 10]))
    ids, _ = memory.search(np.vstack([new, rows]), 11)
    assert not np.isin(ids, [2, 10]).any() and (ids >= 0).any(axis=1).all()


@pytest.mark.parametrize("dtype,error", [(np.float32, 0.0), (np.float16, 1e-3), (np.int8, 2e-2)])
def test_a_loaded_memory_answers_as_the_saved_one(
    dtype: type, error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    rows, labels, queries = unit(rng, 100, 16), unit(rng, 20, 16), unit(rng, 7, 16)
    rows[5] = 0  # an all-zero row has no int8 scale of its own
    truth = make_truth(rng, 100, 20)
    truth.data *= 0.5
    form, index = MemoryForm(0.4, 12.0, 30, -0.2), LabelIndex(labels)
    memory = KnowledgeMemory(rows, truth, index, form, dtype=dtype)
    exact = KnowledgeMemory(rows, truth, index, form)
    memory.save(tmp_path)
    loaded = KnowledgeMemory.load(tmp_path, index)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path / "memory.safetensors") in maps.read_text()  # mapped, not copied
    assert loaded.form == form and loaded.keys.dtype == memory.keys.dtype
    assert memory.keys.dtype.itemsize == np.dtype(dtype).itemsize
    answers = loaded.search(queries, 6)
    for one, two in zip(memory.search(queries, 6), answers, strict=True):
        np.testing.assert_array_equal(one, two)
    monkeypatch.setattr(hf_xmc.hub.memory_xmc, "MAX_COPY", 0)  # rows too many for a copy
    monkeypatch.setattr(hf_xmc.hub.search_xmc, "ROWS_AT_ONCE", 16)
    for given in ({}, {"candidates": np.array([1, 4, 5])}):
        blocks = KnowledgeMemory.load(tmp_path, index).search(queries, 6, **given)
        np.testing.assert_array_equal(blocks[0], memory.search(queries, 6, **given)[0])
        np.testing.assert_allclose(blocks[1], memory.search(queries, 6, **given)[1], atol=1e-6)
    monkeypatch.undo()
    dense = [np.zeros((7, 20)) for _ in range(2)]
    for each, scores in zip((memory, exact), dense, strict=True):
        ids, values = each.search(queries, 20)
        np.put_along_axis(scores, np.maximum(ids, 0), np.where(ids < 0, scores[:, :1], values), 1)
    np.testing.assert_allclose(*dense, atol=max(error, 1e-7))
    loaded.save(tmp_path)  # over the file that it is mapped from
    again = KnowledgeMemory.load(tmp_path, index).search(queries, 6)
    np.testing.assert_array_equal(again[0], memory.search(queries, 6)[0])
    assert [file.name for file in tmp_path.iterdir()] == ["memory.safetensors"]


@pytest.mark.parametrize("kind", ["half", "int8", "pq"])
def test_rows_searched_by_a_smaller_kind_give_the_votes_of_the_exact_one(kind: str) -> None:
    rng = np.random.default_rng(7)
    rows, labels, queries = unit(rng, 2000, 16), unit(rng, 50, 16), unit(rng, 20, 16)
    truth, form = make_truth(rng, 2000, 50, 0.02), MemoryForm(0.5, 20.0, 20)
    exact = KnowledgeMemory(rows, truth, LabelIndex(labels), form).search(queries, 50)
    memory = KnowledgeMemory(rows, truth, LabelIndex(labels, kind=kind), form, dtype=np.float32)
    assert memory.kind == kind and KnowledgeMemory(rows, truth, LabelIndex(labels, kind="ivf"), form).kind == "exact"
    ids, scores = memory.search(queries, 50)
    assert (ids[:, 0] == exact[0][:, 0]).mean() >= 0.95 and np.abs(scores - exact[1]).mean() < 1e-3
    assert (np.sort(ids) == np.arange(50)).all()


def test_places_are_filled_where_no_key_votes_at_all() -> None:
    memory = KnowledgeMemory(TOY_ROWS, TOY_TRUTH, LabelIndex(TOY_LABELS), MemoryForm(1.0, 2.0, 1))
    # The one row that could vote is the query itself and the other has no candidate.
    own, candidates = np.array([0]), np.array([0, 2])
    ids, scores = memory.search(TOY_ROWS[:1], 3, own_rows=own, candidates=candidates)
    behind = TOY_ROWS[0] @ (TOY_LABELS[0] - TOY_LABELS[2])
    assert ids.tolist() == [[0, 2, -1]] or ids.tolist() == [[2, 0, -1]]
    np.testing.assert_allclose(scores[0, :2], [0.5, 0.5 * np.exp(-2 * abs(behind))], atol=1e-6)
    assert memory.explain(TOY_ROWS[:1], ids, own_rows=own, candidates=candidates).label_shares.tolist() == [[1, 1, 0]]


def test_bad_files_are_refused_with_the_way_out(tmp_path: Path) -> None:
    index = LabelIndex(TOY_LABELS)
    with pytest.raises(ValueError, match=r"has no memory\.safetensors"):
        KnowledgeMemory.load(tmp_path, index)
    file = tmp_path / "memory.safetensors"
    file.write_bytes(b"not a memory")
    with pytest.raises(ValueError, match="is damaged"):
        KnowledgeMemory.load(tmp_path, index)
    KnowledgeMemory(TOY_ROWS, TOY_TRUTH, index).save(tmp_path)
    with pytest.raises(ValueError, match="at most 2"):
        KnowledgeMemory.load(tmp_path, LabelIndex(TOY_LABELS[:2]))
    save_file(load_file(file), file, {"format_version": "99"})
    with pytest.raises(ValueError, match="format_version 99 is newer than 1"):
        KnowledgeMemory.load(tmp_path, index)


def test_bad_input_is_refused_with_what_came() -> None:
    index = LabelIndex(TOY_LABELS)
    memory = KnowledgeMemory(TOY_ROWS, TOY_TRUTH, index)
    with pytest.raises(ValueError, match="row_weight must lie in"):
        MemoryForm(row_weight=1.5)
    with pytest.raises(ValueError, match="scale must be"):
        MemoryForm(scale=0)
    with pytest.raises(ValueError, match="num_keys must be"):
        MemoryForm(num_keys=0)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        memory.search(TOY_QUERY, 0)
    with pytest.raises(ValueError, match=r"queries must have shape \(N, 2\), got \(1, 3\)"):
        memory.search(np.zeros((1, 3), np.float32), 1)
    with pytest.raises(ValueError, match=r"own_rows must lie in -1 \.\. 1, got 2"):
        memory.search(TOY_QUERY, 1, own_rows=np.array([2]))
    with pytest.raises(ValueError, match=r"ids must lie in -1 \.\. 2"):
        memory.explain(TOY_QUERY, np.array([[3]]))
    with pytest.raises(ValueError, match="dtype must be float32, float16 or int8"):
        KnowledgeMemory(TOY_ROWS, TOY_TRUTH, index, dtype=np.float64)
    with pytest.raises(ValueError, match="kind must be one of exact, .* got 'hnws'"):
        KnowledgeMemory(TOY_ROWS, TOY_TRUTH, index, kind="hnws")
    with pytest.raises(ValueError, match="votes must be finite and above 0"):
        KnowledgeMemory(TOY_ROWS, -TOY_TRUTH, index)
    with pytest.raises(ValueError, match="rows have width 3, labels 2"):
        KnowledgeMemory(np.eye(3), sp.csr_matrix(np.eye(3)), index)
    ids, scores = memory.search(np.zeros((0, 2), np.float32), 2)
    assert ids.shape == (0, 2) == scores.shape and len(memory.explain(np.zeros((0, 2)), ids).row_ids) == 0


def test_rare_labels_rest_on_their_text_with_a_frequency_power_above_zero() -> None:
    counts = np.array([0, 1, 5, 100])
    above, below = MemoryForm(0.2, frequency_power=0.5), MemoryForm(0.2, frequency_power=-0.5)
    assert (np.diff(above.row_weights(counts)) > 0).all() and (np.diff(below.row_weights(counts)) < 0).all()
    np.testing.assert_allclose(above.row_weights(counts)[1], 0.2)
    np.testing.assert_array_equal(MemoryForm(0.2).row_weights(counts), 0.2)
    np.testing.assert_array_equal(MemoryForm(1.0, frequency_power=0.5).row_weights(counts), 1.0)
