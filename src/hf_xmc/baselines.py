"""What a model must beat: TF-IDF look-ups that train in seconds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from hf_xmc.data.dataset import XMCDataset
from hf_xmc.metrics.functional import top_k

_ROWS_AT_ONCE = 1024


def tfidf_zero_shot(data: XMCDataset, k: int = 100) -> np.ndarray:
    """Labels by the TF-IDF cosine of query and label text, without training rows.

    Returns:
        ids (N, k) int64 for the ``test`` rows, filtered pairs dropped, -1 where a row has fewer labels.
    """
    labels, queries = data.labels["text"][:], data.test["text"][:]
    vectorizer = _vectorizer().fit(labels + data.train["text"][:])
    keys = vectorizer.transform(labels)
    return _rank(vectorizer.transform(queries), keys, None, data, k)


def tfidf_knn(data: XMCDataset, k: int = 100, num_neighbors: int = 20) -> np.ndarray:
    """Labels of the nearest training rows by TF-IDF cosine, each voting with its cosine.

    Args:
        data: Its ``train`` rows vote, its ``test`` rows ask.
        k: Places of a row.
        num_neighbors: Training rows that vote.

    Returns:
        ids (N, k) int64 for the ``test`` rows, filtered pairs dropped, -1 where a row has fewer labels.
    """
    rows, queries = data.train["text"][:], data.test["text"][:]
    vectorizer = _vectorizer().fit(rows)
    return _rank(
        vectorizer.transform(queries), vectorizer.transform(rows), data.to_csr("train"), data, k, num_neighbors
    )


def _vectorizer() -> TfidfVectorizer:
    return TfidfVectorizer(sublinear_tf=True, dtype=np.float32, token_pattern=r"(?u)\b\w+\b")


def _rank(
    queries: csr_matrix,
    keys: csr_matrix,
    values: csr_matrix | None,
    data: XMCDataset,
    k: int,
    num_neighbors: int = 0,
) -> np.ndarray:
    """Votes ``cosine(query, key) * value`` summed by label; without values the keys are the labels."""
    filters = data.filters["test"]
    ranked = []
    for start in range(0, queries.shape[0], _ROWS_AT_ONCE):
        block = queries[start : start + _ROWS_AT_ONCE]
        similarity = (block @ keys.T).tocsr()
        if values is not None:
            similarity = _largest(similarity, num_neighbors) @ values
        here = filters[(filters[:, 0] >= start) & (filters[:, 0] < start + block.shape[0])] - [[start, 0]]
        ranked.append(top_k(csr_matrix(similarity), k, drop=here))
    return np.concatenate(ranked)


def _largest(matrix: csr_matrix, count: int) -> csr_matrix:
    """The ``count`` largest entries of each row, of equal ones those in the first columns.

    By selection, not by sorting: a row of frequent words shares one with a good part of all training rows.
    """
    columns, values, ends = [], [], [0]
    for start, end in pairwise(matrix.indptr):
        column, value = matrix.indices[start:end], matrix.data[start:end]
        if len(value) > count:
            bar = np.partition(value, len(value) - count)[-count]
            above, equal = np.flatnonzero(value > bar), np.flatnonzero(value == bar)
            equal = equal[np.argsort(column[equal])][: count - len(above)]
            kept = np.concatenate([above, equal])
            column, value = column[kept], value[kept]
        columns.append(column)
        values.append(value)
        ends.append(ends[-1] + len(value))
    return csr_matrix((np.concatenate(values), np.concatenate(columns), ends), shape=matrix.shape)
