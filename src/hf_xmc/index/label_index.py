"""LabelIndex: the nearest label vectors of a query. Arrays in, arrays out; it knows no model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hf_xmc.index import faiss_kinds, files
from hf_xmc.index.faiss_kinds import codes_searcher, faiss, graph_searcher, lists_searcher
from hf_xmc.index.torch_kinds import (
    MISSING_ID,
    MISSING_SCORE,
    Searcher,
    TableSearcher,
    cuda_searcher,
    half_searcher,
    int8_searcher,
)

logger = logging.getLogger(__name__)

# What each kind searches; the first four look at every label, the last three need FAISS.
KINDS: dict[str, Callable[[np.ndarray], Searcher]] = {
    "exact": TableSearcher,
    "half": half_searcher,
    "int8": int8_searcher,
    "cuda": cuda_searcher,
    "hnsw": graph_searcher,
    "ivf": lists_searcher,
    "pq": codes_searcher,
}
# Labels that are all looked at by default; so many candidates are, whatever the kind.
MAX_EXACT = 200_000
# An approximate kind works as hard as this recall@100 takes.
MIN_RECALL = 0.99
_RECALL_TOP_K, _RECALL_QUERIES = 100, 200


class LabelIndex:
    """Inner-product search over label vectors, its kind chosen by the number of labels or asked for.

    Label ids are row numbers and stay what they are: removed labels leave a gap, new ones are appended. Scores are
    those of the float32 vectors whatever the kind: what a compressed or approximate one finds is scored anew.

    Kinds: "exact"; "half" and "int8" look at every label too, with rows of 16 and 8 bits a number; "cuda" is exact on
    a GPU; "hnsw" (a graph) and "ivf" (inverted lists) are approximate, with rows of 8 bits a number, and "pq" is with
    two bits a number, at which it looks for every label; these work as hard as a recall@100 of .99 takes on
    ``recall_queries``. For 131,072 labels on a CPU "pq" finds more than a graph in the same time, in a sixth of the
    bytes (benchmarks/README.md). All but "exact" keep the float32 vectors beside what they search, which may be an
    array mapped from a file.

    Args:
        vectors: (L, D) float32, row l the vector of label l.
        alive: (L,) bool, False for removed labels; None for none removed.
        kind: One of these, or "auto": "cuda" where there is a GPU, else "exact" up to 200,000 labels, else "hnsw", or
            "half" where FAISS is not installed.
        recall_queries: (N, D) float32, queries like those to come, for an approximate kind to measure its recall
            with; None: a sample of the label vectors, which are easier to find than queries are.

    Raises:
        ValueError: for vectors of another shape or not finite, an unknown kind, or "cuda" without a GPU.
        ImportError: for a kind that needs FAISS where it is not installed.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        alive: np.ndarray | None = None,
        kind: str = "auto",
        *,
        recall_queries: np.ndarray | None = None,
    ) -> None:
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] == 0:
            raise ValueError(f"label vectors must have shape (L, D) with D > 0, got {vectors.shape}")
        _check_finite(vectors, 0)
        self.vectors = vectors
        self.alive = np.ones(len(vectors), dtype=bool) if alive is None else np.asarray(alive, dtype=bool)
        if self.alive.shape != (len(vectors),):
            raise ValueError(f"alive must have shape ({len(vectors)},), got {self.alive.shape}")
        if kind != "auto" and kind not in KINDS:
            raise ValueError(f"kind must be 'auto' or one of {', '.join(KINDS)}; got {kind!r}")
        self.kind = _default_kind(len(vectors)) if kind == "auto" else kind
        self._recall_queries = recall_queries
        self._recall = 1.0
        self._searcher: Searcher | None = None  # made by the first search

    @classmethod
    def exact(cls, vectors: np.ndarray) -> LabelIndex:
        """An index for metrics and fits, which no approximation may colour: exact, on a GPU where there is one."""
        return cls(vectors, kind="cuda" if torch.cuda.is_available() else "exact")

    def __len__(self) -> int:
        """Number of ids, removed ones included."""
        return len(self.vectors)

    @property
    def num_alive(self) -> int:
        """Number of labels that a search can return."""
        return int(self.alive.sum())

    @property
    def num_bytes(self) -> int:
        """Bytes that a search reads from; see the class for what lies beside them."""
        return self.build().num_bytes

    @property
    def recall(self) -> float:
        """Share of the 100 nearest labels that a search for 100 finds, in [0, 1]; 1 for "exact" and "cuda".

        Measured when the index is built; kept when labels are added or removed, and in the file.
        """
        self.build()
        return self._recall

    def build(self) -> Searcher:
        """Make what is searched, which the first search does otherwise; its size and recall are logged."""
        if self._searcher is None:
            searcher = KINDS[self.kind](self.vectors)
            if not searcher.exact and self.num_alive:
                self._recall = self._measure(searcher)
            self._take(searcher)
        assert self._searcher is not None
        return self._searcher

    def _take(self, searcher: Searcher) -> None:
        self._searcher = searcher
        logger.info(
            "label index: %s, %s labels x %d, %.1f MB, recall@%d %.4f",
            self.kind,
            f"{len(self):,}",
            self.vectors.shape[1],
            searcher.num_bytes / 1e6,
            _RECALL_TOP_K,
            self._recall,
        )

    def _measure(self, searcher: Searcher) -> float:
        """Recall, at the least effort of the searcher that gives ``MIN_RECALL``, or at the greatest."""
        queries = self._recall_queries
        if queries is None:
            ids = np.flatnonzero(self.alive)
            queries = self.vectors[ids[:: -(-len(ids) // _RECALL_QUERIES)]]
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        places = min(_RECALL_TOP_K, self.num_alive)
        _, wanted = _ranked(TableSearcher(self.vectors), self.vectors, self.alive, queries, places)
        # By score, not by id: labels of one score stand for each other, but for rounding.
        least = wanted[:, -1:] - 1e-5 * np.abs(wanted[:, -1:])
        recall = 0.0
        for effort in searcher.efforts:
            searcher.effort = effort
            _, scores = _ranked(searcher, self.vectors, self.alive, queries, places, fill=False)
            recall = float((scores >= least).mean())
            if recall >= MIN_RECALL:
                break
        return recall

    def search(
        self, queries: np.ndarray, top_k: int, candidates: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``top_k`` labels of the largest inner product.

        Args:
            queries: (N, D) float32.
            top_k: At least 1; places beyond the number of labels hold id -1 and score -inf.
            candidates: (C,) int64, the only ids to look at; None for all. Up to 200,000 are searched exactly.

        Returns:
            ids (N, top_k) int64 and scores (N, top_k) float32, scores descending, equal scores by ascending id.

        Raises:
            ValueError: for a top_k below 1, queries of another width, or candidates that are no labels.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"queries must have shape (N, {self.vectors.shape[1]}), got {queries.shape}")
        rows = None if candidates is None else self._present(candidates, "search among candidates")
        ids = np.full((len(queries), top_k), MISSING_ID, dtype=np.int64)
        scores = np.full((len(queries), top_k), MISSING_SCORE, dtype=np.float32)
        places = min(top_k, self.num_alive if rows is None else len(rows))
        if places == 0 or len(queries) == 0:
            return ids, scores
        searcher, vectors, mask = self.build(), self.vectors, self.alive
        if rows is not None and len(rows) <= (len(self) // 4 if searcher.complete else MAX_EXACT):
            vectors, mask = self.vectors[rows], np.ones(len(rows), dtype=bool)
            searcher = TableSearcher(vectors)
        elif rows is not None:
            mask = np.zeros(len(self), dtype=bool)
            mask[rows] = True
            rows = None
        found, scores[:, :places] = _ranked(searcher, vectors, mask, queries, places)
        ids[:, :places] = found if rows is None else rows[found]
        return ids, scores

    def _present(self, ids: np.ndarray, purpose: str) -> np.ndarray:
        """The ids, each once and ascending."""
        ids = np.unique(np.asarray(ids, dtype=np.int64))
        wrong = [int(i) for i in ids if not 0 <= i < len(self) or not self.alive[i]]
        if wrong:
            raise ValueError(f"cannot {purpose} {wrong[:10]}: not among the {self.num_alive} labels present")
        return ids

    def add(self, vectors: np.ndarray) -> np.ndarray:
        """Append labels: vectors (n, D) float32. Returns their new ids, (n,) int64."""
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"new label vectors must have shape (n, {self.vectors.shape[1]}), got {vectors.shape}")
        first = len(self)
        _check_finite(vectors, first)
        self.vectors = np.concatenate([self.vectors, vectors])
        self.alive = np.concatenate([self.alive, np.ones(len(vectors), dtype=bool)])
        if self._searcher is not None:
            self._searcher = self._searcher.grown(self.vectors)
        return np.arange(first, len(self))

    def remove(self, ids: np.ndarray) -> None:
        """Take labels out of every later search; all other ids stay.

        Raises:
            ValueError: for an id that is out of range or already removed.
        """
        ids = self._present(ids, "remove label ids")
        self.alive = self.alive.copy()
        self.alive[ids] = False

    def save(self, path: str | Path) -> None:
        """Write the index in FAISS's own format, and its kind and recall beside it in a ``.json`` of the same name.

        Kinds that look at every label are written as a flat index of the float32 vectors.

        Args:
            path: The file, for example ``folder / "index.faiss"``.

        Raises:
            ImportError: if FAISS is not installed.
        """
        faiss_kinds.require_faiss("to write an index file")
        files.write(Path(path), self.vectors, self.build(), self.kind, self._recall)

    @classmethod
    def load(
        cls, path: str | Path, vectors: np.ndarray, alive: np.ndarray | None = None, mmap: bool = True
    ) -> LabelIndex:
        """What :meth:`save` wrote, without building it again.

        Args:
            path: The index file; the ``.json`` of the same name must lie beside it.
            vectors: (L, D) float32, the vectors it was made of.
            alive: (L,) bool, False for removed labels; None for none removed.
            mmap: Leave the file on disk and let the system read what a search touches.

        Raises:
            ValueError: naming the file that is missing, damaged or made of other vectors; build the index anew then.
            ImportError: if FAISS is not installed.
        """
        faiss_kinds.require_faiss("to read an index file")
        stored = files.read(Path(path), vectors, mmap, tuple(KINDS))
        kind = stored.kind if stored.kind != "cuda" or torch.cuda.is_available() else "exact"
        index = cls(vectors, alive, kind)
        index._recall = stored.recall
        if stored.searcher is not None:
            index._take(stored.searcher)
        return index


def _ranked(
    searcher: Searcher, vectors: np.ndarray, alive: np.ndarray, queries: np.ndarray, places: int, fill: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """(N, places) ids and float32 scores by score descending, then id; ``places`` is at most the number alive.

    With ``fill`` rows of which the searcher found too little are searched by looking at every label.
    """
    # Beyond the last place: one shows a group of equal scores cut by it, more make up for rounding.
    count = min(places + (1 if searcher.exact else max(64, places // 2)), int(alive.sum()))
    ids, scores = searcher.search(queries, count, alive)
    if not searcher.exact:
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


def _default_kind(num_labels: int) -> str:
    if torch.cuda.is_available():
        return "cuda"
    if num_labels <= MAX_EXACT:
        return "exact"
    return "half" if faiss is None else "hnsw"


def _check_finite(vectors: np.ndarray, first: int) -> None:
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
        raise ValueError(f"the vector of label {first + row} is not finite; did training diverge?")
