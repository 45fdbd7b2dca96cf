"""A retriever pushed to a Hub on loopback answers through every door, from processes that never saw it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import WORDS, make_bert_encoder, make_static_encoder
from fake_hub import fake_hub  # noqa: F401

from hf_xmc import Retriever

PUSH = """
import sys
from hf_xmc import Retriever
print(Retriever.from_pretrained(sys.argv[1]).push_to_hub("user/books"))
"""
ASK = """
import json, sys
texts = json.loads(sys.argv[1])
from transformers import pipeline
pipe = pipeline("xmc-retrieval", model="user/books", trust_remote_code=True, device="cpu")
answers = [pipe(texts, top_k=3)]
assert "hf_xmc" not in sys.modules
import hf_xmc
from sentence_transformers import SentenceTransformer
answers.append(hf_xmc.pipeline(model="user/books", device="cpu")(texts, top_k=3))
answers.append(hf_xmc.Retriever.from_pretrained("user/books").predict(texts, top_k=3))
assert hf_xmc.XMCEncoder("user/books").label_classifier is not None
assert SentenceTransformer("user/books").encode("war").shape
print(json.dumps(answers))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["static", "bert"])
def test_a_pushed_retriever_answers_the_same_through_every_door(
    kind: str,
    fake_hub,  # noqa: F811
    tmp_path: Path,
) -> None:
    encoder = make_static_encoder() if kind == "static" else make_bert_encoder(tmp_path / "bert")
    encoder.add_classifier(len(WORDS), None if kind == "static" else 8)
    retriever = Retriever.build(encoder, WORDS)
    retriever.save_pretrained(tmp_path / "repo")
    texts = ["the history of war", "cats and dogs", "mathematics"]
    expected = retriever.predict(texts, top_k=3)
    assert "user/books" in fake_hub.run(PUSH, tmp_path / "repo")
    assert {"pipeline_xmc.py", "labels.json", "xmc_config.json", "README.md"} <= set(fake_hub.files("user/books"))
    for answers in json.loads(fake_hub.run(ASK, json.dumps(texts)).splitlines()[-1]):
        for ours, theirs in zip(expected, answers, strict=True):
            assert [a["label_id"] for a in theirs] == [a["label_id"] for a in ours]
            assert [a["score"] for a in theirs] == pytest.approx([a["score"] for a in ours], abs=1e-5)
