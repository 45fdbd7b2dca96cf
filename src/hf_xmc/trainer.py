"""XMCTrainer: the host's trainer, fed from an XMCDataset."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from torch import nn
from torch.utils.data import BatchSampler
from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_xmc.data.collator import XMCDataCollator
from hf_xmc.data.dataset import XMCDataset
from hf_xmc.data.sampler import XMCBatchSampler
from hf_xmc.losses.decoupled_softmax import DecoupledSoftmaxLoss
from hf_xmc.training_args import XMCTrainingArguments


class XMCTrainer(SentenceTransformerTrainer):
    """Trains an encoder on an :class:`~hf_xmc.XMCDataset`, on one process or many (``accelerate launch``).

    Draws of batches and pools depend on the seed, the epoch and the rows alone, so that a run resumed from a
    checkpoint ends with the numbers of an uninterrupted one.

    Args:
        model: An :class:`~hf_xmc.XMCEncoder` or any ``SentenceTransformer``.
        args: Training arguments; None for the defaults.
        train_dataset: The data set; its ``train`` part is trained on, its train filter pairs are neither positive nor
            negative.
        loss: One of ``hf_xmc.losses``; None for :class:`~hf_xmc.losses.DecoupledSoftmaxLoss`.
        kwargs: The host's further arguments (evaluator, callbacks, ...).

    Raises:
        ValueError: if ``train_dataset`` is no XMCDataset.
    """

    training_args_class = XMCTrainingArguments
    data_collator_class = XMCDataCollator

    def __init__(
        self,
        model: SentenceTransformer | None = None,
        args: XMCTrainingArguments | None = None,
        train_dataset: XMCDataset | None = None,
        loss: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(train_dataset, XMCDataset):
            raise ValueError(
                f"XMCTrainer trains on an XMCDataset, got {type(train_dataset).__name__}; make one with load_lf or "
                "XMCDataset.from_dataset, or use SentenceTransformerTrainer with an XMCDataCollator"
            )
        self.data = train_dataset  # before super().__init__, which asks for the collator
        super().__init__(model=model, args=args, train_dataset=train_dataset.training_rows(), loss=loss, **kwargs)
        self.add_callback(_EpochCallback(self.data_collator))

    def get_data_collator(
        self, model: SentenceTransformer, args: XMCTrainingArguments, processing_class: Any = None
    ) -> XMCDataCollator:
        return self.data_collator_class(
            # Not model.preprocess: a bound method of the model would carry the classifier into every worker.
            preprocess_fn=model[0].preprocess,
            prompts=args.prompts or _prompts_of(model),
            label_texts=self.data.label_texts,
            filters=self.data.filter_csr("train") if len(self.data.filters["train"]) else None,
            positives_per_row=args.positives_per_row,
            hard_negatives=args.hard_negatives,
            random_negatives=args.random_negatives,
            max_candidates=args.max_candidates,
            seed=args.seed,
        )

    def get_batch_sampler(
        self, dataset: Dataset, batch_size: int, drop_last: bool, seed: int = 0, **kwargs: Any
    ) -> BatchSampler:
        return XMCBatchSampler(dataset, batch_size=batch_size, drop_last=drop_last, seed=seed)

    def get_default_loss(self, model: SentenceTransformer) -> nn.Module:
        return DecoupledSoftmaxLoss(model)


def _prompts_of(model: SentenceTransformer) -> dict[str, str]:
    """The model's own prompts under the collator's column names, so that training and encoding agree."""
    prompts = {"query": model.prompts.get("query"), "candidate": model.prompts.get("document")}
    return {column: prompt for column, prompt in prompts.items() if prompt}


class _EpochCallback(TrainerCallback):
    """Tells the collator, in whatever process it runs, which epoch it is."""

    def __init__(self, collator: XMCDataCollator) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.collator.epoch.fill_(int((state.epoch or 0) + 1e-6))
