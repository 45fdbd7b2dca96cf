"""Which labels stand in the same training rows, for a million labels: counted blockwise, in parallel, thresholded.

Counts are kept in as few bytes as they need until all pairs are found; the matrix is put together in their place.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

BLOCK_ADDITIONS = 2**21  # bounds the memory of a block: no more entries come out of it, or L out of one label
MAX_THREADS = 4  # every thread holds a block
PART_ENTRIES = 2**23  # 32 MiB of columns: large enough that freeing it gives the memory back to the system
ENTRIES_MOVED = 2**20  # entries whose places or values are worked out at once
_MOVED = np.empty(0, np.int32)

Soft = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def soft_targets(train_truth: sp.csr_matrix, delta: float, soft: Soft) -> sp.csr_matrix:
    """soft(G_ij, n_j, n_i) in row j, column i where above ``delta``, 1 on the diagonal; G = Y^T Y, n its diagonal.

    Args:
        train_truth: (N, L) sparse; any value but 0 is a positive.
        delta: In [0, 1).
        soft: Of (n,) counts, rows of the row's label and rows of the column's; at most G_ij / min(n_i, n_j).

    Returns:
        CSR (L, L) float32 with sorted indices.

    Raises:
        ValueError: If ``delta`` is out of range, or no row has a label.
    """
    truth = checked_truth(train_truth, delta)
    parts: list[_Part] = []
    recent: list[_Part] = []
    for rare, common, count, n_rare, n_common in co_occurring_pairs(truth, delta):
        kept = soft(count, n_rare, n_common) > delta
        recent.append(_Part.of(rare[kept], common[kept], count[kept]))
        turned = np.flatnonzero(soft(count, n_common, n_rare) > delta)
        turned = turned[np.argsort(common[turned], kind="stable")]
        recent.append(_Part.of(common[turned], rare[turned], count[turned]))
        if sum(len(part.columns) for part in recent) > PART_ENTRIES:
            parts.append(_Part.joined(recent))
            recent = []
    parts += recent
    frequencies = np.bincount(truth.indices, minlength=truth.shape[1])  # (L,)
    return _assemble(parts, frequencies, soft)


def co_occurring_pairs(truth: sp.csr_matrix, delta: float) -> Iterator[tuple[np.ndarray, ...]]:
    """Every pair of labels whose rows together are a share above ``delta`` of the rows of the rarer one, once.

    Labels are numbered from the most frequent on. In a row with its labels in that order, those at least as frequent
    as a given one come first, so that a block of labels is multiplied with beginnings of rows and half of the
    additions never happen. Targets in both directions follow from the one count.

    Yields:
        (n,) arrays of a block: rarer label, commoner label, count, rows of the rarer, rows of the commoner label.
        Pairs of a label with itself may be among them.
    """
    ranked, edges, blocks = _rank(truth, delta)
    num_threads = min(MAX_THREADS, os.cpu_count() or 1)
    running: deque[Future] = deque()
    ones = np.ones(0, np.int32)
    with ThreadPoolExecutor(num_threads) as pool:
        while blocks:
            first, last, rows = blocks.popleft()
            np.add.at(edges, rows + 1, np.int32(1))
            # Counts are at most the rows of the rarer label: later blocks count in fewer bytes.
            kind = np.min_scalar_type(-int(ranked.frequencies[first]) - 1)
            if ones.dtype != kind or not len(ones):
                ones = np.ones(len(ranked.indices), kind)
            running.append(pool.submit(ranked.pairs, first, last, rows, edges.copy(), ones))
            if len(running) > num_threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


@dataclass(frozen=True)
class _Ranked:
    """A truth whose labels are numbered from the most frequent on.

    Attributes:
        order: (L,) int32, rank -> label.
        frequencies: (L,) int32, rows of each.
        least: (L,) int32, the smallest count above the share of them that is asked for.
        starts: (L + 1,) int32, where the rows of each begin in an array of all.
        indices: (nnz,) int32, the labels of each row, ascending.
    """

    order: np.ndarray
    frequencies: np.ndarray
    least: np.ndarray
    starts: np.ndarray
    indices: np.ndarray

    def pairs(
        self, first: int, last: int, rows: np.ndarray, edges: np.ndarray, ones: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """What :func:`co_occurring_pairs` yields for the labels of ranks ``first`` to ``last``, a block.

        ``rows`` (n,) are those of its labels in the right factor, ``edges`` (2N + 1,) that factor's indptr, and
        ``ones`` (nnz,) of a type that holds the counts.
        """
        left = sp.csr_matrix(
            (ones[: len(rows)], rows, self.starts[first : last + 1] - self.starts[first]),
            shape=(last - first, len(edges) - 1),
        )
        counts = left @ sp.csr_matrix(
            (ones, self.indices, edges), shape=(len(edges) - 1, last)
        )  # (last - first, last)
        kept = np.flatnonzero(counts.data >= self.least[last - 1])
        rare = np.repeat(np.arange(first, last, dtype=np.int32), np.diff(np.searchsorted(kept, counts.indptr)))
        common, count = counts.indices[kept], counts.data[kept]
        del counts, kept
        above = np.flatnonzero((count >= self.least[rare]) & (common < rare))
        rare, common = rare[above], common[above]
        return self.order[rare], self.order[common], count[above], self.frequencies[rare], self.frequencies[common]


def _rank(truth: sp.csr_matrix, delta: float) -> tuple[_Ranked, np.ndarray, deque[tuple[int, int, np.ndarray]]]:
    """The ranked truth, the first ``edges`` of the right factor, and of each block its range and ``rows``.

    Each row of the truth becomes two in the right factor, its beginning and its rest: beginnings grow from block to
    block while the indices stay where they are.
    """
    frequencies = np.bincount(truth.indices, minlength=truth.shape[1])  # (L,)
    order = np.argsort(-frequencies, kind="stable").astype(np.int32)  # (L,) rank -> label
    frequencies = frequencies[order].astype(np.int32)
    least = np.floor(delta * frequencies).astype(np.int32)
    least += least / np.maximum(frequencies, 1) <= delta  # no smaller count is above delta
    by_label, by_row = _ranked(truth, order)
    lengths, starts = np.diff(by_row.indptr), by_label.indptr
    additions = np.concatenate([[0], np.cumsum(lengths[by_label.indices], dtype=np.int64)])[starts]
    blocks = deque((a, b, 2 * by_label.indices[starts[a] : starts[b]]) for a, b in _blocks(additions))
    edges = np.repeat(by_row.indptr, 2)[:-1]  # (2N + 1,)
    return _Ranked(order, frequencies, least, starts, by_row.indices), edges, blocks


def _ranked(truth: sp.csr_matrix, order: np.ndarray) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """(L, N) and (N, L) in the order of the labels, sorted, with values of one byte."""
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order), dtype=order.dtype)
    by_row = sp.csr_matrix((np.ones(truth.nnz, np.int8), rank[truth.indices], truth.indptr), shape=truth.shape)
    by_label = by_row.T.tocsr()
    del by_row
    return by_label, by_label.T.tocsr()  # transposing sorts, in linear time


def _blocks(additions: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of ranks of about BLOCK_ADDITIONS, or of one label; additions: (L + 1,) running sums."""
    first, num_labels = 0, len(additions) - 1
    while first < num_labels and additions[first] < additions[-1]:
        last = int(np.searchsorted(additions, additions[first] + BLOCK_ADDITIONS, "right")) - 1
        last = min(max(last, first + 1), num_labels)
        yield first, last
        first = last


