"""Raw LF folders, written from records."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from hf_xmc.data import XMCDataset, load_lf


@pytest.fixture(autouse=True, scope="module")
def fingerprints_are_counted() -> Iterator[None]:
    """A data set in memory is known by a hash of all that it holds, which takes longer than to make it."""
    count = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.arrow_dataset, "generate_fingerprint", lambda dataset: f"{next(count):016x}")
        yield


TRAIN = [
    {
        "uid": "p0",
        "title": "Café au lait",
        "content": "coffee with milk",
        "target_ind": [2, 0],
        "target_rel": [1.0, 1.0],
    },
    {"uid": "l1", "title": "Tea, Vol. 1", "target_ind": [1], "target_rel": [1.0]},
    {"uid": "l3", "title": "", "content": "nothing but content", "target_ind": [], "target_rel": []},
]
TEST = [
    {"uid": "l0", "title": "Mokka", "target_ind": [0], "target_rel": [1.0]},
    {"uid": "q1", "title": "x", "target_ind": []},
]
LABELS = [{"uid": f"l{number}", "title": title} for number, title in enumerate(("coffee", "tea", "milk", "unused"))]


def json_lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Writes files, those that end in .gz compressed."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


@pytest.fixture
def toy_files() -> dict[str, bytes]:
    """Three train rows, two test rows, four labels, one filter pair in train and two in test."""
    return {
        "trn.json.gz": json_lines(TRAIN),
        "tst.json.gz": json_lines(TEST),
        "lbl.json.gz": json_lines(LABELS),
        "filter_labels_train.txt": b"1 1\n",
        "filter_labels_test.txt": b"0 0\n1 3\n",
    }


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., XMCDataset]:
    """load(files, **arguments): writes the files into a folder and loads them with a cache of its own."""

    def write_and_load(files: dict[str, bytes], **arguments: Any) -> XMCDataset:
        return load_lf(write_files(tmp_path / "toy", files), cache_dir=tmp_path / "cache", **arguments)

    return write_and_load


@pytest.fixture
def toy(load: Callable[..., XMCDataset], toy_files: dict[str, bytes]) -> XMCDataset:
    return load(toy_files)
