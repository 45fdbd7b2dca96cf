"""What a model must beat: TF-IDF look-ups that train in seconds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from hf_xmc.data.dataset import XMCDataset
from hf_xmc.metrics.functional import top_k

_ROWS_AT_ONCE = 1024
_FREQUENT = 0.06  # a word in this share of the training rows is frequent
_ROUNDING = 1e-5


def tfidf_zero_shot(data: XMCDataset, k: int = 100) -> np.ndarray:
    """Labels by the TF-IDF cosine of query and label text, without training rows.

    Returns:
        ids (N, k) int64 for the ``test`` rows, filtered pairs dropped, -1 where a row has fewer labels.
    """
    labels, queries = data.labels["text"][:], data.test["text"][:]
    vectorizer = _vectorizer().fit(labels + data.train["text"][:])
    keys = vectorizer.transform(labels).T.tocsr()
    return _rank(vectorizer.transform(queries), lambda block: block @ keys, data, k)


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
    nearest, truth = _nearest(vectorizer.transform(rows), num_neighbors), data.to_csr("train")
    return _rank(vectorizer.transform(queries), lambda block: nearest(block) @ truth, data, k)


def _vectorizer() -> TfidfVectorizer:
    return TfidfVectorizer(sublinear_tf=True, dtype=np.float32, token_pattern=r"(?u)\b\w+\b")


def _rank(queries: csr_matrix, score: Callable[[csr_matrix], csr_matrix], data: XMCDataset, k: int) -> np.ndarray:
    """The best k labels of each query by what ``score`` gives to a block of queries, (B, L)."""
    filters = data.filters["test"]
    ranked = []
    for start in range(0, queries.shape[0], _ROWS_AT_ONCE):
        block = queries[start : start + _ROWS_AT_ONCE]
        here = filters[(filters[:, 0] >= start) & (filters[:, 0] < start + block.shape[0])] - [[start, 0]]
        ranked.append(top_k(csr_matrix(score(block)), k, drop=here))
    return np.concatenate(ranked)


def _nearest(keys: csr_matrix, count: int) -> Callable[[csr_matrix], csr_matrix]:
    """A search for the ``count`` largest cosines of each query among keys of unit length, without most of the work.

    A frequent word is shared with a good part of all keys and adds little. So queries are multiplied with the keys'
    other words first: the count-th best cosine is at least the count-th best of these, the bar, and frequent words
    add at most the product of their lengths in query and key. Keys that cannot reach the bar with it are left out; a
    query whose own length of them reaches the bar is multiplied as a whole.
    """
    frequent = np.bincount(keys.indices, minlength=keys.shape[1]) > _FREQUENT * keys.shape[0]
    whole, rare, common = keys.T.tocsr(), keys[:, ~frequent].T.tocsr(), keys[:, frequent]
    lengths = _lengths(common)

    def search(queries: csr_matrix) -> csr_matrix:
        similarity, rest = (queries[:, ~frequent] @ rare).tocsr(), queries[:, frequent]
        reach = _lengths(rest)
        best = _largest(similarity, count)
        full = np.diff(best.indptr) == count
        bar = np.zeros(len(full), dtype=np.float32)
        bar[full] = best.data[np.repeat(full, np.diff(best.indptr))].reshape(-1, count).min(axis=1)
        safe = bar > reach + _ROUNDING
        row = np.repeat(np.arange(len(full)), np.diff(similarity.indptr))
        kept = safe[row] & (similarity.data + reach[row] * lengths[similarity.indices] + _ROUNDING >= bar[row])
        row, column, value = row[kept], similarity.indices[kept], similarity.data[kept]
        value = value + np.asarray(rest[row].multiply(common[column]).sum(axis=1)).ravel()
        others = np.flatnonzero(~safe)
        product = _largest((queries[others] @ whole).tocsr(), count).tocoo()
        row, column = np.concatenate([row, others[product.row]]), np.concatenate([column, product.col])
        value = np.concatenate([value, product.data])
        return _largest(csr_matrix((value, (row, column)), shape=(len(full), keys.shape[0])), count)

    return search


def _lengths(matrix: csr_matrix) -> np.ndarray:
    return np.sqrt(np.asarray(matrix.power(2).sum(axis=1)).ravel())


def _largest(matrix: csr_matrix, count: int) -> csr_matrix:
    """The ``count`` largest entries of each row, of equal ones those in the first columns.

    By selection, not by sorting: a row of frequent words shares one with a good part of all training rows.
    """
    columns, values, ends = [matrix.indices[:0]], [matrix.data[:0]], [0]
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
