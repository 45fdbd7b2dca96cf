"""Gradient caching: pools far larger than memory, at about a third more work."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from sentence_transformers.base.losses.gradcache import (
    CachedLossMixin,
    RandContext,
    _create_minibatch,
    has_static_embedding_input,
)
from torch import Tensor, nn

from hf_xmc.encoders.packing import embed
from hf_xmc.losses.pool.base import PoolLoss
from hf_xmc.losses.pool.decoupled_softmax import DecoupledSoftmaxLoss
from hf_xmc.losses.pool.soft_top_k import SoftTopKLoss
from hf_xmc.losses.pool.targets import PoolTargets

# Our own keys in a column of a batch: rows, not tokens, so they are cut here and never trimmed like tokens.
_ROW_KEYS = ("ids", "filter_ids", "label_weights")


class CachedPoolLoss(CachedLossMixin, PoolLoss):
    """Any loss over a pool, embedding ``mini_batch_size`` texts at a time (GradCache, Gao et al., 2021).

    The values and gradients are those of the plain loss. Put it before the loss:
    ``class CachedFoo(CachedPoolLoss, Foo)``.

    Args:
        model: A ``SentenceTransformer`` that is not static (flat tokens cannot be cut).
        mini_batch_size: Texts that are embedded at once.
        kwargs: Those of the plain loss.

    Raises:
        ValueError: For a static encoder, whose vectors need no caching.
    """

    def __init__(self, model: nn.Module, *, mini_batch_size: int = 32, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        if has_static_embedding_input(model):
            raise ValueError("a static encoder needs no gradient caching; use the plain loss")
        if mini_batch_size < 1:
            raise ValueError(f"mini_batch_size must be at least 1, got {mini_batch_size}")
        self.mini_batch_size = mini_batch_size

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """As the plain loss; its gradient is made here, the backward pass only hands it on."""
        features = list(sentence_features)
        targets: Any = PoolTargets.from_features(features, labels)  # the host hands them on unread
        return self.forward_cached(features, targets)

    def embed_minibatch(
        self,
        sentence_feature: dict[str, Any],
        begin: int,
        end: int,
        with_grad: bool,
        copy_random_state: bool,
        random_state: RandContext | None = None,
    ) -> tuple[Tensor, RandContext | None]:
        """The vectors of rows ``begin`` to ``end`` of a column, with the dropout of ``random_state``."""
        part = _create_minibatch({k: v for k, v in sentence_feature.items() if k not in _ROW_KEYS}, begin, end)
        part |= {key: sentence_feature[key][begin:end] for key in _ROW_KEYS if key in sentence_feature}
        with random_state or nullcontext(), nullcontext() if with_grad else torch.no_grad():
            state = RandContext(*(v for v in part.values() if isinstance(v, Tensor))) if copy_random_state else None
            return embed(self.model, part)["sentence_embedding"], state

    def calculate_loss(self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False) -> Tensor:
        """The loss of all vectors, given in parts a column; ``labels`` are the :class:`PoolTargets`."""
        queries, *candidates = [torch.cat(column) for column in reps]
        loss = self.pool_loss(queries, torch.cat(candidates), labels)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """The settings that a model card shows."""
        return super().get_config_dict() | {"mini_batch_size": self.mini_batch_size}


class CachedDecoupledSoftmaxLoss(CachedPoolLoss, DecoupledSoftmaxLoss):
    """:class:`~hf_xmc.losses.DecoupledSoftmaxLoss` with gradient caching."""


class CachedSoftTopKLoss(CachedPoolLoss, SoftTopKLoss):
    """:class:`~hf_xmc.losses.SoftTopKLoss` with gradient caching."""
