"""Retrievers pushed to a Hub on loopback answer through every door and at every revision, where nobody saw them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data

from hf_xmc import Retriever

PUSH = """
import json, sys
import hf_xmc
static, books, revised = (hf_xmc.Retriever.from_pretrained(folder, device="cpu") for folder in sys.argv[1:])
static.push_to_hub("user/static")
first = books.push_to_hub("user/books").rsplit("/", 1)[1]
from huggingface_hub import HfApi
for file in ("onnx/model.onnx", "notes.txt"):
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo=file, repo_id="user/books")
second = revised.push_to_hub("user/books").rsplit("/", 1)[1]
# A pipeline loaded from the Hub, at a commit that is not its last, is published whole under another name.
hf_xmc.pipeline(model="user/books", revision=first, device="cpu").push_to_hub("user/again")
print(json.dumps([first, second]))
"""
REPOS = """
import json, sys
texts, (first, second) = json.loads(sys.argv[1]), json.loads(sys.argv[2])
repos = {"static": ("user/static", None), "books": ("user/books", first), "revised": ("user/books", second),
         "last": ("user/books", None), "again": ("user/again", None)}
answers = {name: [] for name in repos}
"""
ASK_TRANSFORMERS = (
    REPOS
    + """
import transformers
for name, (repo, commit) in repos.items():
    task = {"model": repo, "revision": commit, "trust_remote_code": True, "device": "cpu"}
    answers[name].append(transformers.pipeline("xmc-retrieval", **task)(texts, top_k=3))
print(json.dumps(answers))
"""
)
ASK_PACKAGE = (
    REPOS
    + """
import hf_xmc
from sentence_transformers import SentenceTransformer
for name, (repo, commit) in repos.items():
    answers[name].append(hf_xmc.pipeline(model=repo, revision=commit, device="cpu")(texts, top_k=3))
    answers[name].append(hf_xmc.Retriever.from_pretrained(repo, revision=commit, device="cpu").predict(texts, top_k=3))
    encoder = hf_xmc.XMCEncoder(repo, revision=commit, device="cpu")
    vectors = SentenceTransformer(repo, revision=commit, device="cpu").encode(texts)
    assert abs(vectors - encoder.encode(texts)).max() < 1e-6
    answers[name].append(encoder.label_classifier.num_targets)
print(json.dumps(answers))
"""
)


def make_retrievers(folder: Path) -> dict[str, Retriever]:
    """ "books" with a memory and probabilities; "revised", of other weights and fewer labels, without."""
    data = make_words_data()
    encoders = {"static": make_static_encoder(), "books": make_bert_encoder(folder / "bert")}
    encoders["revised"] = make_bert_encoder(folder / "bert", seed=1)
    made = {}
    for name, encoder in encoders.items():
        words = WORDS[:9] if name == "revised" else WORDS
        encoder.add_classifier(len(words), None if name == "static" else 8)
        made[name] = Retriever.build(encoder, words)
    made["books"].remember(data.train["text"][:], data.to_csr("train"))
    made["books"].calibrate(data.test["text"][:], data.to_csr("test"))
    for name, retriever in made.items():
        retriever.save_pretrained(folder / name)
    return made


def assert_same(expected: list[Any], answers: list[Any]) -> None:
    for ours, theirs in zip(expected, answers, strict=True):
        assert [a["label_id"] for a in theirs] == [a["label_id"] for a in ours]
        for key in ("score", "probability"):
            if key in ours[0]:
                assert [a[key] for a in theirs] == pytest.approx([a[key] for a in ours], abs=1e-5)


@pytest.mark.slow
def test_what_is_pushed_answers_the_same_through_every_door_at_every_revision(
    fake_hub,
    tmp_path: Path,
) -> None:
    made = make_retrievers(tmp_path)
    texts = ["the history of war", "cats and dogs", "mathematics"]
    expected = {name: retriever.predict(texts, top_k=3) for name, retriever in made.items()}
    assert expected["books"] != expected["revised"] and "probability" in expected["books"][0][0]
    commits = json.loads(fake_hub.run(PUSH, *(tmp_path / name for name in made)).splitlines()[-1])

    first, second = (fake_hub.repos["model", "user/books"].at(commit)[1] for commit in commits)
    assert {"pipeline_xmc.py", "labels.json", "xmc_config.json", "README.md", "memory/texts.json"} <= set(first)
    assert fake_hub.files("user/books") == second and second["notes.txt"] == b"mine"
    assert not any(name.startswith(("memory/", "onnx/", "calibration")) for name in second)
    assert fake_hub.files("user/again") == first

    asked = json.dumps(texts), json.dumps(commits)
    alone, ours = (
        json.loads(printed.splitlines()[-1])
        for printed in (fake_hub.run_bare(ASK_TRANSFORMERS, *asked), fake_hub.run(ASK_PACKAGE, *asked))
    )
    for name, each in {"again": "books", "last": "revised", **{name: name for name in made}}.items():
        *predicted, num_labels = alone[name] + ours[name]
        assert len(predicted) == 3 and num_labels == len(made[each].labels)
        for theirs in predicted:
            assert_same(expected[each], theirs)
