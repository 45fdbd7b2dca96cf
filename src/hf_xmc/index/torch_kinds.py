"""Structures that a LabelIndex searches by looking at every label, by torch: float32, 16 bits, 8 bits, on a GPU.

FAISS's flat index is not among them: the matrix product in its wheel is as fast as torch's on some processors and a
third as fast on others, and it keeps a copy of the vectors.
"""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

MISSING_ID, MISSING_SCORE = -1, -np.inf
# Scores held at once: 256 MB in float32.
_SCORES_AT_ONCE = 1 << 26
# Labels whose rows are made float32 together: they stay in the cache for the product.
_ROWS_AT_ONCE = 4096
_TIMED_QUERIES = 64


class Searcher(Protocol):
    """What finds labels of a large inner product.

    ``exact``: its scores are the float32 products themselves. ``complete``: it looks at every label, so that only
    rounding can hide one.
    """

    exact: bool
    complete: bool
    effort: int

    @property
    def efforts(self) -> list[int]:
        """Values of ``effort`` to choose from, ascending; one where there is nothing to choose."""

    @property
    def num_bytes(self) -> int:
        """Bytes that are searched."""

    def search(self, queries: np.ndarray, count: int, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` labels of the largest product for each query, in any order.

        Args:
            queries: (N, D) float32.
            count: From 1 to the number of labels alive.
            alive: (L,) bool, the labels to find.

        Returns:
            ids (N, count) int64, -1 where it found fewer, and scores (N, count) float32 in the searcher's precision.
        """

    def grown(self, vectors: np.ndarray) -> Searcher:
        """A searcher of ``vectors`` (L, D) float32, which begin with the rows that this one has."""


class TableSearcher:
    """Every label, as one matrix product and a selection by groups.

    Args:
        vectors: (L, D) float32; the float32 form on the CPU keeps this array itself.
        dtype: What a number is kept in: float32, float16 or bfloat16; int8 keeps a scale for each row.
        compute_dtype: What products are computed in; rows kept smaller are widened a few thousand at a time.
        device: Where.
    """

    complete, effort, efforts = True, 0, [0]

    def __init__(
        self,
        vectors: np.ndarray,
        dtype: torch.dtype = torch.float32,
        compute_dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.exact = dtype == compute_dtype == torch.float32
        self.dtype, self.compute_dtype, self.device = dtype, compute_dtype, device
        table = torch.from_numpy(vectors)
        self.scale: Tensor | None = None
        if dtype != torch.float32:
            # Largest number of each row, or of all: float16 and int8 have little range.
            peak = table.abs().amax(dim=1) if dtype == torch.int8 else table.abs().amax().expand(len(table))
            self.scale = peak.clamp(min=torch.finfo(torch.float32).tiny)  # (L,)
            rows = torch.empty(table.shape, dtype=dtype)
            for start in range(0, len(table), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                units = table[part] / self.scale[part, None]
                rows[part] = (units * 127).round() if dtype == torch.int8 else units
            table = rows
            self.scale = self.scale.to(device) if dtype == torch.int8 else None  # a common factor orders nothing
        self.table = table.to(device)  # (L, D)

    @property
    def num_bytes(self) -> int:
        return self.table.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def search(self, queries: np.ndarray, count: int, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wanted = torch.from_numpy(queries)
        if not self.exact:
            wanted = torch.nn.functional.normalize(wanted, dim=1)  # stays within the range of float16
        wanted = wanted.to(device=self.device, dtype=self.compute_dtype)
        dead = torch.from_numpy(np.flatnonzero(~alive)).to(self.device)
        found = []
        for chunk in wanted.split(max(1, _SCORES_AT_ONCE // len(self.table))):
            scores = self._scores(chunk)
            if len(dead):
                scores.index_fill_(1, dead, MISSING_SCORE)
            found.append(grouped_top_k(scores, count))
        values, ids = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        return ids.numpy(), values.float().numpy()

    def _scores(self, queries: Tensor) -> Tensor:
        """(B, D) -> (B, L)."""
        if self.dtype == self.compute_dtype:
            return queries @ self.table.T
        scores = queries.new_empty(len(queries), len(self.table))
        for start in range(0, len(self.table), _ROWS_AT_ONCE):
            part = self.table[start : start + _ROWS_AT_ONCE].to(self.compute_dtype)
            torch.mm(queries, part.T, out=scores[:, start : start + len(part)])
        return scores if self.scale is None else scores.mul_(self.scale)

    def grown(self, vectors: np.ndarray) -> TableSearcher:
        return TableSearcher(vectors, self.dtype, self.compute_dtype, self.device)


def grouped_top_k(scores: Tensor, count: int, group: int = 32) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of every row, as torch.topk without order: maxima of groups first, then the best groups.

    The ``count`` groups of the largest maxima hold the ``count`` largest scores, as a score outside them is at most
    as large as ``count`` others. Selecting among L / group maxima and count * group scores beats selecting among L.

    Args:
        scores: (B, L).
        count: From 1 to L.
        group: Scores in a group.

    Returns:
        Values (B, count) and columns (B, count) int64.
    """
    batch, width = scores.shape
    num_groups = width // group
    if num_groups <= 2 * count:
        values, columns = torch.topk(scores, count, dim=1, sorted=False)
        return values, columns
    # Group g holds the columns g, g + num_groups, ...: its maximum is taken over whole rows of memory.
    body = scores[:, : num_groups * group].unflatten(1, (group, num_groups))
    best = torch.topk(body.amax(dim=1), count, dim=1, sorted=False).indices  # (B, count)
    members = num_groups * torch.arange(group, device=scores.device)
    columns = (best[:, None, :] + members[:, None]).flatten(1)
    rest = torch.arange(num_groups * group, width, device=scores.device).expand(batch, -1)
    columns = torch.cat([columns, rest], dim=1)  # (B, count * group + L % group)
    values, places = torch.topk(scores.gather(1, columns), count, dim=1, sorted=False)
    return values, columns.gather(1, places)


def half_searcher(vectors: np.ndarray) -> TableSearcher:
    """Rows in 16 bits, with the products in what is fastest on this processor: bfloat16, float16 or float32."""
    forms = {
        compute: TableSearcher(vectors[:_ROWS_AT_ONCE], dtype, compute)
        for dtype, compute in (
            (torch.float16, torch.float32),
            (torch.bfloat16, torch.bfloat16),
            (torch.float16, torch.float16),
        )
    }
    seconds = dict.fromkeys(forms, np.inf)
    queries = torch.from_numpy(vectors[:_TIMED_QUERIES])
    for _ in range(3):
        for compute, form in forms.items():
            wanted, start = queries.to(compute), time.process_time()
            form._scores(wanted)
            seconds[compute] = min(seconds[compute], time.process_time() - start)
    fastest = forms[min(seconds, key=lambda compute: seconds[compute])]
    return fastest.grown(vectors)


def int8_searcher(vectors: np.ndarray) -> TableSearcher:
    return TableSearcher(vectors, torch.int8)


def cuda_searcher(vectors: np.ndarray) -> TableSearcher:
    if not torch.cuda.is_available():
        raise ValueError("kind 'cuda' needs a GPU that torch can use, and there is none; take 'auto' or 'exact'")
    return TableSearcher(vectors, device="cuda")
