"""From raw files, or a table of your own, to an XMCDataset."""

from __future__ import annotations

from hf_xmc.data.catalog import BENCHMARKS, Benchmark, Propensity, find_benchmark
from hf_xmc.data.dataset import XMCDataset
from hf_xmc.data.lf.load import load_lf, save_lf, stream_lf
from hf_xmc.data.report import DataReport
from hf_xmc.data.tables.skos import read_skos

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "DataReport",
    "Propensity",
    "XMCDataset",
    "find_benchmark",
    "load_lf",
    "read_skos",
    "save_lf",
    "stream_lf",
]
