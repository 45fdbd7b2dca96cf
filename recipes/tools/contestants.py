"""What others reach on the same data: rows of ``benchmarks/quality/training.py`` beside the results of recipes.

A file is ``benchmarks/results/training-<data set>.json``. Its cells are percent, seconds and GiB; a metric with an
interval is a text, ``36.90 [36.23, 37.76]``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from results import ROOT

FOLDER = ROOT / "benchmarks" / "results"
METRICS = ("P@1", "P@5", "PSP@1", "PSP@5", "R@100")
_INTERVAL = re.compile(r"([\d.]+) \[([\d.]+), ([\d.]+)\]")


@dataclass(frozen=True)
class Contestant:
    """One row.

    Args:
        name: With its version.
        metrics: Column -> (value,) or (value, low, high), percent.
        training_seconds: CPU seconds of features and training, None for a lazy learner.
        seconds: CPU seconds of the whole process, ranking included.
        gibibytes: Largest resident memory.
        commit: That of the file.
        hardware: Likewise.
    """

    name: str
    metrics: Mapping[str, tuple[float, ...]]
    training_seconds: float | None
    seconds: float
    gibibytes: float
    commit: str
    hardware: str

    @property
    def cost(self) -> float:
        """CPU seconds of training; of a lazy learner, which does its work when it is asked, all."""
        return self.seconds if self.training_seconds is None else self.training_seconds


def read_contestants(folder: Path = FOLDER) -> dict[str, list[Contestant]]:
    """Data set -> its contestants in the file's order; empty where nothing was measured."""
    files = {path.stem.removeprefix("training-"): path for path in sorted(folder.glob("training-*.json"))}
    return {data: _read(path) for data, path in files.items()}


def _read(path: Path) -> list[Contestant]:
    record = json.loads(path.read_text(encoding="utf8"))
    found = []
    for table in record["tables"]:
        for row in table["rows"]:
            cells = dict(zip(table["columns"], row, strict=True))
            metrics = {name: _ends(cells[name], path) for name in METRICS}
            costs = (cells["train s"], cells["all s"], cells["GiB"])
            found.append(Contestant(cells[""], metrics, *costs, record["commit"], record["hardware"]))
    return found


def _ends(cell: str | float, path: Path) -> tuple[float, ...]:
    if not isinstance(cell, str):
        return (cell,)
    if (match := _INTERVAL.fullmatch(cell)) is None:
        raise ValueError(f"{path.name} has the cell {cell!r}; expected a number or 'value [low, high]'")
    return tuple(float(end) for end in match.groups())


def peers(contestants: Sequence[Contestant]) -> list[Contestant]:
    """Without ours, which stands in results.yaml with all its lines."""
    return [one for one in contestants if not one.name.startswith("ours")]
