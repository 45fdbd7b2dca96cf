"""A table of one's own -> texts, a label table with stable ids, and label ids by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.exceptions import DatasetGenerationError

from hf_xmc.data.columns import column_of, join_texts, list_lengths

_READERS = {
    ".csv": datasets.Dataset.from_csv,
    ".tsv": lambda path: datasets.Dataset.from_csv(path, sep="\t"),
    ".json": datasets.Dataset.from_json,
    ".jsonl": datasets.Dataset.from_json,
    ".parquet": datasets.Dataset.from_parquet,
}


def read_table(source: Any) -> datasets.Dataset:
    """A ``datasets`` table, pandas frame or Arrow table as it is, or a CSV, TSV, JSON lines or Parquet file."""
    if isinstance(source, datasets.Dataset):
        return source
    if isinstance(source, pa.Table):
        return datasets.Dataset(source)
    if isinstance(source, str | Path):
        return _read_file(Path(source))
    if hasattr(source, "iloc"):
        try:
            return datasets.Dataset.from_pandas(source, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f"The frame has a column of mixed types: {error}. Make its values all one type"
            ) from error
    raise ValueError(
        f"Cannot read a table from a {type(source).__name__}; expected a datasets.Dataset, a pandas frame, "
        "or the path of a CSV or JSON lines file"
    )


def _read_file(path: Path) -> datasets.Dataset:
    reader = _READERS.get(Path(path.name.removesuffix(".gz")).suffix)
    if reader is None:
        raise ValueError(f"{path} ends in none of {', '.join(_READERS)} (or those with .gz)")
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        return reader(str(path))
    except DatasetGenerationError as error:
        raise ValueError(f"{path} cannot be read: {error.__cause__ or error}") from error


def split_table(source: Any, test: Any = None) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The train and the test table of a table, or of a mapping with the keys "train" and perhaps "test"."""
    if isinstance(source, Mapping):
        if "train" not in source:
            raise ValueError(f"The tables are named {sorted(source)}; expected 'train' and perhaps 'test'")
        test = source.get("test") if test is None else test
        source = source["train"]
    train = read_table(source)
    return train, train.select([]) if test is None else read_table(test)


def texts_of(table: datasets.Dataset, columns: str | Sequence[str], where: str) -> pa.Array:
    """(N,) strings of one column, or of several joined by a space; null is ""."""
    columns = [columns] if isinstance(columns, str) else list(columns)
    return join_texts([_column(table, name, where).cast(pa.string()) for name in columns])


def _column(table: datasets.Dataset, name: str, where: str) -> pa.Array:
    if name not in table.column_names:
        raise ValueError(f"{where} has no column {name!r}; it has {table.column_names}")
    column = column_of(table, name)
    return column.cast(pa.string()) if pa.types.is_large_string(column.type) else column


@dataclass(frozen=True)
class LabelLists:
    """The labels of N rows: row int64 (nnz,), key (nnz,) strings or int64, text (nnz,) strings; N = num_rows."""

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


def label_lists(table: datasets.Dataset, column: str, separator: str | None, where: str) -> LabelLists:
    """Read a column whose cells are one label or a list of labels.

    A label is a string, a whole number, or a dict with its own "text" and perhaps a "uid" to be known by.

    Args:
        table: With the column.
        column: Its name.
        separator: Splits cells that are strings into several labels; None takes such a cell as one label.
        where: How errors call the table.
    """
    cells = _column(table, column, where)
    if separator is not None and pa.types.is_string(cells.type):
        cells = pc.split_pattern(cells, separator)
    if pa.types.is_fixed_size_list(cells.type):
        cells = cells.cast(pa.list_(cells.type.value_type))
    if is_list := pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type):
        rows, values = np.repeat(np.arange(len(cells)), list_lengths(cells)), cells.flatten()
    else:
        rows = np.flatnonzero(cells.is_valid().to_numpy(zero_copy_only=False))
        values = cells.drop_null()
    if separator is not None and is_list:
        values = pc.utf8_trim_whitespace(values)
        given = pc.not_equal(values, "")
        rows, values = rows[given.to_numpy(zero_copy_only=False)], values.filter(given)
    if values.null_count:
        row = rows[pc.index(values.is_null(), True).as_py()]
        raise ValueError(f"{where}, row {row}, column {column!r}: a label is null; remove it from the list")
    keys, texts = _keys_and_texts(values, table.features[column], f"{where}, column {column!r}")
    return LabelLists(len(cells), rows, keys, texts)


