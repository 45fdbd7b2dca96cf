from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.retriever import slow_predict
from scipy.sparse import csr_matrix
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data

import hf_xmc
from hf_xmc import Retriever
from hf_xmc.memory import MemoryForm

TEXTS = ["cats and dogs", "the history of war", "", "mathematics of the sea " * 30, "😀 birds\x00 שלום"]


def make_retriever(kind: str, tmp_path: Path) -> Retriever:
    kind, _, classifier = kind.partition("+")
    encoder = make_static_encoder() if kind == "static" else make_bert_encoder(tmp_path / "bert")
    if classifier:
        heads = {"dimension": 8, "encoder_dimension": 12} if kind == "bert" else {"dimension": None, "residual": True}
        encoder.add_classifier(len(WORDS), **heads)
        torch.nn.init.normal_(encoder.label_classifier.rows.weight, std=0.3)
    return Retriever.build(encoder, WORDS)


@pytest.fixture(params=["static", "bert", "static+classifier", "bert+classifier"])
def retriever(request: pytest.FixtureRequest, tmp_path: Path) -> Retriever:
    return make_retriever(request.param, tmp_path)


def assert_same_answers(ours: list[list[dict]], theirs: list[list[dict]], tolerance: float = 1e-5) -> None:
    """Scores agree; ids too, up to the order of scores that close."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        scores = [a["score"] for a in mine]
        np.testing.assert_allclose(scores, [b["score"] for b in other], atol=tolerance)
        for a, b in zip(mine, other, strict=True):
            same = [c["score"] for c in mine if c["label_id"] == b["label_id"]]
            assert a["label_id"] == b["label_id"] or (same and abs(same[0] - a["score"]) < 2 * tolerance)
            assert b["label"] == WORDS[b["label_id"]]


def test_predictions_are_encode_and_search(retriever: Retriever) -> None:
    answers = retriever.predict(TEXTS, top_k=4)
    scores = retriever.encoder.query_vectors(TEXTS) @ retriever.encoder.label_vectors(WORDS).T
    for row, answer in zip(scores, answers, strict=True):
        assert [a["label_id"] for a in answer] == np.argsort(-row, kind="stable")[:4].tolist()
        np.testing.assert_allclose([a["score"] for a in answer], -np.sort(-row)[:4], atol=1e-6)
        assert {type(v) for a in answer for v in a.values()} == {str, float, int}


def test_saved_and_loaded_it_answers_the_same_through_every_door(retriever: Retriever, tmp_path: Path) -> None:
    folder = tmp_path / "repo"
    retriever.save_pretrained(folder)
    expected = retriever.predict(TEXTS, top_k=4)
    assert_same_answers(Retriever.from_pretrained(folder, device="cpu").predict(TEXTS, top_k=4), expected, 1e-7)
    for batch_size in (1, 32):
        pipe = hf_xmc.pipeline("xmc-retrieval", model=str(folder), device="cpu")
        assert_same_answers(pipe(TEXTS, top_k=4, batch_size=batch_size), expected)
    assert_same_answers([pipe(TEXTS[0], top_k=4)], expected[:1])
    (tmp_path / "ordinary").mkdir()
    assert folder.stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pkl"))


def test_removed_labels_stay_removed_through_the_round_trip(tmp_path: Path) -> None:
    retriever = Retriever.build(make_static_encoder(), WORDS)
    gone = retriever.predict("war", top_k=1)[0][0]["label_id"]
    retriever.index.remove(np.array([gone]))
    retriever.save_pretrained(tmp_path)
    for door in (Retriever.from_pretrained(tmp_path).predict, hf_xmc.pipeline(model=str(tmp_path), device="cpu")):
        found = [a["label_id"] for a in door(["war"], top_k=len(WORDS) - 1)[0]]
        assert gone not in found and len(found) == len(WORDS) - 1


def test_bad_requests_are_refused_with_what_came(tmp_path: Path) -> None:
    retriever = Retriever.build(make_static_encoder(), WORDS)
    for top_k in (0, len(WORDS) + 1):
        with pytest.raises(ValueError, match=f"top_k must lie between 1 and the {len(WORDS)} labels, got {top_k}"):
            retriever.predict(["war"], top_k=top_k)
    with pytest.raises(ValueError, match="texts must be str, got NoneType at place 1"):
        retriever.predict(["war", None])
    assert retriever.predict([]) == []
    retriever.save_pretrained(tmp_path)
    pipe = hf_xmc.pipeline(model=str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match="top_k must lie between"):
        pipe("war", top_k=len(WORDS) + 1)
    with pytest.raises(ValueError, match="serves the task 'xmc-retrieval', got 'fill-mask'"):
        hf_xmc.pipeline("fill-mask", model=str(tmp_path))


@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda f: (f / "labels.json").unlink(), "has no labels.json"),
        (lambda f: (f / "labels.json").write_text('["war", '), "labels.json is damaged"),
        (lambda f: (f / "labels.json").write_text('["war"]'), "labels.json has 1 labels but .* 16 rows|17 rows"),
        (lambda f: (f / "xmc_config.json").unlink(), "has no xmc_config.json"),
        (lambda f: (f / "xmc_config.json").write_text('{"format_version": 2}'), "format_version 2 is newer than 1"),
        (lambda f: (f / "label_embeddings.safetensors").unlink(), "has no label_embeddings.safetensors"),
        (lambda f: (f / "label_embeddings.safetensors").write_bytes(b"x" * 40), "safetensors is damaged"),
    ],
)  # fmt: skip
def test_a_damaged_folder_names_the_file(damage: object, message: str, tmp_path: Path) -> None:
    Retriever.build(make_static_encoder(), WORDS).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        Retriever.from_pretrained(tmp_path)


def test_a_failing_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = Retriever.build(make_static_encoder(), WORDS)
    retriever.save_pretrained(tmp_path / "repo")
    before = sorted(p.name for p in (tmp_path / "repo").iterdir())
    shutil.copytree(tmp_path / "repo", tmp_path / "copy")
    monkeypatch.setattr("hf_xmc.retriever.files.save_file", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        retriever.save_pretrained(tmp_path / "repo")
    assert sorted(p.name for p in (tmp_path / "repo").iterdir()) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "repo"]


def test_memory_votes_and_shows_its_evidence_also_after_a_round_trip(tmp_path: Path) -> None:
    data = make_words_data()
    retriever = Retriever.build(make_static_encoder(), WORDS)
    labels_only = retriever.predict(TEXTS, top_k=3)
    with pytest.raises(ValueError, match="this retriever has no memory"):
        retriever.predict(TEXTS, return_evidence=True)
    retriever.remember(data.train["text"][:], data.to_csr("train"), MemoryForm(row_weight=0.5, num_keys=20))
    assert retriever.predict(TEXTS, top_k=3, memory=False) == labels_only
    answers = retriever.predict(TEXTS, top_k=3, return_evidence=True, num_evidence=100)
    ids, _ = retriever.memory.search(retriever.encoder.query_vectors(TEXTS), 3)
    assert [[a["label_id"] for a in answer] for answer in answers] == [[i for i in r if i >= 0] for r in ids.tolist()]
    shown = 0
    for answer in answers:
        for label in answer:
            evidence = label["evidence"]
            assert abs(sum(r["share"] for r in evidence["rows"]) + evidence["label"]["share"] - 1) < 1e-5
            for row in evidence["rows"]:
                assert row["text"] == data.train[row["row"]]["text"]
                assert label["label_id"] in data.train[row["row"]]["label_ids"]
                shown += 1
    assert shown > 10
    retriever.save_pretrained(tmp_path / "repo")
    again = Retriever.from_pretrained(tmp_path / "repo", device="cpu")
    assert again.predict(TEXTS, top_k=3, return_evidence=True, num_evidence=100) == answers
    (tmp_path / "repo" / "memory" / "texts.json").write_text('["one"]')
    with pytest.raises(ValueError, match="texts.json has 1 texts, the memory 64 rows"):
        Retriever.from_pretrained(tmp_path / "repo")


@pytest.mark.parametrize("with_classifier", [False, True])
def test_training_rows_are_remembered_with_the_query_prompt(with_classifier: bool) -> None:
    encoder = make_static_encoder()
    encoder.prompts["query"] = "history of "
    if with_classifier:
        encoder.add_classifier(len(WORDS), 6, encoder_dimension=5)
        encoder.search_form = hf_xmc.SearchForm(0.3)
    retriever = Retriever.build(encoder, WORDS)
    texts = ["war", "peace", "cats dogs"]
    retriever.remember(texts, csr_matrix(np.eye(3, len(WORDS))), MemoryForm(1.0, 20.0, 1), dtype="float32")
    answers = retriever.predict(texts, top_k=1, return_evidence=True)
    for row, [answer] in enumerate(answers):
        assert answer["label_id"] == row
        [shown] = answer["evidence"]["rows"]
        assert shown["row"] == row and abs(shown["score"] - 1) < 1e-5  # the cosine of a query with itself
    unlike = encoder.join_labels(*encoder.encode_halves(texts))
    assert np.abs(unlike - encoder.key_vectors(texts)).max() > 0.1


# -- candidates, thresholds, labels that come and go ------------------------------------------------------------------


@pytest.mark.parametrize("candidates", [None, [3], [16, 0, 7, 7], range(17)])
@pytest.mark.parametrize("threshold", [-1.0, 0.1, 0.4, 2.0])
def test_candidates_and_threshold_answer_as_the_slow_loop(
    retriever: Retriever, candidates: list[int] | None, threshold: float
) -> None:
    answers = retriever.predict(TEXTS, 5, candidates=candidates, threshold=threshold)
    vectors = retriever.index.vectors
    for query, answer in zip(retriever.encoder.query_vectors(TEXTS), answers, strict=True):
        expected = slow_predict(vectors @ query, 5, candidates, threshold)
        np.testing.assert_allclose([a["score"] for a in answer], [score for _, score in expected], atol=1e-5)
        close = {label: score for label, score in slow_predict(vectors @ query, 17, candidates)}
        for a in answer:
            assert close[a["label_id"]] == pytest.approx(a["score"], abs=1e-5)


def test_candidates_that_are_none_or_no_labels_are_refused() -> None:
    retriever = Retriever.build(make_static_encoder(), WORDS)
    retriever.remove_labels([4])
    for candidates, message in (
        ([], "candidates is empty"),
        ([1, 17], r"candidates \[17\] are not among the 16 labels present"),
        ([4, -1], r"candidates \[-1, 4\] are not"),
        ([0.5], "label ids must be integers, got float64"),
    ):
        with pytest.raises(ValueError, match=message):
            retriever.predict("war", candidates=candidates)


def test_a_memory_among_candidates_is_one_that_holds_nothing_else() -> None:
    data = make_words_data()
    texts, truth = data.train["text"][:], data.to_csr("train")
    form = MemoryForm(row_weight=0.5, num_keys=12)
    retriever = Retriever.build(make_static_encoder(), WORDS)
    retriever.remember(texts, truth, form)
    candidates = np.array([2, 5, 6, 11])
    answers = retriever.predict(TEXTS, 4, candidates=candidates, return_evidence=True)
    alone = Retriever.build(make_static_encoder(), [WORDS[i] for i in candidates])
    alone.remember(texts, truth[:, candidates], form)
    expected = alone.predict(TEXTS, 4, return_evidence=True)
    seen = 0
    for ours, theirs in zip(answers, expected, strict=True):
        assert [a["label_id"] for a in ours] == [int(candidates[b["label_id"]]) for b in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a["score"] == pytest.approx(b["score"], abs=1e-6)
            assert [row["row"] for row in a["evidence"]["rows"]] == [row["row"] for row in b["evidence"]["rows"]]
            seen += 1
    assert seen > 8


def test_added_labels_are_predicted_at_once_and_survive_the_round_trip(retriever: Retriever, tmp_path: Path) -> None:
    before = retriever.predict(TEXTS, 4)
    new = ["sea travel", "war stories", "cats"]
    assert retriever.add_labels(new).tolist() == [17, 18, 19]
    assert retriever.add_labels([]).tolist() == []
    assert retriever.predict(TEXTS, 4, candidates=range(17)) == before
    classifier, (_, head) = retriever.encoder.label_classifier, retriever.encoder.encode_halves(new)
    if classifier is not None:
        free = classifier.rows.weight[:17].mean(0).detach().numpy() if classifier.residual else 0
        np.testing.assert_allclose(retriever.classifier[17:], head + free, atol=1e-6)
    halves = retriever.encoder.label_halves(WORDS + new)
    np.testing.assert_allclose(retriever.index.vectors, retriever.encoder.join_labels(*halves), atol=1e-6)
    retriever.remove_labels([18, 3])
    expected = retriever.predict(TEXTS, 18)
    assert {a["label_id"] for answer in expected for a in answer} == set(range(20)) - {3, 18}
    retriever.save_pretrained(tmp_path / "repo")
    again = Retriever.from_pretrained(tmp_path / "repo", device="cpu")
    assert again.labels == WORDS + new
    for ours, theirs in zip(again.predict(TEXTS, 18), expected, strict=True):
        np.testing.assert_allclose([a["score"] for a in ours], [b["score"] for b in theirs], atol=1e-6)
    encoder = hf_xmc.XMCEncoder(str(tmp_path / "repo"), device="cpu")
    assert encoder.label_classifier is None or encoder.label_classifier.num_targets == 20
    again.save_pretrained(tmp_path / "repo")  # over the files that it is mapped from
    assert again.add_labels(["birds"]).tolist() == [20]


def test_a_memory_keeps_voting_when_labels_come_and_go(tmp_path: Path) -> None:
    data = make_words_data()
    retriever = Retriever.build(make_static_encoder(), WORDS)
    retriever.remember(data.train["text"][:], data.to_csr("train"), MemoryForm(row_weight=0.5, num_keys=20))
    new = int(retriever.add_labels(["history of war"])[0])
    retriever.remove_labels([4])
    retriever.save_pretrained(tmp_path)
    for door in (retriever, Retriever.from_pretrained(tmp_path, device="cpu")):
        ids = [a["label_id"] for a in door.predict("history of war", 10)[0]]
        assert new in ids and 4 not in ids and len(ids) > 2


# -- probabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [False, True])
def test_a_calibrated_retriever_ranks_as_before_and_says_how_likely(memory: bool, tmp_path: Path) -> None:
    data = make_words_data(200)
    retriever = Retriever.build(make_static_encoder(), WORDS)
    if memory:
        retriever.remember(data.train["text"][:100], data.to_csr("train")[:100], MemoryForm(0.3, 10.0, 20))
    texts, truth = data.train["text"][100:], data.to_csr("train")[100:]
    before = retriever.predict(texts, 5)
    with pytest.raises(ValueError, match="min_precision needs probabilities; make them: calibrate"):
        retriever.predict("war", min_precision=0.5)
    report = retriever.calibrate(texts, truth)
    assert report.num_queries == 100 and "top-1: expected calibration error" in str(report)
    answers = retriever.predict(texts, 5)
    told, came = [], []
    for old, answer, row in zip(before, answers, truth, strict=True):
        probabilities = [a.pop("probability") for a in answer]
        assert answer == old and sorted(probabilities, reverse=True) == probabilities
        told += probabilities
        came += [a["label_id"] in row.indices for a in answer]
    assert np.mean(told) == pytest.approx(np.mean(came), abs=0.01)
    for wish in (0.3, 0.9):
        for short, answer in zip(
            retriever.predict(texts, 5, min_precision=wish), retriever.predict(texts, 5), strict=True
        ):
            means = [np.mean([a["probability"] for a in answer[:k]]) for k in range(1, len(answer) + 1)]
            assert short == answer[: sum(mean >= wish for mean in means)]
    assert "probability" in retriever.predict("war", 1, candidates=[3])[0][0]
    retriever.save_pretrained(tmp_path / "repo")
    again = Retriever.from_pretrained(tmp_path / "repo", device="cpu")
    assert again.predict(texts[:5], 3, memory=memory) == retriever.predict(texts[:5], 3, memory=memory)
    measured = again.reliability(texts, truth)
    assert measured.num_queries == 100
    assert measured.parts[0].error == pytest.approx(retriever.reliability(texts, truth).parts[0].error, abs=1e-6)
    assert (tmp_path / "repo" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    if memory:
        assert "probability" not in retriever.predict("war", memory=False)[0][0]
    with pytest.raises(ValueError, match=r"truth must have shape \(2, at most 17\)"):
        retriever.calibrate(["a", "b"], truth)
