"""Sweeps over the (queries x labels) score matrix, one tile at a time: what the blockwise losses stand on.

A loss over all labels needs the scores twice: for a statistic of each row (a log-denominator, a threshold), then for
the gradient. `StreamedLoss` takes the rows in chunks; for each it sweeps over the labels for the statistic,
differentiates the loss on the statistic and the positives' scores alone (a few numbers per row), and sweeps again for
the gradients of queries and labels. The plan says whether the second sweep remakes the scores or finds them kept.

Axes: B queries, L labels (of this rank), D dims, R rows of one chunk, T labels of one tile.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from hf_xmc.distributed import all_reduce
from hf_xmc.losses.streaming.top_scores import TopScores

Csr = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]

# Measured: a chunk below this many rows spends its time on reading and writing the gradient of the labels.
MIN_KEPT_ROWS = {"cpu": 128, "cuda": 1024}
MAX_STREAMED_ROWS = {"cpu": 1024, "cuda": 16384}
DEFAULT_BUDGET = {"cpu": 2**26, "cuda": 2**28}
# A tile and its gradient stay in a core's second-level cache.
CPU_TILE_ENTRIES = 2**18


@dataclass(frozen=True)
class Plan:
    """How to cut the score matrix: chunks of `rows` queries, tiles of `columns` labels.

    With `keep_scores` the scores of a chunk stay in memory (rows x L) from the first sweep to the second: 6 B L D
    floating point operations forward and backward. Without, they are made twice: 8 B L D, and memory for one tile.
    """

    rows: int
    columns: int
    keep_scores: bool


def make_plan(
    num_queries: int,
    num_labels: int,
    itemsize: int,
    device_type: str,
    memory_budget: int | None = None,
    may_keep: bool = True,
) -> Plan:
    """The plan for a memory budget: keep the scores where a chunk of useful height fits, else make them twice.

    Args:
        num_queries, num_labels: B and L.
        itemsize: bytes of one score.
        device_type: "cpu" or "cuda".
        memory_budget: bytes for the scores; default 64 MiB on a CPU, 256 MiB on a GPU.
        may_keep: False where every rank must cut the rows alike, whatever its L.
    """
    kind = device_type if device_type in DEFAULT_BUDGET else "cuda"
    budget = DEFAULT_BUDGET[kind] if memory_budget is None else memory_budget
    kept = budget // max(1, num_labels * itemsize)
    keep = may_keep and kept >= min(num_queries, MIN_KEPT_ROWS[kind])
    rows = kept if keep else MAX_STREAMED_ROWS[kind]
    num_chunks = max(1, -(-num_queries // max(1, rows)))
    rows = max(1, -(-num_queries // num_chunks))
    entries = CPU_TILE_ENTRIES if kind == "cpu" else budget // itemsize
    columns = min(max(entries // rows // 128 * 128, 128), 1024 if kind == "cpu" else 2**16)
    return Plan(rows, columns, keep)


@dataclass(frozen=True)
class Pairs:
    """(row, label) pairs: rows and columns (nnz,) int64, weights (nnz,) floating."""

    rows: Tensor
    columns: Tensor
    weights: Tensor

    def __getitem__(self, index: Any) -> Pairs:
        return Pairs(self.rows[index], self.columns[index], self.weights[index])

    def __len__(self) -> int:
        return len(self.rows)

    def join(self, other: Pairs) -> Pairs:
        """The pairs of both, by label id."""
        parts = zip((self.rows, self.columns, self.weights), (other.rows, other.columns, other.weights), strict=True)
        rows, columns, weights = (torch.cat(part) for part in parts)
        return Pairs(rows, columns, weights)[columns.argsort()]


def read_csr(csr: Csr, num_rows: int, num_labels: int, like: Tensor, name: str) -> Pairs:
    """The pairs of a CSR (indptr (B+1,), indices (nnz,)[, weights (nnz,)]) in the order of (label, row).

    Raises:
        ValueError: if the three do not fit each other, a label id lies outside [0, L) or a row lists a label twice.
    """
    indptr, indices = (torch.as_tensor(part, dtype=torch.int64, device=like.device) for part in csr[:2])
    weights = torch.ones_like(indices, dtype=like.dtype)
    if len(csr) == 3 and csr[2] is not None:
        weights = torch.as_tensor(csr[2], device=like.device).to(like.dtype)
    counts = indptr.diff()
    ends = (int(indptr[0]), int(indptr[-1])) if len(indptr) == num_rows + 1 else None
    if ends != (0, len(indices)) or bool((counts < 0).any()):
        raise ValueError(
            f"{name} must be CSR with indptr ({num_rows + 1},) that rises from 0 to the number of indices; "
            f"got indptr of {len(indptr)} entries and {len(indices)} indices"
        )
    if weights.shape != indices.shape:
        raise ValueError(f"{name} has {len(indices)} indices but weights of shape {tuple(weights.shape)}")
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < num_labels:
        raise ValueError(
            f"{name} holds label ids from {int(indices.min())} to {int(indices.max())}, expected ids in "
            f"[0, {num_labels}); with a group, ids count from the first label of this rank's shard"
        )
    if bool(((weights < 0) | (weights > 1)).any()):
        spread = f"{float(weights.min()):g} to {float(weights.max()):g}"
        raise ValueError(f"{name} has weights from {spread}, expected soft targets in [0, 1]; scale them")
    rows = torch.arange(num_rows, device=like.device).repeat_interleave(counts)  # (nnz,)
    keys, order = (indices * num_rows + rows).sort()
    twice = (keys[1:] == keys[:-1]).nonzero()
    if len(twice):
        key = int(keys[twice[0]])
        raise ValueError(f"{name} lists label {key // num_rows} twice in row {key % num_rows}; list each label once")
    return Pairs(rows, indices, weights)[order]


class Shape(IntEnum):
    """The functions that derivatives are made of; BELL is sigma (1 - sigma)."""

    EXP = 0
    SIGMOID = 1
    BELL = 2


@dataclass(frozen=True)
class Derivative:
    """dloss/dS = sum_k factor_k shape(alpha S + offset_k), but for the positives' own part; offset, factor (R, K)."""

    shape: Shape
    alpha: float
    offset: Tensor
    factor: Tensor

    def of(self, scores: Tensor, out: Tensor) -> Tensor:
        """The derivative (R, T) for a tile of scores; overwrites out, which may be the scores."""
        parts = []
        for offset, factor in zip(self.offset.split(1, dim=1), self.factor.split(1, dim=1), strict=True):
            part = torch.add(offset, scores, alpha=self.alpha, out=out if self.offset.shape[1] == 1 else None)
            part = part.exp_() if self.shape == Shape.EXP else part.sigmoid_()
            if self.shape == Shape.BELL:
                part.addcmul_(part, part, value=-1)
            parts.append(part.mul_(factor))
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)


