"""Whatever a user hands to a door as texts, ids or options: the right answer, or a ValueError that says what came."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data

import hf_xmc
from hf_xmc import LabelIndex, Retriever
from hf_xmc.hub.server_xmc import OnnxServer, OpenVinoServer, StaticServer
from hf_xmc.serving import export_onnx

TWO = ["war", "sea"]
Door = Callable[..., Any]


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Door]:
    """Everything that answers texts, as one call (texts, **options) -> ids of the labels of each."""
    folder, data = tmp_path_factory.mktemp("doors"), make_words_data()
    made: dict[str, Door] = {}
    saved: dict[str, Retriever] = {}
    for kind in ("static", "bert"):
        retriever = Retriever.build(
            make_static_encoder() if kind == "static" else make_bert_encoder(folder / kind / "encoder"), WORDS
        )
        retriever.remember(data.train["text"], data.train["label_ids"])
        retriever.save_pretrained(folder / kind / "repo")
        saved[kind] = retriever
        made |= {f"{kind} retriever": retriever.predict, f"{kind} rank": retriever.rank}
        made[f"{kind} pipeline"] = hf_xmc.pipeline(model=str(folder / kind / "repo"), device="cpu")
    made["server"] = StaticServer(folder / "static" / "repo")
    export_onnx(folder / "bert" / "repo")
    made["onnx"] = OnnxServer(folder / "bert" / "repo")
    made["openvino"] = OpenVinoServer(folder / "bert" / "repo")
    files = itertools.count()

    def to_parquet(texts: Any, **options: Any) -> Any:
        target = folder / f"out{next(files)}"
        try:
            saved["static"].predict_to_parquet(texts, target, show_progress_bar=False, **options)
        except ValueError:
            assert not target.exists()  # a refused call leaves nothing
            raise
        return pd.read_parquet(target)["label_ids"].tolist()

    return made | {"parquet": to_parquet}


def ids_of(answer: Any) -> list[list[int]]:
    if hasattr(answer, "ids"):
        return answer.ids.tolist()
    lines = list(answer)
    if lines and isinstance(lines[0], dict):
        lines = [lines]
    return [[label["label_id"] if isinstance(label, dict) else int(label) for label in line] for line in lines]


# Forms of two texts that every door takes, each made anew: some can be read once only.
RIGHT: dict[str, Callable[[], Any]] = {
    "tuple": lambda: tuple(TWO),
    "deque": lambda: deque(TWO),
    "array": lambda: np.array(TWO),
    "array of objects": lambda: np.array(TWO, dtype=object),
    "series": lambda: pd.Series(TWO, index=[7, 3]),
    "column": lambda: datasets.Dataset.from_dict({"t": TWO})["t"],
    "arrow": lambda: pa.array(TWO),
    "chunked arrow": lambda: pa.chunked_array([TWO[:1], TWO[1:]]),
    "keys": lambda: dict.fromkeys(TWO).keys(),
    "generator": lambda: (text for text in TWO),
    "map": lambda: map(str, TWO),
}
WRONG_TEXTS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "number": lambda: 3,
    "nan": lambda: float("nan"),
    "bytes": lambda: b"war",
    "dict": lambda: {"a": "war", "b": "sea"},
    "frame": lambda: pd.DataFrame({"text": TWO}),
    "dataset": lambda: datasets.Dataset.from_dict({"text": TWO}),
    "table": lambda: pa.table({"text": TWO}),
    "set": lambda: set(TWO),
    "none in it": lambda: ["war", None],
    "nan in it": lambda: ["war", float("nan")],
    "number in it": lambda: ["war", 3],
    "bytes in it": lambda: ["war", b"sea"],
    "nested": lambda: [["war"], ["sea"]],
    "pairs": lambda: [("war", "sea"), ("sea", "war")],
    "dicts in it": lambda: [{"text": "war"}, {"text": "sea"}],
    "array of numbers": lambda: np.zeros(2),
    "matrix": lambda: np.array([["war", "sea"], ["sea", "war"]]),
    "tensor": lambda: torch.zeros(2),
    "arrow with a null": lambda: pa.array(["war", None]),
    "series with a gap": lambda: pd.Series(["war", None]),
    "half a pair": lambda: ["war", "half \ud83d"],
}


@pytest.mark.parametrize("form", RIGHT)
def test_every_door_takes_texts_of_every_right_form(form: str, doors: dict[str, Door]) -> None:
    for name, door in doors.items():
        expected = ids_of(door(list(TWO), top_k=3))
        assert len(expected) == 2 and all(len(line) == 3 for line in expected), name
        assert ids_of(door(RIGHT[form](), top_k=3)) == expected, name


@pytest.mark.parametrize("form", WRONG_TEXTS)
def test_every_door_refuses_what_are_no_texts_with_what_came(form: str, doors: dict[str, Door]) -> None:
    for name, door in doors.items():
        with pytest.raises(ValueError, match="texts must be|no valid Unicode") as found:
            list(door(WRONG_TEXTS[form]()))
        assert len(str(found.value)) < 400, name


WRONG_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"top_k": 0}, "top_k must lie between 1 and the 17 labels, got 0"),
    "less": ({"top_k": -1}, "top_k must lie between 1 and the 17 labels, got -1"),
    "too many": ({"top_k": 18}, "top_k must lie between 1 and the 17 labels, got 18"),
    "a fraction": ({"top_k": 3.0}, "top_k must be an integer, got 3.0"),
    "a flag": ({"top_k": True}, "top_k must be an integer, got True"),
    "words": ({"top_k": "3"}, "top_k must be an integer, got '3'"),
    "a list": ({"top_k": [3]}, r"top_k must be an integer, got \[3\]"),
    "a threshold of words": ({"threshold": "0.5"}, "threshold must be a number, got '0.5'"),
    "a threshold of nothing": ({"threshold": float("nan")}, "threshold must be a number, got nan"),
    "a precision": ({"min_precision": 1.5}, r"min_precision must lie in \(0, 1\], got 1.5"),
    "uncalibrated": ({"min_precision": 0.5}, "min_precision needs probabilities; make them: calibrate"),
    "memory by words": ({"memory": "yes"}, "memory must be True or False, got 'yes'"),
    "a mask": ({"candidates": [False, True] + [False] * 15}, r"got a mask of 17 bools; give np.flatnonzero\(mask\)"),
    "an array of masks": ({"candidates": np.zeros(17, dtype=bool)}, "got a mask of 17 bools"),
    "fractions": ({"candidates": [1.7]}, "label ids must be integers, got float64"),
    "nan among ids": ({"candidates": [1, float("nan")]}, "label ids must be integers, got float64"),
    "none among ids": ({"candidates": [1, None]}, "label ids must be integers, got object"),
    "label texts": ({"candidates": ["war"]}, "label ids must be integers, got <U3"),
    "one text": ({"candidates": "war"}, "label ids must be integers, got str 'war'"),
    "a number": ({"candidates": 3}, "label ids must be integers, got int 3"),
    "nested ids": ({"candidates": [[1], [2]]}, r"label ids must be integers, got int64 of shape \(2, 1\)"),
    "ragged ids": ({"candidates": [[1], [2, 3]]}, "label ids must be integers, one for each label, got nested lists"),
    "a dict": ({"candidates": {1: 2}}, "label ids must be integers, got dict"),
    "none left": ({"candidates": []}, "candidates is empty"),
    "not there": ({"candidates": [3, 17, -1]}, r"candidates \[-1, 17\] are not among the 17 labels present"),
    "huge": ({"candidates": [2**70]}, "label ids must be integers|below 2"),
}


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_every_door_refuses_options_that_cannot_be_with_what_came(name: str, doors: dict[str, Door]) -> None:
    options, message = WRONG_OPTIONS[name]
    for door in doors.values():
        with pytest.raises(ValueError, match=message):
            door(list(TWO), **options)


RIGHT_IDS: dict[str, Callable[[], Any]] = {
    "tuple": lambda: (1, 2),
    "generator": lambda: (i for i in (1, 2)),
    "twice": lambda: [2, 1, 2],
    "int32": lambda: np.array([1, 2], dtype=np.int32),
    "uint8": lambda: np.array([1, 2], dtype=np.uint8),
    "series": lambda: pd.Series([1, 2]),
    "column": lambda: datasets.Dataset.from_dict({"i": [1, 2]})["i"],
    "arrow": lambda: pa.array([1, 2]),
    "tensor": lambda: torch.tensor([1, 2]),
    "range": lambda: range(1, 3),
    "set": lambda: {1, 2},
}


@pytest.mark.parametrize("form", RIGHT_IDS)
def test_every_door_takes_candidates_of_every_right_form(form: str, doors: dict[str, Door]) -> None:
    for name, door in doors.items():
        expected = ids_of(door(list(TWO), top_k=2, candidates=[1, 2]))
        assert [sorted(line) for line in expected] == [[1, 2], [1, 2]], name
        assert ids_of(door(list(TWO), top_k=2, candidates=RIGHT_IDS[form]())) == expected, name


def test_with_few_labels_every_door_gives_all_and_pads_nothing(tmp_path: Path) -> None:
    for kind in ("exact", "half", "int8", "hnsw", "ivf", "pq"):
        retriever = Retriever.build(make_static_encoder(), WORDS[:3], index=kind)
        retriever.save_pretrained(tmp_path / kind)
        retriever.predict_to_parquet(TWO, tmp_path / f"{kind} files", show_progress_bar=False)
        loaded = Retriever.from_pretrained(tmp_path / kind, device="cpu")
        pipe = hf_xmc.pipeline(model=str(tmp_path / kind), device="cpu")
        for door in (retriever.predict, loaded.predict, pipe, StaticServer(tmp_path / kind)):
            for options in ({}, {"top_k": None}, {"top_k": 3}):
                assert [sorted(line) for line in ids_of(door(list(TWO), **options))] == [[0, 1, 2]] * 2, kind
        assert [sorted(ids) for ids in pd.read_parquet(tmp_path / f"{kind} files")["label_ids"]] == [[0, 1, 2]] * 2
        for empty in ([], (), iter(())):
            for door in (retriever.predict, pipe, StaticServer(tmp_path / kind)):
                assert door(list(empty)) == []


def test_an_encoder_of_nans_gives_no_scores_but_an_error(tmp_path: Path) -> None:
    for kind in ("exact", "half", "int8", "hnsw", "ivf", "pq"):
        retriever = Retriever.build(make_static_encoder(), WORDS, index=kind)
        retriever.encoder[0].embedding.weight.data[2:] = float("nan")
        with pytest.raises(ValueError, match="the vector of query 0 is not finite; did training diverge"):
            retriever.predict(WORDS[:2], 2)
        with pytest.raises(ValueError, match="the vector of label 0 is not finite; did training diverge"):
            Retriever.build(retriever.encoder, WORDS, index=kind)


def test_ids_of_labels_that_go_and_pairs_that_are_passed_over_are_checked() -> None:
    retriever = Retriever.build(make_static_encoder(), WORDS)
    for options, message in WRONG_OPTIONS.values():
        ids = options.get("candidates", [])
        if "candidates" in options and ids is not WRONG_OPTIONS["none left"][0]["candidates"]:
            with pytest.raises(ValueError, match=message.replace("candidates", "label ids")):
                retriever.remove_labels(ids)
    assert retriever.index.num_alive == len(WORDS)
    index, queries = LabelIndex(retriever.embedding), retriever.embedding[:2]
    for wrong in (
        3,
        [1, 2],
        [[1, 2, 3]],
        [[0.5, 1.0]],
        [[2, 0]],
        [[0, 17]],
        [[-1, 0]],
        [["war", "sea"]],
        [[True, False]],
    ):
        with pytest.raises(ValueError, match="filters are|filters, pair 0: .* is out of range"):
            index.search(queries, 3, filters=wrong)
    for none in (None, [], np.zeros((0, 2), dtype=np.int64)):
        np.testing.assert_array_equal(index.search(queries, 3, filters=none)[0], index.search(queries, 3)[0])
    first = index.search(queries, 1)[0][:, 0]
    assert index.search(queries, 1, filters=[[0, first[0]], [1, first[1]]])[0][:, 0].tolist() != first.tolist()
