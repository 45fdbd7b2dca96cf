"""LabelIndex: the nearest label vectors of a query. Arrays in, arrays out; it knows no model."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np

from hf_xmc import index_kinds
from hf_xmc.index_kinds import KINDS, MISSING_ID, MISSING_SCORE, Searcher, faiss

logger = logging.getLogger(__name__)

# Candidates up to this many are scanned, whatever the kind: as fast as a graph there, and complete.
MAX_SCANNED = 200_000


class LabelIndex:
    """Inner-product search over label vectors, its kind chosen by the number of labels or asked for.

    Label ids are row numbers and stay what they are: removed labels leave a gap, new ones are appended. Scores are
    those of the float32 vectors whatever the kind: what a compressed or approximate one finds is scored anew.

    Args:
        vectors: (L, D) float32, row l the vector of label l.
        alive: (L,) bool, False for removed labels; None for none removed.
        kind: One of :data:`hf_xmc.index_kinds.KINDS`, or "auto": exact on a GPU where there is one, else exact up to
            200,000 labels and a graph above.
        recall_queries: (N, D) float32, the queries that an approximate kind measures its recall with; None: a sample
            of the label vectors.

    Raises:
        ValueError: for vectors of another shape or not finite, or an unknown kind.
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
        self.kind = index_kinds.default_kind(self.num_alive) if kind == "auto" else kind
        self._recall_queries = recall_queries
        self._recall = 1.0
        self._searcher: Searcher | None = None  # made by the first search
        self._rows: np.ndarray | None = None  # ids of the searcher's rows, None where they are the same

    def __len__(self) -> int:
        """Number of ids, removed ones included."""
        return len(self.vectors)

    @property
    def num_alive(self) -> int:
        """Number of labels that a search can return."""
        return int(self.alive.sum())

    @property
    def num_bytes(self) -> int:
        """Bytes that are searched; kinds other than "exact" keep the float32 vectors beside them."""
        return self.build().num_bytes

    @property
    def recall(self) -> float:
        """Share of the 100 nearest labels that a search for 100 finds, in [0, 1]; 1 for kinds that are exact."""
        self.build()
        return self._recall

    def build(self) -> Searcher:
        """Make the structure that is searched, which the first search does otherwise."""
        if self._searcher is None:
            self._rows = None if self.alive.all() else np.flatnonzero(self.alive)
            vectors = self.vectors if self._rows is None else self.vectors[self._rows]
            self._searcher = KINDS[self.kind](vectors)
        return self._searcher

    def search(
        self, queries: np.ndarray, top_k: int, candidates: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``top_k`` labels of the largest inner product.

        Args:
            queries: (N, D) float32.
            top_k: At least 1; places beyond the number of labels hold id -1 and score -inf.
            candidates: (C,) int64, the only ids to look at; None for all. Scanned exactly up to 200,000.

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
        if rows is None:
            ids[:, :places], scores[:, :places] = self._search(queries, places)
        else:
            ids[:, :places], scores[:, :places] = self._search_among(rows, queries, places)
        return ids, scores

    def _search(self, queries: np.ndarray, places: int) -> tuple[np.ndarray, np.ndarray]:
        searcher = self.build()
        # One place more shows whether the cut falls inside a group of equal scores.
        found_ids, found_scores = searcher.search(queries, min(places + 1, self.num_alive), None)
        if self._rows is not None:
            found_ids = self._rows[found_ids]
        if found_ids.shape[1] > places:
            for row in np.flatnonzero(found_scores[:, places - 1] == found_scores[:, places]):
                found_ids[row], found_scores[row] = self._scan(queries[row], places + 1)
        order = np.lexsort((found_ids, -found_scores))[:, :places]
        return np.take_along_axis(found_ids, order, 1), np.take_along_axis(found_scores, order, 1)

    def _search_among(self, rows: np.ndarray, queries: np.ndarray, places: int) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ self.vectors[rows].T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :places]
        return rows[order], np.take_along_axis(scores, order, 1)

    def _scan(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The same for one query by looking at every label: (count,) ids and scores."""
        scores = np.where(self.alive, self.vectors @ query, MISSING_SCORE)
        ids = np.argsort(-scores, kind="stable")[:count]
        return ids, scores[ids]

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
        self._searcher = None
        return np.arange(first, len(self))

    def remove(self, ids: np.ndarray) -> None:
        """Take labels out of every later search; all other ids stay.

        Raises:
            ValueError: for an id that is out of range or already removed.
        """
        ids = self._present(ids, "remove label ids")
        self.alive = self.alive.copy()
        self.alive[ids] = False
        self._searcher = None

    def save(self, path: str | Path) -> None:
        """Write the index in FAISS's own format, and what it is beside it under the same name with ``.json``.

        Args:
            path: The file, for example ``folder / "index.faiss"``.

        Raises:
            ImportError: if FAISS is not installed.
        """
        index_kinds.require_faiss("to write an index file")
        faiss.write_index(index_kinds.FlatSearcher(self.vectors).index, str(path))
        Path(path).with_suffix(".json").write_text(json.dumps({"kind": self.kind}), encoding="utf8")

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
        index_kinds.require_faiss("to read an index file")
        path = Path(path)
        try:
            kind = json.loads(path.with_suffix(".json").read_text(encoding="utf8"))["kind"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path} cannot be read ({error}); build the index anew") from error
        return cls(vectors, alive, kind)


def _check_finite(vectors: np.ndarray, first: int) -> None:
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
        raise ValueError(f"the vector of label {first + row} is not finite; did training diverge?")
