"""LabelIndex: the nearest label vectors of a query, by an engine of choice. It knows no model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from hf_xmc.hub.repo_xmc import FAISS_KINDS, read_about, read_faiss
from hf_xmc.hub.search_xmc import MAX_EXACT, ExactSearcher, FaissSearcher, Searcher, VectorIndex, faiss, ranked
from hf_xmc.index import files
from hf_xmc.index.faiss_kinds import codes_searcher, graph_searcher, lists_searcher, require_faiss
from hf_xmc.index.growing import GrowingRows
from hf_xmc.index.torch_kinds import cuda_searcher, half_searcher, int8_searcher

logger = logging.getLogger(__name__)

# What each kind searches; the first four look at every label, the last three need FAISS.
KINDS: dict[str, Callable[[np.ndarray], Searcher]] = {
    "exact": ExactSearcher,
    "half": half_searcher,
    "int8": int8_searcher,
    "cuda": cuda_searcher,
    "hnsw": graph_searcher,
    "ivf": lists_searcher,
    "pq": codes_searcher,
}
# An approximate kind works as hard as this recall@100 takes.
MIN_RECALL = 0.99
_RECALL_TOP_K, _RECALL_QUERIES = 100, 200


class LabelIndex(VectorIndex):
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

    vectors: np.ndarray

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
        super().__init__(vectors, alive)
        self._rows = GrowingRows(vectors)
        if kind != "auto" and kind not in KINDS:
            raise ValueError(f"kind must be 'auto' or one of {', '.join(KINDS)}; got {kind!r}")
        self.kind = _default_kind(len(vectors)) if kind == "auto" else kind
        self._recall_queries = recall_queries
        self._recall = 1.0

    @classmethod
    def exact(cls, vectors: np.ndarray) -> LabelIndex:
        """An index for metrics and fits, which no approximation may colour: exact, on a GPU where there is one."""
        return cls(vectors, kind="cuda" if torch.cuda.is_available() else "exact")

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
        _, wanted = ExactSearcher(self.vectors).search(queries, places, self.alive)
        # By score, not by id: labels of one score stand for each other, but for rounding.
        least = wanted[:, -1:] - 1e-5 * np.abs(wanted[:, -1:])
        recall = 0.0
        for effort in searcher.efforts:
            searcher.effort = effort
            _, scores = ranked(searcher, self.vectors, self.alive, self.num_alive, queries, places, fill=False)
            recall = float((scores >= least).mean())
            if recall >= MIN_RECALL:
                break
        return recall

    def add(self, vectors: np.ndarray) -> np.ndarray:
        """Append labels: vectors (n, D) float32. Returns their new ids, (n,) int64.

        The first call copies all vectors to where there is room for half as many more, the next ones none.
        """
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"new label vectors must have shape (n, {self.vectors.shape[1]}), got {vectors.shape}")
        first = len(self)
        _check_finite(vectors, first)
        self.vectors = self._rows.append(self.vectors, vectors)
        self.alive = np.concatenate([self.alive, np.ones(len(vectors), dtype=bool)])
        if self._searcher is not None:
            self._searcher = self._searcher.grown(self.vectors)
        return np.arange(first, len(self))

    def remove(self, ids: Iterable[int]) -> None:
        """Take labels out of every later search; all other ids stay.

        Raises:
            ValueError: for an id that is out of range or already removed.
        """
        ids = self.present(ids, "label ids")
        alive = self.alive.copy()
        alive[ids] = False
        self.alive = alive

    def save(self, path: str | Path) -> None:
        """Write what was built, and beside it, in a ``.json`` of the same name, its kind, recall and what it is of.

        Kinds that look at every label are made of the vectors in no time: of them the JSON is all that is written.

        Args:
            path: The file in FAISS's own format, for example ``folder / "index.faiss"``.
        """
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
            ValueError: Naming the file that is missing, damaged or made of other vectors; build the index anew then.
            ImportError: If the kind needs FAISS and it is not installed.
        """
        note = Path(path).with_suffix(".json")
        if not note.is_file():
            raise ValueError(f"{note} is missing; build the index anew")
        about = read_about(note, vectors)
        kind = about["kind"]
        if kind not in KINDS:
            raise ValueError(
                f"{note} tells of kind {kind!r}, expected one of {', '.join(KINDS)}; build the index anew"
            )
        if kind == "cuda" and not torch.cuda.is_available():
            kind = "exact"
        index = cls(vectors, alive, kind)
        index._recall = about["recall"]
        if kind in FAISS_KINDS:
            require_faiss("to read an index file")
            index._take(FaissSearcher(read_faiss(Path(path), about, mmap), about["effort"]))
        return index


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
