"""The rows of results.yaml: read, made from a run's metrics.json, compared with another run, written.

A row's tolerance says how far a second run may be off. The test rows are the same again, so what differs is what the
seed, the number of threads and the processor change: for each metric it is half of the 95 % bootstrap interval's half
width (about one standard error), or three standard deviations over seeds where three are recorded (rows of one name,
``...-seed0``, ``...-seed1``, ...) and that is more. Metrics without an interval are shown, but not compared.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "recipes" / "results.yaml"
KEPT = ("precision@1", "precision@3", "precision@5", "ndcg@5", "psp@1", "psp@3", "psp@5", "recall@10", "recall@100")
LAUNCH = "accelerate launch --config_file recipes/accelerate_configs/one_process.yaml"
_BIN_FIELDS = ("num_labels", "min_count", "max_count", "num_positives", "precision_share", "recall", "coverage")


@dataclass(frozen=True)
class Comparison:
    """One metric of one line of a run beside its row; values in [0, 1]."""

    line: str
    metric: str
    expected: float
    came: float
    tolerance: float

    @property
    def verdict(self) -> str:
        """OK within the tolerance, OKish within twice of it, else FAIL."""
        off = round(abs(self.came - self.expected), 6)
        return "OK" if off <= self.tolerance else "OKish" if off <= 2 * self.tolerance else "FAIL"


def read_results(path: Path = FILE) -> dict[str, Any]:
    """``{"data_sets": {name: {...}}, "rows": [...], "quoted": [...]}``; the names of rows are unique."""
    results = yaml.safe_load(path.read_text(encoding="utf8"))
    names = [row["name"] for row in results["rows"]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path.name} has more than one row named {twice}")
    return results


def write_results(results: Mapping[str, Any], path: Path = FILE) -> None:
    """Write the file with the tolerances its rows give."""
    head = path.read_text(encoding="utf8").split("data_sets:")[0] if path.exists() else ""
    results = dict(results) | {"rows": with_tolerances(results["rows"])}
    path.write_text(
        head + yaml.safe_dump(results, sort_keys=False, default_flow_style=None, allow_unicode=True, width=119), "utf8"
    )


def row_of(name: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """A row from what ``RunRecord.write`` wrote.

    Raises:
        ValueError: if the run was made outside a clone or with changed files, so that nobody could repeat it, or on a
            system that does not tell its peak memory.
    """
    if run["commit"] is None or run["dirty"]:
        raise ValueError(f"the run of {name} was made with commit {run['commit']}, dirty {run['dirty']}: commit first")
    if run["peak_memory_gib"] is None:
        raise ValueError(f"the run of {name} was made where no system call tells the peak memory: use Linux or macOS")
    row = {
        "name": name,
        "command": command_of(run["command"], run["world_size"]),
        "data": run["data"]["name"],
        "commit": run["commit"],
        "seed": run["seed"],
        "encoder": run["config"].get("encoder"),
        "hardware": run["hardware"],
        "world_size": run["world_size"],
        "seconds": {part: round(run["seconds"]["total"][part], 1) for part in ("wall", "cpu")},
        "peak_memory_gib": round(run["peak_memory_gib"], 2),
        "lines": {},
        "bins": {},
    }
    # A line that was timed by itself, as a baseline among others, costs what it took.
    if alone := {line: round(run["seconds"][line]["cpu"], 1) for line in run["tests"] if line in run["seconds"]}:
        row["cpu_seconds_of"] = alone
    for line, test in run["tests"].items():
        row["lines"][line] = {m: [round(v, 4) for v in test["metrics"][m]] for m in KEPT}
        row["bins"][line] = [[round(each[field], 4) for field in _BIN_FIELDS] for each in test["bins"]]
    return row


def bins_of(row: Mapping[str, Any], line: str) -> list[dict[str, float]]:
    """The fields of the line's ``FrequencyBin`` records."""
    return [dict(zip(_BIN_FIELDS, each, strict=True)) for each in row["bins"][line]]


def command_of(argv: Sequence[str], world_size: int) -> str:
    """The command line that repeats a run, from the root of a clone; ``$DATA`` holds folders that do not ship."""
    words, kept = [str(word) for word in argv], []
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        word = words.pop(0)
        if word == "--output_dir":
            words.pop(0)
        elif word == "--data_dir":
            folder = words.pop(0)
            kept += [word, _inside(folder, f"$DATA/{Path(folder).name}")]
        elif not word.startswith(("output_dir=", "disable_tqdm=")):
            kept.append(_inside(word, word))
    if not kept[0].startswith("recipes/"):
        return " ".join(["python", *kept])
    several = f"accelerate launch --cpu --num_processes {world_size}"
    return " ".join([LAUNCH if world_size == 1 else several, *kept])


def _inside(word: str, otherwise: str) -> str:
    """A path relative to the clone where it lies in it."""
    path = Path(word)
    path = path if path.is_absolute() else ROOT / path
    return (
        str(path.resolve().relative_to(ROOT)) if path.exists() and path.resolve().is_relative_to(ROOT) else otherwise
    )


def family(name: str) -> str:
    """The name without its seed."""
    return re.sub(r"-seed\d+$", "", name)


def with_tolerances(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each with ``tolerance: {line: {metric: value in [0, 1]}}`` by the rule in this file's docstring."""
    seeds: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        for line, metrics in row["lines"].items():
            for metric, (value, *_) in metrics.items():
                seeds[family(row["name"]), line, metric].append(value)
    done = []
    for row in rows:
        tolerance: dict[str, dict[str, float]] = {}
        for line, metrics in row["lines"].items():
            for metric, (_, *ends) in metrics.items():
                if not ends:
                    continue
                values = seeds[family(row["name"]), line, metric]
                spread = 3 * statistics.stdev(values) if len(values) >= 3 else 0.0
                tolerance.setdefault(line, {})[metric] = round(max((ends[1] - ends[0]) / 4, spread), 4)
        done.append(dict(row) | {"tolerance": tolerance})
    return done


def compare(row: Mapping[str, Any], run: Mapping[str, Any]) -> list[Comparison]:
    """Every metric with a tolerance, of every line of the row.

    Raises:
        ValueError: naming lines the run does not have.
    """
    if missing := sorted(set(row["lines"]) - set(run["tests"])):
        raise ValueError(f"{row['name']}: the run has no line {missing}, only {sorted(run['tests'])}")
    return [
        Comparison(line, metric, row["lines"][line][metric][0], run["tests"][line]["metrics"][metric][0], tolerance)
        for line, tolerances in row["tolerance"].items()
        for metric, tolerance in tolerances.items()
    ]
