"""Sweeps over the (queries x labels) score matrix, one tile at a time: what the blockwise losses stand on.

Axes: B queries, L labels (of this rank), D dims, R rows of one chunk, T labels of one tile.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from hf_xmc.distributed import all_reduce
from hf_xmc.losses.streaming.pairs import Pairs
from hf_xmc.losses.streaming.plan import Plan
from hf_xmc.losses.streaming.top_scores import TopScores


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
        """The derivative (R, T) for a tile of scores; overwrites ``out``, which may be the scores."""
        parts = []
        for offset, factor in zip(self.offset.split(1, dim=1), self.factor.split(1, dim=1), strict=True):
            # With several k the scores are read again, so only a single one may overwrite them.
            part = torch.add(offset, scores, alpha=self.alpha, out=out if self.offset.shape[1] == 1 else None)
            part = part.exp_() if self.shape == Shape.EXP else part.sigmoid_()
            if self.shape == Shape.BELL:
                part.addcmul_(part, part, value=-1)
            parts.append(part.mul_(factor))
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)


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
        """The type of scores, sums and the loss."""
        return torch.promote_types(self.queries.dtype, torch.float32)

    @property
    def operand(self) -> torch.dtype:
        """The type that matrix products read: bfloat16 where the device multiplies it faster than float32."""
        half = self.queries.dtype == torch.bfloat16 and (self.queries.is_cuda or cpu_prefers_bfloat16())
        return torch.bfloat16 if half else self.wide

    def chunks(self) -> Iterator[Chunk]:
        """All rows, chunk by chunk; a chunk is done with when the next one is asked for."""
        rows, kind = self.plan.rows, Chunk
        if not self.plan.keep_scores and kernels_can_run(self.queries):
            # Imported here: the kernels need Triton.
            kind = importlib.import_module("hf_xmc.losses.streaming.kernel_chunks").KernelChunk
        scratch = self.queries.new_empty(0, dtype=self.wide)
        kept = scratch.new_empty(rows, len(self.labels)) if self.plan.keep_scores else None
        for start in range(0, len(self.queries), rows):
            yield kind(self, slice(start, min(start + rows, len(self.queries))), scratch, kept)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks that share the labels."""
        return all_reduce(tensor, self.group)

    def max(self, tensor: Tensor) -> Tensor:
        """The largest over the ranks that share the labels."""
        return all_reduce(tensor, self.group, dist.ReduceOp.MAX)

    @property
    def num_ranks(self) -> int:
        """How many ranks share the labels."""
        return 1 if self.group is None else dist.get_world_size(self.group)


