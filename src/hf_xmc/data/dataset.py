"""XMCDataset: query texts, label texts and who belongs to whom; where everything after reading starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from hf_xmc.data.catalog import Propensity, check_name
from hf_xmc.data.columns import column_of, list_lengths, row_mapping
from hf_xmc.data.pairs import equal_pairs, reversed_pairs, unique_pairs
from hf_xmc.data.report import DataReport, measure
from hf_xmc.data.splitting import answerable, held_out_rows, label_seen, normalized_texts, title_keys
from hf_xmc.data.storage import (
    LAST_FILE,
    SIDE_FILES,
    add_side_files,
    check_digests,
    digests,
    download_side_files,
    in_one_step,
    read_side_files,
    side_files,
)
from hf_xmc.data.tables.build import build_tables
from hf_xmc.hub.filters_xmc import NO_PAIRS, checked_pairs

SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class XMCDataset:
    """Two splits of query texts with label ids, one label table, and the pairs that are neither rewarded nor punished.

    A label id is the row number in ``labels``, everywhere.

    Attributes:
        train: Columns ``text`` (str) and ``label_ids`` (list of int32); where the raw files have them ``uid`` (str),
            ``title`` (str, if the text is made of several fields) and ``label_weights`` (list of float32 in (0, 1], if
            targets are soft).
        test: The same.
        labels: Column ``text`` (str), and ``uid`` (str) where the raw files have it.
        filters: "train" and "test": int64 (n, 2) rows of (row, label id); (0, 2) where there are none.
        name: Key of the catalog, or the name of the folder; of the characters that a repo of the Hub may have.
        propensity: Constants A and B of PSP.
    """

    train: datasets.Dataset
    test: datasets.Dataset
    labels: datasets.Dataset
    filters: dict[str, np.ndarray]
    name: str = "dataset"
    propensity: Propensity = Propensity()

    def __post_init__(self) -> None:
        check_name(self.name)
        for split in SPLITS:
            missing = {"text", "label_ids"} - set(self[split].column_names)
            if missing:
                raise ValueError(f"{split} lacks the column {sorted(missing)}; it has {self[split].column_names}")
            checked_pairs(self.filters.get(split), len(self[split]), self.num_labels, f"filters[{split!r}]")
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
        """(L,) strings; ``label_texts.take(pa.array(ids))`` looks many up at once."""
        return column_of(self.labels, "text")

    def to_csr(self, split: str) -> sp.csr_matrix:
        """The truth of a split.

        Returns:
            scipy CSR (N, L) float32 with sorted indices and no explicit zeros: 1 for every label of a row, or its
            weight where the split has ``label_weights``. A label that a row names twice counts once, with its largest
            weight.

        Raises:
            ValueError: If a label id is out of range; the row is named.
        """
        ids = column_of(self[split], "label_ids")
        indices = ids.flatten().to_numpy(zero_copy_only=False).astype(np.int32)  # (nnz,)
        lengths = list_lengths(ids)  # (N,)
        indptr = np.concatenate([[0], np.cumsum(lengths)])  # (N + 1,)
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
            indptr int64 (N + 1,) and indices int32 (nnz,): row i leaves out ``indices[indptr[i]:indptr[i + 1]]``,
            ascending, none twice.
        """
        pairs = unique_pairs(self.filters[split])
        indptr = np.searchsorted(pairs[:, 0], np.arange(len(self[split]) + 1)).astype(np.int64)
        return indptr, pairs[:, 1].astype(np.int32)

    def training_rows(self) -> datasets.Dataset:
        """Train with a column ``row`` (int64, 0 .. N-1): the place to look up filter pairs and mined negatives by."""
        rows = row_mapping(self.train)
        if rows is None or len(rows) > len(self.train.data):
            return self.train.add_column("row", np.arange(len(self.train)))
        # add_column would first copy all mapped rows, at 50,000 a second; a column beneath the mapping costs nothing.
        place = np.full(len(self.train.data), -1)
        place[rows] = np.arange(len(rows))
        if (place[rows] != np.arange(len(rows))).any():  # a row that stands twice
            return self.train.add_column("row", np.arange(len(self.train)))
        unmapped = datasets.Dataset(self.train.data, info=self.train.info, split=self.train.split)
        return unmapped.add_column("row", place).select(rows)

    def hold_out(
        self, fraction: float, seed: int = 0, by: str = "title_key", *, answerable_only: bool = False
    ) -> XMCDataset:
        """Split train in two, to choose hyper-parameters without looking at test.

        Args:
            fraction: Share of the train rows to hold out, in (0, 1); met to within one group.
            seed: The same seed holds out the same rows.
            by: "title_key" keeps rows whose title differs only in numbers, volume words, month words and punctuation
                on one side, so that the held-out part is as hard as a test split made by series; "row" draws single
                rows.
            answerable_only: Judge held-out rows as the test split of a benchmark judges, by labels that can be
                answered. Those keep a training row: labels whose only rows are held out reward whatever scores by
                label text alone, and a choice made so is wrong for test; rows that would have none left stay in
                train. And they are not filtered: where the rows are items, every other pair is the reverse of one in
                train; rows that have no other are in neither part. Use it to choose between models.

        Returns:
            The rest as train, the held-out rows as test (both in their old order), the same labels. Filter pairs are
            those of the rows, and for the held-out rows also the reversed pairs: held-out item t is also label m,
            remaining item i is also label l, i carries m, so (t, l) is filtered. An item is the label with its uid
            or, without uids, the label of its filter pair. The truth of the held-out rows is left as it is, but for
            ``answerable_only``.

        Raises:
            ValueError: If one side would be empty, or no held-out row could be answered.
        """
        if by == "title_key":
            keys = title_keys(column_of(self.train, "title" if "title" in self.train.column_names else "text"))
        elif by == "row":
            keys = pa.array(np.arange(len(self.train)))
        else:
            raise ValueError(f"by is {by!r}; expected 'title_key' or 'row'")
        truth = self.to_csr("train")
        held_out = held_out_rows(keys, fraction, seed, truth if answerable_only else None)  # (N,)
        new_row = np.where(held_out, np.cumsum(held_out), np.cumsum(~held_out)) - 1  # (N,)

        def part_of(pairs: np.ndarray, side: np.ndarray) -> np.ndarray:
            pairs = pairs[side[pairs[:, 0]]]
            return np.stack([new_row[pairs[:, 0]], pairs[:, 1]], axis=1)

        own = self.filters["train"]
        same_uid = self._same_things("train", "uid")
        identity = same_uid if len(same_uid) else own
        self_pairs = part_of(own, held_out), part_of(same_uid, held_out)
        turned = reversed_pairs(part_of(identity, held_out), identity[~held_out[identity[:, 0]]], truth)
        test, filtered = self.train.select(np.flatnonzero(held_out)), unique_pairs(*self_pairs, turned)
        if answerable_only:
            test, filtered = answerable(test, filtered, label_seen(truth, ~held_out))
        return replace(
            self,
            train=self.train.select(np.flatnonzero(~held_out)),
            test=test,
            filters={"train": part_of(own, ~held_out), "test": filtered},
        )

    def make_filters(self, by: str = "uid") -> XMCDataset:
        """The same data set with filter pairs made from its own rows, for both splits.

        A row and a label that are one thing are a pair; test also has the reversed pairs (see :meth:`hold_out`).

        Args:
            by: "uid" for equal uids, "text" for equal texts in lower case without punctuation.

        Raises:
            ValueError: If ``by`` is neither.
        """
        identity = {split: self._same_things(split, by) for split in SPLITS}
        turned = reversed_pairs(identity["test"], identity["train"], self.to_csr("train"))
        return replace(self, filters={"train": identity["train"], "test": unique_pairs(identity["test"], turned)})

    def _same_things(self, split: str, by: str) -> np.ndarray:
        """int64 (n, 2) rows of (row, label id) with equal ``by``; none where a column is missing."""
        if by not in ("uid", "text"):
            raise ValueError(f"by is {by!r}; expected 'uid' or 'text'")
        if not {by} <= set(self[split].column_names) & set(self.labels.column_names):
            return NO_PAIRS
        rows, labels = column_of(self[split], by), column_of(self.labels, by)
        if by == "text":
            rows, labels = normalized_texts(rows), normalized_texts(labels)
        return equal_pairs(rows, labels)

    def report(self) -> DataReport:
        """Counts, tails, duplicates, leaks and empty rows; prints as a table, saves as JSON and as a PNG."""
        return measure(
            name=self.name,
            propensity=self.propensity,
            texts={split: column_of(self[split], "text") for split in SPLITS},
            label_texts=self.label_texts,
            truth={split: self.to_csr(split) for split in SPLITS},
            filters=self.filters,
        )

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        text: str | Sequence[str],
        labels: str,
        test: Any = None,
        label_texts: Any = None,
        unseen: str | None = None,
        separator: str | None = None,
        uid: str | None = None,
        name: str = "dataset",
    ) -> XMCDataset:
        """Make a data set of a table of your own.

        Every text and label of a file is the string that stands there: no word means "missing", no code becomes a
        number. CSV may be separated by comma, semicolon, tab or "|"; TSV has no quoting. Files are UTF-8 or
        UTF-16, or else, told in a warning, Windows-1252.

        Args:
            dataset: A ``datasets.Dataset``, a pandas frame, an Arrow table, a list of dicts, the path of a CSV, TSV,
                JSON lines, Parquet or Excel file; or a mapping (``DatasetDict``) of "train" and perhaps "test" to
                those. TSV may lack a header where its two columns are ``text<TAB><uri> <uri>`` (Annif) or
                ``0,2<TAB>text`` (PECOS).
            text: The column of the query text, or several to be joined by a space.
            labels: The column of a row's label or labels: a list, a string that is one as JSON or Python writes it, or
                a multi-hot row. A label is a string, a whole number, or a dict with its own "text" (or "label") and
                perhaps a "uid" (or "uri", "id", "label_id") to be known by.
            test: The test table; none leaves the test split empty, to be filled by :meth:`hold_out`.
            label_texts: All labels in the order of their ids: a list of texts, a map of uid to text (or of text to
                id), a table with ``text`` and perhaps a uid, in a column or as the index of a frame, or a file of any
                of them or of a SKOS vocabulary (see :func:`~hf_xmc.data.read_skos`). Labels are looked up among the
                uids, the texts or the row numbers, whichever know most of them; whole numbers are row numbers unless
                all uids are numbers. Without it the labels of train, in ascending order, have the first ids, whatever
                the order of the rows; a number is then known by itself and its text is its digits.
            unseen: "drop" leaves out labels that ``label_texts`` lacks, and labels of test that train lacks; "keep"
                adds the former, known by themselves, and makes the latter zero-shot labels with the last ids. None
                keeps the latter and refuses the former. What is left out or added is counted in a warning.
            separator: Splits a cell that is a string, as in CSV, into several labels, white space around them aside.
            uid: The column of the rows' own ids; :meth:`make_filters` compares them with the uids of the labels.
            name: The data set's.

        Returns:
            An XMCDataset without filter pairs (see :meth:`make_filters`), in the order of the rows. Rows without a
            text or a label stay; a warning counts those where it is null.

        Raises:
            ValueError: If a table cannot be read, lacks a column, holds what is neither text nor label, or names a
                label that ``label_texts`` lacks.
        """
        tables = build_tables(
            dataset,
            test,
            text=text,
            labels=labels,
            label_texts=label_texts,
            unseen=unseen,
            separator=separator,
            uid=uid,
        )
        made = {part: datasets.Dataset(table) for part, table in tables.items()}
        return cls(**made, filters={split: NO_PAIRS for split in SPLITS}, name=name)

    def save_to_disk(self, folder: str | Path) -> None:
        """Write Arrow tables, filter pairs, propensity constants and the digests of all files into a folder.

        The digests come last, and nothing is loaded without them: after a call that was cut off the folder holds all
        of the old data set, or is refused.
        """
        with in_one_step(folder, LAST_FILE) as half_made:
            self._points().save_to_disk(half_made / "default")
            self.labels.save_to_disk(half_made / "labels")
            for file, content in side_files(self.name, self.propensity, self.filters).items():
                (half_made / file).write_bytes(content)
            (half_made / LAST_FILE).write_text(digests(half_made), encoding="utf8")

    @classmethod
    def load_from_disk(cls, folder: str | Path) -> XMCDataset:
        """Map what :meth:`save_to_disk` wrote into memory.

        Raises:
            ValueError: If the folder is not one that it wrote, or a file in it has changed; it is named.
        """
        folder = Path(folder).expanduser()
        check_digests(folder)
        points, labels = datasets.load_from_disk(folder / "default"), datasets.load_from_disk(folder / "labels")
        return cls._of_points(points, labels, {file: folder / file for file in SIDE_FILES})

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload a data set repo: configs "default" and "labels" in Parquet, filter pairs, constants and a card.

        Returns:
            The URL of the last commit. The side files come last, so that a push that was cut off is not loaded.
        """
        self._points().push_to_hub(repo_id, config_name="default", private=private, token=token)
        self.labels.push_to_hub(repo_id, config_name="labels", private=private, token=token)
        sides = side_files(self.name, self.propensity, self.filters)
        return add_side_files(repo_id, sides, self.name, self.propensity, self.report(), token)

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> XMCDataset:
        """Load what :meth:`push_to_hub` uploaded, all of it from one commit.

        Raises:
            ValueError: If the repo was not made by :meth:`push_to_hub`.
        """
        paths, revision = download_side_files(repo_id, revision, token)
        points, labels = (
            datasets.load_dataset(
                repo_id, config, revision=revision, token=token, cache_dir=cache_dir and str(cache_dir)
            )
            for config in ("default", "labels")
        )
        return cls._of_points(points, labels["train"], paths)

    def _points(self) -> datasets.DatasetDict:
        """The splits that have rows; an empty one cannot be stored."""
        return datasets.DatasetDict({split: self[split] for split in SPLITS if len(self[split])})

    @classmethod
    def _of_points(
        cls, points: datasets.DatasetDict, labels: datasets.Dataset, paths: dict[str, str | Path]
    ) -> XMCDataset:
        train = points["train"]
        test = points["test"] if "test" in points else train.select([])
        sides = read_side_files(paths, {"train": len(train), "test": len(test)}, len(labels))
        return cls(train=train, test=test, labels=labels, **sides)
