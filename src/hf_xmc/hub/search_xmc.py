"""The rows of a matrix nearest to a query: exact scores, equal ones by ascending id, whatever finds them.

In numpy alone; it uses FAISS where that is installed and a repo has such an index. This file travels inside every
published repo.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from .filters_xmc import (
    MISSING_ID,
    MISSING_SCORE,
    checked_filters,
    checked_ids,
    drop_pairs,
    is_integer,
    missing,
)

faiss: Any  # its own annotations leave out half of what it has
try:
    import faiss
except ImportError:
    faiss = None

# Scores of a search that are held at once, and rows that are decoded at once.
SCORES_AT_ONCE, ROWS_AT_ONCE = 1 << 25, 1 << 14
# Rows that are all looked at without an index, and so many candidates, whatever the index.
MAX_EXACT = 200_000
_GROUP = 64


class StoredRows:
    """Rows kept in few bytes, perhaps in a mapped file, and decoded where they are looked at.

    Args:
        stored: (N, D) float32, float16 or int8.
        scales: (N,) float32, what a unit of each row is worth; None for 1.
    """

    def __init__(self, stored: np.ndarray, scales: np.ndarray | None = None) -> None:
        self.stored, self.scales = stored, scales

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return self.stored.shape  # type: ignore[return-value]

    @property
    def dtype(self) -> np.dtype:
        """What a number is kept in."""
        return self.stored.dtype

    @property
    def nbytes(self) -> int:
        """What they take as they are stored."""
        return self.stored.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """(n, D) float32."""
        found = self.stored[rows].astype(np.float32, copy=False)
        return found if self.scales is None else found * self.scales[rows, None]

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """First row and float32 rows (n, D) of each block."""
        for first in range(0, len(self), ROWS_AT_ONCE):
            yield first, self[first : first + ROWS_AT_ONCE]

    def __matmul__(self, query: np.ndarray) -> np.ndarray:
        """(D,) -> (N,)."""
        return np.concatenate([np.zeros(0, np.float32), *(block @ query for _, block in self.blocks())])


class Searcher(Protocol):
    """What finds rows of a large inner product.

    ``exact``: its scores are the float32 products themselves, descending, equal ones by ascending id. ``complete``: it
    looks at every row, so that only rounding can hide one.
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
        """The ``count`` rows of the largest product for each query, in any order where it is not exact.

        Args:
            queries: (N, D) float32.
            count: From 1 to the number of rows alive.
            alive: (L,) bool, the rows to find.

        Returns:
            ids (N, count) int64, -1 where it found fewer, and scores (N, count) float32 in the searcher's precision.
        """

    def grown(self, vectors: np.ndarray) -> Searcher:
        """A searcher of ``vectors`` (L, D) float32, which begin with the rows that this one has."""


