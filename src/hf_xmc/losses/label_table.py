"""The denominator over all labels at the cost of a pool: most labels come from a table, few are encoded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_xmc.distributed import rows_per_rank
from hf_xmc.encoders.packing import embed
from hf_xmc.encoders.tokens import TokenizedTexts
from hf_xmc.hub.checks_xmc import checked_texts
from hf_xmc.losses import blockwise
from hf_xmc.losses.pool.targets import places, to_csr
from hf_xmc.losses.streaming.pairs import Csr

_LABELS_AT_ONCE = 1024


class LabelTableLoss(nn.Module):
    """Decoupled softmax over all L labels, of which a step encodes only those that carry gradient.

    All label vectors lie in a table that is made anew every ``refresh_steps`` steps. A step sweeps it for the norm of
    each label's gradient, encodes the batch's positives, the ``num_top`` labels of the largest norms and
    ``num_random`` of the others, drawn in proportion to their norms, and counts the drawn ones by one over their
    expected number of draws. The denominator holds the encoded labels as they are now and the others as the table has
    them. So the queries' gradient is exact but for the age of the table, and the labels' is unbiased. With
    ``num_top=L`` and ``refresh_steps=1`` it is :class:`~hf_xmc.losses.AllLabelsLoss` without gradient caching. The
    table is in no checkpoint: a resumed run makes it anew at once. Without gradients, as in evaluation, the loss is
    the exact one over all labels.

    Under DDP every rank sweeps for its own rows; nothing but gradients is exchanged.

    Args:
        model: A ``SentenceTransformer``, plain or an :class:`~hf_xmc.XMCEncoder`.
        label_texts: L texts in id order.
        scale: Inverse temperature; scores are ``scale * cosine``.
        num_top: Labels of the largest gradient norms that are encoded.
        num_random: Draws among the others; 0 drops their gradient.
        refresh_steps: Steps between two makings of the table.

    Inputs: batches of an ``XMCDataCollator(pool=False)``, which :class:`~hf_xmc.XMCTrainer` makes for this loss.
    """

    uses_pool = False

    def __init__(
        self,
        model: nn.Module,
        label_texts: Iterable[str],
        scale: float = 20.0,
        num_top: int = 1024,
        num_random: int = 256,
        refresh_steps: int = 50,
    ) -> None:
        super().__init__()
        if num_top < 0 or num_random < 0 or refresh_steps < 1:
            raise ValueError(
                f"num_top and num_random must be at least 0 and refresh_steps at least 1, got {num_top}, "
                f"{num_random} and {refresh_steps}"
            )
        self.model = model
        self.label_texts = pa.array(checked_texts(label_texts), pa.string())
        self.scale = scale
        self.num_top = num_top
        self.num_random = num_random
        self.refresh_steps = refresh_steps
        self.num_steps = 0
        self.made_of = -1
        self.tokenize_labels(model)

    @property
    def num_labels(self) -> int:
        """L."""
        return len(self.label_texts)

    def tokenize_labels(self, model: nn.Module) -> None:
        """Tokenize the labels with a model and its document prompt, as the model is now."""
        self.tokens = TokenizedTexts.of_model(model, self.label_texts)
        self.table: Tensor | None = None

    @torch.no_grad()
    def refresh(self, device: torch.device) -> Tensor:
        """Make the table (L, D) anew: all labels encoded without dropout."""
        model = getattr(self.model, "module", self.model)  # behind DDP the forward would expect a backward
        was_training = model.training
        model.eval()
        order = self.tokens.lengths.argsort()
        parts = [
            embed(model, self.tokens.features(ids.to(device)))["sentence_embedding"]
            for ids in order.split(_LABELS_AT_ONCE)
        ]
        vectors = torch.cat(parts)
        self.table = table = torch.empty_like(vectors)
        table[order.to(device)] = F.normalize(vectors, dim=-1)
        model.train(was_training)
        self.made_of = self._weights()
        return table

    def _weights(self) -> int:
        """A number that changes where the weights are written, but for fused optimizers: see forward."""
        return sum(parameter._version for parameter in self.model.parameters())

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor) -> Tensor:
        """The loss () of a batch; ``labels`` (B, P) int64 are ids, padded with -1."""
        query = dict(next(iter(sentence_features)))
        weights, filter_ids = query.pop("label_weights", None), query.pop("filter_ids", None)

        def excluded(place: Tensor) -> Csr | None:
            return None if filter_ids is None else to_csr(filter_ids, place)

        queries = F.normalize(embed(self.model, query)["sentence_embedding"], dim=-1)
        learns = self.training and torch.is_grad_enabled()
        is_due = self.num_steps % self.refresh_steps == 0 if learns else self.made_of != self._weights()
        table = self.table
        if table is None or is_due:
            table = self.refresh(queries.device)
        self.num_steps += learns
        everywhere = torch.arange(len(table), device=queries.device)  # label id -> place
        positives = to_csr(labels, everywhere, weights)
        if learns:
            self.made_of = -1  # a step follows
            norms = self._gradient_norms(queries, table, positives, excluded(everywhere))
            chosen, counts = self.choose(norms, positives[1])
        else:  # nothing is drawn where there is no gradient, and the table is that of the model as it is
            chosen = positives[1].unique()
            counts = torch.ones_like(chosen, dtype=table.dtype)
        vectors = F.normalize(embed(self.model, self.tokens.features(chosen))["sentence_embedding"], dim=-1)
        # The value stays, the gradient of a drawn label counts for those that were not drawn.
        vectors = vectors * counts[:, None] + (vectors * (1 - counts[:, None])).detach()

        place = places(chosen, len(table))
        others = (place < 0).nonzero().squeeze(1)
        more = None
        if len(others):
            # An encoded label stands in the denominator once: as it is now, not as the table has it.
            out = excluded(places(others, len(table)))
            more = blockwise.log_denominators(queries, table[others], self.scale, out)
        return blockwise.decoupled_softmax(
            queries,
            vectors,
            to_csr(labels, place, weights),
            scale=self.scale,
            excluded=excluded(place),
            log_denominator=more,
            num_rows=rows_per_rank((positives[0].diff() > 0).sum()),
        )

    def _gradient_norms(self, queries: Tensor, table: Tensor, positives: Csr, excluded: Csr | None) -> Tensor:
        """(L,) norms of the loss's gradient with respect to each row of the table."""
        norms = torch.zeros(len(table), dtype=queries.dtype, device=queries.device)
        # The norms are written along with gradients, so one must be asked for.
        probe = queries.detach().requires_grad_()
        with torch.enable_grad():
            blockwise.decoupled_softmax(probe, table, positives, self.scale, excluded, label_norms=norms)
        return norms

    def choose(self, norms: Tensor, positive_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The labels to encode, ascending, and how often each one's gradient counts.

        Args:
            norms: (L,) at least 0.
            positive_ids: (nnz,) int64, always chosen.

        Returns:
            ids (n,) int64 and counts (n,) of the norms' dtype; the expected count of every label is 1, or 0 for labels
            that are not chosen surely where ``num_random`` is 0.
        """
        counts = torch.zeros_like(norms)
        counts[positive_ids] = 1
        # Taken for sure, the largest norms leave the draw nothing to get wrong about them.
        left = norms.masked_fill(counts > 0, -1)
        top = torch.topk(left, min(self.num_top, len(norms))).indices
        counts[top] = 1
        left = norms.masked_fill(counts > 0, 0)
        total = left.sum()
        if self.num_random and total > 0:
            # Inverse transform on the CPU's generator, whose state the trainer's checkpoints hold.
            draws = torch.rand(self.num_random, dtype=torch.float64).to(norms.device) * total.double()
            drawn = torch.searchsorted(left.double().cumsum(0), draws, right=True).clamp_(max=len(norms) - 1)
            drawn = drawn[left[drawn] > 0]
            share = (total / (self.num_random * left[drawn])).to(norms.dtype)
            counts.index_add_(0, drawn, share)
        chosen = (counts > 0).nonzero().squeeze(1)
        return chosen, counts[chosen]

    def get_config_dict(self) -> dict[str, Any]:
        """The settings that a model card shows."""
        names = ("scale", "num_top", "num_random", "refresh_steps")
        return {name: getattr(self, name) for name in names} | {"num_labels": self.num_labels}