class Statistic(Protocol):
    """A number for each row (or one per k), from which and the positives' scores the loss follows."""

    def observe(self, chunk: Chunk) -> tuple[Tensor, ...]:
        """The statistic, (R,) or (R, K), and whatever else `derivative` needs, by sweeps over the labels."""

    def derivative(self, observed: tuple[Tensor, ...], grad: Tensor) -> Derivative:
        """How the loss changes with a score, given dloss/dstatistic (R,) or (R, K)."""


@dataclass(frozen=True)
class Batch:
    """What a sweep reads.

    queries (B, D), labels (L, D); positives: pairs with their share of the loss as weight; hidden: pairs whose scores
    count as -inf, both in the order of label ids; group: the ranks over which the labels are sharded.
    """

    queries: Tensor
    labels: Tensor
    scale: float
    positives: Pairs
    hidden: Pairs
    plan: Plan
    group: dist.ProcessGroup | None

    @property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.queries.dtype, torch.float32)

    @property
    def operand(self) -> torch.dtype:
        """The type that matrix products read: bfloat16 where the device multiplies it faster than float32."""
        half = self.queries.dtype == torch.bfloat16 and (self.queries.is_cuda or cpu_prefers_bfloat16())
        return torch.bfloat16 if half else self.wide

    def chunks(self) -> Iterator[Chunk]:
        rows, columns = self.plan.rows, self.plan.columns
        # The kernels keep their tiles on the chip.
        buffer = self.queries.new_empty(0 if self.kernels else rows * columns, dtype=self.wide)
        kept = buffer.new_empty(rows, len(self.labels)) if self.plan.keep_scores else None
        for start in range(0, len(self.queries), rows):
            yield Chunk(self, slice(start, min(start + rows, len(self.queries))), buffer, kept)

    def sum(self, tensor: Tensor) -> Tensor:
        return all_reduce(tensor, self.group)

    def max(self, tensor: Tensor) -> Tensor:
        return all_reduce(tensor, self.group, dist.ReduceOp.MAX)

    @property
    def kernels(self) -> ModuleType | None:
        """The kernels that replace score tiles in memory, where they can run."""
        return None if self.plan.keep_scores else find_kernels(self.queries)

    @property
    def num_ranks(self) -> int:
        return 1 if self.group is None else dist.get_world_size(self.group)


