from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toys import TINY, make_words_data

import hf_xmc
from hf_xmc.runs import record as run_record
from hf_xmc.runs.baselines import tfidf_zero_shot
from hf_xmc.runs.record import RunRecord, metrics_table


def test_a_run_record_holds_what_a_row_and_a_card_need(
    tmp_path: Path, tiny: hf_xmc.XMCDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["recipes/dexml.py", "--config", "some.yaml"])
    record = RunRecord({"scale": 20, "seed": 3})
    record.describe(tiny, TINY)
    with record.timed("training"):
        sum(i * i for i in range(300_000))
    metrics = record.test("TF-IDF", hf_xmc.XMCEvaluator(tiny), tfidf_zero_shot(tiny))
    record.write(tmp_path / "metrics.json", metrics)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["metrics"] == written["all_metrics"]["TF-IDF"] == metrics and metrics["precision@1"] > 0.3
    assert written["config"] == {"scale": 20, "seed": 3} and written["seed"] == 3 and written["world_size"] == 1
    assert 0 < written["peak_memory_gib"] < 64 and written["versions"]["torch"]
    assert 0 < written["seconds"]["training"]["cpu"] <= written["seconds"]["total"]["cpu"]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]

    value, low, high = written["tests"]["TF-IDF"]["metrics"]["precision@1"]
    assert low < value == metrics["precision@1"] < high
    assert written["tests"]["TF-IDF"]["metrics"]["recall@100"] == [metrics["recall@100"]]
    shares = [each["precision_share"] for each in written["tests"]["TF-IDF"]["bins"]]
    assert len(shares) == 5 and sum(shares) == pytest.approx(metrics["precision@5"])

    data = written["data"]
    assert (data["name"], data["num_train"], data["num_labels"]) == ("lf-gutenberg-science-tiny", 4191, 4036)
    assert "gutenbergr" in data["source"] and "public domain" in data["licence"]
    assert written["notes"] == []


def test_assumed_settings_and_constants_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["recipes/dexml.py", "--data_dir", "nowhere"])
    record = RunRecord({})
    record.describe(make_words_data(), "nowhere")
    assert record.notes == [
        "settings: no --config given, so those that the recipe starts from",
        "propensity A, B = 0.55, 1.5: words is no benchmark whose constants are known",
    ]
    assert "licence" not in record.data


def test_the_commit_is_that_of_the_clone_the_package_lies_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import subprocess

    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    module = tmp_path / "src" / "run_record.py"
    module.parent.mkdir()
    module.write_text("a = 1\n")
    monkeypatch.setattr(run_record, "__file__", str(module))
    assert run_record.commit() == {"commit": None, "dirty": None}
    subprocess.run([*git, "init", "-q"], check=True)
    assert run_record.commit() == {"commit": None, "dirty": None}  # in a clone, but none of its files
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "--short=7", "HEAD"], check=True, capture_output=True, text=True)
    assert run_record.commit() == {"commit": head.stdout.strip(), "dirty": False}
    module.write_text("a = 2\n")
    assert run_record.commit()["dirty"] is True


def test_where_no_system_call_tells_the_memory_it_is_none_and_seconds_are_still_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = run_record.cpu_seconds()
    monkeypatch.setattr(run_record, "resource", None)  # as on Windows
    assert run_record.peak_memory_gib() is None
    assert run_record.cpu_seconds() == pytest.approx(told, abs=0.5) and told > 0
    RunRecord({}).write(tmp_path / "metrics.json", {})
    assert json.loads((tmp_path / "metrics.json").read_text())["peak_memory_gib"] is None


def test_a_run_from_a_command_line_that_was_handed_in_records_that_one(tmp_path: Path) -> None:
    record = RunRecord({}, ["recipes/dexml.py", "--config", "some.yaml"])
    record.describe(make_words_data(), "nowhere")
    assert not any(note.startswith("settings") for note in record.notes)
    record.write(tmp_path / "metrics.json", {})
    assert json.loads((tmp_path / "metrics.json").read_text())["command"] == [
        "recipes/dexml.py",
        "--config",
        "some.yaml",
    ]


def test_a_ranking_with_every_answer_wrong_scores_zero(tiny: hf_xmc.XMCDataset) -> None:
    nothing = np.full((len(tiny.test), 5), -1)
    record = RunRecord({})
    record.test("nothing", hf_xmc.XMCEvaluator(tiny), nothing)
    assert record.tests["nothing"]["metrics"]["precision@5"] == [0.0, 0.0, 0.0]


def test_the_table_is_aligned_and_in_percent() -> None:
    rows = {"a": {"precision@1": 0.12345}, "long name": {"precision@1": 1.0, "recall@10": 0.5}}
    lines = metrics_table(rows, ("precision@1", "recall@10")).split("\n")
    assert lines == [
        "               P@1     R@10",
        "a            12.35        -",
        "long name   100.00    50.00",
    ]
