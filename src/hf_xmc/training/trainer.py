"""XMCTrainer: the host's trainer, fed from an XMCDataset."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler
from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_xmc.data.columns import column_of
from hf_xmc.data.dataset import XMCDataset
from hf_xmc.distributed import PAD, is_distributed, pad_gather
from hf_xmc.encoders.classifier import LabelClassifier
from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.encoders.tokens import TokenizedTexts, special_tokens
from hf_xmc.losses.label_terms import LabelNeighbors
from hf_xmc.losses.pool.base import uses_pool
from hf_xmc.losses.pool.decoupled_softmax import DecoupledSoftmaxLoss
from hf_xmc.training.arguments import XMCTrainingArguments
from hf_xmc.training.collator import XMCDataCollator
from hf_xmc.training.mining import MiningCallback
from hf_xmc.training.optim import RowSparseAdamW, clip_grad_norm, unique_rows
from hf_xmc.training.sampler import XMCBatchSampler


class XMCTrainer(SentenceTransformerTrainer):
    """Train an encoder on an :class:`~hf_xmc.XMCDataset`, on one process or many (``accelerate launch``).

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
        ValueError: If ``train_dataset`` is no XMCDataset.
    """

    training_args_class = XMCTrainingArguments
    data_collator_class = XMCDataCollator
    model: SentenceTransformer
    args: XMCTrainingArguments
    data_collator: XMCDataCollator

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
        self._uses_pool = uses_pool(loss)
        args = args or self.training_args_class(output_dir="tmp_trainer")
        num_rows = len(train_dataset.train)
        self._mined = _shared((num_rows, args.mining_depth), torch.int32) if args.hard_negatives else None
        self._row_order = _shared((num_rows,), torch.int64) if args.cluster_batches else None
        super().__init__(model=model, args=args, train_dataset=train_dataset.training_rows(), loss=loss, **kwargs)
        # DDP would exchange the rows' gradient through a sparse all-reduce, which NCCL does not have.
        weights = {table.weight for table in self._tables()}
        names = [name for name, parameter in self.model.named_parameters() if parameter in weights]
        if names:
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, names)
        self.miner = self._make_miner()
        if self.miner is not None:
            self.add_callback(self.miner)
        self.add_callback(_EpochCallback(self.data_collator))

    def _make_miner(self) -> MiningCallback | None:
        """What keeps mined negatives, the order of rows and a loss's neighbors of labels up to date; None for none."""
        losses = nn.ModuleList(self.loss.values() if isinstance(self.loss, dict) else [self.loss])
        neighbors = next((module for module in losses.modules() if isinstance(module, LabelNeighbors)), None)
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

    def get_data_collator(self, model: Any, args: Any, processing_class: Any = None) -> XMCDataCollator:
        """The collator of the data set, with the texts tokenized."""
        prompts = args.prompts or _prompts_of(model)
        if isinstance(prompts, dict):
            query_prompt, label_prompt = prompts.get("query"), prompts.get("candidate")
        else:
            query_prompt = label_prompt = prompts
        # Not model.preprocess: a bound method of the model would carry the classifier into every worker.
        preprocess, special = model[0].preprocess, special_tokens(model)
        label_tokens = None
        if self._uses_pool:
            label_tokens = TokenizedTexts(preprocess, self.data.label_texts, prompt=label_prompt, **special)
        texts = column_of(self.data.train, "text")
        return self.data_collator_class(
            preprocess_fn=preprocess,
            prompts=prompts,
            label_texts=self.data.label_texts,
            filters=self.data.filter_csr("train") if len(self.data.filters["train"]) else None,
            positives_per_row=args.positives_per_row,
            hard_negatives=args.hard_negatives,
            random_negatives=args.random_negatives,
            max_candidates=args.max_candidates,
            mined=self._mined,
            seed=args.seed,
            pool=self._uses_pool,
            label_tokens=label_tokens,
            row_tokens=TokenizedTexts(preprocess, texts, prompt=query_prompt, task="query", **special),
            token_dropout=args.token_dropout,
        )

    def get_batch_sampler(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> BatchSampler:
        """Batches at random or of neighbors, settled by the seed and the epoch alone."""
        return XMCBatchSampler(dataset, batch_size, drop_last, seed=seed, row_order=self._row_order)

    def get_default_loss(self, model: Any) -> nn.Module:
        """Decoupled softmax over the pool."""
        return DecoupledSoftmaxLoss(model)

    # -- tables with sparse gradients, and an optimizer that must be flushed before their rows are read ---------------

    def _tables(self) -> list[nn.Embedding | nn.EmbeddingBag]:
        """Modules of which a step touches few rows: the classifier's, and the tokens' of a static encoder.

        Without a pool a step encodes all labels and touches most tokens: their gradient is left dense. So it is on
        several processes, where DDP exchanges it and refuses a model that leaves it nothing to exchange.
        """
        tables: list[nn.Embedding | nn.EmbeddingBag] = [module.rows for module in self._classifiers()]
        if self._uses_pool and self.args.world_size == 1 and self.args.optim in ("adamw_torch", "adamw_torch_fused"):
            tables += [module.embedding for module in self.model.modules() if isinstance(module, StaticEmbedding)]
        return tables

    def _classifiers(self) -> list[LabelClassifier]:
        return [module for module in self.model.modules() if isinstance(module, LabelClassifier)]

    def _exchange_rows(self) -> None:
        """Average the rows' gradients over ranks by sending the touched rows alone."""
        if not is_distributed():
            return
        for table in self._tables():
            weight = table.weight
            if weight.grad is None:  # this rank touched no row, but the others wait for it
                ids, values = weight.new_zeros(0, dtype=torch.int64), weight.new_zeros(0, weight.size(1))
            else:
                ids, values = unique_rows(weight.grad)
            ids, values = pad_gather(ids, PAD), pad_gather(values, 0.0)
            kept = ids != PAD
            weight.grad = torch.sparse_coo_tensor(
                ids[kept].unsqueeze(0), values[kept] / dist.get_world_size(), weight.shape
            ).coalesce()

    # Static in transformers, no longer so in sentence-transformers.
    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, Any]:  # type: ignore[override]
        """AdamW that touches only the rows of a step, where a table has sparse gradients.

        Raises:
            ValueError: If such a table is to be trained with another optimizer.
        """
        optimizer_cls, kwargs = super().get_optimizer_cls_and_kwargs(args, model)
        if not self._tables():
            return optimizer_cls, kwargs
        if optimizer_cls is not torch.optim.AdamW:
            raise ValueError(
                f"a classifier is trained with AdamW (optim=adamw_torch), got {optimizer_cls.__name__}: "
                "its rows have sparse gradients"
            )
        return RowSparseAdamW, kwargs

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The host's optimizer; one that works by rows follows the tables, which are equal on all ranks from here."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and isinstance(optimizer, RowSparseAdamW):
            for table in self._tables():
                table.sparse = True
                optimizer.follow(table)
                if is_distributed():  # DDP leaves the rows alone, also at the start
                    dist.broadcast(table.weight.data, src=0)
        return optimizer

    def flush_optimizer(self) -> None:
        """Bring all rows of all tables up to date; before they are evaluated, mined with or saved."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if isinstance(optimizer, RowSparseAdamW):
            optimizer.flush()

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        if not self._tables():
            return super()._clip_grad_norm(model)
        self._exchange_rows()
        self.accelerator.unscale_gradients()
        return clip_grad_norm(model.parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None and self._tables():
            self._exchange_rows()
            grad_norm = clip_grad_norm(model.parameters(), math.inf)
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the host's, with all rows up to date."""
        self.flush_optimizer()
        return super().evaluation_loop(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.flush_optimizer()
        super()._save_checkpoint(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.flush_optimizer()
        result = super()._finalize_training(*args, **kwargs)
        for module in self.model.modules():
            if isinstance(module, StaticEmbedding):
                module.embedding.sparse = False  # as it came, for whatever trains it next
        if isinstance(self.model, XMCEncoder) and self.model.fold():
            self.optimizer = self.lr_scheduler = None  # they were of parameters that are gone
        return result

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint)
        if self.miner is not None:
            self.miner.load(resume_from_checkpoint)


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of -1 in shared memory: one writer (the mining callback), readers in whatever process (collators)."""
    return torch.full(shape, -1, dtype=dtype).share_memory_()


def _prompts_of(model: SentenceTransformer) -> dict[str, str]:
    """The model's own prompts under the collator's column names, so that training and encoding agree."""
    prompts = {"query": model.prompts.get("query"), "candidate": model.prompts.get("document")}
    return {column: prompt for column, prompt in prompts.items() if prompt}


class _EpochCallback(TrainerCallback):
    """Tell the collator, in whatever process it runs, which epoch it is."""

    def __init__(self, collator: XMCDataCollator) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.collator.epoch.fill_(int((state.epoch or 0) + 1e-6))