@dataclass
class _Part:
    """Entries in runs of one row each.

    Attributes:
        runs: Of each block its rows (r,), distinct, and how many entries each has (r,).
        columns: (n,) int32; none once moved.
        counts: (n,) of few bytes; none once moved.
    """

    runs: list[tuple[np.ndarray, np.ndarray]]
    columns: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, columns: np.ndarray, counts: np.ndarray) -> _Part:
        """From (n,) arrays, equal rows side by side."""
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        lengths = np.diff(starts, append=len(rows)).astype(np.int32)
        return cls([(rows[starts], lengths)], columns, counts)

    @classmethod
    def joined(cls, parts: list[_Part]) -> _Part:
        """The entries of several, one part after the other."""
        return cls(
            [run for part in parts for run in part.runs],
            np.concatenate([part.columns for part in parts]),
            np.concatenate([part.counts for part in parts]),
        )


def _assemble(parts: list[_Part], frequencies: np.ndarray, soft: Soft) -> sp.csr_matrix:
    """CSR (L, L) float32 with a diagonal of 1 and the entries of parts, which lie off it; empties the parts.

    Columns move first, then counts, each freed once moved, and counts become values where they are: 9 bytes an entry
    at the peak, 8 of which are the result.
    """
    num_labels = len(frequencies)
    lengths = np.ones(num_labels, np.int64)
    for part in parts:
        for rows, sizes in part.runs:
            lengths[rows] += sizes
    indptr = np.concatenate([[0], np.cumsum(lengths)])  # (L + 1,)

    columns = np.empty(indptr[-1], np.int32)
    columns[indptr[:-1]] = np.arange(num_labels)
    free = indptr[:-1] + 1  # (L,) the next place of each row
    for part in parts:
        for entries, places in _places(part.runs, free):
            columns[places] = part.columns[entries]
        part.columns = _MOVED
    counts = np.empty(indptr[-1], np.int32)
    counts[indptr[:-1]] = frequencies
    free = indptr[:-1] + 1
    for part in parts:
        for entries, places in _places(part.runs, free):
            counts[places] = part.counts[entries]
        part.counts = _MOVED
    values = counts.view(np.float32)
    shown = np.maximum(frequencies, 1)  # a label without a row has its diagonal alone
    for first, last in _ranges(indptr[1:]):
        entries = slice(indptr[first], indptr[last])
        own = np.repeat(shown[first:last], lengths[first:last])
        values[entries] = soft(counts[entries].copy(), own, shown[columns[entries]])
    values[indptr[:-1]] = 1
    targets = sp.csr_matrix((values, columns, indptr), shape=(num_labels, num_labels))
    targets.sort_indices()
    return targets


