"""From an XMCDataset to a trained encoder, with the host's trainer."""

from __future__ import annotations

from hf_xmc.training.arguments import XMCTrainingArguments
from hf_xmc.training.collator import XMCDataCollator
from hf_xmc.training.optim import RowSparseAdamW
from hf_xmc.training.trainer import XMCTrainer

__all__ = [
    "RowSparseAdamW",
    "XMCDataCollator",
    "XMCTrainer",
    "XMCTrainingArguments",
]