def _keys_and_texts(values: pa.Array, feature: Any, where: str) -> tuple[pa.Array, pa.Array]:
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    if isinstance(feature, datasets.ClassLabel):
        values = pa.array(feature.names, pa.string()).take(values)
    if pa.types.is_null(values.type):
        values = values.cast(pa.string())
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = values.cast(pa.string())  # inside a list they may still be large
        return values, values
    if pa.types.is_integer(values.type):
        return values.cast(pa.int64()), values.cast(pa.string())
    if pa.types.is_struct(values.type) and "text" in (names := {field.name for field in values.type}):
        texts = values.field("text").cast(pa.string())
        keys = values.field("uid").cast(pa.string()) if "uid" in names else texts
        if texts.null_count or keys.null_count:
            raise ValueError(f"{where}: a label dict lacks its 'text' or its 'uid'")
        return keys, texts
    raise ValueError(f"{where}: labels are {values.type}; expected strings, whole numbers, or dicts with a 'text'")


@dataclass(frozen=True)
class LabelTable:
    """L labels; label id = row number. keys (L,) strings or int64, texts (L,) strings."""

    keys: pa.Array
    texts: pa.Array

    def ids_of(self, lists: LabelLists) -> pa.Array:
        """(nnz,) int32 ids; null where the table lacks the label."""
        return pc.index_in(lists.keys, value_set=self.keys)


def collect_labels(train: LabelLists, test: LabelLists, keep_unseen: bool) -> LabelTable:
    """All labels of train in ascending order, then those that stand in test alone.

    So an id depends on neither the order of the rows nor on the test table.

    Raises:
        ValueError: If one key comes with two texts, or train and test name labels in different ways.
    """
    if not train.keys.type.equals(test.keys.type):
        if len(test.keys):
            raise ValueError(
                f"Labels of train are {train.keys.type}, labels of test {test.keys.type}; name them alike"
            )
        test = LabelLists(test.num_rows, test.rows, test.keys.cast(train.keys.type), test.texts)
    known = _sorted_unique(train.keys)
    extra = _sorted_unique(test.keys.filter(pc.invert(pc.is_in(test.keys, value_set=known))))
    keys = pa.concat_arrays([known, extra] if keep_unseen else [known])
    all_keys, all_texts = pa.concat_arrays([train.keys, test.keys]), pa.concat_arrays([train.texts, test.texts])
    texts = all_texts.take(pc.index_in(keys, value_set=all_keys))
    expected = texts.take(pc.index_in(all_keys, value_set=keys))
    if len(wrong := np.flatnonzero(pc.not_equal(all_texts, expected).fill_null(False).to_numpy(zero_copy_only=False))):
        place = int(wrong[0])
        raise ValueError(f"Label {all_keys[place].as_py()!r} has two texts: {expected[place]} and {all_texts[place]}")
    return LabelTable(keys, texts)


def given_labels(label_texts: Any, lists: LabelLists) -> LabelTable:
    """The labels given as a list of texts, or as a table with ``text`` and perhaps ``uid``, keyed as ``lists`` are."""
    if not isinstance(label_texts, datasets.Dataset):
        label_texts = datasets.Dataset(pa.table({"text": pa.array(label_texts, pa.string())}))
    texts = texts_of(label_texts, "text", "label_texts")
    if pa.types.is_integer(lists.keys.type):
        return LabelTable(pa.array(np.arange(len(texts))), texts)
    keys = texts_of(label_texts, "uid", "label_texts") if "uid" in label_texts.column_names else texts
    if pc.count_distinct(keys).as_py() < len(keys):
        raise ValueError("Two rows of label_texts are the same; give the labels as ids, or as dicts with a 'uid'")
    return LabelTable(keys, texts)


def check_known(ids: pa.Array, lists: LabelLists, table: LabelTable, where: str) -> None:
    """Refuse labels that the given table lacks.

    Raises:
        ValueError: Naming the first of them and its row.
    """
    if ids.null_count:
        place = pc.index(ids.is_null(), True).as_py()
        told = f"label {lists.keys[place].as_py()!r} is not among the {len(table.keys)} label_texts"
        raise ValueError(f"{where}, row {lists.rows[place]}: {told}")


def _sorted_unique(keys: pa.Array) -> pa.Array:
    distinct = keys.unique()
    return distinct.take(pc.sort_indices(distinct))
