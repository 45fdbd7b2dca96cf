"""The structures a LabelIndex searches: brute force by FAISS or torch, compressed rows, graphs and inverted lists.

Each finds labels of a large inner product; :class:`~hf_xmc.LabelIndex` scores what they find anew, orders it and knows
which labels were removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

try:
    import faiss
except ImportError:
    faiss = None

MISSING_ID, MISSING_SCORE = -1, -np.inf
# Labels up to which every one is looked at by default: a batch is searched faster by a graph from here on.
MAX_EXACT = 200_000
# Scores a brute-force search by torch holds at once: 128 MB in float32.
_SCORES_AT_ONCE = 1 << 25


class Searcher(Protocol):
    """What a kind must do. ``exact``: scores are those of the float32 vectors, and nothing is missed."""

    exact: bool
    complete: bool  # looks at every label, so that at most rounding hides one
    num_bytes: int

    def search(self, queries: np.ndarray, count: int, alive: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """(N, count) int64 ids, -1 where fewer were found, and float32 scores, in any order.

        ``alive`` is an (L,) bool mask, given to searchers that are not ``complete``.
        """


class FlatSearcher:
    """Every label by FAISS, float32 or with the rows in float16 or 8 bits a number."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.exact, self.complete = True, True
        self.index = faiss.IndexFlatIP(vectors.shape[1])
        self.index.add(vectors)
        self.num_bytes = vectors.nbytes

    def search(self, queries: np.ndarray, count: int, alive: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        # FAISS >= 1.14 takes a slow path for batches below 128,000 / D; single queries are better off with it.
        with blas_threshold(1 if len(queries) >= 4 else None):
            scores, ids = self.index.search(queries, count)
        return ids, scores


@contextmanager
def blas_threshold(value: int | None) -> Iterator[None]:
    """FAISS multiplies matrices for batches of at least ``value`` queries; None leaves its default."""
    before = faiss.cvar.distance_compute_blas_threshold
    if value is not None:
        faiss.cvar.distance_compute_blas_threshold = value
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


class TableSearcher:
    """Every label by torch, in any precision, on any device."""

    def __init__(self, vectors: np.ndarray, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.exact, self.complete = dtype == torch.float32, True
        self.table = torch.from_numpy(vectors).to(device=device, dtype=dtype)  # (L, D)
        self.num_bytes = self.table.numel() * self.table.element_size()

    def search(self, queries: np.ndarray, count: int, alive: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        step = max(1, _SCORES_AT_ONCE // len(self.table))
        found = []
        for chunk in torch.from_numpy(queries).split(step):
            scores = chunk.to(self.table) @ self.table.T  # (step, L)
            found.append(grouped_top_k(scores, count))
        values, ids = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        return ids.numpy(), values.float().numpy()


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
        return torch.topk(scores, count, dim=1, sorted=False)
    # Group g holds the columns g, g + num_groups, ...: its maximum is taken over whole rows of memory.
    body = scores[:, : num_groups * group].view(batch, group, num_groups)
    best = torch.topk(body.amax(dim=1), count, dim=1, sorted=False).indices  # (B, count)
    columns = (best[:, None, :] + num_groups * torch.arange(group, device=scores.device)[:, None]).flatten(1)
    rest = torch.arange(num_groups * group, width, device=scores.device).expand(batch, -1)
    columns = torch.cat([columns, rest], dim=1)  # (B, count * group + L % group)
    values, places = torch.topk(scores.gather(1, columns), count, dim=1, sorted=False)
    return values, columns.gather(1, places)


def require_faiss(purpose: str) -> None:
    """Raise ImportError, naming the extra, where FAISS is not installed."""
    if faiss is None:
        raise ImportError(f"faiss is required {purpose}: pip install hf_xmc[faiss]")


def flat_searcher(vectors: np.ndarray) -> Searcher:
    return TableSearcher(vectors) if faiss is None else FlatSearcher(vectors)


KINDS = {"exact": flat_searcher}


def default_kind(num_labels: int) -> str:
    """The kind that "auto" stands for."""
    return "exact"
