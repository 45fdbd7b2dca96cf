from __future__ import annotations

import gzip
import json

from toys import TINY

PUSH_AND_LOAD = """
import sys
from dataclasses import replace
import datasets, numpy as np
from hf_xmc.data import XMCDataset, load_lf, save_lf

tiny, folder = sys.argv[1:]
dataset = load_lf(tiny)
pairs = np.array([[4, 1], [0, 7]])
dataset = replace(dataset, train=dataset.train.select(range(500)), filters={"train": pairs, "test": pairs[:0]})
dataset.push_to_hub("user/books")
again = XMCDataset.from_hub("user/books")
assert again.filters["train"].tolist() == [[4, 1], [0, 7]] and again.filters["test"].shape == (0, 2)
assert again.propensity == dataset.propensity and again.name == dataset.name
assert list(again.train) == list(dataset.train) and again.train.features == dataset.train.features
save_lf(load_lf("user/books"), folder)
for config, split, part in (("default", "test", dataset.test), ("labels", "train", dataset.labels)):
    streamed = datasets.load_dataset("user/books", config, split=split, streaming=True)
    assert isinstance(streamed, datasets.IterableDataset) and list(streamed) == list(part), config
try:
    load_lf("user/nothing")
except ValueError as error:
    print(error)
"""


def records(path):
    return [json.loads(line) for line in gzip.open(path, "rt", encoding="utf-8")]


def test_raw_files_pushed_loaded_and_written_again_are_equal(fake_hub, tmp_path):
    printed = fake_hub.run(PUSH_AND_LOAD, TINY, tmp_path / "raw")
    assert "user/nothing is not on this disk, and cannot be had from the Hub" in printed
    assert records(tmp_path / "raw" / "trn.json.gz") == records(TINY / "trn.json.gz")[:500]
    assert records(tmp_path / "raw" / "tst.json.gz") == records(TINY / "tst.json.gz")
    assert records(tmp_path / "raw" / "lbl.json.gz") == records(TINY / "lbl.json.gz")
    assert (tmp_path / "raw" / "filter_labels_train.txt").read_text() == "4 1\n0 7\n"
    files = fake_hub.files("user/books", "dataset")
    card = files["README.md"].decode()
    assert (
        "config_name: labels" in card
        and "extreme-multi-label-classification" in card
        and "| num train | 500 |" in card
    )
    assert (
        files["filter_labels_train.txt"] == b"4 1\n0 7\n"
        and json.loads(files["xmc_dataset.json"])["propensity"]["a"] == 0.55
    )


LOAD_RAW = """
import sys
from hf_xmc.data import load_lf
dataset = load_lf("user/raw")
print(dataset.name, len(dataset.train), dataset.filters["test"].tolist(), dataset.label_texts.to_pylist())
"""


def test_a_hub_data_set_of_raw_files_is_loaded(fake_hub, toy_files):
    files = {name: gzip.compress(content) if name.endswith(".gz") else content for name, content in toy_files.items()}
    fake_hub.add_repo("user/raw", files | {"README.md": b"raw"}, "dataset")
    printed = fake_hub.run(LOAD_RAW)
    assert printed.strip() == "raw 3 [[0, 0], [1, 3]] ['coffee', 'tea', 'milk', 'unused']"
