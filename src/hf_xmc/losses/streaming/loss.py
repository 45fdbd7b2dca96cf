"""A loss over all labels as one autograd function.

Such a loss needs the scores twice: for a statistic of each row (a log-denominator, a threshold), then for the
gradient. :class:`StreamedLoss` takes the rows in chunks; for each it sweeps over the labels for the statistic,
differentiates the loss on the statistic and the positives' scores alone (a few numbers per row), and sweeps again for
the gradients of queries and labels. The plan says whether the second sweep remakes the scores or finds them kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hf_xmc.losses.streaming.chunks import Batch, Chunk, Derivative, add_product, multiply


class Statistic(Protocol):
    """A number for each row (or one per k), from which and the positives' scores the loss follows."""

    def observe(self, chunk: Chunk) -> tuple[Tensor, ...]:
        """The statistic, (R,) or (R, K), and whatever else ``derivative`` needs, by sweeps over the labels."""

    def derivative(self, observed: tuple[Tensor, ...], grad: Tensor) -> Derivative:
        """How the loss changes with a score, given dloss/dstatistic (R,) or (R, K)."""


@dataclass
class Gradients:
    """Where gradients are summed up: queries (B, D), labels (L, D), label_norms (L,); None where nobody asks.

    Norms are those of one chunk: they are asked for where it holds all rows.
    """

    queries: Tensor | None
    labels: Tensor | None
    label_norms: Tensor | None

    @classmethod
    def empty(cls, batch: Batch, of_queries: bool, of_labels: bool, label_norms: Tensor | None = None) -> Gradients:
        """Zeros for the queries. The labels' are written by the first chunk and only zeroed where there is none."""
        labels = None
        if of_labels:
            several = len(batch.queries) > batch.plan.rows
            allocate = torch.empty_like if len(batch.queries) else torch.zeros_like
            # A sum over chunks in half precision would lose the small ones.
            labels = allocate(batch.labels, dtype=batch.wide if several else batch.labels.dtype)
        queries = torch.zeros_like(batch.queries, dtype=batch.wide) if of_queries else None
        return cls(queries, labels, label_norms)

    def add(self, chunk: Chunk, derivative: Derivative, grad_positives: Tensor) -> None:
        """Sweep over a chunk once more and add its part, from dloss/dscores and the positives' own (nnz,)."""
        scale = chunk.batch.scale
        of_queries = None if self.queries is None else self.queries[chunk.rows]  # (R, D)
        for tile, operand in chunk.derivative_tiles(derivative, grad_positives):
            if of_queries is not None:
                add_product(of_queries, operand, chunk.labels_of(tile), scale)
            if self.label_norms is not None:
                of_labels = multiply(operand.T, chunk.queries) * scale  # (T, D)
                self.label_norms[tile] = of_labels.norm(dim=1)
                if self.labels is not None:
                    self.labels[tile] = of_labels
            elif self.labels is not None:
                is_first = chunk.rows.start == 0
                add_product(self.labels[tile], operand.T, chunk.queries, scale, beta=0.0 if is_first else 1.0)

    def finish(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """The gradients in the types of their tensors; that of the queries summed over the ranks."""
        queries = None if self.queries is None else batch.sum(self.queries).to(batch.queries.dtype)
        labels = None if self.labels is None else self.labels.to(batch.labels.dtype)
        return queries, labels


class StreamedLoss(torch.autograd.Function):
    """The loss (); its gradients are made in the forward pass, chunk by chunk, and only scaled in the backward one.

    ``terms(chunk, statistic, scores of the positives[, log_denominator])`` is the chunk's part of the loss. So that no
    second copy of a (L, D) gradient exists they are handed over once: a second backward pass is refused.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        labels: Tensor,
        log_denominator: Tensor | None,
        batch: Batch,
        statistic: Statistic,
        terms: Callable[..., Tensor],
        wanted: tuple[bool, bool, bool],
        label_norms: Tensor | None,
    ) -> Tensor:
        """The loss; ``wanted`` says which of the three tensors need a gradient."""
        gradients = Gradients.empty(batch, wanted[0], wanted[1], label_norms)
        grad_prior = None if log_denominator is None else torch.zeros_like(log_denominator)
        loss = torch.zeros((), dtype=batch.wide, device=queries.device)
        for chunk in batch.chunks():
            observed = statistic.observe(chunk)
            leaves = [observed[0].clone(), chunk.positive_scores()]
            if log_denominator is not None:
                leaves.append(log_denominator[chunk.rows].clone())
            with torch.enable_grad():
                leaves = [leaf.requires_grad_() for leaf in leaves]
                part = terms(chunk, *leaves)
            loss += part.detach()
            if not any(wanted) and label_norms is None:
                continue
            grads = torch.autograd.grad(part, leaves)
            grad = batch.sum(grads[0])
            if grad_prior is not None:
                grad_prior[chunk.rows] = batch.sum(grads[2])
            gradients.add(chunk, statistic.derivative(observed, grad), grads[1])
        ctx.gradients = (*gradients.finish(batch), grad_prior)
        return batch.sum(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that the forward pass made, times that of the loss."""
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a blockwise loss are handed over once; compute the loss again")
        gradients, ctx.gradients = ctx.gradients, None
        if grad != 1:
            gradients = tuple(None if part is None else part.mul_(grad) for part in gradients)
        return (*gradients, None, None, None, None, None)
