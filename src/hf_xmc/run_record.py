"""What a run cost and reached: written as metrics.json, printed as a table."""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class RunRecord:
    """Collects metrics, seconds and peak memory of one run.

    Args:
        config: The fields the run was started with; must be JSON.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)
        self.metrics: dict[str, dict[str, float]] = {}
        self.seconds: dict[str, dict[str, float]] = {}
        self.notes: list[str] = []

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
        """Write metrics.json: the test split's metrics in [0, 1], seconds, peak memory, hardware and config."""
        record = {
            "metrics": dict(metrics),
            "all_metrics": self.metrics,
            "seconds": self.seconds,
            "peak_memory_gib": peak_memory_gib(),
            "world_size": int(os.environ.get("WORLD_SIZE", "1")),
            "hardware": hardware(),
            "notes": self.notes,
            "config": self.config,
        }
        scratch = Path(f"{path}.part")
        scratch.write_text(json.dumps(record, indent=2, default=str), encoding="utf8")
        scratch.replace(path)


def cpu_seconds() -> float:
    """CPU seconds of this process, all its threads and its ended children."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def peak_memory_gib() -> float:
    """Largest resident memory of this process so far, in GiB."""
    kilo = 1024 if platform.system() != "Darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo / 2**30


def hardware() -> str:
    """The processor or GPU in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU cores, {_cpu_name()}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def metrics_table(rows: Mapping[str, Mapping[str, float]], columns: tuple[str, ...]) -> str:
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
