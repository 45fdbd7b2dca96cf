"""What XMCTrainer reads beyond the host's training arguments."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import TrainingArguments

from hf_xmc.training.checks import check_counts, column_prompts

# The rows' name as the optimizer sees it, also behind a dictionary of losses.
CLASSIFIER_ROWS = r"(^|\.)classifier\.rows\.weight$"


# Of the settings of a pool.
LEAST = {"positives_per_row": 1, "hard_negatives": 0, "random_negatives": 0, "max_candidates": 1}


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
        prompts: Put before queries and label texts: ``{"query": ..., "document": ...}``, or one string for both. The
            model keeps them, so that mining, evaluation and serving agree with training; a task without one has the
            model's own.

    Raises:
        ValueError: For a count below zero, no positive at all, more hard negatives than are mined, or prompts with
            another key.
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
        check_counts(LEAST | {"refresh_epochs": 1, "mining_depth": 1}, self)
        if self.hard_negatives > self.mining_depth:
            raise ValueError(
                f"hard_negatives={self.hard_negatives} are drawn among mining_depth={self.mining_depth} labels; "
                "expected no more than there are"
            )
        if not 0 <= self.token_dropout < 1:
            raise ValueError(f"token_dropout must lie in [0, 1), got {self.token_dropout}")
        column_prompts(self.prompts)
        if self.classifier_learning_rate is not None:
            rates: Any = self.learning_rate_mapping  # a dict, now that the host has read it
            self.learning_rate_mapping = rates | {CLASSIFIER_ROWS: self.classifier_learning_rate}

    @classmethod
    def of(cls, args: Any) -> XMCTrainingArguments:
        """Arguments themselves, or the host's with the defaults of the pool.

        Raises:
            ValueError: For what are no training arguments.
        """
        if isinstance(args, cls):
            return args
        if not isinstance(args, TrainingArguments):
            raise ValueError(f"args are a {type(args).__name__}; expected XMCTrainingArguments(output_dir=...)")
        known = {each.name for each in fields(cls) if each.init}
        return cls(**{each.name: getattr(args, each.name) for each in fields(args) if each.name in known})
