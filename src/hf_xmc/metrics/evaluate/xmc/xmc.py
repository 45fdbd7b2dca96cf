"""All metrics of extreme multi-label classification in one pass."""

from __future__ import annotations

# The module, not its class: evaluate takes the first metric class it sees in this file.
from hf_xmc.metrics.evaluate import module


class Xmc(module.XMCModule):
    """All metrics of extreme multi-label classification in one pass."""

    metrics = ("precision", "ndcg", "recall", "psp", "psndcg", "coverage", "macro_f1")
