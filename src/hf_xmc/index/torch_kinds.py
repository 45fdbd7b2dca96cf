"""Structures that a LabelIndex searches by looking at every label, by torch: 16 bits, 8 bits, on a GPU."""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
from torch import Tensor

from hf_xmc.hub.filters_xmc import MISSING_SCORE
from hf_xmc.hub.search_xmc import best_of_rows
from hf_xmc.index.growing import GrowingRows

# Scores held at once: 256 MB in float32.
_SCORES_AT_ONCE = 1 << 26
# Labels whose rows are made float32 together: they stay in the cache for the product.
_ROWS_AT_ONCE = 4096
_TIMED_QUERIES = 64
_SMALLEST = np.finfo(np.float32).tiny


class TableSearcher:
    """Every label, as one matrix product and a selection by groups.

    Args:
        vectors: (L, D) float32.
        dtype: What a number is kept in: float32, float16 or bfloat16; int8 keeps a scale for each row.
        compute_dtype: What products are computed in; rows kept smaller are widened a few thousand at a time.
        device: Where.
    """

    # On a GPU equal scores come in any order: what it finds is scored anew, as of all kinds here.
    exact, complete, effort, efforts = False, True, 0, [0]

    def __init__(
        self,
        vectors: np.ndarray,
        dtype: torch.dtype = torch.float32,
        compute_dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.is_plain = dtype == compute_dtype == torch.float32
        self.dtype, self.compute_dtype, self.device = dtype, compute_dtype, device
        self.scale: Tensor | None = None
        # Largest number of all rows: float16 has little range.
        self.peak = 1.0 if dtype == torch.float32 else float(max(np.abs(vectors).max(), _SMALLEST))
        self.table, scale = self._stored(vectors)  # (L, D)
        self._rows = GrowingRows(self.table)
        if dtype == torch.int8:  # a common factor orders nothing
            self.scale = scale
            self._scales = GrowingRows(scale)
        self._dead: tuple[np.ndarray, Tensor] | None = None

    def _stored(self, vectors: np.ndarray) -> tuple[Tensor, Tensor]:
        """Vectors (n, D) as they are kept, and what a unit of each row is worth (n,)."""
        if self.dtype == torch.float32:
            return torch.tensor(vectors, device=self.device), torch.ones(0)
        peaks = np.full(len(vectors), self.peak, dtype=np.float32)
        rows = torch.empty(vectors.shape, dtype=self.dtype)
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            if self.dtype == torch.int8:
                peaks[part] = np.maximum(np.abs(vectors[part]).max(axis=1), _SMALLEST)
            units = torch.from_numpy(vectors[part] / peaks[part, None])
            rows[part] = (units * 127).round() if self.dtype == torch.int8 else units
        return rows.to(self.device), torch.from_numpy(peaks).to(self.device)

    @property
    def num_bytes(self) -> int:
        """Bytes that are searched."""
        return self.table.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def search(self, queries: np.ndarray, count: int, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~hf_xmc.hub.search_xmc.Searcher`."""
        wanted = torch.from_numpy(queries)
        if not self.is_plain:
            wanted = torch.nn.functional.normalize(wanted, dim=1)  # stays within the range of float16
        wanted = wanted.to(device=self.device, dtype=self.compute_dtype)
        dead = self._dead_of(alive)
        found = []
        for chunk in wanted.split(max(1, _SCORES_AT_ONCE // len(self.table))):
            scores = self._scores(chunk)
            if len(dead):
                scores.index_fill_(1, dead, MISSING_SCORE)
            found.append(_best(scores, count))
        ids, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return ids, values

    def _scores(self, queries: Tensor) -> Tensor:
        """(B, D) -> (B, L)."""
        if self.dtype == self.compute_dtype:
            return queries @ self.table.T
        scores = queries.new_empty(len(queries), len(self.table))
        for start in range(0, len(self.table), _ROWS_AT_ONCE):
            part = self.table[start : start + _ROWS_AT_ONCE].to(self.compute_dtype)
            torch.mm(queries, part.T, out=scores[:, start : start + len(part)])
        return scores if self.scale is None else scores.mul_(self.scale)

    def _dead_of(self, alive: np.ndarray) -> Tensor:
        """The rows that are not alive, looked for once in an array that cannot change."""
        if self._dead is None or self._dead[0] is not alive:
            dead = torch.from_numpy(np.flatnonzero(~alive)).to(self.device)
            if alive.flags.writeable:
                return dead
            self._dead = alive, dead
        return self._dead[1]

    def grown(self, vectors: np.ndarray) -> TableSearcher:
        """A searcher of ``vectors`` (L, D), made as this one was; rows that this one has are not made again."""
        new = vectors[len(self.table) :]
        if self.dtype in (torch.float16, torch.bfloat16) and np.abs(new).max(initial=0) > self.peak:
            return TableSearcher(vectors, self.dtype, self.compute_dtype, self.device)
        larger = copy.copy(self)
        rows, scale = self._stored(new)
        larger.table = self._rows.append(self.table, rows)
        if self.scale is not None:
            larger.scale = self._scales.append(self.scale, scale)
        return larger


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
    return TableSearcher(vectors, fastest.dtype, fastest.compute_dtype)


def int8_searcher(vectors: np.ndarray) -> TableSearcher:
    """Rows in 8 bits with a scale each."""
    return TableSearcher(vectors, torch.int8)


def cuda_searcher(vectors: np.ndarray) -> TableSearcher:
    """Rows in float32 on a GPU."""
    if not torch.cuda.is_available():
        raise ValueError("kind 'cuda' needs a GPU that torch can use, and there is none; take 'auto' or 'exact'")
    return TableSearcher(vectors, device="cuda")


def _best(scores: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and float32 values (B, count) of the largest scores (B, L) of every row."""
    if scores.device.type == "cpu":
        return best_of_rows(scores.float().numpy(), count)
    values, columns = torch.topk(scores, count, dim=1, sorted=False)
    return columns.cpu().numpy(), values.float().cpu().numpy()