class Chunk:
    """Some rows of a batch against all labels of this rank.

    positives and hidden hold row numbers within the chunk. buffer (rows x columns of the plan) is scratch for a tile;
    kept (rows of the plan, L), where the plan keeps scores, takes those of the whole chunk.
    """

    def __init__(self, batch: Batch, rows: slice, buffer: Tensor, kept: Tensor | None) -> None:
        self.batch = batch
        self.rows = rows
        self.queries = batch.queries[rows].to(batch.operand)  # (R, D)
        self.positives = _within(batch.positives, rows)
        self.hidden = _within(batch.hidden, rows)
        num_labels, width = len(batch.labels), batch.plan.columns
        self.tiles = [slice(start, min(start + width, num_labels)) for start in range(0, num_labels, width)]
        self._kernels = batch.kernels
        if self._kernels is not None:
            # On a GPU the operands' type is the labels' own, so this copies nothing.
            self._operands = self._labels(slice(None))
            self._hidden_buckets, self._positive_buckets = (
                self._kernels.Buckets.of(pairs.rows, pairs.columns, len(self), num_labels)
                for pairs in (self.hidden, self.positives)
            )
        self._hidden_of_tile = self._split(self.hidden)
        self._positives_of_tile = self._split(self.positives)
        self._buffer = buffer
        self._kept = None if kept is None else kept[: len(self)]
        self._swept = False

    def __len__(self) -> int:
        return len(self.queries)

    def log_sum_exp(self, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
        """m (R,), the largest alpha S of this rank or the least float if all are hidden, and sum exp(alpha S - m)."""
        if self._kernels is not None:
            scale = alpha * self.batch.scale
            return self._kernels.log_sum_exp(self.queries, self._operands, scale, self._hidden_buckets)
        largest = self.new_full(torch.finfo(self.batch.wide).min)  # finite, so that no -inf - -inf arises
        total = self.new_full(0)  # (R,)
        for scores, out in self.sweep():
            scores = scores if alpha == 1 else torch.mul(scores, alpha, out=out)
            before, largest = largest, torch.maximum(largest, scores.amax(dim=1))
            total.mul_((before - largest).exp_())
            total += torch.sub(scores, largest[:, None], out=out).exp_().sum(dim=1)
        return largest, total

    def sigmoid_sums(self, threshold: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """sum_j sigma(alpha (S_j + t)) over this rank and its derivative in t, for t (R,), each (R,)."""
        offset = alpha * threshold
        if self._kernels is not None:
            total, slope = self._kernels.sigmoid_sums(
                self.queries, self._operands, self.batch.scale, self._hidden_buckets, offset, alpha
            )
            return total, alpha * slope
        total, slope = self.new_full(0), self.new_full(0)
        for scores, out in self.sweep():
            probability = torch.add(offset[:, None], scores, alpha=alpha, out=out).sigmoid_()  # (R, T)
            total += probability.sum(dim=1)
            slope += probability.addcmul_(probability, probability, value=-1).sum(dim=1)
        return total, alpha * slope

    def top_scores(self, num_top: int, alpha: float) -> TopScores | None:
        """A summary of this rank's scores; None where the kernels sweep faster than one could select."""
        if self._kernels is not None:
            return None
        summary = TopScores(len(self), min(num_top, max(1, len(self.batch.labels))), alpha, self.new_full(0))
        for scores, _ in self.sweep():
            summary.add(scores)
        summary.finish()
        return summary

    def sweep(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For every tile its scores (R, T) with -inf at hidden pairs, and a tensor (R, T) to write to.

        The second may be the scores themselves: read those first.
        """
        if not len(self._buffer):
            self._buffer = self.new_full(0).new_empty(len(self) * self.batch.plan.columns)
        for number, tile in enumerate(self.tiles):
            out = self._buffer[: len(self) * (tile.stop - tile.start)].view(len(self), -1)  # (R, T)
            scores = out if self._kept is None else self._kept[:, tile]
            if self._kept is None or not self._swept:
                self._score(number, scores)
            yield scores, out
        self._swept = True

    def positive_scores(self) -> Tensor:
        """(nnz,) the scores of the positives, from gathered rows."""
        wide, step = self.batch.wide, max(1, 2**22 // max(1, self.queries.shape[1]))
        scores = [
            (self.batch.queries[self.rows][part.rows].to(wide) * self.batch.labels[part.columns].to(wide)).sum(dim=1)
            for part in (self.positives[start : start + step] for start in range(0, len(self.positives), step))
        ]
        return torch.cat(scores) * self.batch.scale if scores else self.queries.new_zeros(0, dtype=wide)

    def new_full(self, value: float) -> Tensor:
        """(R,) of one value."""
        return self.queries.new_full((len(self),), value, dtype=self.batch.wide)

    def accumulate(self, derivative: Derivative, grad_positives: Tensor, gradients: Gradients) -> None:
        """Sweep once more and add to the gradients, given dloss/dscores and the positives' own part of it (nnz,)."""
        scale, wide = self.batch.scale, self.batch.wide
        grad_queries = None if gradients.queries is None else gradients.queries[self.rows]  # (R, D)
        for tile, operand in self._derivative_tiles(derivative, grad_positives):
            if grad_queries is not None:
                labels = self._labels(tile)
                if operand.dtype == wide:
                    grad_queries.addmm_(operand, labels, alpha=scale)
                else:
                    grad_queries.add_(multiply(operand, labels), alpha=scale)
            if gradients.labels is None and gradients.label_norms is None:
                continue
            if gradients.labels is not None and gradients.labels.dtype == operand.dtype == wide:
                grad_labels = gradients.labels[tile]  # (T, D)
                grad_labels.addmm_(operand.T, self.queries, alpha=scale, beta=float(self.rows.start > 0))
            else:
                grad_labels = multiply(operand.T, self.queries) * scale  # (T, D)
                if gradients.labels is not None and self.rows.start > 0:
                    gradients.labels[tile] += grad_labels
                elif gradients.labels is not None:
                    gradients.labels[tile] = grad_labels
            if gradients.label_norms is not None:
                gradients.label_norms[tile] = grad_labels.norm(dim=1)

    def _derivative_tiles(self, derivative: Derivative, grad_positives: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(tile, dloss/dscores (R, T) as the products read it) for every tile."""
        if self._kernels is not None:
            own_pairs = (self._hidden_buckets, self._positive_buckets, grad_positives)
            shape = (int(derivative.shape), derivative.alpha, derivative.offset, derivative.factor)
            for tile in self.tiles:
                inputs = (self.queries, self._operands, self.batch.scale)
                yield tile, self._kernels.derivative_tile(*inputs, *own_pairs, *shape, tile)
            return
        for tile, own, (scores, out) in zip(self.tiles, self._positives_of_tile, self.sweep(), strict=True):
            result = derivative.of(scores, out)  # (R, T)
            if own.stop > own.start:
                pairs = self.positives[own]
                result.index_put_((pairs.rows, pairs.columns - tile.start), grad_positives[own], accumulate=True)
            yield tile, result.to(self.queries.dtype)

    def _labels(self, tile: slice) -> Tensor:
        return self.batch.labels[tile].to(self.batch.operand)  # (T, D)

    def _score(self, number: int, out: Tensor) -> None:
        tile, hidden = self.tiles[number], self._hidden_of_tile[number]
        labels = self._labels(tile)
        if labels.dtype == out.dtype:
            torch.addmm(out, self.queries, labels.T, beta=0, alpha=self.batch.scale, out=out)
        else:
            torch.mul(multiply(self.queries, labels.T), self.batch.scale, out=out)
        if hidden.stop > hidden.start:
            pairs = self.hidden[hidden]
            out[pairs.rows, pairs.columns - tile.start] = -torch.inf

    def _split(self, pairs: Pairs) -> list[slice]:
        starts = torch.tensor([tile.start for tile in self.tiles], dtype=torch.int64, device=pairs.columns.device)
        edges = [*torch.searchsorted(pairs.columns, starts).tolist(), len(pairs)]
        return [slice(*pair) for pair in zip(edges, edges[1:], strict=False)]


@dataclass
class Gradients:
    """Where gradients are summed up: queries (B, D), labels (L, D), label_norms (L,); None where nobody asks."""

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

    def finish(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """The gradients in the types of their tensors; that of the queries summed over the ranks."""
        queries = None if self.queries is None else batch.sum(self.queries).to(batch.queries.dtype)
        labels = None if self.labels is None else self.labels.to(batch.labels.dtype)
        return queries, labels


class StreamedLoss(torch.autograd.Function):
    """The loss (); its gradients are made in the forward pass, chunk by chunk, and only scaled in the backward one.

    `terms(chunk, statistic, scores of the positives[, log_denominator])` is the chunk's part of the loss. So that no
    second copy of a (L, D) gradient exists they are handed over once: a second backward pass is refused.
    """

    @staticmethod
    def forward(
        ctx,
        queries: Tensor,
        labels: Tensor,
        log_denominator: Tensor | None,
        batch: Batch,
        statistic: Statistic,
        terms: Callable[..., Tensor],
        wanted: tuple[bool, bool, bool],
        label_norms: Tensor | None,
    ) -> Tensor:
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
            chunk.accumulate(statistic.derivative(observed, grad), grads[1], gradients)
        ctx.gradients = (*gradients.finish(batch), grad_prior)
        return batch.sum(loss)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a blockwise loss are handed over once; compute the loss again")
        gradients, ctx.gradients = ctx.gradients, None
        if grad != 1:
            gradients = tuple(None if part is None else part.mul_(grad) for part in gradients)
        return (*gradients, None, None, None, None, None)


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """left @ right with a float32 result also from half precision, as far as the device can."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right).float()


def find_kernels(queries: Tensor) -> ModuleType | None:
    """The Triton kernels, where it is installed and the queries are on a GPU in a type they compute in."""
    if not queries.is_cuda or queries.dtype == torch.float64 or importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("hf_xmc.losses.streaming.triton_kernels")


@lru_cache(maxsize=1)
def cpu_prefers_bfloat16() -> bool:
    """Whether bfloat16 products beat float32 ones on this processor.

    Measured: 2.1 to 2.3 times as fast on AMD cores with avx512_bf16, 0.55 times on Intel ones that lack amx_bf16.
    """
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "amx_bf16" in text or ("AuthenticAMD" in text and "avx512_bf16" in text)


def _within(pairs: Pairs, rows: slice) -> Pairs:
    kept = pairs[(pairs.rows >= rows.start) & (pairs.rows < rows.stop)]
    return Pairs(kept.rows - rows.start, kept.columns, kept.weights)
