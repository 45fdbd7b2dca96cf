"""The raw formats of the LF-* benchmarks: found, read, loaded, written."""

from __future__ import annotations

from hf_xmc.data.lf.load import load_lf, save_lf, stream_lf

__all__ = [
    "load_lf",
    "save_lf",
    "stream_lf",
]
