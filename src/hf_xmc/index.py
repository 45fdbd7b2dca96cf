"""LabelIndex: the nearest label vectors of a query, exactly. Arrays in, arrays out; it knows no model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

try:
    import faiss
except ImportError:
    faiss = None

MISSING_ID, MISSING_SCORE = -1, -np.inf
# Queries a search handles at once; bounds the score matrix of the search without FAISS to about 128 MB.
_SCORES_AT_ONCE = 1 << 25


class LabelIndex:
    """Exact inner-product search over label vectors, by FAISS where it is installed and by torch where not.

    Label ids are row numbers and stay what they are: removed labels leave a gap, new ones are appended.

    Args:
        vectors: (L, D) float32, row l the vector of label l.
        alive: (L,) bool, False for removed labels; None for none removed.
    """

    def __init__(self, vectors: np.ndarray, alive: np.ndarray | None = None) -> None:
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] == 0:
            raise ValueError(f"label vectors must have shape (L, D) with D > 0, got {vectors.shape}")
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
            raise ValueError(f"the vector of label {row} is not finite; did training diverge?")
        self.vectors = vectors
        self.alive = np.ones(len(vectors), dtype=bool) if alive is None else np.asarray(alive, dtype=bool)
        if self.alive.shape != (len(vectors),):
            raise ValueError(f"alive must have shape ({len(vectors)},), got {self.alive.shape}")
        self._faiss: faiss.IndexFlatIP | None = None  # made by the first search

    def __len__(self) -> int:
        """Number of ids, removed ones included."""
        return len(self.vectors)

    @property
    def num_alive(self) -> int:
        """Number of labels that a search can return."""
        return int(self.alive.sum())

    def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``top_k`` labels of the largest inner product.

        Args:
            queries: (N, D) float32.
            top_k: At least 1; places beyond the number of labels hold id -1 and score -inf.

        Returns:
            ids (N, top_k) int64 and scores (N, top_k) float32, scores descending, equal scores by ascending id.

        Raises:
            ValueError: for a top_k below 1 or queries of another width.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"queries must have shape (N, {self.vectors.shape[1]}), got {queries.shape}")
        ids = np.full((len(queries), top_k), MISSING_ID, dtype=np.int64)
        scores = np.full((len(queries), top_k), MISSING_SCORE, dtype=np.float32)
        places = min(top_k, self.num_alive)
        if places == 0 or len(queries) == 0:
            return ids, scores
        # One place more shows whether the cut falls inside a group of equal scores.
        found_ids, found_scores = self._nearest(queries, min(places + 1, self.num_alive))
        if found_ids.shape[1] > places:
            for row in np.flatnonzero(found_scores[:, places - 1] == found_scores[:, places]):
                found_ids[row], found_scores[row] = self._scan(queries[row], places + 1)
        order = np.lexsort((found_ids, -found_scores))[:, :places]
        ids[:, :places] = np.take_along_axis(found_ids, order, 1)
        scores[:, :places] = np.take_along_axis(found_scores, order, 1)
        return ids, scores

    def _scan(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The same for one query by looking at every label: (count,) ids and scores."""
        scores = np.where(self.alive, self.vectors @ query, MISSING_SCORE)
        ids = np.argsort(-scores, kind="stable")[:count]
        return ids, scores[ids]

    def _nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(N, count) ids and scores in any order; count is at most the number of labels alive."""
        if faiss is None:
            return self._nearest_by_torch(queries, count)
        params = None
        if not self.alive.all():
            selector = faiss.IDSelectorBatch(np.flatnonzero(self.alive))
            params = faiss.SearchParameters(sel=selector)
        # FAISS >= 1.14 takes a slow path for batches below 128,000 / D queries; single queries are better off with it.
        before = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = 1 if len(queries) >= 4 else before
        try:
            scores, ids = self._flat().search(queries, count, params=params)
        finally:
            faiss.cvar.distance_compute_blas_threshold = before
        return ids, scores

    def _flat(self) -> faiss.Index:
        if self._faiss is None:
            self._faiss = faiss.IndexFlatIP(self.vectors.shape[1])
            self._faiss.add(self.vectors)
            # FAISS has its own copy now: keep that one.
            self.vectors = faiss.rev_swig_ptr(self._faiss.get_xb(), self.vectors.size).reshape(self.vectors.shape)
        return self._faiss

    def _nearest_by_torch(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        import torch

        table, dead = torch.from_numpy(self.vectors), torch.from_numpy(~self.alive)
        step = max(1, _SCORES_AT_ONCE // len(self.vectors))
        found = []
        for chunk in torch.from_numpy(queries).split(step):
            scores = (chunk @ table.T).masked_fill_(dead, MISSING_SCORE)  # (step, L)
            found.append(torch.topk(scores, count, dim=1))
        return (
            torch.cat([indices for _, indices in found]).numpy(),
            torch.cat([values for values, _ in found]).numpy(),
        )

    def add(self, vectors: np.ndarray) -> np.ndarray:
        """Append labels: vectors (n, D) float32. Returns their new ids, (n,) int64."""
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"new label vectors must have shape (n, {self.vectors.shape[1]}), got {vectors.shape}")
        first = len(self)
        self.vectors = np.concatenate([self.vectors, vectors])
        self.alive = np.concatenate([self.alive, np.ones(len(vectors), dtype=bool)])
        self._faiss = None
        return np.arange(first, len(self))

    def remove(self, ids: np.ndarray) -> None:
        """Take labels out of every later search; all other ids stay.

        Raises:
            ValueError: for an id that is out of range or already removed.
        """
        ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        wrong = [int(i) for i in ids if not 0 <= i < len(self) or not self.alive[i]]
        if wrong:
            raise ValueError(f"cannot remove label ids {wrong[:10]}: not among the {self.num_alive} labels present")
        self.alive = self.alive.copy()
        self.alive[ids] = False

    def save(self, path: str | Path) -> None:
        """Write ``index.faiss`` (FAISS's own format).

        Raises:
            ImportError: if FAISS is not installed.
        """
        if faiss is None:
            raise ImportError("faiss is required to write an index file: pip install hf_xmc[faiss]")
        faiss.write_index(self._flat(), str(path))
