"""Precision@k: the share of the top k that is right."""

from __future__ import annotations

# The module, not its class: evaluate takes the first metric class it sees in this file.
from hf_xmc.metrics.evaluate import module


class XmcPrecision(module.XMCModule):
    """Precision@k: the share of the top k that is right."""

    metrics = ("precision",)
