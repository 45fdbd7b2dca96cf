"""Synthetic sets follow their law, and the path over one prints every stage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ROOT
from benchmarks.synthetic import Shape, make, word, zipf
from hf_xmc import load_lf

SHAPE = Shape(num_rows=5000, num_labels=1300, labels_per_row=3.0, num_test=200)


def test_a_set_has_its_shape_and_follows_from_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make(tmp_path / name, SHAPE, seed)
    data, same, other = (load_lf(tmp_path / name, cache_dir=tmp_path / f"cache-{name}") for name in "abc")
    assert (len(data.train), len(data.test), data.num_labels) == (5000, 200, 1300)
    assert data.train["text"][:] == same.train["text"][:] != other.train["text"][:]
    assert data.train["label_ids"][:] == same.train["label_ids"][:]
    truth = data.to_csr("train")
    assert truth.nnz / 5000 == pytest.approx(3.0, rel=0.2) and np.diff(truth.indptr).min() >= 1
    frequencies = np.bincount(truth.indices, minlength=1300)
    assert frequencies.max() > 10 * np.median(frequencies), "a tail"
    assert {len(text.split()) for text in data.labels["text"][:]} == {9}


def test_rows_that_are_labels_have_their_text_and_are_filtered(tmp_path: Path) -> None:
    make(tmp_path / "set", SHAPE)
    data = load_lf(tmp_path / "set", cache_dir=tmp_path / "cache")
    rows, labels = data.filters["train"].T
    assert len(rows) == int(0.3 * 1300) == len(np.unique(labels))
    assert data.train.select(rows)["uid"][:] == data.labels.select(labels)["uid"][:]
    assert data.train.select(rows)["text"][:] == data.labels.select(labels)["text"][:]
    own = np.asarray(data.to_csr("train")[rows, labels]).ravel()
    assert (own > 0).mean() < 0.05


def test_the_words_of_a_label_stand_in_the_rows_that_carry_it(tmp_path: Path) -> None:
    make(tmp_path / "set", SHAPE)
    data = load_lf(tmp_path / "set", cache_dir=tmp_path / "cache")
    labels = [set(text.split()) for text in data.labels["text"][:]]
    shared = [
        len(labels[ids[0]] & set(text.split()))
        for text, ids in zip(data.test["text"], data.test["label_ids"], strict=True)
    ]
    chance = [len(labels[0] & set(text.split())) for text in data.test["text"]]
    assert np.mean(shared) > 1 + np.mean(chance)


def test_words_are_distinct_and_drawn_by_zipfs_law() -> None:
    assert len({word(number) for number in range(20_000)}) == 20_000 and len(word(5)) == 2 and len(word(100)) == 4
    drawn = zipf(np.random.default_rng(0), 1.05, 1000, 200_000)
    counts = np.bincount(drawn, minlength=1000)
    assert drawn.min() == 0 and drawn.max() == 999
    edges = (np.arange(1, 1002) ** -0.05 - 1) / (1001**-0.05 - 1)
    np.testing.assert_allclose(counts[:5] / 200_000, np.diff(edges)[:5], rtol=0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_the_whole_path_prints_every_stage() -> None:
    small = "--num_labels 400 --num_rows 1500 --num_test 60 --max_steps 2 --num_predicted 50".split()
    command = [sys.executable, "-m", "benchmarks.speed.scale", *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    stages = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    for wanted in (
        "generate",
        "load_lf",
        "static table",
        "tokens, train",
        "encode labels",
        "save",
        "open",
        "one query",
    ):
        assert wanted in stages
    assert any(stage.startswith("predict 50") for stage in stages)
