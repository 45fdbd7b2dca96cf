"""One prompt of a model, wherever it encodes: the named one, the task's own, or the default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data

import hf_xmc
from hf_xmc import Retriever, XMCEncoder, XMCEvaluator
from hf_xmc.encoders.prompts import prompt_of

OWN = {"query": "war ", "document": "music ", "travel": "sea "}


def encoder_with(prompts: dict[str, str], folder: Path, default: str | None = None) -> XMCEncoder:
    encoder = make_bert_encoder(folder)
    encoder.prompts, encoder.default_prompt_name = dict(prompts), default
    return encoder


@pytest.mark.parametrize(
    "prompts,default,task,given,expected",
    [
        (OWN, None, "query", {}, "war "),
        (OWN, None, "document", {}, "music "),
        (OWN, None, "query", {"prompt": "cats "}, "cats "),
        (OWN, None, "query", {"prompt": ""}, ""),
        (OWN, None, "query", {"prompt_name": "travel"}, "sea "),
        ({"passage": "p ", "corpus": "c "}, None, "document", {}, "p "),
        ({"corpus": "c "}, None, "document", {}, "c "),
        ({"corpus": "c "}, None, "query", {}, None),
        ({"x": "x "}, "x", "query", {}, "x "),
        ({"x": "x ", "query": "q "}, "x", "query", {}, "q "),
        ({"x": "x ", "query": "q "}, "x", "document", {}, "x "),
        ({}, None, "document", {}, None),
    ],
)
def test_the_prompt_of_a_task(
    prompts: dict[str, str],
    default: str | None,
    task: str,
    given: dict[str, str],
    expected: str | None,
    tmp_path: Path,
) -> None:
    encoder = make_static_encoder()
    encoder.prompts, encoder.default_prompt_name = prompts, default
    assert prompt_of(encoder, task, **given) == expected


def test_a_name_that_is_none_is_refused_with_those_there_are(tmp_path: Path) -> None:
    retriever = Retriever.build(encoder_with(OWN, tmp_path), WORDS)
    for call in (
        lambda: retriever.predict("cats", prompt_name="typo"),
        lambda: retriever.encoder.query_vectors(["cats"], prompt_name="typo"),
        lambda: Retriever.build(retriever.encoder, WORDS, prompt_name="typo"),
    ):
        with pytest.raises(ValueError, match=r"no prompt named 'typo', only \['document', 'query', 'travel'\]"):
            call()
    with pytest.raises(ValueError, match="a prompt or a prompt_name, not both"):
        retriever.predict("cats", prompt="a", prompt_name="travel")


@pytest.mark.parametrize("names", [("query", "document"), ("query", "passage"), ("query", "corpus")])
def test_every_use_of_a_model_puts_the_same_prompts_before_the_texts(names: tuple[str, str], tmp_path: Path) -> None:
    encoder = encoder_with(dict(zip(names, ("war sea ", "music "), strict=True)), tmp_path / "bert")
    queries = encoder.encode(WORDS, prompt="war sea ", normalize_embeddings=True)
    labels = encoder.encode(WORDS, prompt="music ", normalize_embeddings=True)
    assert np.abs(queries - labels).max() > 0.1
    np.testing.assert_allclose(encoder.query_vectors(WORDS), queries, atol=1e-5)
    np.testing.assert_allclose(encoder.key_vectors(WORDS), queries, atol=1e-5)
    np.testing.assert_allclose(encoder.label_vectors(WORDS), labels, atol=1e-5)
    named = encoder.query_vectors(WORDS, prompt_name=names[1])
    np.testing.assert_allclose(named, labels, atol=1e-5)

    retriever = Retriever.build(encoder, WORDS)
    ids = retriever.add_labels(["cats and dogs"])
    expected = encoder.encode("cats and dogs", prompt="music ", normalize_embeddings=True)
    np.testing.assert_allclose(retriever.embedding[ids[0]], expected, atol=1e-5)
    retriever.save_pretrained(tmp_path / "repo")
    best = [np.argsort(-(retriever.embedding @ query))[:3].tolist() for query in queries]
    for door in (retriever, Retriever.from_pretrained(tmp_path / "repo", device="cpu")):
        assert door.rank(WORDS, 3).ids.tolist() == best
    answers = hf_xmc.pipeline(model=str(tmp_path / "repo"), device="cpu")(WORDS, top_k=3)
    assert [[label["label_id"] for label in line] for line in answers] == best


def test_a_plain_sentence_transformer_is_judged_with_its_prompts(tmp_path: Path) -> None:
    encoder = encoder_with({"query": "war sea ", "document": "music "}, tmp_path / "bert")
    encoder.save_pretrained(str(tmp_path / "model"))
    evaluator = XMCEvaluator(make_words_data())
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    (ids, scores), (expected, wanted) = evaluator.predict(plain, 5), evaluator.predict(encoder, 5)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    plain.prompts = {}
    assert (evaluator.predict(plain, 5)[0] != expected).mean() > 0.2
