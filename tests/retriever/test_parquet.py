from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from forks import Forks
from reference.retriever import slow_predict
from toys import WORDS, make_static_encoder

from hf_xmc import Retriever

TEXTS = [f"{WORDS[i % 17]} {WORDS[i * i % 17]}" for i in range(103)]


def read(folder: Path) -> list[tuple[int, list[int], list[str], list[float]]]:
    tables = [pq.read_table(file) for file in sorted(folder.glob("*.parquet"))]
    columns = ("row", "label_ids", "labels", "scores")
    return [row for table in tables for row in zip(*(table[name].to_pylist() for name in columns), strict=True)]


def assert_same_as_a_loop(folder: Path, retriever: Retriever, threshold: float = -np.inf) -> None:
    rows = read(folder)
    assert [row for row, *_ in rows] == list(range(len(TEXTS)))
    for text, (_, ids, labels, scores) in zip(TEXTS, rows, strict=True):
        query = retriever.encoder.query_vectors([text])[0]
        expected = slow_predict(retriever.index.vectors @ query, 3, threshold=threshold)
        np.testing.assert_allclose(scores, [score for _, score in expected], atol=1e-6)
        every = retriever.index.vectors @ query
        np.testing.assert_allclose(every[ids], scores, atol=1e-6)  # ids, up to the order of scores as close
        assert labels == [WORDS[i] for i in ids]


@pytest.fixture
def retriever() -> Retriever:
    return Retriever.build(make_static_encoder(), WORDS)


@pytest.mark.parametrize("kind", ["list", "iterator", "column"])
def test_files_hold_what_a_loop_over_the_texts_finds(kind: str, retriever: Retriever, tmp_path: Path) -> None:
    column = datasets.Dataset.from_dict({"text": TEXTS})["text"]
    texts = {"list": TEXTS, "iterator": iter(TEXTS), "column": column}[kind]
    folder = retriever.predict_to_parquet(texts, tmp_path / "out", 3, rows_per_file=25, threshold=0.1)
    assert sorted(file.name for file in folder.glob("*")) == ["_predicted_by.json"] + [
        f"part-0000{i}.parquet" for i in range(5)
    ]
    assert_same_as_a_loop(folder, retriever, threshold=0.1)
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["row"][:] == list(range(len(TEXTS)))


KILLED = """
import json, sys, time
from hf_xmc import Retriever
def slowly():
    for text in json.loads(sys.argv[3]):
        time.sleep(0.02)
        yield text
Retriever.from_pretrained(sys.argv[1], device="cpu").predict_to_parquet(
    slowly(), sys.argv[2], 3, rows_per_file=10, show_progress_bar=False)
"""


def test_a_killed_call_goes_on_where_it_stopped(retriever: Retriever, forks: Forks, tmp_path: Path) -> None:
    retriever.save_pretrained(tmp_path / "repo")
    folder = tmp_path / "out"
    process = forks.start(KILLED, tmp_path / "repo", folder, json.dumps(TEXTS))
    while len(list(folder.glob("part-*.parquet"))) < 2:
        time.sleep(0.005)
    process.kill()
    assert forks.wait(process) == [-signal.SIGKILL]
    done = {file.name: file.stat().st_mtime_ns for file in folder.glob("part-*.parquet")}
    assert 2 <= len(done) < 11
    (folder / f".part-00009.parquet-of-{process.pid}").write_bytes(b"PAR1 cut short")
    again = Retriever.from_pretrained(tmp_path / "repo", device="cpu")
    again.predict_to_parquet(iter(TEXTS), folder, 3, rows_per_file=10)
    now = {file.name: file.stat().st_mtime_ns for file in folder.glob("part-*.parquet")}
    assert len(now) == 11 and now | done == now
    assert_same_as_a_loop(folder, retriever)
    assert not list(folder.glob(".part-*"))


def test_files_of_another_call_are_not_taken_for_its_own(retriever: Retriever, tmp_path: Path) -> None:
    def predict(texts: list[str] = TEXTS, top_k: int = 3, rows: int = 50, **options: object) -> None:
        retriever.predict_to_parquet(texts, tmp_path, top_k, rows_per_file=rows, show_progress_bar=False, **options)

    predict()
    predict()  # the same once more is no error
    for change in ({"top_k": 4}, {"rows": 40}, {"threshold": 0.5}, {"candidates": [1, 2]}):
        with pytest.raises(ValueError, match="holds predictions made otherwise"):
            predict(**change)
    with pytest.raises(ValueError, match="part-00001.parquet was made of other texts"):
        predict([*TEXTS[:60], "other", *TEXTS[61:]])
    with pytest.raises(ValueError, match="part-00002.parquet is of an earlier call with more texts|other texts"):
        predict(TEXTS[:100])
    with pytest.raises(ValueError, match="got one str"):
        predict("cats")
    part = tmp_path / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ValueError, match="part-00000.parquet is damaged .*; delete it and call again"):
        predict()
    part.unlink()
    predict()
    retriever.remove_labels([0])
    with pytest.raises(ValueError, match="holds predictions made otherwise .model: "):
        predict()
    (tmp_path / "_predicted_by.json").unlink()
    with pytest.raises(ValueError, match="part-00000.parquet but no _predicted_by.json"):
        predict()


def test_only_the_texts_of_one_file_are_held(retriever: Retriever, tmp_path: Path) -> None:
    taken = 0

    def texts() -> object:
        nonlocal taken
        for number, text in enumerate(TEXTS):
            written = 10 * len(list(tmp_path.glob("part-*.parquet")))
            assert number - written <= 10
            taken += 1
            yield text

    retriever.predict_to_parquet(texts(), tmp_path, 3, rows_per_file=10, show_progress_bar=False)
    assert taken == len(TEXTS)
