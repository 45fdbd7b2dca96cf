"""XMCTrainer: the host's trainer, fed from an XMCDataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import datasets
import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PredictionOutput, TrainOutput

from hf_xmc.data.columns import chunks_of
from hf_xmc.data.dataset import XMCDataset
from hf_xmc.distributed import is_distributed
from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.encoders.prompts import prompt_of
from hf_xmc.encoders.tokens import TokenizedTexts
from hf_xmc.losses.label_terms import LabelNeighbors
from hf_xmc.losses.pool.base import uses_pool
from hf_xmc.losses.pool.decoupled_softmax import DecoupledSoftmaxLoss
from hf_xmc.training.arguments import XMCTrainingArguments
from hf_xmc.training.checks import (
    check_data,
    check_loss,
    check_mining,
    check_model,
    check_pool,
    check_settings,
    column_prompts,
    loss_parts,
)
from hf_xmc.training.collator import XMCDataCollator
from hf_xmc.training.evaluation_rows import evaluation_rows
from hf_xmc.training.mining import MiningCallback
from hf_xmc.training.row_sparse_trainer import RowSparseTrainer
from hf_xmc.training.sampler import XMCBatchSampler


class XMCTrainer(RowSparseTrainer):
    """Train an encoder on an :class:`~hf_xmc.XMCDataset`, on one process or many (``accelerate launch``).

    Draws of batches and pools depend on the seed, the epoch and the rows alone, so that a run resumed from a
    checkpoint ends with the numbers of an uninterrupted one. ``train()`` may be called again: it goes on from the
    weights as they are, with a new optimizer.

    The loss of rows to evaluate on (``eval_loss``, ``test_loss``) is the mean over batches in the order of the rows,
    each as ``data_collator.for_evaluation()`` makes it: the pool holds **all** positives of its rows and
    ``random_negatives`` labels, the same ones at every evaluation; nothing is mined, and no token is dropped. Losses
    over all labels need no pool. So it falls where the ranking within a batch gets better, and depends on
    ``per_device_eval_batch_size``.

    Args:
        model: An :class:`~hf_xmc.XMCEncoder` or any ``SentenceTransformer``.
        args: Training arguments, ours or the host's; None for the defaults.
        train_dataset: The data set; its ``train`` part is trained on, its train filter pairs are neither positive nor
            negative.
        loss: One of ``hf_xmc.losses``, or a function of the model that makes it; None for
            :class:`~hf_xmc.losses.DecoupledSoftmaxLoss`. None of the host's losses can learn from a pool by itself;
            ``MatryoshkaLoss`` may stand around one of ours.
        eval_dataset: Rows whose loss is evaluated: an :class:`~hf_xmc.XMCDataset` (its ``test`` rows, with their
            filter pairs), a ``datasets.Dataset`` of our columns, or several by name. So it is for :meth:`evaluate`
            and :meth:`predict`.
        kwargs: The host's further arguments (evaluator, callbacks, ...).

    Raises:
        ValueError: For another kind of data set, model, arguments or loss, a number of labels that is not the data
            set's, or settings that would do nothing.
    """

    training_args_class = XMCTrainingArguments
    data_collator_class = XMCDataCollator
    args: XMCTrainingArguments
    data_collator: XMCDataCollator

    def __init__(
        self,
        model: SentenceTransformer | None = None,
        args: TrainingArguments | None = None,
        train_dataset: XMCDataset | None = None,
        loss: nn.Module | Callable[[SentenceTransformer], nn.Module] | None = None,
        *,
        eval_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        data = check_data(train_dataset)
        args = self.training_args_class.of(args or self.training_args_class(output_dir="tmp_trainer"))
        if kwargs.get("model_init") is None:
            check_model(model, data)
        if isinstance(loss, nn.Module):
            check_loss(loss, model, data)
        elif loss is not None and not callable(loss):
            raise ValueError(
                f"loss is {loss if isinstance(loss, str) else type(loss).__name__!r}; expected one of hf_xmc.losses, "
                "such as DecoupledSoftmaxLoss(model)"
            )
        self.data = data  # before super().__init__, which asks for the collator
        num_rows = len(data.train)
        self._mined = _shared((num_rows, args.mining_depth), torch.int32) if args.hard_negatives else None
        self._row_order = _shared((num_rows,), torch.int64) if args.cluster_batches else None
        self._makes_collator = kwargs.get("data_collator") is None
        if eval_dataset is not None:
            eval_dataset = evaluation_rows(eval_dataset, data)
        check_settings(args, evaluates_loss=eval_dataset is not None and not isinstance(eval_dataset, dict))
        rows = data.training_rows()
        super().__init__(model=model, args=args, train_dataset=rows, eval_dataset=eval_dataset, loss=loss, **kwargs)
        check_mining(args, num_rows)
        self._uses_pool = uses_pool(self.loss)
        if self._makes_collator:
            self.data_collator.pool = self._uses_pool
        self.miner = self._make_miner()
        if self.miner is not None:
            self.add_callback(self.miner)
        self.add_callback(_EpochCallback(self.data_collator))

    def _make_miner(self) -> MiningCallback | None:
        """What keeps mined negatives, the order of rows and a loss's neighbors of labels up to date; None for none."""
        neighbors = next((part for part in loss_parts(self.loss) if isinstance(part, LabelNeighbors)), None)
        if self._mined is None and self._row_order is None and neighbors is None:
            return None
        return MiningCallback(
            self.data,
            self.args.refresh_epochs,
            mined=self._mined,
            row_order=self._row_order,
            neighbors=neighbors,
            batch_size=self.args.train_batch_size,
            seed=self.args.seed,
        )

    def prepare_loss(self, loss: Any, model: Any) -> nn.Module:
        """The loss on the model's device, made by ``loss`` where that is a function of the model.

        Raises:
            ValueError: If no loss comes of it, or one that cannot be trained with.
        """
        if not isinstance(loss, nn.Module):
            name = getattr(loss, "__name__", type(loss).__name__)
            try:
                loss = loss(model)
            except TypeError as error:
                raise ValueError(f"{name}(model) makes no loss ({error}); give a loss, made with the model") from error
            if not isinstance(loss, nn.Module):
                raise ValueError(f"{name}(model) makes a {type(loss).__name__}; expected one of hf_xmc.losses")
        check_loss(loss, model if self.model_init is None else None, self.data)
        check_pool(loss, self.args)
        if column_prompts(self.args.prompts):
            _renew_tokens(loss, model)
        return super().prepare_loss(loss, model)

    def call_model_init(self, trial: Any = None) -> Any:
        """A new model, checked, with the prompts of the arguments; the loss follows it."""
        model: Any = super().call_model_init(trial)
        check_model(model, self.data)
        if hasattr(self, "data_collator"):  # no longer in __init__
            self._take_up(model)
            if self.miner is not None:
                self.miner.forget()  # a trial must not begin with what the one before it mined
        return model

    # -- tokens: of the model as it is, kept while it trains ----------------------------------------------------------

    def get_data_collator(self, model: Any, args: Any, processing_class: Any = None) -> XMCDataCollator:
        """The collator of the data set; tokens of all texts are made when training begins."""
        model.prompts.update(column_prompts(args.prompts))  # so that mining, evaluation and serving agree
        return self.data_collator_class(
            # Not model.preprocess: a bound method of the model would carry the classifier into every worker.
            preprocess_fn=model[0].preprocess,
            prompts={task: prompt_of(model, task) or "" for task in ("query", "document")},
            label_texts=self.data.label_texts,
            filters=self.data.filter_csr("train") if len(self.data.filters["train"]) else None,
            positives_per_row=args.positives_per_row,
            hard_negatives=args.hard_negatives,
            random_negatives=args.random_negatives,
            max_candidates=args.max_candidates,
            mined=self._mined,
            seed=args.seed,
        )

    def _take_up(self, model: SentenceTransformer) -> None:
        """Read texts as a new model, or one whose modules were replaced, does."""
        model.prompts.update(column_prompts(self.args.prompts))
        first: Any = model[0]
        if self._makes_collator:
            self.data_collator.preprocess_fn = first.preprocess
        self._drop_tokens()
        self._eval_dataloaders.clear()  # persistent workers hold the collator of before
        _renew_tokens(self.loss, model)

    def _make_tokens(self) -> None:
        if not self._makes_collator or self.data_collator.row_tokens is not None:
            return
        self.data_collator.row_tokens = TokenizedTexts.of_model(
            self.model, chunks_of(self.data.train, "text"), "query"
        )
        if self._uses_pool:
            self.data_collator.label_tokens = TokenizedTexts.of_model(self.model, self.data.label_texts)
        self.data_collator.token_dropout = self.args.token_dropout

    def _drop_tokens(self) -> None:
        if self._makes_collator:
            self.data_collator.row_tokens = self.data_collator.label_tokens = None
            self.data_collator.token_dropout = 0.0

    # -- batches to train and to evaluate on --------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Batches of the train rows, their tokens made once."""
        self._make_tokens()
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batches in the order of the rows; see the class."""
        with self._evaluating():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Batches in the order of the rows; see the class."""
        with self._evaluating():
            return super().get_test_dataloader(evaluation_rows(test_dataset, self.data, "test_dataset"))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        collator, self.data_collator = self.data_collator, self.data_collator.for_evaluation()
        try:
            yield
        finally:
            self.data_collator = collator

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The loss of the rows and what the evaluator measures.

        Args:
            eval_dataset: As in the class; a name for one of several; None for the trainer's own.
            ignore_keys: As the host's.
            metric_key_prefix: Before every key.

        Raises:
            ValueError: For what is no such data set.
        """
        if isinstance(eval_dataset, str):
            names = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else []
            if eval_dataset not in names:
                raise ValueError(f"eval_dataset is {eval_dataset!r}; the trainer's own are named {names}")
        elif eval_dataset is not None:
            eval_dataset = evaluation_rows(eval_dataset, self.data)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        """The loss of the rows of one data set, and what the evaluator measures, in ``metrics``; the host's way.

        Labels are predicted by ``XMCEvaluator.predict`` and ``Retriever.predict``.

        Raises:
            ValueError: For what is no such data set, or several.
        """
        if isinstance(test_dataset, Mapping):
            raise ValueError(f"predict takes one data set, got those named {list(test_dataset)}")
        return super().predict(test_dataset, *args, **kwargs)

    def get_batch_sampler(
        self,
        dataset: datasets.Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> BatchSampler:
        """Of train rows at random or of neighbors, settled by the seed and the epoch alone; of others all in order."""
        if dataset is not self.train_dataset:
            return BatchSampler(SequentialSampler(dataset), batch_size, drop_last=False)
        return XMCBatchSampler(dataset, batch_size, drop_last, seed=seed, row_order=self._row_order)

    def get_default_loss(self, model: Any) -> nn.Module:
        """Decoupled softmax over the pool."""
        return DecoupledSoftmaxLoss(model)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As the host's; what serves the training alone is given back when it ends, however it ends."""
        if is_distributed() and self.model_wrapped is self.model:
            # accelerate takes a model that was evaluated for one that is wrapped already, and the ranks would part.
            vars(self.model).pop("_is_accelerate_prepared", None)
        try:
            return super().train(*args, **kwargs)
        finally:
            self.release_tables()
            self._drop_tokens()

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.flush_optimizer()
        self.accelerator.wait_for_everyone()  # the best checkpoint may be the one that is being written
        result = super()._finalize_training(*args, **kwargs)
        if isinstance(self.model, XMCEncoder) and self.model.fold():
            # What knew the parameters that are gone.
            self.optimizer = self.lr_scheduler = None
            self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
            self.accelerator.free_memory()
            self.model_wrapped = self.model
            self.loss = self.override_model_in_loss(self.loss, self.model)
            self._take_up(self.model)
        return result

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint)
        if self.miner is not None:
            self.miner.load(resume_from_checkpoint)


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of -1 in shared memory: one writer (the mining callback), readers in whatever process (collators)."""
    return torch.full(shape, -1, dtype=dtype).share_memory_()


def _renew_tokens(loss: nn.Module, model: SentenceTransformer) -> None:
    """Of label texts that a loss over all labels keeps."""
    for part in loss_parts(loss):
        renew: Any = getattr(part, "tokenize_labels", None)
        if renew is not None:
            renew(model)


class _EpochCallback(TrainerCallback):
    """Tell the collator, in whatever process it runs, which epoch it is."""

    def __init__(self, collator: XMCDataCollator) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.collator.epoch.fill_(int((state.epoch or 0) + 1e-6))
