"""What a retriever is asked that cannot be: refused before anything is done, with what came and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sentence_transformers import SentenceTransformer
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data

import hf_xmc
from hf_xmc import Retriever, XMCEncoder, XMCEvaluator
from hf_xmc.encoders.prompts import prompt_of
from hf_xmc.hub.server_xmc import StaticServer

TWO = ["war", "sea"]


def make_retriever() -> Retriever:
    return Retriever.build(make_static_encoder(), WORDS)


ENCODE = {
    "precision": ({"precision": "int8"}, "unknown option precision; texts are encoded with batch_size"),
    "output_value": ({"output_value": "token_embeddings"}, "unknown option output_value"),
    "truncate_dim": ({"truncate_dim": 8}, "unknown option truncate_dim"),
    "a typo": ({"batchsize": 8}, "unknown option batchsize"),
    "no batch": ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
    "a batch of words": ({"batch_size": "a"}, "batch_size must be an integer of at least 1, got 'a'"),
    "a prompt of numbers": ({"prompt": 5}, "a prompt must be a str, got 5"),
}


@pytest.mark.parametrize("name", ENCODE)
def test_what_would_make_other_vectors_than_those_of_the_labels_is_refused(name: str, tmp_path: Path) -> None:
    options, message = ENCODE[name]
    retriever, data = make_retriever(), make_words_data()
    calls: list[Callable[[], Any]] = [
        lambda: retriever.predict(TWO, **options),
        lambda: retriever.rank(TWO, **options),
        lambda: retriever.predict_to_parquet(TWO, tmp_path / "files", show_progress_bar=False, **options),
        lambda: retriever.remember(data.train["text"], data.to_csr("train"), **options),
        lambda: retriever.calibrate(data.test["text"], data.to_csr("test"), **options),
        lambda: retriever.add_labels(TWO, **options),
        lambda: Retriever.build(retriever.encoder, WORDS, **options),
        lambda: retriever.encoder.query_vectors(TWO, **options),
        lambda: retriever.encoder.label_vectors(WORDS, **options),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    assert not (tmp_path / "files").exists() and len(retriever.labels) == len(WORDS)
    retriever.predict_to_parquet(TWO, tmp_path / "files", show_progress_bar=False)  # nothing stands in its way


def test_a_default_prompt_is_the_same_after_a_reload_as_before(tmp_path: Path) -> None:
    encoder = make_static_encoder()
    encoder.prompts, encoder.default_prompt_name = {"tag": "war "}, "tag"
    retriever = Retriever.build(encoder, WORDS)
    retriever.save_pretrained(tmp_path)
    loaded = Retriever.from_pretrained(tmp_path, device="cpu")
    expected = retriever.predict(["sea dogs"], 3)
    for door in (loaded.predict, hf_xmc.pipeline(model=str(tmp_path), device="cpu"), StaticServer(tmp_path)):
        for ours, theirs in zip(door(["sea dogs"], top_k=3)[0], expected[0], strict=True):
            assert ours["label_id"] == theirs["label_id"] and abs(ours["score"] - theirs["score"]) < 1e-5
    for each in (retriever, loaded):
        each.add_labels(["cats and birds"])
    np.testing.assert_allclose(loaded.embedding[-1], retriever.embedding[-1], atol=1e-6)


def test_the_prompt_of_passages_is_used_by_a_model_that_the_host_has_loaded(tmp_path: Path) -> None:
    SentenceTransformer(modules=list(make_static_encoder()), prompts={"query": "q ", "passage": "p "}).save(
        str(tmp_path)
    )
    settings = json.loads((tmp_path / "config_sentence_transformers.json").read_text())
    settings["prompts"] = {"query": "war ", "passage": "sea "}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    encoder = XMCEncoder(str(tmp_path), device="cpu")
    assert encoder.prompts["document"] == ""  # which the host fills in
    assert prompt_of(encoder, "document") == "sea " and prompt_of(encoder, "query") == "war "
    expected = encoder.encode(WORDS, prompt="sea ", normalize_embeddings=True)
    np.testing.assert_allclose(encoder.label_vectors(WORDS), expected, atol=1e-6)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_truth_of_no_votes_is_refused(value: float) -> None:
    retriever, data = make_retriever(), make_words_data()
    texts, truth = data.test["text"][:], data.to_csr("test")
    retriever.calibrate(texts, truth)
    for ask in (retriever.remember, retriever.calibrate, retriever.reliability):
        with pytest.raises(ValueError, match=f"votes must be finite and above 0, got .*{value}"):
            ask(texts, csr_matrix(truth, dtype=np.float64) * value)


def test_what_cannot_be_learned_from_is_refused_before_anything_changes(tmp_path: Path) -> None:
    retriever = make_retriever()
    for call, message in (
        (lambda: retriever.remember([], []), "no texts to remember"),
        (
            lambda: retriever.remember(TWO, [[1], [2]], form={"a": 1}),
            "form must be a hf_xmc.memory.MemoryForm, got {'a'",
        ),
        (
            lambda: retriever.remember(TWO, [[1], [2]], dtype="int4"),
            "dtype must be float32, float16 or int8, got 'int4'",
        ),
        (lambda: retriever.remember(TWO, [[1], [2]], dtype="float64"), "dtype must be float32, float16 or int8"),
        (lambda: retriever.calibrate([], []), "at least 2, got 0"),
        (lambda: retriever.calibrate(["war"], [[4]]), "at least 2, got 1"),
        (lambda: Retriever.build(make_static_encoder(), []), "expected an XMCEncoder and labels, got .* 0 labels"),
        (
            lambda: Retriever.build(SentenceTransformer(modules=list(make_static_encoder())), WORDS),
            "XMCEncoder.modules",
        ),
        (lambda: retriever.save_pretrained(""), "expected the name of a folder, got ''"),
        (lambda: StaticServer(tmp_path / "none"), "none does not exist; expected the folder of a saved retriever"),
        (lambda: hf_xmc.pipeline(str(tmp_path)), r"give a repo by name, pipeline\(model=...\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert retriever.memory is None and retriever.calibration is None
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="expected the name of a folder, got .*file"):
        retriever.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_options_that_no_door_knows_are_refused_by_each(tmp_path: Path) -> None:
    make_retriever().save_pretrained(tmp_path)
    for call in (
        lambda: hf_xmc.pipeline(model=str(tmp_path), device="cpu", topk=2),
        lambda: hf_xmc.pipeline(model=str(tmp_path), device="cpu")(TWO, topk=2),
        lambda: StaticServer(tmp_path)(TWO, topk=2),
    ):
        with pytest.raises(ValueError, match="unknown option topk; a call takes batch_size, top_k"):
            call()


def test_a_home_folder_is_the_same_when_it_is_written_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    retriever = make_retriever()
    retriever.save_pretrained("~/repo")
    retriever.predict_to_parquet(TWO, "~/files", show_progress_bar=False)
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["files", "repo"]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    expected = retriever.predict("war")
    assert Retriever.from_pretrained("~/repo", device="cpu").predict("war") == expected
    for door in (hf_xmc.pipeline(model="~/repo", device="cpu"), StaticServer("~/repo")):
        assert [label["label_id"] for label in door("war")] == [label["label_id"] for label in expected[0]]


@pytest.mark.parametrize("kind", ["static", "bert"])
def test_an_encoder_in_bfloat16_is_served_by_every_door(kind: str, tmp_path: Path) -> None:
    encoder = make_static_encoder() if kind == "static" else make_bert_encoder(tmp_path / "bert")
    if kind == "bert":
        encoder.add_classifier(len(WORDS), 8)
    retriever = Retriever.build(encoder.to(torch.bfloat16), WORDS)
    retriever.save_pretrained(tmp_path / "repo")
    expected = retriever.predict(TWO, 3)
    doors = [Retriever.from_pretrained(tmp_path / "repo", device="cpu").predict]
    doors += [hf_xmc.pipeline(model=str(tmp_path / "repo"), device="cpu")]
    doors += [StaticServer(tmp_path / "repo")] if kind == "static" else []
    for door in doors:
        for ours, theirs in zip(door(TWO, top_k=3), expected, strict=True):
            assert ours[0]["label_id"] == theirs[0]["label_id"]
            np.testing.assert_allclose([a["score"] for a in ours], [a["score"] for a in theirs], atol=2e-2)


def test_an_evaluator_makes_the_folder_of_its_lines_and_refuses_a_split_without_labels(tmp_path: Path) -> None:
    data = make_words_data()
    XMCEvaluator(data)(make_static_encoder(), str(tmp_path / "new" / "folder"))
    assert (tmp_path / "new" / "folder" / "xmc_evaluation.jsonl").is_file()
    bare = data.test.map(lambda row: {"label_ids": []}, features=data.test.features)
    with pytest.raises(ValueError, match="none of the 16 test rows of words has a label to be found"):
        XMCEvaluator(hf_xmc.XMCDataset(data.train, bare, data.labels, data.filters, "words"))
