"""The nearest label vectors of a query."""

from __future__ import annotations

from hf_xmc.index.label_index import KINDS, LabelIndex

__all__ = [
    "KINDS",
    "LabelIndex",
]
