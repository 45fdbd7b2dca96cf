"""Losses over the candidate pool of a batch."""

from __future__ import annotations

from hf_xmc.losses.pool.base import PoolLoss
from hf_xmc.losses.pool.targets import PoolTargets

__all__ = [
    "PoolLoss",
    "PoolTargets",
]
