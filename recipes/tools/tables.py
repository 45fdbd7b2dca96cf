"""Render the tables of README.md and recipes/README.md from results.yaml and ablations.yaml.

    python recipes/tools/tables.py [--check]

A table stands between ``<!-- table: KIND NAME -->`` and ``<!-- /table -->``; what is between them is written anew. The
kinds are ``results DATA``, ``peers DATA`` (rows of ``benchmarks/quality/training.py``), ``ablations DATA TABLE``,
``run ROW`` (one row's lines), ``quoted DATA`` and ``data``. With ``--check`` nothing is written and the exit code is 1
where a file differs.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from contestants import METRICS, Contestant, read_contestants
from results import FILE, ROOT, family, read_results

ABLATIONS = ROOT / "recipes" / "ablations.yaml"
FILES = (ROOT / "README.md", ROOT / "recipes" / "README.md")
SHOWN = {"P@1": "precision@1", "P@3": "precision@3", "P@5": "precision@5", "PSP@1": "psp@1", "PSP@5": "psp@5"}
RECALL = {"R@10": "recall@10", "R@100": "recall@100"}
_MARKED = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- /table -->)", re.DOTALL)


def render(
    text: str,
    results: Mapping[str, Any],
    ablations: Sequence[Mapping[str, Any]],
    contestants: Mapping[str, Sequence[Contestant]],
) -> str:
    """The text with every marked table written anew.

    Raises:
        ValueError: naming a table that no file gives.
    """
    tables = all_tables(results, ablations, contestants)

    def table(match: re.Match[str]) -> str:
        if match[2] not in tables:
            raise ValueError(f"there is no table {match[2]!r}; there are {sorted(tables)}")
        return f"{match[1]}{tables[match[2]]}\n{match[3]}"

    return _MARKED.sub(table, text)


def all_tables(
    results: Mapping[str, Any],
    ablations: Sequence[Mapping[str, Any]],
    contestants: Mapping[str, Sequence[Contestant]],
) -> dict[str, str]:
    """Name as in the markers -> markdown."""
    rows = results["rows"]
    tables = {"data": data_table(results["data_sets"])}
    for data in sorted({*results["data_sets"], *(row["data"] for row in rows)}):
        tables[f"results {data}"] = results_table([row for row in rows if row["data"] == data])
    for data in sorted({*results["data_sets"], *contestants}):
        tables[f"peers {data}"] = peers_table(contestants.get(data, ()))
    tables |= {f"run {row['name']}": run_table(row) for row in rows}
    for data in sorted({row["data"] for row in results["quoted"]}):
        tables[f"quoted {data}"] = quoted_table([row for row in results["quoted"] if row["data"] == data])
    grouped: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in ablations:
        grouped[f"ablations {row['data']} {row['table']}"].append(row)
    return tables | {name: ablation_table(rows) for name, rows in grouped.items()}


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a run and line of the run; over several seeds the means, with the interval of the first."""
    if not rows:
        return "No run of a recipe is recorded here."
    families: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        families[family(row["name"])].append(row)
    head = ["run", "", *SHOWN, *RECALL, "seeds", "CPU s", "GiB", "commit"]
    body = []
    for name, members in families.items():
        for line in members[0]["lines"]:
            found = [row["lines"][line] for row in members if line in row["lines"]]
            cells = [_metric([metrics[key] for metrics in found]) for key in (*SHOWN.values(), *RECALL.values())]
            cpu = [row.get("cpu_seconds_of", {}).get(line, row["seconds"]["cpu"]) for row in members]
            memory = max(row["peak_memory_gib"] for row in members)
            commits = ", ".join(sorted({row["commit"] for row in members}))
            body.append(
                [name, line, *cells, str(len(found)), f"{statistics.mean(cpu):,.0f}", f"{memory:.1f}", commits]
            )
    hardware = "; ".join(sorted({row["hardware"] for row in rows}))
    meaning = "Percent; [95 % bootstrap interval of the first seed] ± standard deviation over seeds."
    return f"{markdown(head, body)}\n\n{meaning} {hardware}."


