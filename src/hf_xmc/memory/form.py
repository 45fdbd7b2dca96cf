"""How a KnowledgeMemory weighs the votes of rows and labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MemoryForm:
    """How the votes of rows and labels are weighed.

    The defaults are near the best of a held-out split (benchmarks/memory.py); the paper's are row_weight 0.5, scale 25
    and num_keys 200.

    Args:
        row_weight: lambda in [0, 1] of a label with one training row. 0 is the plain label search, 1 the nearest
            training rows alone.
        scale: 1 / tau of the softmax over the keys, above 0.
        num_keys: b, the keys that vote, at least 1. Labels that none of them votes for follow those that have votes.
        frequency_power: The odds of lambda are multiplied by ((n + 1) / 2) ** frequency_power for a label of n
            training rows. Above 0 rare labels rest on their text; below 0 frequent labels, which many rows vote for
            anyhow, are held back, which lifts PSP. 0 is one lambda for all, as in the paper.
    """

    row_weight: float = 0.1
    scale: float = 20.0
    num_keys: int = 50
    frequency_power: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.row_weight <= 1:
            raise ValueError(f"row_weight must lie in [0, 1], got {self.row_weight}")
        if not 0 < self.scale < np.inf:
            raise ValueError(f"scale must be a finite number above 0, got {self.scale}")
        if self.num_keys < 1 or self.num_keys != int(self.num_keys):
            raise ValueError(f"num_keys must be an integer, at least 1, got {self.num_keys}")
        if not np.isfinite(self.frequency_power):
            raise ValueError(f"frequency_power must be finite, got {self.frequency_power}")

    def row_weights(self, counts: np.ndarray) -> np.ndarray:
        """lambda of labels with ``counts`` (L,) training rows each: (L,) float64 in [0, 1]."""
        if self.row_weight in (0, 1) or not self.frequency_power:
            return np.full(len(counts), float(self.row_weight))
        logit = np.log(self.row_weight / (1 - self.row_weight))
        logits = logit + self.frequency_power * np.log((np.asarray(counts) + 1) / 2)
        return 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
