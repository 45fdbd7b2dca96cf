"""Rows of results.yaml: made from runs, compared with runs, rendered as what is committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import contestants
import pytest
import reproduce
import results
import tables
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = {
    "num_labels": 3,
    "min_count": 1,
    "max_count": 2,
    "num_positives": 4,
    "precision_share": 0.1,
    "recall": 0.2,
    "coverage": 0.3,
}


def make_run(value: float = 0.5, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """What RunRecord.write writes, with one line of which every metric has the same value."""
    ends = {m: [value] if m.startswith("recall") else [value, value - 0.02, value + 0.02] for m in results.KEPT}
    return {
        "tests": {"ours": {"metrics": ends, "bins": [BIN] * 5}},
        "command": ["recipes/dexml.py", "--config", "recipes/configs/default/dexml.yaml", f"seed={seed}"],
        "world_size": 1,
        "commit": "1234567",
        "dirty": False,
        "seed": seed,
        "data": {"name": "lf-gutenberg-science-tiny"},
        "config": {"encoder": "static"},
        "hardware": "some processor, 1 thread",
        "seconds": {"training": {"wall": 1.0, "cpu": 2.0}, "total": {"wall": 3.21, "cpu": 4.32}},
        "peak_memory_gib": 1.234,
    } | changes


def test_a_row_holds_the_run_and_its_command_without_the_machine() -> None:
    row = results.row_of("tiny-dexml", make_run())
    assert row["command"] == (
        "accelerate launch --config_file recipes/accelerate_configs/one_process.yaml "
        "recipes/dexml.py --config recipes/configs/default/dexml.yaml seed=0"
    )
    assert row["lines"]["ours"]["precision@1"] == [0.5, 0.48, 0.52] and row["lines"]["ours"]["recall@10"] == [0.5]
    assert results.bins_of(row, "ours")[0] == BIN
    assert (row["seconds"], row["peak_memory_gib"], row["commit"]) == ({"wall": 3.2, "cpu": 4.3}, 1.23, "1234567")
    alone = make_run()
    alone["seconds"]["ours"] = {"wall": 1.0, "cpu": 1.26}
    assert results.row_of("x", alone)["cpu_seconds_of"] == {"ours": 1.3}


def test_a_run_that_nobody_could_repeat_makes_no_row() -> None:
    with pytest.raises(ValueError, match="commit 1234567, dirty True: commit first"):
        results.row_of("x", make_run(dirty=True))
    with pytest.raises(ValueError, match="commit None"):
        results.row_of("x", make_run(commit=None))
    with pytest.raises(ValueError, match="peak memory: use Linux or macOS"):
        results.row_of("x", make_run(peak_memory_gib=None))


def test_commands_name_no_folder_outside_the_clone(tmp_path: Path) -> None:
    argv = [str(ROOT / "recipes" / "dexml.py"), "--data_dir", "/somewhere/lf-wordnet-titles", "--output_dir", "/o"]
    command = results.command_of([*argv, "disable_tqdm=true", "scale=30"], 2)
    assert command == (
        "accelerate launch --cpu --num_processes 2 recipes/dexml.py --data_dir $DATA/lf-wordnet-titles scale=30"
    )
    inside = str(ROOT / "recipes" / "data" / "lf-gutenberg-titles")
    assert results.command_of(["benchmarks/table.py", f"--data_dir={inside}"], 1) == (
        "python benchmarks/table.py --data_dir recipes/data/lf-gutenberg-titles"
    )


def test_the_tolerance_is_half_of_the_half_width_or_three_deviations_over_seeds() -> None:
    rows = [results.row_of(f"a-seed{n}", make_run(value, n)) for n, value in enumerate((0.50, 0.52, 0.54))]
    single = results.row_of("b", make_run())
    wide, alone = results.with_tolerances([*rows, single])[2:]
    assert alone["tolerance"]["ours"]["precision@1"] == pytest.approx(0.01)
    assert wide["tolerance"]["ours"]["precision@1"] == pytest.approx(3 * 0.02)
    assert "recall@10" not in alone["tolerance"]["ours"]  # it has no interval
    two = results.with_tolerances([*rows[:2], single])[0]
    assert two["tolerance"]["ours"]["precision@1"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("came", "verdict"), [(0.5, "OK"), (0.51, "OK"), (0.4899, "OKish"), (0.52, "OKish"), (0.4799, "FAIL")]
)
def test_a_run_is_judged_by_its_distance(came: float, verdict: str) -> None:
    (row,) = results.with_tolerances([results.row_of("a", make_run())])
    compared = results.compare(row, make_run(came))
    assert {each.verdict for each in compared} == {verdict}
    assert len(compared) == len([m for m in results.KEPT if not m.startswith("recall")])


def test_a_line_that_is_missing_is_named() -> None:
    (row,) = results.with_tolerances([results.row_of("a", make_run())])
    with pytest.raises(ValueError, match=r"no line \['ours'\], only \['other'\]"):
        results.compare(row, make_run(tests={"other": make_run()["tests"]["ours"]}))


def test_rows_are_written_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "results.yaml"
    file.write_text("# a comment that stays\ndata_sets: {}\n")
    row = results.row_of("a", make_run())
    results.write_results({"data_sets": {}, "rows": [row], "quoted": []}, file)
    read = results.read_results(file)
    assert read["rows"] == results.with_tolerances([row]) and file.read_text().startswith("# a comment that stays\n")
    results.write_results({"data_sets": {}, "rows": [row, row], "quoted": []}, file)
    with pytest.raises(ValueError, match=r"more than one row named \['a'\]"):
        results.read_results(file)


SCRIPT = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "metrics.json").write_text(pathlib.Path(sys.argv[1]).read_text())
"""


