"""Coverage@k: the share of the labels in use that are found at least once."""

from __future__ import annotations

# The module, not its class: evaluate takes the first metric class it sees in this file.
from hf_xmc.metrics.evaluate import module


class XmcCoverage(module.XMCModule):
    """Coverage@k: the share of the labels in use that are found at least once."""

    metrics = ("coverage",)