class Chunk:
    """Some rows of a batch against all labels of this rank.

    positives and hidden hold row numbers within the chunk. scratch, which the chunks of a batch share, is given the
    size of a tile by the first sweep; kept (rows of the plan, L), where the plan keeps scores, takes those of the
    whole chunk.
    """

    def __init__(self, batch: Batch, rows: slice, scratch: Tensor, kept: Tensor | None) -> None:
        self.batch = batch
        self.rows = rows
        self.queries = batch.queries[rows].to(batch.operand)  # (R, D)
        self.positives = batch.positives.within(rows)
        self.hidden = batch.hidden.within(rows)
        num_labels, width = len(batch.labels), batch.plan.columns
        self.tiles = [slice(start, min(start + width, num_labels)) for start in range(0, num_labels, width)]
        self._hidden_of_tile = self._split(self.hidden)
        self._positives_of_tile = self._split(self.positives)
        self._scratch = scratch
        self._kept = None if kept is None else kept[: len(self)]
        self._swept = False

    def __len__(self) -> int:
        return len(self.queries)

    def log_sum_exp(self, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
        """The largest alpha S of this rank, m (R,), the least float if all are hidden, and sum exp(alpha S - m)."""
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
        total, slope = self.new_full(0), self.new_full(0)
        for scores, out in self.sweep():
            probability = torch.add(offset[:, None], scores, alpha=alpha, out=out).sigmoid_()  # (R, T)
            total += probability.sum(dim=1)
            slope += probability.addcmul_(probability, probability, value=-1).sum(dim=1)
        return total, alpha * slope

    def top_scores(self, num_top: int, alpha: float) -> TopScores | None:
        """A summary of this rank's scores; None where a further sweep costs less than selecting."""
        summary = TopScores(len(self), min(num_top, max(1, len(self.batch.labels))), alpha, self.new_full(0))
        for scores, _ in self.sweep():
            summary.add(scores)
        summary.finish()
        return summary

    def derivative_tiles(self, derivative: Derivative, grad_positives: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(tile, dloss/dscores (R, T) as the products read it) for every tile.

        Args:
            derivative: That of all scores.
            grad_positives: (nnz,) the positives' own part of it.
        """
        for tile, own, (scores, out) in zip(self.tiles, self._positives_of_tile, self.sweep(), strict=True):
            result = derivative.of(scores, out)  # (R, T)
            if own.stop > own.start:
                pairs = self.positives[own]
                result.index_put_((pairs.rows, pairs.columns - tile.start), grad_positives[own], accumulate=True)
            yield tile, result.to(self.queries.dtype)

    def sweep(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For every tile its scores (R, T) with -inf at hidden pairs, and a tensor (R, T) to write to.

        The second may be the scores themselves: read those first.
        """
        size = len(self) * self.batch.plan.columns
        if len(self._scratch) < size:
            self._scratch.resize_(size)
        for number, tile in enumerate(self.tiles):
            out = self._scratch[: len(self) * (tile.stop - tile.start)].view(len(self), -1)  # (R, T)
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

    def labels_of(self, tile: slice) -> Tensor:
        """The vectors (T, D) of a tile's labels as the products read them."""
        return self.batch.labels[tile].to(self.batch.operand)

    def _score(self, number: int, out: Tensor) -> None:
        tile, hidden = self.tiles[number], self._hidden_of_tile[number]
        add_product(out, self.queries, self.labels_of(tile).T, self.batch.scale, beta=0.0)
        if hidden.stop > hidden.start:
            pairs = self.hidden[hidden]
            out[pairs.rows, pairs.columns - tile.start] = -torch.inf

    def _split(self, pairs: Pairs) -> list[slice]:
        starts = torch.tensor([tile.start for tile in self.tiles], dtype=torch.int64, device=pairs.columns.device)
        edges = [*torch.searchsorted(pairs.columns, starts).tolist(), len(pairs)]
        return [slice(*pair) for pair in zip(edges, edges[1:], strict=False)]


def add_product(out: Tensor, left: Tensor, right: Tensor, alpha: float, beta: float = 1.0) -> None:
    """Set out to beta out + alpha left @ right, beta 0 or 1; float32 products also where the operands are half."""
    if out.dtype == left.dtype != torch.bfloat16:
        out.addmm_(left, right, beta=beta, alpha=alpha)
    elif beta:
        out.add_(multiply(left, right), alpha=alpha)
    else:
        out.copy_(multiply(left, right).mul_(alpha))


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """The product left @ right with a float32 result also from half precision, as far as the device can."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right).float()


def kernels_can_run(queries: Tensor) -> bool:
    """Whether Triton is installed and the queries are on a GPU in a type that its kernels compute in."""
    return queries.is_cuda and queries.dtype != torch.float64 and importlib.util.find_spec("triton") is not None


@lru_cache(maxsize=1)
def cpu_prefers_bfloat16() -> bool:
    """Whether bfloat16 products beat float32 ones on this processor.

    Measured: 2.1 to 2.3 times as fast on AMD cores with avx512_bf16, 0.55 times on Intel ones that lack amx_bf16.
    """
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "amx_bf16" in text or ("AuthenticAMD" in text and "avx512_bf16" in text)
