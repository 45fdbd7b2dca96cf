"""What a run cost and reached: written as metrics.json, printed as a table."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_xmc.data.dataset import XMCDataset
from hf_xmc.evaluation.evaluator import XMCEvaluator
from hf_xmc.metrics.frequency import frequency_bins
from hf_xmc.runs.portable import portable, portable_command

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]

PACKAGES = ("torch", "transformers", "sentence-transformers", "datasets", "accelerate", "numpy", "scipy")

# Shown of a run where nothing else is asked for.
COLUMNS = ("precision@1", "precision@3", "precision@5", "psp@1", "psp@5", "recall@10", "recall@100")


class RunRecord:
    """Collects metrics, seconds and peak memory of one run.

    Args:
        config: The fields the run was started with; must be JSON.
        command: The script and its command line; None for the process's own.

    Attributes:
        metrics: Name -> metrics in [0, 1]; the held-out part's among them.
        tests: Line of the results -> ``{"metrics": {metric: [value, low, high] or [value]}, "bins": [...]}``: of the
            test split, low and high the ends of the 95 % bootstrap interval over its rows, the bins those of
            :func:`hf_xmc.metrics.frequency_bins` at 5, head first.
        data: The data set in numbers and words.
        citations: BibTeX of the methods, for the model card.
        gains: Name -> metric -> gain over the plain model, low and high end of its 95 % interval.
        costs: Name -> what it costs beside the plain model, the unit in the key.
        seconds: Part of the run -> "wall" and "cpu".
        notes: What the run assumed.
    """

    def __init__(self, config: Mapping[str, Any], command: Sequence[str] | None = None) -> None:
        self.config = dict(config)
        self.command = list(sys.argv if command is None else command)
        self.metrics: dict[str, dict[str, float]] = {}
        self.tests: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, dict[str, float]] = {}
        self.gains: dict[str, dict[str, list[float]]] = {}
        self.costs: dict[str, dict[str, float]] = {}
        self.data: dict[str, Any] = {}
        self.citations: list[str] = []
        self.notes: list[str] = []
        self._begun = time.perf_counter()
        self._hardware = hardware()  # now: libraries that share torch's threads may change their number later

    def test(self, line: str, evaluator: XMCEvaluator, ids: np.ndarray) -> dict[str, float]:
        """Judge a ranking of the test split and keep it as a line of the results.

        Args:
            line: Its name, for example "UniDEC" or "with memory".
            evaluator: Of the test split.
            ids: (N, K) int64, the ranking.

        Returns:
            The metrics, values in [0, 1].
        """
        metrics = evaluator.metrics(ids)
        ends = {name: [i.value, i.low, i.high] for name, i in evaluator.intervals(ids).items()}
        bins = frequency_bins(ids, evaluator.truth, evaluator.train_counts, 5)
        self.metrics[line] = metrics
        self.tests[line] = {
            "metrics": {name: ends.get(name, [value]) for name, value in metrics.items()},
            "bins": [asdict(each) for each in bins],
        }
        return metrics

    def describe(self, data: XMCDataset, folder: str | Path) -> None:
        """Keep the data set's counts and constants, and source and licence where the folder's README names them.

        What a command line without ``--config`` and a data set without known constants leave open is noted.
        """
        self.data = {
            "name": data.name,
            "num_train": len(data.train),
            "num_test": len(data.test),
            "num_labels": data.num_labels,
            "propensity": [data.propensity.a, data.propensity.b],
            "example": data.test["text"][0],
        } | source_of(folder)
        if not any(word.startswith("--config") for word in self.command):
            self.notes.append("settings: no --config given, so those that the recipe starts from")
        if data.propensity.assumed:
            self.notes.append(
                f"propensity A, B = {data.propensity.a}, {data.propensity.b}: {data.name} is no benchmark whose "
                "constants are known"
            )

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the wall and CPU seconds (all threads and ended children) of a block to ``part``."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        try:
            yield
        finally:
            spent = self.seconds.setdefault(part, {"wall": 0.0, "cpu": 0.0})
            spent["wall"] += time.perf_counter() - wall
            spent["cpu"] += cpu_seconds() - cpu

    def write(self, path: str | Path, metrics: Mapping[str, float]) -> None:
        """Write metrics.json: everything that a row of results.yaml or a model card needs, but no token and no path.

        Args:
            path: The file.
            metrics: Those of the model that is published, in [0, 1]. Seconds and memory are of this process: with
                several processes, of the first.
        """
        total = {"wall": time.perf_counter() - self._begun, "cpu": cpu_seconds()}
        record = {
            "metrics": dict(metrics),
            "tests": self.tests,
            "all_metrics": self.metrics,
            "gains": self.gains,
            "costs": self.costs,
            "command": portable_command(self.command),
            **commit(),
            "seed": self.config.get("seed"),
            "seconds": self.seconds | {"total": total},
            "peak_memory_gib": peak_memory_gib(),
            "world_size": int(os.environ.get("WORLD_SIZE", "1")),
            "hardware": self._hardware,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "data": self.data,
            "citations": self.citations,
            "notes": portable(self.notes),
            "config": portable(self.config),
        }
        scratch = Path(f"{path}.part")
        scratch.write_text(json.dumps(record, indent=2, default=str), encoding="utf8")
        scratch.replace(path)


def cpu_seconds() -> float:
    """CPU seconds of this process, all its threads and its ended children."""
    if resource is None:
        spent = os.times()
        return spent.user + spent.system + spent.children_user + spent.children_system
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def peak_memory_gib() -> float | None:
    """Largest resident memory of this process so far, in GiB; None where the system does not tell."""
    if resource is None:
        return None
    kilo = 1024 if platform.system() != "Darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo / 2**30


def hardware() -> str:
    """The processor and its threads, or the GPU, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} {'thread' if threads == 1 else 'threads'}"


def commit() -> dict[str, Any]:
    """``{"commit": str | None, "dirty": bool | None}`` of the clone this file belongs to; None outside a clone."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here.parent), *words], capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A virtual environment may lie inside the clone of another project: this file must be one of the clone's own.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return {"commit": None, "dirty": None}
    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", ":/src", ":/recipes/*.py", ":/recipes/configs"
    )
    return {"commit": git("rev-parse", "--short=7", "HEAD"), "dirty": bool(changed)}


def source_of(folder: str | Path) -> dict[str, str]:
    """The lines ``Source: ...`` and ``Licence: ...`` of a data folder's README.md, where there are any."""
    readme = Path(folder) / "README.md"
    if not readme.is_file():
        return {}
    lines = (line.partition(":") for line in readme.read_text(encoding="utf8").splitlines())
    return {name.lower(): text.strip() for name, _, text in lines if name in ("Source", "Licence")}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def metrics_table(rows: Mapping[str, Mapping[str, float]], columns: tuple[str, ...] = COLUMNS) -> str:
    """Aligned text: one line a row, the named metrics in percent.

    Args:
        rows: Name of a row -> its metrics, values in [0, 1].
        columns: Metric keys in order, for example ``("precision@1", "psp@5")``.
    """
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"{_short(column):>9}" for column in columns)]
    for name, metrics in rows.items():
        cells = "".join(f"{100 * metrics[c]:9.2f}" if c in metrics else f"{'-':>9}" for c in columns)
        lines.append(f"{name:<{width}}{cells}")
    return "\n".join(lines)


def _short(metric: str) -> str:
    name, _, cut = metric.partition("@")
    short = {"precision": "P", "recall": "R", "ndcg": "nDCG", "psp": "PSP", "psndcg": "PSnDCG", "macro_f1": "mF1"}
    return f"{short.get(name, name)}@{cut}"
