"""Threads that share a retriever or a pipeline get the answers that each would get alone, also while labels change."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data

import hf_xmc
from hf_xmc import Retriever
from hf_xmc.hub.server_xmc import OpenVinoServer, StaticServer
from hf_xmc.memory import MemoryForm
from hf_xmc.serving import export_onnx

NUM_THREADS, NUM_CALLS = 16, 100
TEXTS = [" ".join(np.random.default_rng(seed).choice(WORDS, 1 + seed % 6)) for seed in range(40)]


def make_retriever(kind: str, folder: Path) -> Retriever:
    encoder = make_static_encoder() if kind == "static" else make_bert_encoder(folder / "bert")
    encoder.add_classifier(len(WORDS), 8, encoder_dimension=12)
    torch.nn.init.normal_(encoder.label_classifier.rows.weight, std=0.3)
    retriever = Retriever.build(encoder, WORDS)
    data = make_words_data()
    retriever.remember(data.train["text"], data.to_csr("train"), MemoryForm(0.4, 20.0, 20))
    return retriever


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [label["label_id"] for label in ours] == [label["label_id"] for label in theirs]
    np.testing.assert_allclose([a["score"] for a in ours], [b["score"] for b in theirs], atol=1e-6)


def in_threads(call: Callable[[str], list[dict[str, Any]]]) -> None:
    """Every answer of 16 threads is the one that was given before they began."""
    alone = {text: call(text) for text in TEXTS}

    def worker(number: int) -> int:
        for place in range(NUM_CALLS):
            text = TEXTS[(7 * number + place) % len(TEXTS)]
            assert_same(alone[text], call(text))
        return NUM_CALLS

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        assert sum(pool.map(worker, range(NUM_THREADS))) == NUM_THREADS * NUM_CALLS


@pytest.mark.slow
@pytest.mark.parametrize("door", ["retriever", "pipeline", "server"])
@pytest.mark.parametrize("kind", ["static", "bert"])
def test_threads_get_the_answers_of_one(kind: str, door: str, tmp_path: Path) -> None:
    retriever = make_retriever(kind, tmp_path)
    if door == "retriever":
        in_threads(lambda text: retriever.predict(text, 4)[0])
        return
    retriever.save_pretrained(tmp_path / "repo")
    if door == "pipeline":
        pipe = hf_xmc.pipeline(model=str(tmp_path / "repo"), device="cpu")
        in_threads(lambda text: pipe(text, top_k=4))
        return
    if kind == "bert":
        export_onnx(tmp_path / "repo")
    server = (StaticServer if kind == "static" else OpenVinoServer)(tmp_path / "repo")
    in_threads(lambda text: server(text, 4))


def test_labels_come_and_go_while_others_predict(tmp_path: Path) -> None:
    retriever = make_retriever("static", tmp_path)
    alone = {text: retriever.predict(text, 4, candidates=range(len(WORDS)))[0] for text in TEXTS}
    stop = False

    def predict(number: int) -> int:
        count = 0
        while not stop or count < 20:
            text = TEXTS[(7 * number + count) % len(TEXTS)]
            assert_same(alone[text], retriever.predict(text, 4, candidates=range(len(WORDS)))[0])
            for label in retriever.predict(text, 8)[0]:
                assert isinstance(label["label"], str)
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(predict, number) for number in range(4)]
        for number in range(30):
            ids = retriever.add_labels([f"history of label {number}", "a label that goes"])
            retriever.remove_labels(ids[1:])
        stop = True
        assert sum(future.result() for future in asked) >= 80
    assert retriever.index.num_alive == len(WORDS) + 30
