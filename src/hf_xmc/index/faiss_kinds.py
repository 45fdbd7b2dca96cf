"""Structures that a LabelIndex searches by FAISS: a graph, inverted lists, and codes of 4 bits for two numbers."""

from __future__ import annotations

import numpy as np

from hf_xmc.hub.search_xmc import FaissSearcher, faiss

_NUM_LINKS = 32
# 80 builds in a third of the time; on label vectors its recall at like search speed is two points lower.
_BUILD_EFFORT = 200
_ROWS_PER_LIST = 128  # labels in an inverted list, on average
_TRAIN_PER_LIST = 64
_PQ_VALUES = 16


def require_faiss(purpose: str) -> None:
    """Raise ImportError, naming the extra, where FAISS is not installed."""
    if faiss is None:
        raise ImportError(f"faiss is required {purpose}: pip install hf_xmc[faiss]")


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
    index.train(np.resize(vectors, (max(_PQ_VALUES, len(vectors)), width)))  # few labels are taken several times
    index.add(vectors)
    return FaissSearcher(index)
