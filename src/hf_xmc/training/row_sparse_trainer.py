"""The host's trainer for models with tables of which a step touches few rows."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from hf_xmc.distributed import is_distributed, mean_rows
from hf_xmc.encoders.classifier import LabelClassifier
from hf_xmc.losses.pool.base import uses_pool
from hf_xmc.training.optim import RowSparseAdamW, clip_grad_norm, unique_rows


class RowSparseTrainer(SentenceTransformerTrainer):
    """A trainer whose optimizer works row by row where gradients are sparse, and is made anew by each ``train()``.

    Such an optimizer is flushed before rows are read: evaluated, saved, folded.
    """

    model: SentenceTransformer
    loss: nn.Module  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._handles: list[RemovableHandle] = []
        self._makes_optimizer = kwargs.get("optimizers", (None, None))[0] is None
        super().__init__(*args, **kwargs)

    def _tables(self) -> list[nn.Embedding | nn.EmbeddingBag]:
        """Modules of which a step touches few rows: the classifier's, and the tokens' of a static encoder.

        Without a pool a step encodes all labels and touches most tokens: their gradient is left dense.
        """
        tables: list[nn.Embedding | nn.EmbeddingBag] = [module.rows for module in self._classifiers()]
        if uses_pool(self.loss) and self.args.optim in ("adamw_torch", "adamw_torch_fused"):
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
            rows, values = mean_rows(ids, values)
            weight.grad = torch.sparse_coo_tensor(
                rows.unsqueeze(0), values, weight.shape, is_coalesced=True, check_invariants=False
            )

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
        """The host's optimizer, made anew; one that works by rows follows the tables, from here equal on all ranks."""
        if self._makes_optimizer:
            self.optimizer = None
        tables = self._tables()
        if is_distributed():
            self._leave_to_us(tables)
        optimizer = super().create_optimizer(model)
        if isinstance(optimizer, RowSparseAdamW):
            for table in tables:
                table.sparse = True
                self._handles.append(optimizer.follow(table))
                if is_distributed():  # DDP leaves the rows alone, also at the start
                    dist.broadcast(table.weight.data, src=0)
        return optimizer

    def _leave_to_us(self, tables: list[nn.Embedding | nn.EmbeddingBag]) -> None:
        """Keep DDP, which would exchange gradients of rows by a sparse all-reduce that NCCL lacks, off the tables."""
        named = dict(self.model.named_parameters())
        ours = [name for name, parameter in named.items() if any(parameter is table.weight for table in tables)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, ours)
        if not any(parameter.requires_grad for name, parameter in named.items() if name not in ours):
            # DDP refuses a model that leaves it nothing: this is all of what accelerate does but wrapping it.
            model: Any = self.accelerator.prepare_model(self.model, evaluation_mode=True)
            model._is_accelerate_prepared = True

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

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # All ranks come here, and the host lets all of them write into one folder.
        if self.args.should_save:
            super()._save(output_dir, state_dict)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.flush_optimizer()
        super()._save_checkpoint(*args, **kwargs)

    def release_tables(self) -> None:
        """Bring the rows up to date and leave the tables as they came, for whatever trains them next."""
        self.flush_optimizer()
        while self._handles:
            self._handles.pop().remove()
        for module in self.model.modules():
            if isinstance(module, StaticEmbedding):
                module.embedding.sparse = False
