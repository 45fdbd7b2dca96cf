"""Gandalf: the texts of the labels as further training rows, with soft targets from how labels co-occur.

The paper is "Learning label-label correlations in Extreme Multi-label Classification via Label Features" (KDD 2024).
With G = Y^T Y over the training rows, a label j that stands in n_j = G_jj of them has the text z_j, and

    P(label i | text z_j)  ~  G_ij / n_j.

Row j of a matrix of soft targets (CSR (L, L) float32, values in [0, 1], diagonal 1) holds the targets of z_j.

Counts stay those of the original rows: make targets of ``data.to_csr("train")`` *after* ``hold_out``, give the
transformed data set to the trainer alone, and the original one to the evaluator, whose propensities count real
training rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import datasets
import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from hf_xmc.data.columns import column_of, list_lengths, table_of
from hf_xmc.data.cooccurrence import binary_truth, checked_truth, soft_targets
from hf_xmc.data.dataset import XMCDataset
from hf_xmc.hub.filters_xmc import NO_PAIRS

logger = logging.getLogger(__name__)

WALK_ENDS = 2**21  # walks of so many hops at once


def label_rows(train_truth: sp.csr_matrix, delta: float = 0.1, *, prior: float = 0.0) -> sp.csr_matrix:
    """Soft targets of the label texts: y_ij = G_ij / (n_j + prior) in row j, column i, where above ``delta``.

    The time is linear in the pairs of labels that stand in one row, sum_i |P_i|^2, of which half are added.

    Args:
        train_truth: (N, L) sparse; any value but 0 is a positive. The original training rows.
        delta: In [0, 1); targets up to it are dropped. Near 0 all pairs that co-occur stay, which may not fit.
        prior: Not negative; rows added to n_j off the diagonal, so that a label of one row does not make certain
            what stood beside it.

    Returns:
        CSR (L, L) float32 with sorted indices, values in (0, 1]. The diagonal is 1; a label without any training
        row keeps only itself.

    Raises:
        ValueError: If ``delta`` or ``prior`` is out of range, or no row has a label.
    """
    if not prior >= 0:
        raise ValueError(f"prior is {prior}; expected rows to add to those of a label, 0 or more")
    return soft_targets(train_truth, delta, lambda count, n_row, n_column: count / (n_row + prior))


def symmetric_label_rows(train_truth: sp.csr_matrix, delta: float = 0.1) -> sp.csr_matrix:
    """GLaS: S_ij = (G_ij / n_j + G_ij / n_i) / 2 where above ``delta``, a symmetric matrix.

    "Breaking the Glass Ceiling for Embedding-Based Classifiers for Large Output Spaces" (NeurIPS 2019). Arguments,
    result and errors are those of :func:`label_rows`.
    """
    return soft_targets(train_truth, delta, lambda count, n_row, n_column: (count / n_row + count / n_column) / 2)


def self_label_rows(train_truth: sp.csr_matrix, delta: float = 0.0) -> sp.csr_matrix:
    """Every label text is a row of its own label and of no other: the identity, CSR (L, L) float32.

    ``delta`` is there to be called like the others.
    """
    return sp.identity(train_truth.shape[1], dtype=np.float32, format="csr")


def random_walk_label_rows(
    train_truth: sp.csr_matrix, delta: float = 0.1, *, num_hops: int = 400, restart: float = 0.8, seed: int = 0
) -> sp.csr_matrix:
    """Targets from walks over the rows, after ECLARE (WWW 2021): labels two rows apart get a share too.

    A walk starts at label j. Each hop first goes back to j with probability ``restart``, then to a random row of the
    label it is at, then to a random label of that row. With v_i the hops that end at i, y_ij = min(1, v_i / v_j)
    where above ``delta``. With restart 1 and rows of one length this estimates G_ij / n_j. The time is linear in
    L x num_hops.

    Args:
        train_truth: As in :func:`label_rows`, whose result and errors these are.
        delta: The same.
        num_hops: Hops of the walk of each label.
        restart: In [0, 1].
        seed: The same seed walks the same way.
    """
    truth = checked_truth(train_truth, delta)
    if not 0 <= restart <= 1 or num_hops < 1:
        raise ValueError(f"restart is {restart} and num_hops {num_hops}; expected one in [0, 1] and at least 1")
    by_label, num_labels = truth.tocsc(), truth.shape[1]
    lengths, frequencies = np.diff(truth.indptr), np.diff(by_label.indptr)
    rng = np.random.default_rng(seed)
    parts = []
    size = max(1, WALK_ENDS // num_hops)
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
    return (walks + self_label_rows(truth)).tocsr()


def gandalf(
    data: XMCDataset,
    make_targets: Callable[[sp.csr_matrix, float], sp.csr_matrix] = label_rows,
    *,
    delta: float = 0.1,
    num_label_rows: int | None = None,
    with_train_rows: bool = True,
) -> XMCDataset:
    """The data set to train on instead of ``data``; logs the statistics of what was added.

    Args:
        data: The original data set.
        make_targets: (train truth, delta) -> (L, L) soft targets: :func:`label_rows`, a partial of it with a prior,
            :func:`symmetric_label_rows`, :func:`random_walk_label_rows`, or :func:`self_label_rows`.
        delta: In [0, 1); targets up to it are dropped.
        num_label_rows: Label texts that become rows, those of the fewest training rows first; None for all.
        with_train_rows: Whether the training rows stay beside the label rows.

    Raises:
        ValueError: If no training row has a label, or for ``delta`` or ``num_label_rows`` out of range.
    """
    truth = data.to_csr("train")
    targets = make_targets(truth, delta)
    label_ids = None if num_label_rows is None else tail_labels(truth, num_label_rows)
    num_rows = data.num_labels if label_ids is None else len(label_ids)
    logger.info("%s", replace(label_row_statistics(truth, targets), num_rows=num_rows))
    return (with_label_rows if with_train_rows else only_label_rows)(data, targets, label_ids)


def tail_labels(train_truth: sp.csr_matrix, num_rows: int) -> np.ndarray:
    """The ``num_rows`` labels of the fewest training rows, ties by ascending id: int64 ids, ascending.

    Raises:
        ValueError: If there are not so many.
    """
    num_labels = train_truth.shape[1]
    if not 0 <= num_rows <= num_labels:
        raise ValueError(f"num_rows is {num_rows}; expected a number of labels, 0 to {num_labels}")
    frequencies = np.bincount(sp.csr_matrix(train_truth).indices, minlength=num_labels)
    return np.sort(np.argsort(frequencies, kind="stable")[:num_rows])


def with_label_rows(data: XMCDataset, targets: sp.csr_matrix, label_ids: np.ndarray | None = None) -> XMCDataset:
    """The data set with label texts as further training rows, to train on.

    The rows of ``data`` come first, with ``label_weights`` of 1 where they had none, and keep their filter pairs. The
    label rows have none: what a filter pair would hide of a label text, the label itself, is its target 1.

    Give it to the trainer only. ``to_csr("train")``, and so propensities and ``hold_out``, would count label rows as
    real ones: evaluate with ``data`` itself, and call ``hold_out`` before.

    Args:
        data: The original data set.
        targets: (L, L) sparse, row j the soft targets of the text of label j, in (0, 1].
        label_ids: Labels whose texts become rows, for example ``tail_labels(...)``; None for all.

    Raises:
        ValueError: If the targets have another shape, or values outside (0, 1].
    """
    train = table_of(data.train)
    if "label_weights" not in train.column_names:
        ids = column_of(data.train, "label_ids")
        ones = pa.array(np.ones(len(ids.flatten()), np.float32))
        train = train.append_column("label_weights", pa.ListArray.from_arrays(_offsets(ids), ones))
    rows = _label_table(data, targets, label_ids, train.schema)
    return replace(data, train=datasets.Dataset(pa.concat_tables([train, rows])))


def only_label_rows(data: XMCDataset, targets: sp.csr_matrix, label_ids: np.ndarray | None = None) -> XMCDataset:
    """The data set with label texts *instead of* training rows and their filters; see :func:`with_label_rows`."""
    schema = table_of(data.train).schema
    if "label_weights" not in schema.names:
        schema = schema.append(pa.field("label_weights", pa.list_(pa.float32())))
    train = datasets.Dataset(_label_table(data, targets, label_ids, schema))
    return replace(data, train=train, filters=data.filters | {"train": NO_PAIRS})


@dataclass(frozen=True)
class LabelRowStatistics:
    """What a matrix of soft targets is like; prints as lines.

    Attributes:
        num_rows: Label rows, L or fewer.
        num_train_rows: Rows they are added to, N.
        kept_pairs: Targets off the diagonal.
        possible_pairs: Ordered pairs of two labels of one row, summed over the rows; a pair of k rows counts k times.
        mean_targets: Mean number of targets of a label row, itself included.
        num_alone: Labels with only themselves.
        num_unseen: Labels without any training row.
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
    """Counts of ``targets``, made from ``train_truth`` (N, L)."""
    num_train_rows, num_labels = train_truth.shape
    truth = binary_truth(train_truth)
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


def _offsets(lists: pa.Array) -> pa.Array:
    """int32 (N + 1,) bounds of the rows in ``lists.flatten()``."""
    return pa.array(np.concatenate([[0], np.cumsum(list_lengths(lists))]), pa.int32())


def _label_table(
    data: XMCDataset, targets: sp.csr_matrix, label_ids: np.ndarray | None, schema: pa.Schema
) -> pa.Table:
    """Label rows with the columns of ``schema``; null where the label table has nothing for one."""
    if targets.shape != (data.num_labels, data.num_labels):
        raise ValueError(
            f"targets is {targets.shape}; expected ({data.num_labels}, {data.num_labels}), as labels x labels"
        )
    targets = sp.csr_matrix(targets)
    labels = table_of(data.labels)
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
