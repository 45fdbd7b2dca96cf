"""Rows of benchmarks/quality/training.py reach the tables and the pictures of the recipes."""

from __future__ import annotations

import json
from pathlib import Path

import contestants
import figures
import pytest
import results
import tables

from benchmarks.quality import training
from hf_xmc.metrics.plots import CostPoint

COLUMNS = ["", "train s", "all s", "GiB", "P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5", "R@100", "cov@5"]
ROWS = [
    ["a tree", 30.1, 40.6, 0.58, "36.90 [36.23, 37.76]", 23.3, 16.8, "19.55 [19.04, 20.06]", 24.9, 28.7, 59.7, 32.1],
    [
        "neighbors",
        None,
        18.6,
        0.83,
        "31.50 [30.75, 32.22]",
        20.4,
        15.1,
        "16.09 [15.53, 16.60]",
        22.0,
        26.6,
        57.1,
        30.0,
    ],
    [
        "ours, unidec.py",
        90.0,
        99.0,
        1.0,
        "43.00 [42.00, 44.00]",
        27.0,
        19.0,
        "29.00 [28.00, 30.00]",
        35.0,
        40.0,
        76.0,
        50,
    ],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    record = {
        "commit": "1234567",
        "hardware": "some processor, 1 thread",
        "tables": [{"title": "Training on lf-x", "columns": dict.fromkeys(COLUMNS, ""), "rows": ROWS}],
    }
    (tmp_path / "training-lf-x.json").write_text(json.dumps(record))
    (tmp_path / "search.json").write_text("{}")
    return tmp_path


def test_the_table_has_what_was_measured(folder: Path) -> None:
    found = contestants.read_contestants(folder)
    empty = {"rows": [], "data_sets": {"lf-x": {"folder": "", "source": "", "licence": ""}}, "quoted": []}
    text = "<!-- table: results lf-x -->\n<!-- /table -->\n<!-- table: peers lf-x -->\nold\n<!-- /table -->"
    lines = tables.render(text, empty, [], found).split("\n")
    assert "No run of a recipe is recorded here." in lines and "old" not in lines
    assert "| contestant | P@1 | P@5 | PSP@1 | PSP@5 | R@100 | CPU s, training | CPU s, all | GiB |" in lines
    assert (
        "| a tree | 36.90 [36.23, 37.76] | 16.80 | 19.55 [19.04, 20.06] | 28.70 | 59.70 | 30.1 | 40.6 | 0.6 |" in lines
    )
    assert (
        "| neighbors | 31.50 [30.75, 32.22] | 15.10 | 16.09 [15.53, 16.60] | 26.60 | 57.10 |  | 18.6 | 0.8 |" in lines
    )
    assert any(line.startswith("| ours, unidec.py | 43.00") for line in lines)


def test_a_cell_that_is_no_interval_is_named(folder: Path) -> None:
    file = folder / "training-lf-x.json"
    file.write_text(file.read_text().replace("36.90 [36.23, 37.76]", "36.90 +- 1"))
    with pytest.raises(ValueError, match=r"training-lf-x.json has the cell '36.90 \+- 1'"):
        contestants.read_contestants(folder)


def test_peers_are_points_of_their_training_and_lazy_ones_of_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[CostPoint]] = []
    monkeypatch.setattr(figures, "plot_cost_quality", lambda points, path: drawn.append(points) or path)
    monkeypatch.setattr(figures, "plot_head_to_tail", lambda bins, path, k: path)
    row = next(row for row in results.read_results()["rows"]) | {"data": "lf-x"}
    paths = figures.draw([row], contestants.read_contestants(folder), tmp_path / "figures")
    assert [path.name for path in paths] == ["lf-x-head-to-tail.png", "lf-x-cost-quality.png"]
    (points,) = drawn
    assert [point.peer for point in points] == [False] * len(row["lines"]) + [True, True]  # ours is of results.yaml
    assert [(point.name, point.cpu_seconds) for point in points[-2:]] == [("a tree", 30.1), ("neighbors", 18.6)]
    assert points[-2].metrics["precision@1"] == pytest.approx((0.3690, 0.3623, 0.3776))
    assert points[-2].metrics["psp@1"] == pytest.approx((0.1955, 0.1904, 0.2006))


def test_the_committed_files_have_the_columns_that_the_benchmark_writes() -> None:
    found = contestants.read_contestants()
    assert found and all(found.values())
    known = tuple(training.NAMES.values())
    assert all(one.name.startswith(known) for rows in found.values() for one in rows)
    assert set(contestants.METRICS) <= set(training.COLUMNS)


def test_pictures_that_the_readme_shows_exist() -> None:
    readme = results.ROOT / "recipes" / "README.md"
    shown = [line.split("](")[1].rstrip(")") for line in readme.read_text().splitlines() if line.startswith("![")]
    assert shown and all((readme.parent / name).is_file() for name in shown)
