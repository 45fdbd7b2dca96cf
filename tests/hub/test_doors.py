"""One repo, many doors: the same answers from each, also in processes that lack hf_xmc, faiss or torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import Forks
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data
from transformers import AutoModel, AutoTokenizer

import hf_xmc
from hf_xmc import Retriever, XMCEncoder
from hf_xmc.hub.server_xmc import StaticServer
from hf_xmc.memory import MemoryForm

TEXTS = ["cats and dogs", "the history of war", "", "mathematics of the sea " * 30, "😀 birds שלום", "Peace"]
# Calls of a pipeline, a server or Retriever.predict; all repos answer the first ones, those with more parts the rest.
PLAIN = [{"top_k": 4}, {"top_k": 3, "memory": False, "threshold": 0.2}, {"top_k": 5, "candidates": [2, 5, 7, 11]}]
VOTES = [
    {"top_k": 3, "return_evidence": True, "num_evidence": 100},
    {"top_k": 3, "memory": False, "return_evidence": True},
    {"top_k": 4, "candidates": [2, 5, 7, 11], "return_evidence": True, "num_evidence": 100},
    {"top_k": 5, "min_precision": 0.4},
    {"top_k": len(WORDS) - 1, "return_evidence": True},  # more labels than any key votes for
]
# Encoder, the type of the memory's rows.
REPOS = {"static": None, "static rows": "float32", "static heads": "int8", "bert heads": "float16", "bert": None}


def make_retriever(name: str, folder: Path) -> Retriever:
    kind, _, classifier = name.partition(" ")
    encoder = make_static_encoder() if kind == "static" else make_bert_encoder(folder / "bert")
    encoder.prompts["query"] = "history of"
    if kind == "bert":
        encoder[1] = Pooling(32, ("mean", "cls"), include_prompt=name != "bert")
    if classifier == "heads":
        encoder.add_classifier(len(WORDS), 8, encoder_dimension=12)
    elif classifier == "rows":
        encoder.add_classifier(len(WORDS), None, residual=True)
    if classifier:
        torch.nn.init.normal_(encoder.label_classifier.rows.weight, std=0.3)
    retriever = Retriever.build(encoder, WORDS)
    if REPOS[name]:
        data = make_words_data()
        form = MemoryForm(row_weight=0.4, num_keys=20, frequency_power=-0.3)
        retriever.remember(data.train["text"][:], data.to_csr("train"), form, dtype=REPOS[name])
        retriever.remove_labels([12])
        retriever.calibrate(data.test["text"][:], data.to_csr("test"))
    return retriever


def calls_of(name: str) -> list[dict[str, Any]]:
    return PLAIN + VOTES if REPOS[name] else [{k: v for k, v in call.items() if k != "memory"} for call in PLAIN]


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Retriever, list[Any]]]:
    made = {}
    for name in REPOS:
        folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
        retriever = make_retriever(name, folder)
        retriever.save_pretrained(folder / "repo")
        made[name] = folder / "repo", retriever, [retriever.predict(TEXTS, **call) for call in calls_of(name)]
    assert any(label["evidence"]["rows"] for answer in made["bert heads"][2][3] for label in answer)
    whole = made["bert heads"][2][-1]
    assert [len(answer) for answer in whole] == [len(WORDS) - 1] * len(TEXTS)
    assert any(label["evidence"]["label"]["share"] == 1 and not label["evidence"]["rows"] for label in whole[0])
    return made


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    """Scores, shares and probabilities to 1e-5, everything else equal, up to the order of scores that close."""
    if isinstance(ours, float):
        assert abs(ours - theirs) < 1e-5, where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        order = [sorted(part, key=_key) if part and isinstance(part[0], dict) else part for part in (ours, theirs)]
        for place, (a, b) in enumerate(zip(*order, strict=True)):
            assert_same(a, b, f"{where}[{place}]")
    else:
        assert ours == theirs, where


def _key(entry: dict[str, Any]) -> tuple[float, int]:
    return -round(entry.get("share", entry["score"]), 4), entry.get("label_id", entry.get("row"))


CLEAN = """
import json, sys
folders, calls, texts = json.loads(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
sys.modules |= dict.fromkeys(["hf_xmc", "sentence_transformers", *sys.argv[4:]])
"""
PIPELINE = (
    CLEAN
    + """
from transformers import AutoModel, pipeline
answers = {}
for name, folder in folders.items():
    pipe = pipeline("xmc-retrieval", model=folder, trust_remote_code=True, device="cpu")
    answers[name] = [[pipe(texts, batch_size=size, **call) for call in calls[name]] for size in (1, 32)]
model = AutoModel.from_pretrained(folders["static"], trust_remote_code=True)
answers["table"] = model.embedding.weight.sum().item()
print(json.dumps(answers))
"""
)
SERVER = (
    CLEAN
    + """
sys.path.insert(0, folders["static"])
from server_xmc import StaticServer
answers = {}
for name, folder in folders.items():
    serve = StaticServer(folder)
    answers[name] = [[serve(texts, batch_size=size, **call) for call in calls[name]] for size in (1, 32)]
print(json.dumps(answers))
"""
)


def arguments_of(repos: dict[str, Any]) -> list[str]:
    folders = {name: str(folder) for name, (folder, _, _) in repos.items()}
    return [*map(json.dumps, (folders, {name: calls_of(name) for name in repos}, TEXTS))]


@pytest.mark.slow
def test_a_process_with_only_transformers_answers_the_same(repos: dict, bare_forks: Forks) -> None:
    answers = json.loads(bare_forks.run(PIPELINE, *arguments_of(repos), "faiss").splitlines()[-1])
    for name, (_, _, expected) in repos.items():
        for theirs in answers[name]:
            assert_same(expected, theirs, name)
    assert answers["table"] == pytest.approx(repos["static"][1].encoder[0].embedding.weight.sum().item(), abs=1e-3)


@pytest.mark.slow
def test_a_process_without_torch_answers_the_same_from_static_repos(repos: dict) -> None:
    static = {name: repo for name, repo in repos.items() if name.startswith("static")}
    command = [sys.executable, "-c", SERVER, *arguments_of(static), "torch", "transformers", "faiss"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout)
    for name, (_, _, expected) in static.items():
        for theirs in answers[name]:
            assert_same(expected, theirs, name)


@pytest.mark.parametrize("name", REPOS)
def test_every_door_of_the_installed_package_answers_the_same(name: str, repos: dict) -> None:
    folder, retriever, expected = repos[name]
    pipe = hf_xmc.pipeline(model=str(folder), device="cpu")
    loaded = Retriever.from_pretrained(folder, device="cpu")
    for call, answers in zip(calls_of(name), expected, strict=True):
        assert_same(answers, pipe(TEXTS, **call), name)
        assert_same(answers, loaded.predict(TEXTS, **call), name)
    assert_same(expected[0][0], pipe(TEXTS[0], **calls_of(name)[0]), name)
    vectors = retriever.encoder.encode(TEXTS, prompt_name="query")
    for door in (SentenceTransformer, XMCEncoder):
        np.testing.assert_allclose(
            door(str(folder), device="cpu").encode(TEXTS, prompt_name="query"), vectors, atol=1e-5
        )


def test_auto_model_opens_the_encoder_of_a_repo(repos: dict) -> None:
    folder, retriever, _ = repos["bert"]
    tokens = AutoTokenizer.from_pretrained(folder)("cats and dogs", return_tensors="pt")
    hidden = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state[0]
    vector = torch.cat([hidden.mean(0), hidden[0]])
    expected = retriever.encoder.encode("cats and dogs", prompt="")
    np.testing.assert_allclose((vector / vector.norm()).detach().numpy(), expected, atol=1e-5)


def test_a_pipeline_saved_again_has_every_file_and_answers_the_same(repos: dict, tmp_path: Path) -> None:
    folder, _, expected = repos["bert heads"]
    shutil.copytree(folder, tmp_path / "repo")
    (tmp_path / "repo" / "README.md").write_text("my own card")
    hf_xmc.pipeline(model=str(tmp_path / "repo"), device="cpu").save_pretrained(tmp_path / "again")
    files = [
        {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}
        for root in (tmp_path / "repo", tmp_path / "again")
    ]
    assert files[0] == files[1] and {"memory/memory.safetensors", "calibration.json", "index.json"} <= set(files[0])
    pipe = hf_xmc.pipeline(model=str(tmp_path / "again"), device="cpu")
    assert_same(expected[3], pipe(TEXTS, **VOTES[0]), "again")
    pipe.save_pretrained(tmp_path / "again")  # over itself
    assert (tmp_path / "again" / "README.md").read_text() == "my own card"


def test_what_a_repo_cannot_answer_is_refused(repos: dict) -> None:
    for door in (hf_xmc.pipeline(model=str(repos["static"][0]), device="cpu"), StaticServer(repos["static"][0])):
        for call, message in (
            ({"memory": True}, "this retriever has no memory"),
            ({"return_evidence": True}, "this retriever has no memory"),
            ({"min_precision": 0.5}, "min_precision needs probabilities"),
            ({"candidates": [3, 99]}, r"candidates \[99\] are not among the 17 labels present"),
            ({"candidates": []}, "got none"),
            ({"top_k": 18}, "top_k must lie between 1 and the 17 labels, got 18"),
        ):
            with pytest.raises(ValueError, match=message):
                door("war", **call)
        with pytest.raises(ValueError, match="NoneType"):
            door(["war", None])
    with pytest.raises(ValueError, match="StaticServer serves a StaticEmbedding"):
        StaticServer(repos["bert"][0])
