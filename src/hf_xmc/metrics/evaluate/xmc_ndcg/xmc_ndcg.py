"""nDCG@k: hits in the top k with a logarithmic discount, over the best that the row allows."""

from __future__ import annotations

# The module, not its class: evaluate takes the first metric class it sees in this file.
from hf_xmc.metrics.evaluate import module


class XmcNdcg(module.XMCModule):
    """nDCG@k: hits in the top k with a logarithmic discount, over the best that the row allows."""

    metrics = ("ndcg",)
