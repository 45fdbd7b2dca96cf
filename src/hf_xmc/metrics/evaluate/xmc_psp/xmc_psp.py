"""Propensity-scored precision and nDCG: hits of rare labels count more."""

from __future__ import annotations

# The module, not its class: evaluate takes the first metric class it sees in this file.
from hf_xmc.metrics.evaluate import module


class XmcPsp(module.XMCModule):
    """Propensity-scored precision and nDCG: hits of rare labels count more."""

    metrics = ("psp", "psndcg")
