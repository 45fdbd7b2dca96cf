"""Run rows of results.yaml again and say whether they land within their tolerance, or record a run as a row.

    python recipes/tools/reproduce.py [ROW ...] [--data DIR]      # without a row: every row made on a CPU
    python recipes/tools/reproduce.py --record ROW [--run DIR]    # from DIR/metrics.json, or by running it again

``--data`` is the folder that holds data sets that do not ship, under their names. Exit code 0: all OK or OKish; 1: a
metric failed; 2: a command could not be run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results import ROOT, Comparison, compare, read_results, row_of, write_results


def main(argv: Sequence[str] | None = None) -> int:
    """Run or record rows; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="names in results.yaml")
    parser.add_argument("--data", help="folder with the data sets that do not ship")
    parser.add_argument("--record", metavar="ROW", help="write this row")
    parser.add_argument("--run", metavar="DIR", help="with --record: the output folder of the run")
    given = parser.parse_args(argv)
    results = read_results()
    known = {row["name"]: row for row in results["rows"]}
    wanted = [given.record] if given.record and not given.run else given.rows
    if unknown := sorted(set(wanted) - set(known)):
        print(f"results.yaml has no row {unknown}; it has {sorted(known)}")
        return 2
    if given.record:
        folder = Path(given.run) if given.run else launch(known[given.record], given.data)
        if folder is None:
            return 2
        row = row_of(given.record, json.loads((folder / "metrics.json").read_text(encoding="utf8")))
        write_results(results | {"rows": [*(known | {given.record: row}).values()]})  # where it stood, or last
        print(f"recorded {given.record}; make tables renders it")
        return 0
    table: dict[str, list[Comparison]] = {}
    code = 0
    for row in [known[name] for name in wanted] or [r for r in results["rows"] if "thread" in r["hardware"]]:
        folder = launch(row, given.data)
        if folder is None:
            code = 2
            continue
        table[row["name"]] = compare(row, json.loads((folder / "metrics.json").read_text(encoding="utf8")))
    print("\n" + render(table))
    failed = any(each.verdict == "FAIL" for rows in table.values() for each in rows)
    return max(code, int(failed))


def launch(row: Mapping[str, Any], data: str | None) -> Path | None:
    """Run a row's command from the root of the clone; returns its output folder, or None with the reason printed."""
    command = row["command"]
    if "$DATA" in command:
        folder = Path(data or os.environ.get("DATA", "")).expanduser()
        if not (folder / row["data"]).is_dir() or not str(folder):
            print(f"{row['name']}: give the folder that holds {row['data']} by --data or DATA=; see its source below")
            return None
        command = command.replace("$DATA", str(folder.resolve()))
    output = ROOT / "outputs" / "reproduce" / row["name"]
    program, *words = shlex.split(command)
    program = str(Path(sys.executable).parent / program)
    print(f"{row['name']}: {command}", flush=True)
    done = subprocess.run([program, *words, "--output_dir", str(output)], cwd=ROOT)
    if done.returncode != 0 or not (output / "metrics.json").is_file():
        print(f"{row['name']}: the command ended with exit code {done.returncode}")
        return None
    return output


def render(table: Mapping[str, Sequence[Comparison]]) -> str:
    """Aligned text, percent, one line a metric."""
    cells = [("row", "line", "metric", "expected", "came", "tolerance", "")]
    for name, rows in table.items():
        for each in rows:
            numbers = (f"{100 * value:.2f}" for value in (each.expected, each.came, each.tolerance))
            cells.append((name, each.line, each.metric, *numbers, each.verdict))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            word.rjust(width) if 3 <= place <= 5 else word.ljust(width)
            for place, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


if __name__ == "__main__":
    sys.exit(main())
