"""Render benchmarks/README.md and its pictures from the JSON files in benchmarks/results.

    python -m benchmarks.render [--check]

With ``--check`` nothing is written and the exit code is 1 where the text differs.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.table import Picture, show

FOLDER = Path(__file__).parent
HEAD = """# Benchmarks

Made by `python -m benchmarks.render` from the files in `benchmarks/results`; do not edit. Every table is one command,
which measures ours and the peers in one run; seconds depend on the machine, ratios of one table carry over better.
"""


def render(results: Path, pictures: Path) -> str:
    """The text of README.md; pictures are written on the way.

    Args:
        results: Folder of the JSON files that ``table.write`` made.
        pictures: Folder for PNG files, beside README.md.

    Raises:
        ValueError: if there is no result, or for a row that does not fit its columns.
    """
    files = sorted(results.glob("*.json"))
    if not files:
        raise ValueError(f"{results} has no JSON file; run a benchmark with --output {results}/NAME.json")
    parts = [HEAD]
    for file in files:
        record = json.loads(file.read_text(encoding="utf8"))
        for number, table in enumerate(record["tables"]):
            parts.append(f"## {table['title']}\n")
            if table["about"]:
                parts.append(f"{table['about']}\n")
            parts.append(_markdown(table, file))
            if table["picture"] is not None:
                name = f"{file.stem}.png" if number == 0 else f"{file.stem}-{number + 1}.png"
                pictures.mkdir(parents=True, exist_ok=True)
                draw(table, pictures / name)
                parts.append(f"![{table['title']}]({pictures.name}/{name})\n")
        parts.append(f"`{record['command']}`, commit {record['commit']}, {record['date']}, {record['hardware']}.\n")
    return "\n".join(parts)


def _markdown(table: dict[str, Any], file: Path) -> str:
    specs = list(table["columns"].values())
    lines = ["| " + " | ".join(table["columns"]) + " |", "|" + "---|" * len(specs)]
    for row in table["rows"]:
        if len(row) != len(specs):
            raise ValueError(f"{file}: a row of {len(row)} values in a table of {len(specs)} columns: {row}")
        lines.append("| " + " | ".join(show(value, spec) for value, spec in zip(row, specs, strict=True)) + " |")
    return "\n".join(lines) + "\n"


def draw(table: dict[str, Any], path: Path) -> None:
    """The picture of a table as a PNG; rows without a number in its ``y`` column are left out."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is required for pictures: pip install hf_xmc[plots]") from error

    picture, columns = Picture(**table["picture"]), list(table["columns"])
    x, y, by = (columns.index(name) for name in (picture.x, picture.y, picture.by))
    series: dict[str, list[tuple[Any, float]]] = defaultdict(list)
    for row in table["rows"]:
        if isinstance(row[y], int | float) and row[x] is not None:
            series[str(row[by])].append((row[x], row[y]))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    if any(isinstance(value, str) for points in series.values() for value, _ in points):
        names = list(dict.fromkeys(value for points in series.values() for value, _ in points))
        width = 0.8 / len(series)
        for number, (name, points) in enumerate(series.items()):
            places = [names.index(value) + (number - (len(series) - 1) / 2) * width for value, _ in points]
            axis.bar(places, [value for _, value in points], width=width, label=name)
        axis.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
    else:
        for name, points in series.items():
            points.sort()
            axis.plot([a for a, _ in points], [b for _, b in points], marker="o", label=name)
    axis.set_xlabel(picture.x)
    axis.set_ylabel(picture.y)
    if picture.log_x:
        axis.set_xscale("log")
    if picture.log_y:
        axis.set_yscale("log")
    axis.set_title(table["title"])
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    # No software version or date in the file: the same rows give the same bytes.
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def main(check: bool) -> int:
    file = FOLDER / "README.md"
    if not check:
        file.write_text(render(FOLDER / "results", FOLDER / "pictures"), encoding="utf8")
        return 0
    with TemporaryDirectory() as scratch:
        differs = render(FOLDER / "results", Path(scratch) / "pictures") != file.read_text(encoding="utf8")
    print("differs: benchmarks/README.md" if differs else "nothing differs")
    return int(differs)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
