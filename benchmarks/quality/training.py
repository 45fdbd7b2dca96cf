"""Training from raw files to a ranking of test: ours beside label trees, TF-IDF kNN and sentence-transformers.

    OMP_NUM_THREADS=1 python -m benchmarks.quality.training --data_dir FOLDER [--only pecos-3 ours ...]
        [--fields title content] [--peers_env FOLDER] [--rows N] [--output benchmarks/results/training-NAME.json]

Contestants: PECOS with three trees and with one, Omikuji, napkinXC's PLT, TF-IDF kNN, MultipleNegativesRankingLoss
with FAISS from token vectors (``mnrl-static``) and, when asked for by name, from MiniLM on ``--rows`` rows
(``mnrl-minilm``), and ``ours``: ``recipes/unidec.py`` with its settings for the data set. The label trees come from
PyPI into an environment of their own, which is made at first use.

Each contestant is a process on one core; it writes ids and scores of the test texts, which are judged here by
``hf_xmc.metrics``, filtered pairs dropped, with 95 % bootstrap intervals over rows. "train s" are CPU seconds of
features and training (for ours of everything that the recipe times: held-out training, fitting, training on all
rows), "all s" those of the whole process with imports, reading and ranking, "GiB" its largest resident memory. Rows
that ``--output`` already has stay, unless they are measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import hf_xmc
from benchmarks import RECIPES, ROOT
from benchmarks.peers.environment import PINS, default_folder, peers_python
from benchmarks.peers.tasks import TOP_K, export_task
from benchmarks.table import Table, add_output, write
from hf_xmc.metrics import bootstrap_intervals, drop_pairs

TREES = {
    "pecos-3": f"PECOS {PINS['libpecos']}, 3 trees",
    "pecos-1": f"PECOS {PINS['libpecos']}, 1 tree",
    "omikuji": f"Omikuji {PINS['omikuji']}",
    "napkinxc": f"napkinXC {PINS['napkinxc']} PLT",
}
HOST = {
    "tfidf-knn": "TF-IDF kNN",
    "mnrl-static": "MNRL + FAISS, static",
    "mnrl-minilm": "MNRL + FAISS, MiniLM",
}
NAMES = TREES | HOST | {"ours": "ours, unidec.py"}
CUTS = (1, 3, 5)
METRICS = {
    **{f"P@{k}": f"precision@{k}" for k in CUTS},
    **{f"PSP@{k}": f"psp@{k}" for k in CUTS},
    "R@100": "recall@100",
    "cov@5": "coverage@5",
}
INTERVALS = ("P@1", "PSP@1")
COLUMNS = {"": "", "train s": ".1f", "all s": ".1f", "GiB": ".2f"} | dict.fromkeys(METRICS, ".2f")


@dataclass(frozen=True)
class Outcome:
    """What a contestant's process left: its ranking, filtered pairs dropped, and what it used."""

    ids: np.ndarray
    training_seconds: float
    seconds: float
    gibibytes: float


