"""Label entries -> a label table with stable ids, and the ids of every row."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_xmc.data.tables.cells import Entries, Place
from hf_xmc.data.tables.headerless import URI

_NUMBER = r"^(0|[1-9][0-9]{0,17})$"


@dataclass(frozen=True)
class LabelLists:
    """The labels of num_rows rows: row int64 (nnz,), key (nnz,) strings or int64, text (nnz,) strings or null."""

    num_rows: int
    rows: np.ndarray
    keys: pa.Array
    texts: pa.Array

    def to_lists(self, ids: pa.Array) -> pa.Array:
        """(N,) lists of int32 made of one id an entry; null ids are left out."""
        kept = ids.is_valid().to_numpy(zero_copy_only=False)
        counts = np.bincount(self.rows[kept], minlength=self.num_rows)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, ids.drop_null().cast(pa.int32()))


def label_lists(entries: Entries, where: Place) -> LabelLists:
    """The key and the text of every label.

    A label is a string, a whole number, or a dict with its own "text" (or "label") and perhaps a "uid" (or "uri",
    "id", "label_id") to be known by. A URI in angle brackets is the URI.

    Raises:
        ValueError: If labels are something else.
    """
    values = entries.values if len(entries.values) else pa.array([], pa.string())
    if pa.types.is_struct(values.type):
        names = [field.name for field in values.type]
        uids, texts = (
            [as_strings(values.field(name), f"{where}, field {name!r}") for name in options if name in names]
            for options in (UID_NAMES, TEXT_NAMES)
        )
        if not uids + texts:
            raise ValueError(f"{where}: labels are dicts of {names}; expected a 'text', and perhaps a 'uid'")
        keys = pc.coalesce(*uids, *texts)
        if keys.null_count:
            row = entries.rows[pc.index(keys.is_null(), True).as_py()]
            raise ValueError(f"{where.row(row)}: a label dict lacks its 'text' or its 'uid'")
        given = pc.coalesce(*texts) if texts else pa.nulls(len(keys), pa.string())
        return LabelLists(entries.num_rows, entries.rows, without_brackets(keys), given)
    if pa.types.is_integer(values.type):
        rows, values = _without_pads(entries, where)
        return LabelLists(entries.num_rows, rows, values.cast(pa.int64()), values.cast(pa.string()))
    if not pa.types.is_string(values.type):
        told = "expected strings, whole numbers, or dicts with a 'text'"
        if pa.types.is_floating(values.type):
            told += "; a pandas column of whole numbers with a missing one is double: make it strings, or 'Int64'"
        raise ValueError(f"{where}: labels are {values.type}; {told}")
    keys = without_brackets(values)
    return LabelLists(entries.num_rows, entries.rows, keys, keys)


def _without_pads(entries: Entries, where: Place) -> tuple[np.ndarray, pa.Array]:
    """The rows and values of whole numbers without -1, which are counted in a warning."""
    kept = pc.greater_equal(entries.values, 0)
    wrong = pc.index(pc.less(entries.values, -1), True).as_py()
    if wrong >= 0:
        told = f"label {entries.values[wrong]} is below 0; expected ids, -1 for none, or strings"
        raise ValueError(f"{where.row(entries.rows[wrong])}: {told}")
    if count := len(kept) - kept.true_count:
        told = f"{count} labels are -1, which stands for none, and are left out"
        warnings.warn(f"{where}: {told}; make labels strings where it is one", stacklevel=2)
    return entries.rows[kept.to_numpy(zero_copy_only=False)], entries.values.filter(kept)


TEXT_NAMES, UID_NAMES = ("text", "label"), ("uid", "uri", "id", "label_id")


def as_strings(column: pa.Array, where: str) -> pa.Array:
    """Strings, and the digits of whole numbers.

    Raises:
        ValueError: For other types, such as dates and fractions, of which a string can be made in several ways.
    """
    if pa.types.is_string(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type):
        return column.cast(pa.string())
    raise ValueError(f"{where} holds {column.type}, not text; make it strings, as they are to be read")


def without_brackets(labels: pa.Array) -> pa.Array:
    """``uri`` for ``<uri>``, as Annif and N-Triples write it; other labels as they are."""
    return pc.replace_substring_regex(labels, rf"^<({URI})>$", r"\1")


@dataclass(frozen=True)
class LabelTable:
    """L labels; label id = row number. keys (L,) strings or int64, texts and uids (L,) strings; by: what keys are."""

    keys: pa.Array
    texts: pa.Array
    uids: pa.Array
    by: str = "uid"

    def ids_of(self, lists: LabelLists) -> pa.Array:
        """(nnz,) int32 ids; null where the table lacks the label."""
        return pc.index_in(lists.keys, value_set=self.keys)


def collect_labels(train: LabelLists, test: LabelLists, keep_unseen: bool) -> LabelTable:
    """All labels of train in ascending order, then those that stand in test alone.

    So an id depends on neither the order of the rows nor on the test table.

    Raises:
        ValueError: If there is no label, or one key comes with two texts.
    """
    known = _sorted_unique(train.keys)
    extra = _sorted_unique(test.keys.filter(pc.invert(pc.is_in(test.keys, value_set=known))))
    keys = pa.concat_arrays([known, extra] if keep_unseen else [known])
    if not len(keys):
        raise ValueError("No row has a label; name the column that has them")
    texts = pa.concat_arrays([train.texts, test.texts])
    given, texts = pa.concat_arrays([train.keys, test.keys]).filter(texts.is_valid()), texts.drop_null()
    own = texts.take(pc.index_in(keys, value_set=given))
    expected = own.take(pc.index_in(given, value_set=keys))
    if len(wrong := np.flatnonzero(pc.not_equal(texts, expected).fill_null(False).to_numpy(zero_copy_only=False))):
        place = int(wrong[0])
        raise ValueError(f"Label {given[place].as_py()!r} has two texts: {expected[place]} and {texts[place]}")
    uids = keys.cast(pa.string())
    return LabelTable(keys, pc.coalesce(own, uids), uids)


def alike(train: LabelLists, test: LabelLists) -> tuple[LabelLists, LabelLists]:
    """Both with keys of one type, where one has none at all.

    Raises:
        ValueError: If both have, of different types.
    """
    if train.keys.type.equals(test.keys.type):
        return train, test
    if not len(test.keys):
        return train, LabelLists(test.num_rows, test.rows, test.keys.cast(train.keys.type), test.texts)
    if not len(train.keys):
        return LabelLists(train.num_rows, train.rows, train.keys.cast(test.keys.type), train.texts), test
    raise ValueError(f"Labels of train are {train.keys.type}, labels of test {test.keys.type}; name them alike")


@dataclass(frozen=True)
class GivenLabels:
    """L labels that a user names: texts (L,) strings, uids (L,) strings or None; is_map: as a map of uids to texts."""

    texts: pa.Array
    uids: pa.Array | None = None
    is_map: bool = False

    def keyed_for(self, keys: pa.Array) -> LabelTable:
        """The table, known by what labels are named by: whichever of uids, texts and row numbers has most of them.

        Args:
            keys: (nnz,) of all rows. Whole numbers are row numbers, unless all uids are whole numbers.

        Raises:
            ValueError: If no label is known by any, or a label by two rows.
        """
        numbers = pa.array(np.arange(len(self.texts)))
        ways = self._ways(keys, numbers)
        named = keys.unique()
        known = {way: pc.is_in(named, value_set=own).true_count for way, own in ways.items()}
        way = max(known, key=lambda way: known[way]) if any(known.values()) else None
        if way is None and len(keys):
            told = f"none of the {len(keys)} labels, such as {keys[0].as_py()!r}, is a {' or a '.join(ways) or 'uid'}"
            raise ValueError(f"{told} of the {len(self.texts)} label_texts, such as {self._example()}")
        by = way or "text"
        own = ways.get(by, self.texts)
        twice = own.filter(pc.is_in(own, value_set=_repeated(own)))
        if len(twice) and (by == "uid" or pc.any(pc.is_in(keys, value_set=twice)).as_py()):
            told = f"Two rows of label_texts are the same {by}: {twice[0].as_py()!r}"
            raise ValueError(f"{told}; give the labels as ids, or by uids of their own")
        uids = self.uids if self.uids is not None else self.texts if by == "text" else numbers.cast(pa.string())
        return LabelTable(own, self.texts, uids, by)

    def _ways(self, keys: pa.Array, numbers: pa.Array) -> dict[str, pa.Array]:
        """What labels may be named by -> (L,) of the type of the keys."""
        whole = pa.types.is_integer(keys.type)
        numbered = self.uids is not None and pc.all(pc.match_substring_regex(self.uids, _NUMBER)).as_py()
        ways = {}
        if self.uids is not None and (numbered or not whole):
            ways["uid"] = self.uids.cast(keys.type)
        if not whole and (numbered or not self.is_map):  # the values of other maps might be uids, and the keys texts
            ways["text"] = self.texts
        if not (self.is_map or numbered) and (whole or pc.all(pc.match_substring_regex(keys, _NUMBER)).as_py()):
            ways["row number"] = numbers.cast(keys.type)
        return ways

    def _example(self) -> str:
        return repr(self.texts[0].as_py()) + ("" if self.uids is None else f" with uid {self.uids[0].as_py()!r}")


def resolve(
    table: LabelTable, lists: Mapping[str, LabelLists], unseen: str | None
) -> tuple[LabelTable, dict[str, pa.Array]]:
    """The ids of every label, by split, and the table they are of.

    Args:
        table: The given labels.
        lists: Split -> labels.
        unseen: "drop" leaves out labels that the table lacks, and says so; "keep" adds them as labels whose text is
            what they are named by.

    Raises:
        ValueError: If the table lacks a label and unseen is None, or the label is a row number.
    """
    ids = {split: table.ids_of(part) for split, part in lists.items()}
    for split, part in lists.items():
        unknown = ids[split].is_null()
        if not pc.any(unknown).as_py():
            continue
        place, names = pc.index(unknown, True).as_py(), _sorted_unique(part.keys.filter(unknown))
        told = (
            f"{split}, row {part.rows[place]}: label {part.keys[place].as_py()!r} is not among the {len(table.keys)} "
        )
        told += f"label_texts, nor are {pc.sum(unknown).as_py() - 1} other entries ({len(names)} labels in all)"
        if unseen is None or (unseen == "keep" and (table.by == "row number" or pa.types.is_integer(names.type))):
            raise ValueError(f"{told}; unseen='drop' leaves them out, 'keep' adds labels that are no numbers")
        warnings.warn(f"{told}; they are {'left out' if unseen == 'drop' else 'added'}", stacklevel=2)
        if unseen == "keep":
            keys, texts, uids = (pa.concat_arrays([own, names]) for own in (table.keys, table.texts, table.uids))
            table = LabelTable(keys, texts, uids, table.by)
            ids = {split: table.ids_of(part) for split, part in lists.items()}
    return table, ids


def tell_repeats(table: LabelTable) -> None:
    """Warn about label texts that stand twice, and about empty ones."""
    if texts := _repeated(table.texts).to_pylist():
        warnings.warn(
            f"{len(texts)} label texts belong to several labels, such as {texts[0]!r}; all stay", stacklevel=2
        )
    empty = table.uids.filter(pc.equal(table.texts, "")).to_pylist()
    if empty:
        warnings.warn(f"{len(empty)} label texts are empty, such as that of {empty[0]!r}; they stay", stacklevel=2)


def _repeated(values: pa.Array) -> pa.Array:
    counts = values.value_counts()
    return counts.filter(pc.greater(counts.field("counts"), 1)).field("values")


def _sorted_unique(keys: pa.Array) -> pa.Array:
    distinct = keys.unique()
    return distinct.take(pc.sort_indices(distinct))
