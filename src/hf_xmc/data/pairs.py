"""Pairs of a row and a label: which are one thing, and which must neither be rewarded nor punished."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp


def equal_pairs(left: pa.Array, right: pa.Array) -> np.ndarray:
    """All (i, j) with left[i] == right[j], sorted; nulls and empty strings equal nothing.

    Args:
        left: (N,) strings; values may repeat on both sides.
        right: (L,) strings.

    Returns:
        int64 (n, 2).
    """
    both = pa.chunked_array([part.cast(pa.large_string()) for part in (left, right)])
    codes = both.dictionary_encode().combine_chunks()
    empty = pc.index_in("", codes.dictionary).as_py()
    codes = pc.fill_null(codes.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    codes[codes == (-1 if empty is None else empty)] = -1
    left_codes, right_codes = codes[: len(left)], codes[len(left) :]
    order = np.argsort(right_codes, kind="stable")
    start = np.searchsorted(right_codes[order], left_codes, "left")
    stop = np.where(left_codes < 0, start, np.searchsorted(right_codes[order], left_codes, "right"))
    counts = stop - start
    rows = np.repeat(np.arange(len(left)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([rows, order[np.repeat(start, counts) + within]], axis=1).astype(np.int64)


def reversed_pairs(test_identity: np.ndarray, train_identity: np.ndarray, train_truth: sp.csr_matrix) -> np.ndarray:
    """Pairs of the test split that a look-up in train would answer.

    Test item t is also label m, train item i is also label l, and i carries m: then (t, l) is such a pair.

    Args:
        test_identity: int64 (n, 2) rows of (row, label id) that are one thing.
        train_identity: The same for train.
        train_truth: (N, L).

    Returns:
        int64 (n, 2) rows of (test row, label id), sorted, no pair twice.
    """
    num_labels = train_truth.shape[1]
    # Of the truth only rows and labels that are one thing with something: all else would be copied for nothing.
    rows, train_row = np.unique(train_identity[:, 0], return_inverse=True)
    test_labels = np.unique(test_identity[:, 1])
    place = np.full(num_labels, -1)
    place[test_labels] = np.arange(len(test_labels))
    truth = train_truth[rows].tocoo()
    kept = (place[truth.col] >= 0) & (truth.data != 0)
    # (things of train, labels that are things of test)
    carried = _incidence(np.stack([truth.row[kept], place[truth.col[kept]]], axis=1), (len(rows), len(test_labels)))
    num_test = int(test_identity[:, 0].max(initial=-1)) + 1
    test = _incidence(
        np.stack([test_identity[:, 0], place[test_identity[:, 1]]], axis=1), (num_test, len(test_labels))
    )
    train = _incidence(np.stack([train_row, train_identity[:, 1]], axis=1), (len(rows), num_labels))
    pairs = ((test @ carried.T.tocsr()) @ train).tocoo()
    return unique_pairs(np.stack([pairs.row, pairs.col], axis=1))


def unique_pairs(*pairs: np.ndarray) -> np.ndarray:
    """All given (n, 2) pairs as one int64 (n, 2) array, sorted, no pair twice."""
    joined = np.concatenate(pairs).astype(np.int64).reshape(-1, 2)
    width = int(joined[:, 1].max(initial=0)) + 1
    # One number a pair: sorting rows of two takes ten times as long.
    return np.stack(np.divmod(np.unique(joined[:, 0] * width + joined[:, 1]), width), axis=1)


def _incidence(pairs: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=shape)