def test_a_row_is_run_again_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.py").write_text(SCRIPT)
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    rows = []
    for name, came in (("good", 0.505), ("bad", 0.6)):
        (tmp_path / f"{name}.json").write_text(json.dumps(make_run(came)))
        rows.append(results.row_of(name, make_run()) | {"command": f"python run.py {name}.json"})
    rows.append(results.row_of("elsewhere", make_run()) | {"command": "python run.py $DATA/x"})
    rows.append(results.row_of("broken", make_run()) | {"command": "python nothing.py"})
    monkeypatch.setattr(
        reproduce, "read_results", lambda: {"rows": results.with_tolerances(rows), "data_sets": {}, "quoted": []}
    )
    assert reproduce.main(["good"]) == 0
    shown = capfd.readouterr().out
    assert "good  ours  precision@1     50.00  50.50       1.00  OK" in shown and "FAIL" not in shown
    assert reproduce.main(["good", "bad"]) == 1
    assert "bad   ours  precision@1     50.00  60.00       1.00  FAIL" in capfd.readouterr().out
    monkeypatch.delenv("DATA", raising=False)
    assert reproduce.main(["elsewhere"]) == 2
    assert "give the folder that holds lf-gutenberg-science-tiny" in capfd.readouterr().out
    assert reproduce.main(["broken"]) == 2
    assert reproduce.main(["nobody"]) == 2
    assert "results.yaml has no row ['nobody']" in capfd.readouterr().out


def test_a_run_is_recorded_as_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(make_run(0.4)))
    written: list[dict[str, Any]] = []
    old = results.row_of("a", make_run())
    monkeypatch.setattr(reproduce, "read_results", lambda: {"rows": [old], "data_sets": {}, "quoted": []})
    monkeypatch.setattr(reproduce, "write_results", written.append)
    assert reproduce.main(["--record", "a", "--run", str(tmp_path)]) == 0
    assert [row["lines"]["ours"]["psp@1"][0] for row in written[0]["rows"]] == [0.4]
    assert reproduce.main(["--record", "b", "--run", str(tmp_path)]) == 0
    assert [row["name"] for row in written[1]["rows"]] == ["a", "b"]


def test_tables_show_means_over_seeds_and_the_cost_of_a_line() -> None:
    rows = [results.row_of(f"a-seed{n}", make_run(value, n)) for n, value in enumerate((0.50, 0.52, 0.54))]
    head, _, line, *_ = tables.results_table(rows).split("\n")
    assert head.startswith("| run |  | P@1 | P@3 | P@5 | PSP@1 |")
    assert line.startswith("| a | ours | 52.00 [48.00, 52.00] ± 2.00 |") and line.endswith("| 3 | 4 | 1.2 | 1234567 |")
    assert "ours    50.00" in tables.run_table(rows[0])
    with pytest.raises(ValueError, match="there is no table 'results nothing'"):
        empty = {"rows": rows, "data_sets": {}, "quoted": []}
        tables.render("<!-- table: results nothing -->\n<!-- /table -->", empty, [], {})


def test_what_is_committed_is_what_renders() -> None:
    committed = results.read_results()
    ablations = yaml.safe_load(tables.ABLATIONS.read_text())
    others = contestants.read_contestants()
    shown: set[str] = set()
    for file in tables.FILES:
        text = file.read_text(encoding="utf8")
        assert tables.render(text, committed, ablations, others) == text, f"{file.name} is old: make tables"
        shown |= {match[2] for match in tables._MARKED.finditer(text)}
    every = tables.all_tables(committed, ablations, others)
    missing = {name for name in every if not name.startswith("run ")} - shown
    assert missing == set(), "results that no README shows"


def test_rows_name_files_and_data_sets_that_exist() -> None:
    committed = results.read_results()
    for row in committed["rows"]:
        assert row["data"] in committed["data_sets"], row["name"]
        for word in row["command"].split():
            if word.startswith(("recipes/", "benchmarks/")):
                assert (ROOT / word).exists(), f"{row['name']}: {word}"
    for row in committed["quoted"]:
        assert row["quoted"] and row["metrics"] and max(row["metrics"].values()) > 1
