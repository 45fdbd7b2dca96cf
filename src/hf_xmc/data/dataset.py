"""XMCDataset: query texts, label texts and who belongs to whom; where everything after reading starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from hf_xmc.data.catalog import Propensity
from hf_xmc.data.splitting import (
    equal_pairs,
    held_out_rows,
    normalised_texts,
    reversed_pairs,
    title_keys,
    unique_pairs,
)

NO_PAIRS = np.zeros((0, 2), dtype=np.int64)
SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class XMCDataset:
    """Two splits of query texts with label ids, one label table, and the pairs that are neither rewarded nor punished.

    A label id is the row number in `labels`, everywhere.

    Attributes:
        train, test: columns `text` (str) and `label_ids` (list of int32); where the raw files have them `uid` (str),
            `title` (str, if the text is made of several fields) and `label_weights` (list of float32 in (0, 1], if
            targets are soft).
        labels: column `text` (str), and `uid` (str) where the raw files have it.
        filters: "train" and "test": int64 (n, 2) rows of (row, label id); (0, 2) where there are none.
        name: key of the catalog, or the name of the folder.
        propensity: constants A and B of PSP.
    """

    train: datasets.Dataset
    test: datasets.Dataset
    labels: datasets.Dataset
    filters: dict[str, np.ndarray]
    name: str = "dataset"
    propensity: Propensity = Propensity()

    def __post_init__(self) -> None:
        for split in SPLITS:
            missing = {"text", "label_ids"} - set(self[split].column_names)
            if missing:
                raise ValueError(f"{split} lacks the column {sorted(missing)}; it has {self[split].column_names}")
            check_pairs(self.filters.get(split), len(self[split]), self.num_labels, f"filters[{split!r}]")
        if "text" not in self.labels.column_names:
            raise ValueError(f"labels lacks the column 'text'; it has {self.labels.column_names}")

    def __getitem__(self, split: str) -> datasets.Dataset:
        if split not in SPLITS:
            raise ValueError(f"There is no split {split!r}; expected 'train' or 'test'")
        return getattr(self, split)

    def __repr__(self) -> str:
        return (
            f"XMCDataset({self.name!r}, {len(self.train):,} train rows, {len(self.test):,} test rows, "
            f"{self.num_labels:,} labels, {len(self.filters['train']):,} + {len(self.filters['test']):,} filter pairs)"
        )

    @property
    def num_labels(self) -> int:
        """L: the rows of the label table, never the largest id plus one."""
        return len(self.labels)

    @cached_property
    def label_texts(self) -> pa.Array:
        """(L,) strings; `label_texts.take(pa.array(ids))` looks many up at once."""
        return column_of(self.labels, "text")

    def to_csr(self, split: str) -> sp.csr_matrix:
        """The truth of a split.

        Returns:
            scipy CSR (N, L) float32 with sorted indices and no explicit zeros: 1 for every label of a row, or its
            weight where the split has `label_weights`. A label that a row names twice counts once, with its largest
            weight.
        """
        ids = column_of(self[split], "label_ids")
        indices = ids.flatten().to_numpy(zero_copy_only=False).astype(np.int32)  # (nnz,)
        lengths = pc.fill_null(pc.list_value_length(ids), 0).to_numpy(zero_copy_only=False)
        indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])  # (N + 1,)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.num_labels:
            place = int(np.flatnonzero((indices < 0) | (indices >= self.num_labels))[0])
            row = int(np.searchsorted(indptr, place, "right")) - 1
            raise ValueError(
                f"{split}, row {row}, column 'label_ids': label id {indices[place]} is out of range; "
                f"the label table has {self.num_labels} rows"
            )
        shape = (len(lengths), self.num_labels)
        if "label_weights" not in self[split].column_names:
            truth = sp.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=shape)
            truth.sum_duplicates()
            truth.data[:] = 1.0
            return truth
        weights = column_of(self[split], "label_weights").flatten().to_numpy(zero_copy_only=False)  # (nnz,)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        order = np.lexsort((weights, indices, rows))
        rows, indices, weights = rows[order], indices[order], weights[order]
        largest = np.append((np.diff(rows) != 0) | (np.diff(indices) != 0), True)[: len(rows)] & (weights != 0)
        return sp.csr_matrix((weights[largest], (rows[largest], indices[largest])), shape=shape, dtype=np.float32)

    def filter_csr(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """The filter pairs of a split by row.

        Returns:
            indptr int64 (N + 1,) and indices int32 (nnz,): row i leaves out `indices[indptr[i]:indptr[i + 1]]`,
            ascending, none twice.
        """
        pairs = unique_pairs(self.filters[split])
        indptr = np.searchsorted(pairs[:, 0], np.arange(len(self[split]) + 1)).astype(np.int64)
        return indptr, pairs[:, 1].astype(np.int32)

    def training_rows(self) -> datasets.Dataset:
        """Train with a column `row` (int64, 0 .. N-1): the place to look up filter pairs and mined negatives by."""
        rows = _row_mapping(self.train)
        if rows is None or len(np.unique(rows)) < len(rows):
            return self.train.add_column("row", np.arange(len(self.train)))
        # `add_column` would first copy all mapped rows, at 50,000 a second; a column beneath the mapping costs
        # nothing.
        place = np.full(len(self.train.data), -1)
        place[rows] = np.arange(len(rows))
        unmapped = datasets.Dataset(self.train.data, info=self.train.info, split=self.train.split)
        return unmapped.add_column("row", place).select(rows)

    def hold_out(self, fraction: float, seed: int = 0, by: str = "title_key") -> XMCDataset:
        """Splits train in two, to choose hyper-parameters without looking at test.

        Args:
            fraction: share of the train rows to hold out, in (0, 1); met to within one group.
            seed: the same seed holds out the same rows.
            by: "title_key" keeps rows whose title differs only in numbers, volume words, month words and punctuation
                on one side, so that the held-out part is as hard as a test split made by series; "row" draws single
                rows.

        Returns:
            The rest as train, the held-out rows as test (both in their old order), the same labels. Filter pairs are
            those of the rows, and for the held-out rows also the reversed pairs: held-out item t is also label m,
            remaining item i is also label l, i carries m, so (t, l) is filtered. An item is the label with its uid
            or, without uids, the label of its filter pair. The truth of the held-out rows is left as it is.
        """
        if by == "title_key":
            keys = title_keys(column_of(self.train, "title" if "title" in self.train.column_names else "text"))
        elif by == "row":
            keys = pa.array(np.arange(len(self.train)))
        else:
            raise ValueError(f"by is {by!r}; expected 'title_key' or 'row'")
        held_out = held_out_rows(keys, fraction, seed)  # (N,)
        new_row = np.where(held_out, np.cumsum(held_out), np.cumsum(~held_out)) - 1  # (N,)

        def part_of(pairs: np.ndarray, side: np.ndarray) -> np.ndarray:
            pairs = pairs[side[pairs[:, 0]]]
            return np.stack([new_row[pairs[:, 0]], pairs[:, 1]], axis=1)

        own = self.filters["train"]
        same_uid = self._same_things("train", "uid")
        identity = same_uid if len(same_uid) else own
        self_pairs = part_of(own, held_out), part_of(same_uid, held_out)
        turned = reversed_pairs(
            part_of(identity, held_out), part_of(identity, ~held_out), self.to_csr("train")[~held_out]
        )
        return replace(
            self,
            train=self.train.select(np.flatnonzero(~held_out)),
            test=self.train.select(np.flatnonzero(held_out)),
            filters={"train": part_of(own, ~held_out), "test": unique_pairs(*self_pairs, turned)},
        )

    def make_filters(self, by: str = "uid") -> XMCDataset:
        """The same data set with filter pairs made from its own rows, for both splits.

        A row and a label that are one thing are a pair; test also has the reversed pairs (see `hold_out`).

        Args:
            by: "uid" for equal uids, "text" for equal texts in lower case without punctuation.
        """
        identity = {split: self._same_things(split, by) for split in SPLITS}
        turned = reversed_pairs(identity["test"], identity["train"], self.to_csr("train"))
        return replace(self, filters={"train": identity["train"], "test": unique_pairs(identity["test"], turned)})

    def _same_things(self, split: str, by: str) -> np.ndarray:
        """int64 (n, 2) rows of (row, label id) with equal `by`; none where a column is missing."""
        if by not in ("uid", "text"):
            raise ValueError(f"by is {by!r}; expected 'uid' or 'text'")
        if not {by} <= set(self[split].column_names) & set(self.labels.column_names):
            return NO_PAIRS
        rows, labels = column_of(self[split], by), column_of(self.labels, by)
        if by == "text":
            rows, labels = normalised_texts(rows), normalised_texts(labels)
        return equal_pairs(rows, labels)


def column_of(dataset: datasets.Dataset, name: str) -> pa.Array:
    """A whole column as one Arrow array, in the order of the rows after any select, filter or shuffle."""
    column, rows = dataset.data.column(name).combine_chunks(), _row_mapping(dataset)
    return column if rows is None else column.take(pa.array(rows))


def _row_mapping(dataset: datasets.Dataset) -> np.ndarray | None:
    """int64 (N,): the place in `dataset.data` of each row, or None where rows lie as they are.

    `dataset.data` ignores select, filter and shuffle, and `flatten_indices`, the public way round it, is 40 times
    slower than a take.
    """
    return None if dataset._indices is None else dataset._indices.column(0).to_numpy().astype(np.int64)


def check_pairs(pairs: np.ndarray | None, num_rows: int, num_labels: int, where: str) -> None:
    """Raises a ValueError unless `pairs` is an integer (n, 2) array of (row < num_rows, label id < num_labels)."""
    if pairs is None or pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        told = "missing" if pairs is None else f"{pairs.dtype} {pairs.shape}"
        raise ValueError(f"{where} is {told}; expected int64 (n, 2) rows of (row, label id)")
    outside = np.flatnonzero((pairs < 0).any(1) | (pairs >= (num_rows, num_labels)).any(1))
    if len(outside):
        row, label = pairs[outside[0]]
        raise ValueError(
            f"{where}, pair {outside[0]}: (row {row}, label id {label}) is out of range; "
            f"there are {num_rows} rows and {num_labels} labels"
        )
