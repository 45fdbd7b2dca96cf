"""From raw files, or a table of your own, to an XMCDataset."""

from __future__ import annotations

from hf_xmc.data.catalog import BENCHMARKS, Benchmark, Propensity, find_benchmark
from hf_xmc.data.dataset import XMCDataset
from hf_xmc.data.lf.load import load_lf, save_lf, stream_lf
from hf_xmc.data.report import DataReport

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "DataReport",
    "Propensity",
    "XMCDataset",
    "find_benchmark",
    "load_lf",
    "save_lf",
    "stream_lf",
]
