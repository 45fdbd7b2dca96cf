"""Rows of a benchmark go to JSON and from there to README.md and a picture."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import RECIPES, ROOT, render, table

SCRIPTS = sorted(file for folder in ("quality", "speed") for file in (ROOT / "benchmarks" / folder).glob("[a-z]*.py"))


def test_rows_reach_readme_with_their_command_commit_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    made = table.Table(
        "Search",
        {"form": "", "q/s": ",.0f", "recall": ".3f"},
        about="One thread.",
        picture=table.Picture(x="q/s", y="recall", by="form", log_x=True),
    )
    made.add("exact", 650.4, 1.0)
    made.add("graph", 1234.5, 0.98765)
    made.add("peer", None, None)
    assert "| graph                        | 1,234    | 0.988    |" in capsys.readouterr().out.splitlines()
    file = tmp_path / "results" / "search.json"
    script = str(ROOT / "benchmarks" / "speed" / "search.py")
    monkeypatch.setattr(sys, "argv", [script, "--data_dir", "/somewhere/set", "--output", str(file), "--quick"])
    table.write(file, made)
    text = render.render(tmp_path / "results", tmp_path / "pictures")
    for line in ("## Search", "| exact | 650 | 1.000 |", "| graph | 1,234 | 0.988 |", "| peer |  |  |"):
        assert line in text.splitlines()
    assert "`python -m benchmarks.speed.search --data_dir set --quick`, commit " in text
    assert (tmp_path / "pictures" / "search.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in text + file.read_text()


def test_a_row_that_does_not_fit_its_columns_is_refused(tmp_path: Path) -> None:
    made = table.Table("Search", {"form": "", "q/s": ",.0f"})
    with pytest.raises(ValueError, match="has 2 columns, got 1 values"):
        made.add("exact")
    with pytest.raises(ValueError, match="has no JSON file; run a benchmark"):
        render.render(tmp_path, tmp_path)
    made.add("exact", 1.0)
    table.write(tmp_path / "search.json", made)
    record = json.loads((tmp_path / "search.json").read_text())
    record["tables"][0]["rows"][0].append(2.0)
    (tmp_path / "search.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="search.json: a row of 3 values in a table of 2 columns"):
        render.render(tmp_path, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="some read the system's own counters of time and memory")
@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_benchmark_is_imported_without_running(file: Path) -> None:
    module = importlib.import_module(f"benchmarks.{file.parent.name}.{file.stem}")
    assert callable(module.trained if file.stem == "preset" else module.main)


def test_recorded_commands_name_benchmarks_that_exist() -> None:
    records = [json.loads(file.read_text()) for file in (ROOT / "benchmarks" / "results").glob("*.json")]
    rows = yaml.safe_load((RECIPES / "ablations.yaml").read_text())
    commands = {each["command"] for each in [*records, *rows]}
    assert len(commands) > 15
    for command in commands:
        python, option, module, *_ = command.split()
        assert (python, option) == ("python", "-m")
        assert ROOT.joinpath(*module.split(".")).with_suffix(".py") in SCRIPTS, command


def test_the_readme_is_what_renders(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = ROOT / "benchmarks"
    text = render.render(folder / "results", tmp_path / "pictures")
    assert (folder / "README.md").read_text(encoding="utf8") == text, "old: make tables"
    assert render.main(check=True) == 0
