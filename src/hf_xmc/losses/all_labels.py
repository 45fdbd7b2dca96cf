"""DEXML as published: every step sees every label, without a B x L matrix, the labels sharded over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin, has_static_embedding_input
from torch import Tensor, nn

from hf_xmc.distributed import PAD, is_distributed, pad_gather
from hf_xmc.encoders.prompts import prompt_of
from hf_xmc.hub.checks_xmc import checked_texts
from hf_xmc.losses import blockwise
from hf_xmc.losses.pool.decoupled_softmax import DecoupledSoftmaxLoss
from hf_xmc.losses.pool.targets import places, to_csr


class AllLabelsLoss(CachedLossMixin, nn.Module):
    """A loss over all L labels, each encoded in every step with gradient caching (dist-de-all of Gupta et al., 2024).

    The label texts are tokenized once, here, in groups of like length. With W ranks each encodes its own L / W labels;
    queries and per-row sums are exchanged, the label vectors never are. Values and gradients are those of the dense
    loss over all labels on the whole batch.

    Args:
        model: A ``SentenceTransformer``, plain or an :class:`~hf_xmc.XMCEncoder`; static ones need no caching.
        label_texts: L texts in id order, for example ``data.labels["text"]``.
        loss: A function of ``hf_xmc.losses.blockwise``, or a partial of one.
        scale: Inverse temperature; scores are ``scale * cosine``.
        mini_batch_size: Labels that are encoded at once.

    Inputs: batches of an ``XMCDataCollator(pool=False)``, which :class:`~hf_xmc.XMCTrainer` makes for this loss.

    Raises:
        ValueError: If there are fewer labels than ranks, or a label is no text.
    """

    uses_pool = False
    place: Tensor

    def __init__(
        self,
        model: SentenceTransformer,
        label_texts: Iterable[str],
        loss: Callable[..., Tensor] = blockwise.decoupled_softmax,
        scale: float = 20.0,
        mini_batch_size: int = 256,
    ) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.loss = loss
        self.scale = scale
        self.mini_batch_size = mini_batch_size
        listed = checked_texts(label_texts)
        self.num_labels = len(listed)
        world_size, rank = (dist.get_world_size(), dist.get_rank()) if is_distributed() else (1, 0)
        if self.num_labels < world_size:
            raise ValueError(f"{self.num_labels} labels cannot be shared by {world_size} ranks")
        shard = torch.tensor_split(torch.arange(self.num_labels), world_size)[rank]
        # Texts of like length share a group; the order of the rows of this rank's table follows.
        order = torch.tensor(sorted(shard.tolist(), key=lambda i: len(listed[i])), dtype=torch.int64)
        self.own_texts = pa.array([listed[i] for i in order.tolist()], pa.string())
        # Label id -> row of this rank's table.
        self.register_buffer("place", places(order, self.num_labels), persistent=False)
        self.tokenize_labels(model)

    def tokenize_labels(self, model: SentenceTransformer) -> None:
        """Tokenize the labels with a model and its document prompt, as the model is now."""
        self.is_static = has_static_embedding_input(model)
        texts, prompt = self.own_texts.to_pylist(), prompt_of(model, "document") or None
        size = len(texts) if self.is_static else self.mini_batch_size
        self.label_features = [
            model.preprocess(texts[start : start + size], prompt=prompt, task="document")
            for start in range(0, len(texts), size)
        ]

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor) -> Tensor:
        """The loss () of a batch; ``labels`` (B, P) int64 are ids, padded with -1."""
        query = dict(next(iter(sentence_features)))
        # Any: the host hands them on unread.
        targets: Any = (labels, query.pop("label_weights", None), query.pop("filter_ids", None))
        device = labels.device
        groups = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in g.items()} for g in self.label_features]
        if not self.is_static:
            return self.forward_cached([query, *groups], targets)
        vectors = [self.model(feature)["sentence_embedding"] for feature in (query, *groups)]
        return self._table_loss(vectors[0], torch.cat(vectors[1:]), targets)

    def calculate_loss(self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False) -> Tensor:
        """The loss of all vectors, given in parts a column; ``labels`` are ids, weights and filtered ids."""
        queries, *table = [torch.cat(column) for column in reps]
        loss = self._table_loss(queries, torch.cat(table), labels)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def _table_loss(
        self, queries: Tensor, table: Tensor, targets: tuple[Tensor, Tensor | None, Tensor | None]
    ) -> Tensor:
        """The loss () over all queries and labels, from queries (B, D) and labels (L_rank, D) of this rank."""
        queries, table = F.normalize(queries, dim=-1), F.normalize(table, dim=-1)
        positive_ids, weights, filter_ids = targets
        group, world_size = None, 1
        if is_distributed():
            group, world_size = dist.group.WORLD, dist.get_world_size()
            # Only this rank's rows carry a gradient: the loss returns the whole one for them.
            queries = pad_gather(queries, 0.0)
            positive_ids = pad_gather(positive_ids, PAD)
            weights = None if weights is None else pad_gather(weights, 0.0)
            filter_ids = None if filter_ids is None else pad_gather(filter_ids, PAD)
        positives = to_csr(positive_ids, self.place, weights)
        excluded = None if filter_ids is None else to_csr(filter_ids, self.place)
        loss = self.loss(queries, table, positives, scale=self.scale, excluded=excluded, group=group)
        # DDP averages gradients over ranks, but each rank holds a part of the sum.
        return loss + (world_size - 1) * (loss - loss.detach())

    def get_config_dict(self) -> dict[str, Any]:
        """The settings that a model card shows."""
        name = getattr(self.loss, "__name__", None) or getattr(self.loss, "func", self.loss).__name__
        return {"loss": name, "scale": self.scale, "num_labels": self.num_labels}

    citation = DecoupledSoftmaxLoss.citation