class ExactSearcher:
    """Every row, by matrix products.

    Args:
        vectors: (L, D) float32, or rows that are decoded block by block.
    """

    exact = complete = True
    effort, efforts = 0, [0]

    def __init__(self, vectors: np.ndarray | StoredRows) -> None:
        self.vectors = vectors
        self.num_bytes = vectors.nbytes

    def grown(self, vectors: np.ndarray) -> ExactSearcher:
        """See :class:`Searcher`."""
        return ExactSearcher(vectors)

    def search(self, queries: np.ndarray, count: int, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Searcher`."""
        whole = isinstance(self.vectors, np.ndarray)
        step = max(1, SCORES_AT_ONCE // max(1, len(self.vectors) if whole else ROWS_AT_ONCE + count))
        parts = [queries[start : start + step] for start in range(0, len(queries), step)]
        found = [self._whole(part, count, alive) if whole else self._blocks(part, count, alive) for part in parts]
        ids, scores = zip(*found, strict=True)
        return np.concatenate(ids), np.concatenate(scores)

    def _whole(self, queries: np.ndarray, count: int, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ self.vectors.T  # type: ignore[union-attr]
        if not alive.all():
            scores[:, ~alive] = MISSING_SCORE
        return best_of_rows(scores, count)

    def _blocks(self, queries: np.ndarray, count: int, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids, scores = missing(len(queries), 0)
        for first, block in self.vectors.blocks():  # type: ignore[union-attr]
            products = queries @ block.T
            products[:, ~alive[first : first + len(block)]] = MISSING_SCORE
            places, values = best_of_rows(products, min(count, len(block)))
            # Earlier blocks come first: equal scores stay by ascending id.
            ids, scores = np.hstack([ids, places + first]), np.hstack([scores, values])
            kept, scores = best_of_rows(scores, min(count, scores.shape[1]))
            ids = np.take_along_axis(ids, kept, 1)
        return ids, scores


class FaissSearcher:
    """A FAISS index whose rows are ids: a graph (HNSW), inverted lists (IVF) or codes of 4 bits (PQ fast scan).

    Args:
        index: The index.
        effort: Labels that the graph keeps in view (efSearch), lists that are opened (nprobe), or how many times the
            wanted labels the codes give, to be scored anew; 0 for the least.
    """

    exact = complete = False

    def __init__(self, index: Any, effort: int = 0) -> None:
        self.index = index
        self.is_graph = isinstance(index, faiss.IndexHNSW)
        self.is_codes = isinstance(index, faiss.IndexPQFastScan)
        self.effort = effort or self.efforts[0]

    @property
    def efforts(self) -> list[int]:
        """Efforts to choose from, each twice the one before."""
        if self.is_graph:
            return [64, 128, 256, 512, 1024]
        if self.is_codes:
            return [1, 2, 4, 8, 16]
        return [2**power for power in range(1 + int(np.log2(self.index.nlist)))]

    @property
    def num_bytes(self) -> int:
        """See :class:`Searcher`."""
        if self.is_graph:
            graph, rows = self.index.hnsw, faiss.downcast_index(self.index.storage)
            links = 4 * graph.neighbors.size() + 8 * graph.offsets.size() + 4 * graph.levels.size()
            return links + self.index.ntotal * rows.sa_code_size()
        if self.is_codes:
            return self.index.ntotal * self.index.code_size
        centroids = 4 * self.index.nlist * self.index.d
        return centroids + self.index.ntotal * (self.index.code_size + 8)

    def grown(self, vectors: np.ndarray) -> FaissSearcher:
        """See :class:`Searcher`."""
        # A copy, as a file that is mapped into memory cannot grow.
        index = faiss.deserialize_index(faiss.serialize_index(self.index))
        index.add(vectors[index.ntotal :])
        return FaissSearcher(index, self.effort)

    def search(self, queries: np.ndarray, count: int, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Searcher`."""
        if self.is_codes:  # which FAISS searches as a whole
            scores, ids = self.index.search(queries, min(count * self.effort, self.index.ntotal))
            return np.where(alive[ids], ids, MISSING_ID), scores
        bits = np.packbits(alive, bitorder="little")
        chosen = None if alive.all() else faiss.IDSelectorBitmap(len(alive), faiss.swig_ptr(bits))
        if self.is_graph:
            params = faiss.SearchParametersHNSW(efSearch=max(self.effort, count), sel=chosen)
        else:
            params = faiss.SearchParametersIVF(nprobe=self.effort, sel=chosen)
        scores, ids = self.index.search(queries, count, params=params)
        return ids, scores


class VectorIndex:
    """Inner-product search over rows whose numbers are their ids; removed rows leave a gap.

    Args:
        vectors: (L, D) float32, row l the vector of id l.
        alive: (L,) bool, False for removed rows; None for none removed.
        searcher: What finds rows; None to look at every one.
    """

    def __init__(
        self,
        vectors: np.ndarray | StoredRows,
        alive: np.ndarray | None = None,
        searcher: Searcher | None = None,
    ) -> None:
        self.vectors = vectors
        self.alive = np.ones(len(vectors), dtype=bool) if alive is None else np.array(alive, dtype=bool)
        if self.alive.shape != (len(vectors),):
            raise ValueError(f"alive must have shape ({len(vectors)},), got {self.alive.shape}")
        self._searcher = searcher

    @property
    def alive(self) -> np.ndarray:
        """(L,) bool, False for removed rows; set another array to change it, this one is read-only."""
        return self._alive[0]

    @alive.setter
    def alive(self, alive: np.ndarray) -> None:
        alive.flags.writeable = False
        self._alive = alive, int(alive.sum())  # counted once, not at every search

    def __len__(self) -> int:
        """Number of ids, removed ones included."""
        return len(self.vectors)

    @property
    def num_alive(self) -> int:
        """Number of rows that a search can return."""
        return self._alive[1]

    def build(self) -> Searcher:
        """What is searched, which the first search makes otherwise."""
        if self._searcher is None:
            self._searcher = ExactSearcher(self.vectors)
        return self._searcher

    def search(
        self,
        queries: np.ndarray,
        top_k: int,
        candidates: np.ndarray | None = None,
        *,
        filters: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``top_k`` rows of the largest inner product.

        Args:
            queries: (N, D) float32.
            top_k: At least 1; places beyond the number of rows hold id -1 and score -inf.
            candidates: (C,) int64, the only ids to look at; None for all. Up to 200,000 are searched exactly.
            filters: (n, 2) int64, (query, id) that are passed over; None for none.

        Returns:
            ids (N, top_k) int64 and scores (N, top_k) float32, scores descending, equal scores by ascending id. The
            scores are those of the float32 vectors, whatever is searched.

        Raises:
            ValueError: For a top_k below 1, queries of another width or not finite, or candidates that are not there.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if not is_integer(top_k):
            raise ValueError(f"top_k must be an integer, got {top_k!r}")
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"queries must have shape (N, {self.vectors.shape[1]}), got {queries.shape}")
        if not np.isfinite(queries).all():
            row = int(np.flatnonzero(~np.isfinite(queries).all(1))[0])
            raise ValueError(f"the vector of query {row} is not finite; did training diverge, or a half overflow?")
        pairs = checked_filters(filters, len(queries), len(self))
        most = int(np.bincount(pairs[:, 0]).max()) if len(pairs) else 0  # of a row: so much deeper is searched
        found = self._search(queries, top_k + most, candidates)
        ids, scores = drop_pairs(*found, pairs) if len(pairs) else found
        return ids[:, :top_k], scores[:, :top_k]

    def _search(self, queries: np.ndarray, top_k: int, candidates: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        rows = None if candidates is None else self.present(candidates, "candidates")
        ids, scores = missing(len(queries), top_k)
        searcher, vectors = self.build(), self.vectors
        alive, num_alive = self._alive
        places = min(top_k, num_alive if rows is None else len(rows))
        if places == 0 or len(queries) == 0:
            return ids, scores
        if rows is not None:
            num_alive = len(rows)
            if num_alive <= (len(self) // 4 if searcher.complete else MAX_EXACT):
                vectors, alive = self.vectors[rows], np.ones(num_alive, dtype=bool)
                searcher = ExactSearcher(vectors)
            else:
                alive = np.zeros(len(self), dtype=bool)
                alive[rows] = True
                rows = None
        found, scores[:, :places] = ranked(searcher, vectors, alive, num_alive, queries, places)
        ids[:, :places] = found if rows is None else rows[found]
        return ids, scores

    def present(self, ids: Iterable[int], what: str) -> np.ndarray:
        """The ids (n,) int64, each once and ascending; a ValueError calls those that are not there ``what``."""
        ids = np.unique(checked_ids(ids))
        inside = (ids >= 0) & (ids < len(self))
        wrong = ids[~(inside & self.alive[np.where(inside, ids, 0)])] if len(self) else ids
        if len(wrong):
            raise ValueError(f"{what} {wrong[:10].tolist()} are not among the {self.num_alive} labels present")
        return ids


def ranked(
    searcher: Searcher,
    vectors: np.ndarray | StoredRows,
    alive: np.ndarray,
    num_alive: int,
    queries: np.ndarray,
    places: int,
    fill: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """(N, places) ids and float32 scores by score descending, then id; ``places`` is at most the number alive.

    With ``fill`` rows of which the searcher found too little are searched by looking at every vector.
    """
    if searcher.exact:
        return searcher.search(queries, places, alive)
    # Beyond the last place: one shows a group of equal scores cut by it, more make up for rounding.
    count = min(places + max(64, places // 2), num_alive)
    ids, _ = searcher.search(queries, count, alive)
    scores = np.stack([vectors[found] @ query for found, query in zip(ids, queries, strict=True)])
    scores[ids < 0] = MISSING_SCORE
    order = np.lexsort((ids, -scores))
    ids, scores = np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
    if searcher.complete:
        short = (scores[:, places - 1] == scores[:, -1]) & (count > places)
    else:
        short = ids[:, places - 1] < 0
    ids, scores = ids[:, :places], scores[:, :places]
    for row in np.flatnonzero(short & fill):
        every = np.where(alive, vectors @ queries[row], MISSING_SCORE)
        ids[row] = np.argsort(-every, kind="stable")[:places]
        scores[row] = every[ids[row]]
    return ids, scores


def best_of_rows(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` largest of every row, descending, equal ones by ascending column.

    Looks for a bar first, the ``count``-th largest of the maxima of groups of columns: ``count`` groups reach it, so
    the ``count`` largest scores do. What reaches it is little more than that, and is sorted. Selecting among L / 64
    maxima and comparing with the bar beats selecting among L.

    Args:
        scores: (B, L), which must not hold NaN.
        count: From 1 to L.

    Returns:
        Columns (B, count) int64 and values (B, count).
    """
    batch, width = scores.shape
    num_groups = width // _GROUP
    if num_groups > 2 * count:
        # Group g holds the columns g, g + num_groups, ...: its maximum is taken over whole rows of memory.
        maxima = scores[:, : num_groups * _GROUP].reshape(batch, _GROUP, num_groups).max(1)
        bar = np.partition(maxima, num_groups - count, axis=1)[:, num_groups - count]  # (B,)
    else:
        bar = np.partition(scores, width - count, axis=1)[:, width - count]
    flat = np.flatnonzero(scores >= bar[:, None])
    row, values = flat // width, scores.reshape(-1)[flat]
    order = np.lexsort((-values, row))  # stable: equal values keep the ascending columns
    first = np.searchsorted(row, np.arange(batch))  # of each row, which has at least count
    kept = order[first[:, None] + np.arange(count)]
    return flat[kept] - width * np.arange(batch)[:, None], values[kept]
