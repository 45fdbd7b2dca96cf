"""Gandalf: the texts of the labels as further training rows, with soft targets from how labels co-occur.

The paper is "Learning label-label correlations in Extreme Multi-label Classification via Label Features" (KDD 2024).
With G = Y^T Y over the training rows, a label j that stands in n_j = G_jj of them has the text z_j, and

    P(label i | text z_j)  ~  G_ij / n_j.

Row j of a matrix of soft targets (CSR (L, L) float32, values in [0, 1], diagonal 1) holds the targets of z_j.

Counts stay those of the original rows: make targets of `data.to_csr("train")` *after* `hold_out`, give the transformed
data set to the trainer alone, and the original one to the evaluator, whose propensities count real training rows.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import datasets
import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from hf_xmc.data.columns import column_of, list_lengths, row_mapping
from hf_xmc.data.dataset import XMCDataset

BLOCK_ADDITIONS = 2**21  # bounds the memory of a block: no more entries come out of it, or L out of one label
MAX_THREADS = 4  # every thread holds a block
PART_ENTRIES = 2**23  # 32 MiB an array: large enough that freeing it gives the memory back to the system
RUNS_MOVED = 2**13  # rows whose places are worked out at once

Soft = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def label_rows(train_truth: sp.csr_matrix, delta: float = 0.1, *, prior: float = 0.0) -> sp.csr_matrix:
    """Soft targets of the label texts: y_ij = G_ij / (n_j + prior) in row j, column i, where above `delta`.

    The time is linear in the pairs of labels that stand in one row, sum_i |P_i|^2, of which half are added.

    Args:
        train_truth: (N, L) sparse; any value but 0 is a positive. The original training rows.
        delta: in [0, 1); targets up to it are dropped. Near 0 all pairs that co-occur stay, which may not fit.
        prior: not negative; rows added to n_j off the diagonal, so that a label of one row does not make certain
            what stood beside it.

    Returns:
        CSR (L, L) float32 with sorted indices, values in (0, 1]. The diagonal is 1; a label without any training
        row keeps only itself.

    Raises:
        ValueError: if `delta` or `prior` is out of range, or no row has a label.
    """
    if not prior >= 0:
        raise ValueError(f"prior is {prior}; expected rows to add to those of a label, 0 or more")
    return _targets(train_truth, delta, lambda count, n_row, n_column: count / (n_row + prior))


def symmetric_label_rows(train_truth: sp.csr_matrix, delta: float = 0.1) -> sp.csr_matrix:
    """GLaS: S_ij = (G_ij / n_j + G_ij / n_i) / 2 where above `delta`, a symmetric matrix.

    "Breaking the Glass Ceiling for Embedding-Based Classifiers for Large Output Spaces" (NeurIPS 2019). Arguments,
    result and errors are those of `label_rows`.
    """
    return _targets(train_truth, delta, lambda count, n_row, n_column: (count / n_row + count / n_column) / 2)


def self_label_rows(num_labels: int) -> sp.csr_matrix:
    """Every label text is a row of its own label and of no other: the identity, CSR (L, L) float32."""
    return sp.identity(num_labels, dtype=np.float32, format="csr")


def random_walk_label_rows(
    train_truth: sp.csr_matrix, delta: float = 0.1, *, num_hops: int = 400, restart: float = 0.8, seed: int = 0
) -> sp.csr_matrix:
    """Targets from walks over the rows, after ECLARE (WWW 2021): labels two rows apart get a share too.

    A walk starts at label j. Each hop first goes back to j with probability `restart`, then to a random row of the
    label it is at, then to a random label of that row. With v_i the hops that end at i, y_ij = min(1, v_i / v_j)
    where above `delta`. With restart 1 and rows of one length this estimates G_ij / n_j. The time is linear in
    L x num_hops.

    Args:
        train_truth, delta: see `label_rows`, also for the result and the errors.
        num_hops: of the walk of each label.
        restart: in [0, 1].
        seed: the same seed walks the same way.
    """
    truth = _checked(train_truth, delta)
    if not 0 <= restart <= 1 or num_hops < 1:
        raise ValueError(f"restart is {restart} and num_hops {num_hops}; expected one in [0, 1] and at least 1")
    by_label, num_labels = truth.tocsc(), truth.shape[1]
    lengths, frequencies = np.diff(truth.indptr), np.diff(by_label.indptr)
    rng = np.random.default_rng(seed)
    parts = []
    size = max(1, BLOCK_ADDITIONS // num_hops)
    for first in range(0, num_labels, size):
        start = np.arange(first, min(first + size, num_labels))  # (b,)
        start = start[frequencies[start] > 0]
        at, ends = start, np.empty((num_hops, len(start)), np.int64)  # (num_hops, b)
        for hop in range(num_hops):
            at = np.where(rng.random(len(start)) < restart, start, at)
            row = by_label.indices[by_label.indptr[at] + (rng.random(len(at)) * frequencies[at]).astype(np.int64)]
            at = truth.indices[truth.indptr[row] + (rng.random(len(at)) * lengths[row]).astype(np.int64)]
            ends[hop] = (start - first) * num_labels + at
        ends, visits = np.unique(ends, return_counts=True)
        row, column = first + ends // num_labels, ends % num_labels
        own = np.ones(size, np.int64)
        own[(row - first)[row == column]] = visits[row == column]
        share = np.minimum(visits / own[row - first], 1.0)
        kept = (share > delta) & (row != column)
        parts.append((share[kept], row[kept], column[kept]))
    share, row, column = map(np.concatenate, zip(*parts, strict=True))
    walks = sp.csr_matrix((share.astype(np.float32), (row, column)), shape=(num_labels, num_labels))
    return (walks + self_label_rows(num_labels)).tocsr()


def tail_labels(train_truth: sp.csr_matrix, num_rows: int) -> np.ndarray:
    """The `num_rows` labels of the fewest training rows, ties by ascending id: int64 ids, ascending."""
    num_labels = train_truth.shape[1]
    if not 0 <= num_rows <= num_labels:
        raise ValueError(f"num_rows is {num_rows}; expected a number of labels, 0 to {num_labels}")
    frequencies = np.bincount(sp.csr_matrix(train_truth).indices, minlength=num_labels)
    return np.sort(np.argsort(frequencies, kind="stable")[:num_rows])


def with_label_rows(data: XMCDataset, targets: sp.csr_matrix, label_ids: np.ndarray | None = None) -> XMCDataset:
    """The data set with label texts as further training rows, to train on.

    The rows of `data` come first, with `label_weights` of 1 where they had none, and keep their filter pairs. The
    label rows have none: what a filter pair would hide of a label text, the label itself, is its target 1.

    Give it to the trainer only. `to_csr("train")`, and so propensities and `hold_out`, would count label rows as real
    ones: evaluate with `data` itself, and call `hold_out` before.

    Args:
        data: the original data set.
        targets: (L, L) sparse, row j the soft targets of the text of label j, in (0, 1].
        label_ids: labels whose texts become rows, for example `tail_labels(...)`; None for all.
    """
    train = _table_of(data.train)
    if "label_weights" not in train.column_names:
        ids = column_of(data.train, "label_ids")
        ones = pa.array(np.ones(len(ids.flatten()), np.float32))
        train = train.append_column("label_weights", pa.ListArray.from_arrays(_offsets(ids), ones))
    rows = _label_table(data, targets, label_ids, train.schema)
    return replace(data, train=datasets.Dataset(pa.concat_tables([train, rows])))


def only_label_rows(data: XMCDataset, targets: sp.csr_matrix, label_ids: np.ndarray | None = None) -> XMCDataset:
    """The data set with label texts *instead of* training rows, without train filter pairs; see `with_label_rows`."""
    schema = _table_of(data.train).schema
    if "label_weights" not in schema.names:
        schema = schema.append(pa.field("label_weights", pa.list_(pa.float32())))
    train = datasets.Dataset(_label_table(data, targets, label_ids, schema))
    return replace(data, train=train, filters=data.filters | {"train": np.zeros((0, 2), np.int64)})


@dataclass(frozen=True)
class LabelRowStatistics:
    """What a matrix of soft targets is like; prints as lines.

    Attributes:
        num_rows: label rows, L.
        num_train_rows: rows they are added to, N.
        kept_pairs: targets off the diagonal.
        possible_pairs: ordered pairs of two labels of one row, summed over the rows; a pair of k rows counts k times.
        mean_targets: of a label row, itself included.
        num_alone: labels with only themselves.
        num_unseen: labels without any training row.
    """

    num_rows: int
    num_train_rows: int
    kept_pairs: int
    possible_pairs: int
    mean_targets: float
    num_alone: int
    num_unseen: int

    def __str__(self) -> str:
        share = self.kept_pairs / max(1, self.possible_pairs)
        return (
            f"{self.num_rows:,} label rows beside {self.num_train_rows:,} training rows "
            f"(x{1 + self.num_rows / max(1, self.num_train_rows):.2f})\n"
            f"{self.kept_pairs:,} of {self.possible_pairs:,} co-occurrences are targets ({share:.1%})\n"
            f"{self.mean_targets:.2f} targets a label; {self.num_alone:,} labels have only themselves, "
            f"{self.num_unseen:,} of them no training row"
        )


def label_row_statistics(train_truth: sp.csr_matrix, targets: sp.csr_matrix) -> LabelRowStatistics:
    """Counts of `targets`, made from `train_truth` (N, L)."""
    num_train_rows, num_labels = train_truth.shape
    truth = _binary(train_truth)
    lengths = np.diff(truth.indptr).astype(np.int64)
    return LabelRowStatistics(
        num_rows=num_labels,
        num_train_rows=num_train_rows,
        kept_pairs=targets.nnz - num_labels,
        possible_pairs=int((lengths * (lengths - 1)).sum()),
        mean_targets=targets.nnz / max(1, num_labels),
        num_alone=int((np.diff(targets.indptr) == 1).sum()),
        num_unseen=int((np.bincount(truth.indices, minlength=num_labels) == 0).sum()),
    )


def _targets(train_truth: sp.csr_matrix, delta: float, soft: Soft) -> sp.csr_matrix:
    """soft(G_ij, n_j, n_i) in row j, column i where above `delta`; it must not exceed G_ij / min(n_i, n_j)."""
    truth = _checked(train_truth, delta)
    parts, recent = [], []
    for rare, common, count, n_rare, n_common in _pairs(truth, delta):
        value = soft(count, n_rare, n_common)
        kept = value > delta
        recent.append(_Part.of(rare[kept], common[kept], value[kept]))
        if sum(len(part.values) for part in recent) > PART_ENTRIES:
            parts.append(_Part.joined(recent))
            recent = []
        value = soft(count, n_common, n_rare)
        kept = np.flatnonzero(value > delta)
        kept = kept[np.argsort(common[kept], kind="stable")]
        parts.append(_Part.of(common[kept], rare[kept], value[kept]))
    parts += recent
    return _assemble(parts, truth.shape[1])


def _pairs(truth: sp.csr_matrix, delta: float) -> Iterator[tuple[np.ndarray, ...]]:
    """Every pair of labels whose rows together are a share above `delta` of the rows of the rarer one, once.

    Labels are numbered from the most frequent on. In a row with its labels in that order, those at least as frequent
    as a given one come first, so that a block of labels is multiplied with beginnings of rows and half of the
    additions never happen. Targets in both directions follow from the one count.

    Yields:
        (n,) arrays of a block: rarer label, commoner label, count, rows of the rarer, rows of the commoner label.
        Pairs of a label with itself may be among them.
    """
    num_rows, num_labels = truth.shape
    frequencies = np.bincount(truth.indices, minlength=num_labels)  # (L,)
    order = np.argsort(-frequencies, kind="stable").astype(np.int32)  # (L,) rank -> label
    frequencies = frequencies[order].astype(np.int32)
    least = np.floor(delta * frequencies).astype(np.int32)
    least += least / np.maximum(frequencies, 1) <= delta  # no smaller count is above delta
    by_label, by_row = _ranked(truth, order)
    lengths = np.diff(by_row.indptr)
    additions = np.concatenate([[0], np.cumsum(lengths[by_label.indices], dtype=np.int64)])[by_label.indptr]
    # Each row becomes two in the right factor, its beginning and its rest: beginnings grow from block to block
    # while the indices stay where they are.
    indices = by_row.indices
    edges = np.repeat(by_row.indptr, 2)[:-1]  # (2N + 1,)
    starts = by_label.indptr
    blocks = deque((a, b, 2 * by_label.indices[starts[a] : starts[b]]) for a, b in _blocks(additions))
    del by_label, by_row, lengths

    def product(
        first: int, last: int, rows: np.ndarray, edges: np.ndarray, ones: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        left = sp.csr_matrix(
            (ones[: len(rows)], rows, starts[first : last + 1] - starts[first]), shape=(last - first, 2 * num_rows)
        )
        counts = left @ sp.csr_matrix((ones, indices, edges), shape=(2 * num_rows, last))  # (last - first, last)
        kept = np.flatnonzero(counts.data >= least[last - 1])
        rare = np.repeat(np.arange(first, last, dtype=np.int32), np.diff(np.searchsorted(kept, counts.indptr)))
        common, count = counts.indices[kept], counts.data[kept]
        del counts, kept
        above = np.flatnonzero((count >= least[rare]) & (common < rare))
        rare, common = rare[above], common[above]
        return order[rare], order[common], count[above], frequencies[rare], frequencies[common]

    num_threads = min(MAX_THREADS, os.cpu_count() or 1)
    running: deque[Future] = deque()
    ones = np.ones(0, np.int32)
    with ThreadPoolExecutor(num_threads) as pool:
        while blocks:
            first, last, rows = blocks.popleft()
            np.add.at(edges, rows + 1, np.int32(1))
            kind = np.min_scalar_type(-int(frequencies[first]) - 1)  # counts are at most the rows of the rarer label
            if ones.dtype != kind or not len(ones):
                ones = np.ones(len(indices), kind)
            running.append(pool.submit(product, first, last, rows, edges.copy(), ones))
            if len(running) > num_threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


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
    """Entries in runs of one row each: run_rows (r,) distinct, run_lengths (r,), columns (n,), values (n,) float32."""

    run_rows: np.ndarray
    run_lengths: np.ndarray
    columns: np.ndarray | None
    values: np.ndarray | None

    @classmethod
    def of(cls, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> _Part:
        """rows: (n,), equal ones side by side."""
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        return cls(rows[starts], np.diff(starts, append=len(rows)), columns, values.astype(np.float32))

    @classmethod
    def joined(cls, parts: list[_Part]) -> _Part:
        """One part of parts that have no row in common."""
        return cls(
            np.concatenate([part.run_rows for part in parts]),
            np.concatenate([part.run_lengths for part in parts]),
            np.concatenate([part.columns for part in parts]),
            np.concatenate([part.values for part in parts]),
        )


def _assemble(parts: list[_Part], num_labels: int) -> sp.csr_matrix:
    """CSR (L, L) float32 with a diagonal of 1 and the entries of parts, which lie off it.

    Columns move first, then values, each freed once moved: 12 rather than 16 bytes an entry at the peak.
    """
    lengths = np.ones(num_labels, np.int64)
    for part in parts:
        lengths[part.run_rows] += part.run_lengths
    indptr = np.concatenate([[0], np.cumsum(lengths)])  # (L + 1,)

    def gather(name: str, diagonal: np.ndarray) -> np.ndarray:
        gathered = np.empty(indptr[-1], diagonal.dtype)
        gathered[indptr[:-1]] = diagonal
        free = indptr[:-1] + 1  # (L,) the next place of each row
        for part in parts:
            moved, starts = getattr(part, name), np.cumsum(part.run_lengths) - part.run_lengths
            for first in range(0, len(starts), RUNS_MOVED):
                rows, run = part.run_rows[first : first + RUNS_MOVED], part.run_lengths[first : first + RUNS_MOVED]
                start, size = starts[first], int(run.sum())
                places = np.repeat(free[rows] - starts[first : first + RUNS_MOVED], run)
                places += np.arange(start, start + size)
                gathered[places] = moved[start : start + size]
            free[part.run_rows] += part.run_lengths
            setattr(part, name, None)
        return gathered

    columns = gather("columns", np.arange(num_labels, dtype=np.int32))
    values = gather("values", np.ones(num_labels, np.float32))
    targets = sp.csr_matrix((values, columns, indptr), shape=(num_labels, num_labels))
    targets.sort_indices()
    return targets


def _checked(train_truth: sp.csr_matrix, delta: float) -> sp.csr_matrix:
    if not 0 <= delta < 1:
        raise ValueError(f"delta is {delta}; expected a share in [0, 1), 0.1 in the paper")
    truth = _binary(train_truth)
    if not truth.nnz:
        raise ValueError(
            f"train_truth {truth.shape} has no positive, so that no labels co-occur; "
            "give it the training rows, or use self_label_rows(num_labels)"
        )
    return truth


def _binary(truth: sp.csr_matrix) -> sp.csr_matrix:
    """The truth without doubles and explicit zeros; itself where it has none."""
    truth = sp.csr_matrix(truth)
    if not truth.has_canonical_format or not truth.data.all():
        truth = truth.copy()
        truth.sum_duplicates()
        truth.eliminate_zeros()
    return truth


def _table_of(dataset: datasets.Dataset) -> pa.Table:
    """All columns, in the order of the rows; nothing is copied where no select, filter or shuffle came before."""
    rows = row_mapping(dataset)
    return dataset.data.table if rows is None else dataset.data.table.take(pa.array(rows))


def _offsets(lists: pa.Array) -> pa.Array:
    """int32 (N + 1,) bounds of the rows in `lists.flatten()`."""
    return pa.array(np.concatenate([[0], np.cumsum(list_lengths(lists))]), pa.int32())


def _label_table(
    data: XMCDataset, targets: sp.csr_matrix, label_ids: np.ndarray | None, schema: pa.Schema
) -> pa.Table:
    """Label rows with the columns of `schema`; null where the label table has nothing for one."""
    if targets.shape != (data.num_labels, data.num_labels):
        raise ValueError(
            f"targets is {targets.shape}; expected ({data.num_labels}, {data.num_labels}), as labels x labels"
        )
    targets = sp.csr_matrix(targets)
    labels = _table_of(data.labels)
    if label_ids is not None:
        targets, labels = targets[label_ids], labels.take(pa.array(label_ids))
    if targets.nnz and not 0 < targets.data.min() <= targets.data.max() <= 1:
        raise ValueError(f"targets has values from {targets.data.min()} to {targets.data.max()}; expected (0, 1]")
    offsets = pa.array(targets.indptr, pa.int32())
    columns = {
        "label_ids": pa.ListArray.from_arrays(offsets, pa.array(targets.indices, pa.int32())),
        "label_weights": pa.ListArray.from_arrays(offsets, pa.array(targets.data, pa.float32())),
    }
    columns |= {name: labels.column(name) for name in labels.column_names if name not in columns}
    return pa.table(
        [
            columns[field.name].cast(field.type) if field.name in columns else pa.nulls(len(labels), field.type)
            for field in schema
        ],
        schema=schema,
    )
