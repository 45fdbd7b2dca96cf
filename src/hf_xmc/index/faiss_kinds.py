"""Structures that a LabelIndex searches by FAISS: a graph, inverted lists, and codes of 4 bits for two numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

try:
    import faiss
except ImportError:
    faiss = None

_NUM_LINKS = 32
# 80 builds in a third of the time; on label vectors its recall at like search speed is two points lower.
_BUILD_EFFORT = 200
_ROWS_PER_LIST = 128  # labels in an inverted list, on average
_TRAIN_PER_LIST = 64


def require_faiss(purpose: str) -> None:
    """Raise ImportError, naming the extra, where FAISS is not installed."""
    if faiss is None:
        raise ImportError(f"faiss is required {purpose}: pip install hf_xmc[faiss]")


class FaissSearcher:
    """A FAISS index whose rows are label ids.

    Args:
        index: An HNSW, IVF or PQ fast-scan index.
        effort: Labels that the graph keeps in view (efSearch), lists that are opened (nprobe), or how many times the
            wanted labels the codes give, to be scored anew.
    """

    exact, complete = False, False

    def __init__(self, index: faiss.Index, effort: int = 0) -> None:
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
        if self.is_graph:
            graph, rows = self.index.hnsw, faiss.downcast_index(self.index.storage)
            links = 4 * graph.neighbors.size() + 8 * graph.offsets.size() + 4 * graph.levels.size()
            return links + self.index.ntotal * rows.sa_code_size()
        if self.is_codes:
            return self.index.ntotal * self.index.code_size
        centroids = 4 * self.index.nlist * self.index.d
        return centroids + self.index.ntotal * (self.index.code_size + 8)

    def search(self, queries: np.ndarray, count: int, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.is_codes:  # which FAISS searches as a whole
            scores, ids = self.index.search(queries, min(count * self.effort, self.index.ntotal))
            return np.where(alive[ids], ids, -1), scores
        bits = np.packbits(alive, bitorder="little")
        chosen = None if alive.all() else faiss.IDSelectorBitmap(len(alive), faiss.swig_ptr(bits))
        if self.is_graph:
            params = faiss.SearchParametersHNSW(efSearch=max(self.effort, count), sel=chosen)
        else:
            params = faiss.SearchParametersIVF(nprobe=self.effort, sel=chosen)
        scores, ids = self.index.search(queries, count, params=params)
        return ids, scores

    def grown(self, vectors: np.ndarray) -> FaissSearcher:
        # A copy, as a file that is mapped into memory cannot grow.
        index = faiss.deserialize_index(faiss.serialize_index(self.index))
        index.add(vectors[index.ntotal :])
        return FaissSearcher(index, self.effort)

    def write(self, path: Path) -> None:
        faiss.write_index(self.index, str(path))


def graph_searcher(vectors: np.ndarray) -> FaissSearcher:
    """HNSW over rows of 8 bits a number (Malkov and Yashunin, TPAMI 2020), for inner products as they are.

    Making all rows of one length by one more coordinate, the usual reduction to cosines, was measured on un-normalised
    label vectors and left out: recall was no better and the search slower.
    """
    require_faiss("for kind 'hnsw'")
    index = faiss.IndexHNSWSQ(vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, _NUM_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _BUILD_EFFORT
    index.train(vectors)
    index.add(vectors)
    return FaissSearcher(index)


def lists_searcher(vectors: np.ndarray) -> FaissSearcher:
    """Inverted lists over rows of 8 bits a number: the quickest to build, for labels that fall into clusters."""
    require_faiss("for kind 'ivf'")
    num_lists = 2 ** max(0, round(np.log2(len(vectors) / _ROWS_PER_LIST)))
    index = faiss.index_factory(vectors.shape[1], f"IVF{num_lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = _TRAIN_PER_LIST
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add(vectors)
    return FaissSearcher(index)


def codes_searcher(vectors: np.ndarray) -> FaissSearcher:
    """Product quantisation with 16 values for two numbers, compared in registers (Andre et al., VLDB 2015).

    It looks at every label like brute force, at a third of the time, as what it finds is scored anew in float32: for
    single queries over some ten thousand labels, where a graph is no quicker.
    """
    require_faiss("for kind 'pq'")
    width = vectors.shape[1]
    index = faiss.IndexPQFastScan(width, width // 2 if width % 2 == 0 else width, 4, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add(vectors)
    return FaissSearcher(index)


def read_searcher(path: Path, mmap: bool, effort: int) -> FaissSearcher:
    """What ``write`` wrote; RuntimeError where FAISS cannot read it."""
    return FaissSearcher(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mmap else 0), effort)