def run(command: list[str | Path], log: Path) -> tuple[float, float]:
    """CPU seconds and peak memory in GiB of a command on one core; its output goes to ``log``."""
    core = max(os.sched_getaffinity(0))
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=file,
            stderr=file,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        words = " ".join(map(str, command))
        raise RuntimeError(f"{words}\nended with {status}: {log.read_text(errors='replace')[-2000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def compete(name: str, data: hf_xmc.XMCDataset, options: argparse.Namespace, scratch: Path) -> Outcome:
    """Run one contestant."""
    output, log = scratch / f"{name}.npz", scratch / f"{name}.log"
    host = [sys.executable, "-m", "benchmarks.peers.host"]
    place = ["--data_dir", options.data_dir, "--fields", *options.fields]
    training = None
    if name in TREES:
        task = scratch / "task"
        if not task.exists():
            export_task(data, task)
        command = [peers_python(options.peers_env), ROOT / "benchmarks" / "peers" / "trees.py", name, task, output]
        seconds, memory = run(command, log)
    elif name in HOST:
        rows = ["--rows", str(options.rows)] if name == "mnrl-minilm" else []
        seconds, memory = run([*host, name, output, *place, *rows], log)
    else:
        folder = scratch / "ours"
        config = options.config or RECIPES / "configs" / data.name / "unidec.yaml"
        recipe = [sys.executable, RECIPES / "unidec.py", "--config", config]
        words = ["--data_dir", options.data_dir, "--output_dir", folder, f"fields=[{', '.join(options.fields)}]"]
        seconds, memory = run([*recipe, *words], log)
        times = json.loads((folder / "metrics.json").read_text())["seconds"]
        training = sum(part["cpu"] for part in times.values())
        run([*host, "retriever", output, *place, "--retriever", folder], log)
    with np.load(output) as written:
        ids, _ = drop_pairs(written["ids"], written["scores"], data.filters["test"])
        training = json.loads(str(written["seconds"]))["training"] if training is None else training
    if name == "tfidf-knn":  # a lazy learner: its work is done when it is asked
        training = None
    return Outcome(ids[:, :TOP_K], training, seconds, memory)


def cells(outcome: Outcome, evaluator: hf_xmc.XMCEvaluator, num_samples: int) -> list[str | float]:
    """The values of a row after its name."""
    metrics = evaluator.metrics(outcome.ids)
    values: dict[str, str | float] = {column: 100 * metrics[key] for column, key in METRICS.items()}
    intervals = bootstrap_intervals(
        outcome.ids, evaluator.truth, (1,), evaluator.inverse_propensities, num_samples=num_samples
    )
    for column in INTERVALS:
        interval = intervals[METRICS[column]]
        values[column] = f"{100 * interval.value:.2f} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
    return [outcome.training_seconds, outcome.seconds, outcome.gibibytes, *values.values()]


def measured_before(path: Path | None, title: str) -> dict[str, list]:
    """Rows by name of the table of this title in an earlier output."""
    if path is None or not path.is_file():
        return {}
    tables = json.loads(path.read_text(encoding="utf8"))["tables"]
    return {row[0]: row for table in tables if table["title"] == title for row in table["rows"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=[name for name in NAMES if name != "mnrl-minilm"])
    parser.add_argument("--fields", nargs="+", default=["title"])
    parser.add_argument("--peers_env", type=Path, default=default_folder())
    parser.add_argument("--rows", type=int, default=5000, help="training rows of mnrl-minilm")
    parser.add_argument("--config", type=Path, help="settings of ours; those of the data set by default")
    parser.add_argument("--bootstrap_samples", type=int, default=200)
    add_output(parser)
    options = parser.parse_args()
    data = hf_xmc.load_lf(options.data_dir, fields=options.fields, label_fields=options.fields)
    evaluator = hf_xmc.XMCEvaluator(data)
    table = Table(
        f"Training on {data.name}, {' + '.join(options.fields)}",
        COLUMNS,
        about=f"{len(data.train):,} train rows, {len(data.test):,} test rows, {data.num_labels:,} labels. One thread, "
        "CPU seconds: of features and training, and of the whole process with imports, reading and ranking the test "
        "split. Percent, filtered pairs dropped, 95 % bootstrap intervals over rows.",
    )
    rows = measured_before(options.output, table.title)
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            label = NAMES[name] + (f", {options.rows:,} rows" if name == "mnrl-minilm" else "")
            table.add(label, *cells(compete(name, data, options, Path(scratch)), evaluator, options.bootstrap_samples))
            rows[label] = table.rows[-1]
            order = [next((i for i, known in enumerate(NAMES.values()) if row.startswith(known)), -1) for row in rows]
            ordered = [row for _, row in sorted(zip(order, rows.values(), strict=True), key=lambda pair: pair[0])]
            write(options.output, Table(table.title, COLUMNS, table.about, rows=ordered))


if __name__ == "__main__":
    main()
