from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, make_bert_encoder, make_static_encoder, make_words_data
from scipy.sparse import csr_matrix

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


CLEAN_PROCESS = """
import json, sys
if sys.argv[3] == "torch":
    sys.modules["faiss"] = None
from transformers import pipeline
pipe = pipeline(model=sys.argv[1], trust_remote_code=True, device="cpu")
answers = [pipe(json.loads(sys.argv[2]), top_k=4, batch_size=size) for size in (1, 32)]
assert "hf_xmc" not in sys.modules and "sentence_transformers" not in sys.modules
assert type(pipe).__name__ == "XMCRetrievalPipeline"
print(json.dumps(answers))
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["faiss", "torch"])
@pytest.mark.parametrize("kind", ["static+classifier", "bert+classifier"])
def test_a_clean_process_with_only_transformers_answers_the_same(kind: str, engine: str, tmp_path: Path) -> None:
    retriever = make_retriever(kind, tmp_path)
    retriever.save_pretrained(tmp_path / "repo")
    texts = [text.replace("\x00", "") for text in TEXTS]  # a command line cannot carry NUL
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_PROCESS, str(tmp_path / "repo"), json.dumps(texts), engine],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for answers in json.loads(done.stdout.splitlines()[-1]):
        assert_same_answers(answers, retriever.predict(texts, top_k=4))


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
    monkeypatch.setattr("hf_xmc.retriever_files.save_file", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
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
