"""Whatever a user's table is -> an Arrow table of plain columns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_xmc.data.columns import check_names, column_of, list_lengths, table_of_rows
from hf_xmc.data.tables.delimited import read_csv, read_tsv
from hf_xmc.data.tables.json_table import read_json_table
from hf_xmc.data.tables.xlsx import read_xlsx


def _read_parquet(path: Path, columns: Sequence[str] | None) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names if columns is None else columns
        check_names(str(path), file.schema_arrow.names, names)
        return file.read(list(names))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged, or no Parquet file: {error}") from error


_READERS: dict[str, Callable[[Path, Sequence[str] | None], pa.Table]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".txt": read_tsv,
    ".json": read_json_table,
    ".jsonl": read_json_table,
    ".parquet": _read_parquet,
    ".xlsx": read_xlsx,
}


def split_tables(source: Any, test: Any, columns: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """The train and the test table of a table, or of a mapping with the keys "train" and perhaps "test".

    Args:
        source: See :func:`read_table`.
        test: The test table, None for no test rows.
        columns: Those of the texts, of the labels, and the rest; each table has exactly these.
    """
    if isinstance(source, Mapping):
        if "train" not in source or not set(source) <= {"train", "test"}:
            raise ValueError(f"The tables are named {sorted(map(str, source))}; expected 'train' and perhaps 'test'")
        test = source.get("test") if test is None else test
        source = source["train"]
    train = read_table(source, columns, "train")
    if not len(train):
        raise ValueError(f"train has no rows; it has the columns {train.column_names}")
    return train, train.slice(0, 0) if test is None else read_table(test, columns, "test")


def read_table(source: Any, columns: Sequence[str] | None, where: str) -> pa.Table:
    """A table with some columns of a ``datasets`` table, pandas frame, Arrow table or file.

    Args:
        source: The table, or a list of its rows as dicts; a file is CSV, TSV, JSON lines, Parquet or Excel, by its
            suffix.
        columns: The wanted ones, the texts first and then the labels; None for all.
        where: How errors call the table.

    Returns:
        Columns of strings, numbers, lists and structs: a ClassLabel is its name (null where it is -1), dictionaries
        are their values.

    Raises:
        ValueError: If it cannot be read or lacks a column.
    """
    if isinstance(source, str | Path):
        return _plain_table(_read_file(Path(source).expanduser(), columns), {}, where)
    if isinstance(source, list) and source and all(isinstance(row, Mapping) for row in source):
        source = _table_of_dicts(source, columns, where)
    if isinstance(source, datasets.Dataset):
        names = source.column_names if columns is None else columns
        check_names(where, source.column_names, names)
        table = pa.table([column_of(source, name) for name in names], names=list(names))
        return _plain_table(table, source.features, where)
    if isinstance(source, pa.Table):
        names = source.column_names if columns is None else columns
        check_names(where, source.column_names, names)
        return _plain_table(source.select(list(names)), {}, where)
    if hasattr(source, "iloc") and hasattr(source, "columns"):
        return _plain_table(_table_of_frame(source, columns, where), {}, where)
    raise ValueError(
        f"Cannot read a table from a {type(source).__name__}; expected a datasets.Dataset, a pandas frame, an Arrow "
        "table, a list of dicts, or the path of a CSV, TSV, JSON lines, Parquet or Excel file"
    )


def _read_file(path: Path, columns: Sequence[str] | None) -> pa.Table:
    reader = _READERS.get(Path(path.name.removesuffix(".gz")).suffix.lower())
    if reader is None:
        raise ValueError(f"{path} ends in none of {', '.join(_READERS)} (or those with .gz)")
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    return reader(path, columns)


def _table_of_dicts(source: list[Mapping[str, Any]], columns: Sequence[str] | None, where: str) -> pa.Table:
    header = list(dict.fromkeys(name for row in source for name in row))
    names = header if columns is None else columns
    check_names(where, header, names)
    return table_of_rows(where, names, ([row.get(name) for name in names] for row in source))


def _table_of_frame(frame: Any, columns: Sequence[str] | None, where: str) -> pa.Table:
    if columns is not None:
        check_names(where, list(frame.columns), columns)
        frame = frame[list(columns)]
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"The frame has a column of mixed types: {error}. Make its values all one type") from error


def _plain_table(table: pa.Table, features: Mapping[str, Any], where: str) -> pa.Table:
    columns = []
    for name in table.column_names:
        try:
            column = table.column(name).combine_chunks()
            column.validate(full=True)
            columns.append(_plain(_named(column, features.get(name))))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{where}, column {name!r} is damaged or of no use here: {error}") from error
    return pa.table(columns, table.column_names)


def _named(column: pa.Array, feature: Any) -> pa.Array:
    """The names of class labels, null for -1, which datasets takes for an unknown one; lists lose it."""
    if isinstance(feature, datasets.List | datasets.LargeList):
        if isinstance(feature.feature, datasets.ClassLabel):
            column = _without_unknown(column)
        return _with_values(column, _named(column.flatten(), feature.feature))
    if isinstance(feature, Mapping):
        return _with_fields(column, lambda values, name: _named(values, feature[name]))
    if not isinstance(feature, datasets.ClassLabel):
        return column
    unlabeled = pc.equal(column, -1)
    return pa.array(feature.names, pa.string()).take(pc.if_else(unlabeled, None, column))


def _without_unknown(lists: pa.Array) -> pa.Array:
    values = lists.flatten()
    known = pc.fill_null(pc.not_equal(values, -1), True)
    if not (count := len(known) - known.true_count):
        return lists
    warnings.warn(f"{count} class labels are -1, which stands for an unknown one, and are left out", stacklevel=2)
    rows = np.repeat(np.arange(len(lists)), list_lengths(lists))
    counts = np.bincount(rows[known.to_numpy(zero_copy_only=False)], minlength=len(lists))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    mask = lists.is_null() if lists.null_count else None
    return pa.ListArray.from_arrays(offsets, values.filter(known), mask=mask)


_AS_STRINGS = (pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())


def _plain(column: pa.Array) -> pa.Array:
    """The same values without dictionaries, extension types and the large and fixed forms of strings and lists."""
    types = pa.types
    if isinstance(column, pa.ExtensionArray):
        return _plain(column.storage)
    if types.is_dictionary(column.type):
        return _plain(column.dictionary_decode())
    if column.type in _AS_STRINGS:
        return column.cast(pa.string())
    if types.is_struct(column.type):
        return _with_fields(column, lambda values, _: _plain(values))
    if types.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    if types.is_list(column.type) or types.is_large_list(column.type):
        return _with_values(column, _plain(column.flatten()))
    return column


def _with_fields(structs: pa.StructArray, made: Callable[[pa.Array, str], pa.Array]) -> pa.Array:
    """The structs, null where they are, with other values in their fields."""
    names = [field.name for field in structs.type]
    fields = [made(values, name) for name, values in zip(names, structs.flatten(), strict=True)]
    return pa.StructArray.from_arrays(fields, names, mask=structs.is_null()) if fields else structs


def _with_values(lists: pa.Array, values: pa.Array) -> pa.ListArray:
    """The lists, null where they are, with other values in them."""
    offsets = np.concatenate([[0], np.cumsum(list_lengths(lists))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values, mask=lists.is_null() if lists.null_count else None)
