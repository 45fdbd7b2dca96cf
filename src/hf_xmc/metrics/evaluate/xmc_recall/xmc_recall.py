"""Recall@k: the share of the references that the top k finds."""

from __future__ import annotations

# The module, not its class: evaluate takes the first metric class it sees in this file.
from hf_xmc.metrics.evaluate import module


class XmcRecall(module.XMCModule):
    """Recall@k: the share of the references that the top k finds."""

    metrics = ("recall",)