def peers_table(found: Sequence[Contestant]) -> str:
    """One line a contestant of ``benchmarks/quality/training.py``."""
    if not found:
        return "No contestant is measured here."
    head = ["contestant", *METRICS, "CPU s, training", "CPU s, all", "GiB"]
    body = [
        [
            one.name,
            *(_percent(one.metrics[name]) for name in METRICS),
            "" if one.training_seconds is None else f"{one.training_seconds:,.1f}",
            f"{one.seconds:,.1f}",
            f"{one.gibibytes:.1f}",
        ]
        for one in found
    ]
    record = "; ".join(sorted({f"commit {one.commit}, {one.hardware}" for one in found}))
    return f"{markdown(head, body)}\n\n`benchmarks/quality/training.py`, percent [95 % bootstrap interval], {record}."


def run_table(row: Mapping[str, Any]) -> str:
    """One run's lines, as text in columns."""
    names = {**SHOWN, **RECALL}
    width = max(map(len, row["lines"]))
    lines = [" " * width + "".join(f"{title:>9}" for title in names)]
    for line, metrics in row["lines"].items():
        lines.append(f"{line:<{width}}" + "".join(f"{100 * metrics[key][0]:9.2f}" for key in names.values()))
    cost = f"{row['seconds']['wall']:,.0f} s and {row['seconds']['cpu']:,.0f} CPU s from start to end"
    machine = f"{row['peak_memory_gib']:.1f} GiB, {row['hardware']}"
    about = f"Percent; seed {row['seed']}, commit {row['commit']}, {cost}, {machine}."
    return "```\n" + "\n".join(lines) + f"\n```\n\n{about}"


def ablation_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The paired gain over the first line beside what has an interval."""
    keys = {"P@1": "precision@1", "P@5": "precision@5", "PSP@1": "psp@1"}
    head = ["", *(word for name in keys for word in (name, "gain")), "R@100", "CPU s", "commit"]
    body = []
    for number, row in enumerate(rows):
        test, gain = row["test"], row.get("gain_over_first", {})
        cells = []
        for key in keys.values():
            cells += [f"{100 * test[key]:.2f}", "" if number == 0 or key not in gain else _gain(gain[key])]
        cells.append(f"{100 * test['recall@100']:.2f}")
        body.append([row["name"], *cells, f"{row['cpu_seconds']:,.0f}", row["commit"]])
    commands = "; ".join(sorted({f"`{row['command']}`" for row in rows}))
    seeds = ", ".join(sorted({str(row["seed"]) for row in rows}))
    hardware = "; ".join(sorted({row["hardware"] for row in rows}))
    return f"{markdown(head, body)}\n\n{commands}, seed {seeds}, {hardware}."


def quoted_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Numbers of papers, which nothing here has run."""
    head = ["method", *SHOWN, "quoted from"]
    body = [
        [row["method"], *(_quoted(row["metrics"].get(key)) for key in SHOWN.values()), row["quoted"]] for row in rows
    ]
    return markdown(head, body)


def data_table(data_sets: Mapping[str, Mapping[str, str]]) -> str:
    """One line a data set: where it lies and where it comes from."""
    head = ["data set", "folder", "source", "licence"]
    return markdown(head, [[name, *(one[key] for key in head[1:])] for name, one in data_sets.items()])


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table of these cells."""
    lines = [list(head), ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _metric(found: Sequence[Sequence[float]]) -> str:
    values = [each[0] for each in found]
    text = f"{100 * statistics.mean(values):.2f}"
    if len(found[0]) == 3:
        text += f" [{100 * found[0][1]:.2f}, {100 * found[0][2]:.2f}]"
    return text + (f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else "")


def _percent(ends: Sequence[float]) -> str:
    value, *interval = (f"{each:.2f}" for each in ends)
    return f"{value} [{', '.join(interval)}]" if interval else value


def _quoted(percent: float | None) -> str:
    return "" if percent is None else f"{percent:.2f}"


def _gain(ends: Sequence[float]) -> str:
    value, low, high = (100 * each for each in ends)
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def main(check: bool) -> int:
    """Render both files, or with ``check`` only compare them; returns the exit code."""
    results, ablations = read_results(FILE), yaml.safe_load(ABLATIONS.read_text(encoding="utf8"))
    contestants, differs = read_contestants(), []
    for file in FILES:
        text = file.read_text(encoding="utf8")
        if (rendered := render(text, results, ablations, contestants)) != text:
            differs.append(str(Path(file).relative_to(ROOT)))
            if not check:
                file.write_text(rendered, encoding="utf8")
    print("differs: " + ", ".join(differs) if differs else "nothing differs")
    return int(check and bool(differs))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
