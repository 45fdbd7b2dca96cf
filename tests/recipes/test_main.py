"""A recipe is imported without running and called with a command line; what it leaves holds what it was told."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import results
from toys import TINY

import hf_xmc
from hf_xmc.data import save_lf
from hf_xmc.metrics.functional import xmc_metrics
from recipes import baselines, dexml, gandalf, raexmc, unidec

SHORT = ("num_train_epochs=1", "use_cpu=true", "disable_tqdm=true", "logging_strategy=no")


def run(recipe: object, folder: Path, words: Sequence[str]) -> dict:
    """What the recipe's main wrote as metrics.json."""
    recipe.main(["--output_dir", str(folder), *words])  # type: ignore[attr-defined]
    return json.loads((folder / "metrics.json").read_text(encoding="utf8"))


@pytest.mark.parametrize("name", ["unidec", "dexml", "raexmc", "gandalf", "quickstart", "baselines", "sweep"])
def test_a_recipe_is_imported_without_running(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.reload(importlib.import_module(f"recipes.{name}"))
    assert callable(module.main) and os.listdir(tmp_path) == []


def test_unidec_fits_a_ranker_on_the_held_out_part_and_trains_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(TINY.parent.parent / "configs" / TINY.name / "unidec.yaml")
    record = run(unidec, tmp_path, ["--config", config, *SHORT])
    assert results.command_of(record["command"], 1).endswith(
        "recipes/unidec.py --config recipes/configs/lf-gutenberg-science-tiny/unidec.yaml num_train_epochs=1 "
        "use_cpu=true logging_strategy=no"
    )
    assert (
        record["config"]["data_dir"] == "recipes/data/lf-gutenberg-science-tiny" and record["data"]["num_test"] == 1008
    )
    assert {"training, held-out part left out", "fitting", "training"} <= set(record["seconds"])
    assert not any(note.startswith("settings: no --config") for note in record["notes"])
    assert [note[:7] for note in record["notes"]] == ["ranker:", "test sp"]
    held_out, ranked = (record["all_metrics"][name]["precision@1"] for name in ("held out", "held out, ranked"))
    assert ranked > held_out > 0.3
    retriever = hf_xmc.Retriever.from_pretrained(tmp_path)
    assert retriever.encoder.search_form == unidec.FORM and retriever.ranker is not None
    data = hf_xmc.load_lf(TINY)
    assert retriever.memory is not None and len(retriever.memory) == len(data.train)  # of all rows, not of the fit's
    np.testing.assert_array_equal(retriever.ranker.counts, np.diff(data.to_csr("train").tocsc().indptr))
    assert list(record["tests"]) == ["UniDEC", "with memory", "with ranker", "with ranker, tail 0.7"]
    assert record["metrics"] == record["all_metrics"]["with ranker"]
    ids = retriever.rank(data.test["text"][:], 5).ids
    precision = xmc_metrics(ids, data.to_csr("test"), 1)["precision@1"]
    assert record["metrics"]["precision@1"] == pytest.approx(precision, abs=2e-3) and precision > 0.4
    printed = capsys.readouterr().out
    assert "test split, percent" in printed and f"saved to {tmp_path}" in printed
    assert (tmp_path / "README.md").is_file()


@pytest.fixture(scope="module")
def small(tiny: hf_xmc.XMCDataset, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Some rows of the tiny data set, with all of its labels, as command line words."""
    folder = tmp_path_factory.mktemp("small")
    save_lf(replace(tiny, train=tiny.train.select(range(600)), test=tiny.test.select(range(200))), folder)
    return [f"data_dir={folder}", "fields=[title]", "label_fields=[title]"]


def test_raexmc_without_a_held_out_part_trains_once_and_has_no_ranker(tmp_path: Path, small: list[str]) -> None:
    record = run(raexmc, tmp_path, [*small, "hold_out=0", "hard_negatives=0", *SHORT])
    assert "training" in record["seconds"] and "training, held-out part left out" not in record["seconds"]
    assert record["notes"][0].startswith("settings: no --config given")
    assert list(record["tests"]) == ["without memory", "with memory"]
    assert record["notes"][-1] == "ranker: none, as hold_out is 0"
    assert record["gains"]["with memory"]["precision@1"][0] != 0
    assert record["metrics"] == record["all_metrics"]["with memory"]


def test_gandalf_searches_by_the_classifier_alone(tmp_path: Path) -> None:
    record = run(gandalf, tmp_path, ["refit=false", *SHORT])
    assert record["all_metrics"]["Gandalf"]["precision@1"] > 0.15 and "with ranker" in record["tests"]
    assert hf_xmc.Retriever.from_pretrained(tmp_path).encoder.search_form == gandalf.BLIND


def test_the_same_seed_trains_the_same_model_though_its_rows_are_drawn(tmp_path: Path, small: list[str]) -> None:
    runs = [run(gandalf, tmp_path / name, [*small, "refit=false", "max_steps=9", *SHORT]) for name in ("one", "two")]
    assert runs[0]["metrics"] == runs[1]["metrics"]
    other = run(gandalf, tmp_path / "other", [*small, "refit=false", "max_steps=9", "seed=1", *SHORT])
    assert other["metrics"] != runs[0]["metrics"]


def test_gandalf_rows_are_train_rows_and_label_texts_with_soft_targets() -> None:
    data = hf_xmc.load_lf(TINY)
    _, loss, rows = gandalf.make_model(gandalf.Gandalf(), data)
    assert rows.train.num_rows == len(data.train) + data.num_labels and loss.encoder_weight == 0
    assert rows.train[len(data.train)]["text"] == data.labels[0]["text"]
    assert 0 in rows.train[len(data.train)]["label_ids"]
    _, loss, rows = gandalf.make_model(gandalf.Gandalf(label_texts=True, label_rows=False, in_batch_weight=0.2), data)
    assert rows is data and loss.encoder_weight == 0.5 and loss.label_terms is not None


def test_baselines_keep_what_each_line_took(tmp_path: Path) -> None:
    record = run(baselines, tmp_path, ["encoders=[]", *SHORT])
    assert set(record["tests"]) == {"TF-IDF zero-shot", "TF-IDF kNN"} <= set(record["seconds"])


def test_wrong_choices_are_named() -> None:
    with pytest.raises(ValueError, match="labels is 'some'; expected one of"):
        dexml.main(["labels=some"])
    with pytest.raises(ValueError, match="labels: table is decoupled softmax, got loss: info_nce"):
        dexml.main(["labels=table", "loss=info_nce"])
