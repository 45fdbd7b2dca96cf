"""Rows of a benchmark, printed as they come and written as JSON, from which render.py makes README.md.

A script keeps one Table for each table that it prints, and writes them together at its end:

    from benchmarks.table import Picture, Table, add_output, write

    parser = argparse.ArgumentParser(...)
    add_output(parser)                       # --output benchmarks/results/search.json
    args = parser.parse_args()
    table = Table(
        "Search of 131,072 x 512",           # the heading in README.md
        {"form": "", "q/s": ",.0f", "recall": ".4f", "x peer": ".2f"},     # columns and their format specs
        about="One thread, CPU seconds, best of 3.",
        picture=Picture(x="q/s", y="recall", by="form", log_x=True),        # optional
    )
    table.add("exact", 650.0, 1.0, 1.04)     # prints the line; None leaves a cell empty, a str is shown as it is
    write(args.output, table)                # does nothing where no --output is given

Commit, date, processor and threads are added by ``write``; folders of the command line are written without the way to
them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import ROOT

Value = str | int | float | None


@dataclass(frozen=True)
class Picture:
    """What render.py draws of a table: points of column ``y`` over column ``x``, joined and named by column ``by``.

    A column ``x`` of text makes bars instead.
    """

    x: str
    y: str
    by: str
    log_x: bool = False
    log_y: bool = False


@dataclass
class Table:
    """Columns with their format specs, and rows in the order of measurement.

    Args:
        title: What is measured, the heading in README.md.
        columns: Name -> format spec, for example ``{"form": "", "CPU s": ".2f"}``.
        about: What a reader must know of how it was measured.
        picture: What to draw of it.
    """

    title: str
    columns: Mapping[str, str]
    about: str = ""
    picture: Picture | None = None
    rows: list[list[Value]] = field(default_factory=list)
    _widths: list[int] = field(default_factory=list, repr=False)

    def add(self, *values: Value) -> None:
        """Print a row at once and keep it; before the first, the title and the column names."""
        if len(values) != len(self.columns):
            raise ValueError(f"{self.title!r} has {len(self.columns)} columns, got {len(values)} values: {values}")
        cells = [show(value, spec) for value, spec in zip(values, self.columns.values(), strict=True)]
        if not self.rows:
            first = zip(self.columns, cells, strict=True)
            self._widths = [
                max(len(name), len(cell), 28 if not place else 8) for place, (name, cell) in enumerate(first)
            ]
            print(f"\n{self.title}" + (f"\n{self.about}" if self.about else ""))
            print(self._line(list(self.columns)))
            print("|" + "|".join("-" * (width + 2) for width in self._widths) + "|")
        self.rows.append(list(values))
        print(self._line(cells), flush=True)

    def _line(self, cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)) + " |"


def show(value: Value, spec: str) -> str:
    """The text of a cell."""
    if value is None:
        return ""
    return value if isinstance(value, str) else format(value, spec)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--output``, the JSON file for ``write``."""
    parser.add_argument("--output", type=Path, help="write the rows as JSON, for benchmarks/render.py")


def write(path: Path | None, *tables: Table) -> None:
    """Write tables as JSON with the command, commit, date, processor and threads; nothing where ``path`` is None."""
    if path is None:
        return
    from hf_xmc.runs.record import commit, hardware  # here: contestants in other environments import this file

    made_from = commit()
    record = {
        "command": _command(),
        "commit": f"{made_from['commit'] or 'unknown'}{'+' if made_from['dirty'] else ''}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "tables": [
            {
                "title": table.title,
                "about": table.about,
                "columns": dict(table.columns),
                "rows": table.rows,
                "picture": None if table.picture is None else asdict(table.picture),
            }
            for table in tables
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf8")


def _command() -> str:
    words, skip = [], False
    for word in sys.argv[1:]:
        if not skip and not word.startswith("--output"):
            words.append(Path(word).name if os.path.isabs(word) else word)
        skip = word == "--output"
    script = Path(sys.argv[0]).resolve()
    own = script.relative_to(ROOT) if script.is_relative_to(ROOT) else Path(script.name)
    module = ".".join(own.with_suffix("").parts)
    return " ".join(["python -m", module, *words])
