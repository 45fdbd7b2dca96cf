from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toys import ROOT, TINY, make_words_data

import hf_xmc
from hf_xmc.runs import record as run_record
from hf_xmc.runs.baselines import tfidf_zero_shot
from hf_xmc.runs.portable import portable
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


def test_metrics_hold_no_token_and_no_folder_of_the_machine(tmp_path: Path) -> None:
    home = tmp_path / "me and you" / "lf-books"
    words = [
        str(ROOT / "recipes" / "dexml.py"), f"--config={ROOT}/recipes/configs/default/dexml.yaml", "--data_dir",
        str(home), f"output_dir={tmp_path}/out", "hub_token=hf_AbCdEfGhIjKlMnOp", "--hub_token", "plain-word",
        "token_dropout=0.1", "hub_model_id=me/books", "learning_rate=1e-3",
    ]  # fmt: skip
    secret = "hf_QrStUvWxYzAbCdEf"
    args = hf_xmc.XMCTrainingArguments(output_dir=str(tmp_path / "out"), hub_token=secret, report_to="none")
    config = args.to_dict() | {
        "data_dir": str(home), "encoder": "~/models/mine",
        "own": {"deep": [f"file://{tmp_path}/x.json", "a/b", "7/8"]},
        "hub_token": secret, "api_key": "abc", "url": "https://me:pass@example.org/a", "hf": f"use {secret} here",
    }  # fmt: skip
    record = RunRecord(config, words)
    record.notes.append(f"calibration: none, {tmp_path}/q.json: no such file")
    record.write(tmp_path / "metrics.json", {})
    text = (tmp_path / "metrics.json").read_text()
    for hidden in (str(tmp_path), str(ROOT), "me and you", "hf_AbC", secret, "plain-word", "abc", "me:pass", "~/"):
        assert hidden not in text, hidden
    written = json.loads(text)
    assert written["command"] == [
        "recipes/dexml.py", "--config=recipes/configs/default/dexml.yaml", "--data_dir", "lf-books", "output_dir=out",
        "hub_token=<hidden>", "--hub_token", "<hidden>", "token_dropout=0.1", "hub_model_id=me/books",
        "learning_rate=1e-3",
    ]  # fmt: skip
    kept = written["config"]
    assert (kept["data_dir"], kept["encoder"], kept["hub_token"]) == ("lf-books", "mine", "<hidden>")
    assert kept["own"] == {"deep": ["x.json", "a/b", "7/8"]} and kept["url"] == "https://<hidden>@example.org/a"
    assert kept["token_dropout"] == 0.0 and kept["learning_rate"] == 5e-5 and kept["include_num_input_tokens_seen"]
    assert written["notes"] == ["calibration: none, q.json: no such file"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C:\\Users\\me\\books", "books"),
        ("\\\\server\\share\\books", "books"),
        ("d=/home/me/x, e=/home/me/y", "d=x, e=y"),
        ("(/home/me/x.json)", "(x.json)"),
        ("https://huggingface.co/me/books", "https://huggingface.co/me/books"),
        ("s3://bucket/books", "s3://bucket/books"),
        ("AC/DC, 9/10, and / or </s>", "AC/DC, 9/10, and / or </s>"),
        ("recipes/dexml.py", "recipes/dexml.py"),
        ("ghp_0123456789abcdefghijkl", "<hidden>"),
        ("sk-0123456789abcdefghijkl", "<hidden>"),
        ("AKIA0123456789ABCDEF", "<hidden>"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.abc", "<hidden>"),
        ("half_time, chf_20", "half_time, chf_20"),
    ],
)
def test_what_is_a_path_or_a_token(text: str, expected: str) -> None:
    assert portable(text) == expected


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
