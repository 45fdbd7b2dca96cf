"""Draw the pictures of recipes/README.md from results.yaml: head to tail, and quality against cost.

    python recipes/tools/figures.py

For each data set with rows: ``figures/<data set>-head-to-tail.png`` with every line of the first seed, and
``figures/<data set>-cost-quality.png`` with P@1 and PSP@1 against CPU seconds, the peers of
``benchmarks/results/training-<data set>.json`` beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contestants import Contestant, peers, read_contestants
from results import ROOT, bins_of, family, read_results

from hf_xmc.metrics.frequency import FrequencyBin
from hf_xmc.metrics.plots import CostPoint, plot_cost_quality, plot_head_to_tail

FIGURES = ROOT / "recipes" / "figures"


def first_seeds(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first row of each family."""
    return list({family(row["name"]): row for row in reversed(rows)}.values())[::-1]


def peer_point(peer: Contestant) -> CostPoint:
    """A point of a contestant, drawn apart from ours."""
    metrics = {"precision@1": peer.metrics["P@1"], "psp@1": peer.metrics["PSP@1"]}
    return CostPoint(
        peer.name, peer.cost, {name: tuple(end / 100 for end in ends) for name, ends in metrics.items()}, True
    )


def draw(
    rows: Sequence[Mapping[str, Any]], contestants: Mapping[str, Sequence[Contestant]], folder: Path
) -> list[Path]:
    """Both pictures of every data set that has rows; returns their paths."""
    folder.mkdir(exist_ok=True)
    paths = []
    for data in sorted({row["data"] for row in rows}):
        chosen = first_seeds([row for row in rows if row["data"] == data])
        lines = {f"{family(row['name'])}: {line}": (row, line) for row in chosen for line in row["lines"]}
        bins = {name: [FrequencyBin(**each) for each in bins_of(row, line)] for name, (row, line) in lines.items()}
        paths.append(plot_head_to_tail(bins, folder / f"{data}-head-to-tail.png", k=5))
        points = [
            CostPoint(
                name,
                row.get("cpu_seconds_of", {}).get(line, row["seconds"]["cpu"]),
                {metric: tuple(row["lines"][line][metric]) for metric in ("precision@1", "psp@1")},
            )
            for name, (row, line) in lines.items()
        ]
        points += map(peer_point, peers(contestants.get(data, ())))
        paths.append(plot_cost_quality(points, folder / f"{data}-cost-quality.png"))
    return paths


if __name__ == "__main__":
    for path in draw(read_results()["rows"], read_contestants(), FIGURES):
        print(path.relative_to(ROOT))