def _places(runs: list[tuple[np.ndarray, np.ndarray]], free: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Entries of a part, some at once, and their places in the matrix; ``free`` (L,) moves on behind them."""
    start = 0
    for rows, sizes in runs:
        for first, last in _ranges(np.cumsum(sizes)):
            run = sizes[first:last]
            size = int(run.sum(dtype=np.int64))
            yield (
                slice(start, start + size),
                np.arange(size) + np.repeat(free[rows[first:last]] - np.cumsum(run) + run, run),
            )
            start += size
        free[rows] += sizes


def _ranges(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of runs of about ENTRIES_MOVED entries, or of one run; ends: (r,) running sums of their entries."""
    first = done = 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, done + ENTRIES_MOVED, "right")))
        yield first, last
        first, done = last, int(ends[last - 1])


def checked_truth(train_truth: sp.csr_matrix, delta: float) -> sp.csr_matrix:
    """The truth (N, L) without doubles and zeros.

    Raises:
        ValueError: For a delta outside [0, 1), or a truth without any positive.
    """
    if not 0 <= delta < 1:
        raise ValueError(f"delta is {delta}; expected a share in [0, 1), 0.1 in the paper")
    truth = binary_truth(train_truth)
    if not truth.nnz:
        raise ValueError(
            f"train_truth {truth.shape} has no positive, so that no labels co-occur; "
            "give it the training rows, or use self_label_rows"
        )
    return truth


def binary_truth(truth: sp.csr_matrix) -> sp.csr_matrix:
    """The truth without doubles and explicit zeros; itself where it has none."""
    truth = sp.csr_matrix(truth)
    if not truth.has_canonical_format or not truth.data.all():
        truth = truth.copy()
        truth.sum_duplicates()
        truth.eliminate_zeros()
    return truth
