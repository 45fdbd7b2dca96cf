"""What XMCTrainer reads beyond the host's training arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainingArguments

# The rows' name as the optimizer sees it, also behind a dictionary of losses.
CLASSIFIER_ROWS = r"(^|\.)classifier\.rows\.weight$"


@dataclass
class XMCTrainingArguments(SentenceTransformerTrainingArguments):
    """Arguments of :class:`~hf_xmc.XMCTrainer`: those of ``SentenceTransformerTrainingArguments`` and the pool's.

    Args:
        positives_per_row: Positives of a row that enter the candidate pool, drawn without replacement; None for all.
        hard_negatives: Mined labels of a row that enter the pool; 0 mines nothing.
        mining_depth: Nearest labels of a row among which its hard negatives are drawn.
        random_negatives: Labels drawn at random that enter the pool of a batch, on each process: with twice the
            processes half as many make the same pool.
        max_candidates: Largest pool of a batch; None for no limit.
        cluster_batches: Whether near neighbors share a batch, once they have been mined.
        refresh_epochs: Hard negatives and clusters are made anew every so many epochs, first after as many.
        token_dropout: Share of the tokens of every text left out at random while training, in [0, 1).
        classifier_learning_rate: Learning rate of the classifier's rows; None for ``learning_rate``.

    Raises:
        ValueError: For a count below zero, or no positive at all.
    """

    positives_per_row: int | None = field(default=3, metadata={"help": "positives of a row in the pool"})
    hard_negatives: int = field(default=0, metadata={"help": "mined labels of a row in the pool"})
    mining_depth: int = field(default=100, metadata={"help": "nearest labels among which hard negatives are drawn"})
    random_negatives: int = field(default=0, metadata={"help": "random labels in the pool of a batch"})
    max_candidates: int | None = field(default=None, metadata={"help": "largest pool of a batch"})
    cluster_batches: bool = field(default=False, metadata={"help": "near neighbors share a batch"})
    refresh_epochs: int = field(default=5, metadata={"help": "epochs between two minings"})
    token_dropout: float = field(default=0.0, metadata={"help": "share of tokens left out at random"})
    classifier_learning_rate: float | None = field(default=None, metadata={"help": "of the classifier's rows"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False
        least = {"positives_per_row": 1, "hard_negatives": 0, "random_negatives": 0, "max_candidates": 1}
        for name, minimum in (least | {"refresh_epochs": 1, "mining_depth": 1}).items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {value}")
        if not 0 <= self.token_dropout < 1:
            raise ValueError(f"token_dropout must lie in [0, 1), got {self.token_dropout}")
        if self.classifier_learning_rate is not None:
            rates: Any = self.learning_rate_mapping  # a dict, now that the host has read it
            self.learning_rate_mapping = rates | {CLASSIFIER_ROWS: self.classifier_learning_rate}
