"""Columns as Arrow arrays: those of a datasets.Dataset in the order of its rows, and those made of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BATCH_ROWS = 1 << 16
# Half of what offsets of 32 bits can tell apart, as what is made of a column may be longer than it is.
_MAX_SMALL_BYTES = 1 << 30


def column_of(dataset: datasets.Dataset, name: str) -> pa.Array:
    """A whole column as one Arrow array, in the order of the rows after any select, filter or shuffle.

    Strings and lists that together take more than a gigabyte are of the large types, with offsets of 64 bits.
    """
    column, rows = dataset.data.column(name), row_mapping(dataset)
    if rows is None:
        return _joined(column.chunks, column.type)
    order = None if (np.diff(rows) >= 0).all() else np.argsort(rows, kind="stable")
    ascending = rows if order is None else rows[order]
    # Chunk by chunk: joined before they are selected from, they would all be copied.
    ends = np.cumsum([0, *map(len, column.chunks)])
    cuts = np.searchsorted(ascending, ends)
    parts = zip(column.chunks, ends[:-1], cuts[:-1], cuts[1:], strict=True)
    taken = _joined(
        [chunk.take(pa.array(ascending[a:b] - first)) for chunk, first, a, b in parts if a < b], column.type
    )
    return taken if order is None else taken.take(pa.array(np.argsort(order)))


def chunks_of(dataset: datasets.Dataset, name: str) -> pa.ChunkedArray:
    """As :func:`column_of`, for reading piece by piece: nothing is copied where rows lie as they are."""
    unchanged = dataset._indices is None
    return dataset.data.column(name) if unchanged else pa.chunked_array([column_of(dataset, name)])


def _joined(arrays: Sequence[pa.Array], type: pa.DataType) -> pa.Array:
    if sum(array.nbytes for array in arrays) > _MAX_SMALL_BYTES:
        type = _large(type)
        arrays = [array.cast(type) for array in arrays]
    if len(arrays) == 1:
        return arrays[0]
    return pa.concat_arrays(arrays) if arrays else pa.array([], type)


def _large(type: pa.DataType) -> pa.DataType:
    """The type with offsets of 64 bits in place of 32."""
    if pa.types.is_string(type):
        return pa.large_string()
    if pa.types.is_binary(type):
        return pa.large_binary()
    if pa.types.is_list(type):
        return pa.large_list(_large(type.value_type))
    return type


def row_mapping(dataset: datasets.Dataset) -> np.ndarray | None:
    """int64 (N,): the place in ``dataset.data`` of each row, or None where rows lie as they are.

    ``dataset.data`` ignores select, filter and shuffle, and ``flatten_indices``, the public way round it, is 40 times
    slower than a take.
    """
    return None if dataset._indices is None else dataset._indices.column(0).to_numpy().astype(np.int64)


def join_texts(columns: Sequence[pa.Array]) -> pa.Array:
    """(N,) strings: the values of each row that are neither null nor empty, joined by a space; "" where all are."""
    if len(columns) == 1:
        return pc.fill_null(columns[0], "")
    if any(pa.types.is_large_string(column.type) for column in columns):
        columns = [column.cast(pa.large_string()) for column in columns]
    columns = [pc.if_else(pc.equal(column, ""), None, column) for column in columns]
    # Arrow 26 leaves out a row of nulls alone, so that the array would be shorter.
    columns[0] = pc.if_else(pc.is_null(pc.coalesce(*columns)), "", columns[0])
    space = pa.scalar(" ", columns[0].type)
    return pc.binary_join_element_wise(*columns, space, null_handling="skip")


def list_lengths(lists: pa.Array) -> np.ndarray:
    """int64 (N,) lengths; 0 for null."""
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def with_labels(dataset: datasets.Dataset, kept: np.ndarray) -> datasets.Dataset:
    """The same rows with only some entries of ``label_ids`` and ``label_weights``; kept is (nnz,) bool, row by row."""
    table = table_of(dataset)
    ends = np.cumsum(list_lengths(column_of(dataset, "label_ids")))
    offsets = np.concatenate([[0], np.concatenate([[0], np.cumsum(kept)])[ends]])
    for name in {"label_ids", "label_weights"} & set(table.column_names):
        values = column_of(dataset, name).flatten().filter(pa.array(kept))
        lists = pa.LargeListArray.from_arrays(pa.array(offsets), values)
        place = table.column_names.index(name)
        table = table.set_column(place, name, lists.cast(table.schema.field(name).type))
    return datasets.Dataset(table)


def table_of(dataset: datasets.Dataset) -> pa.Table:
    """All columns, in the order of the rows; nothing is copied where no select, filter or shuffle came before."""
    if dataset._indices is None:
        return dataset.data.table
    table = pa.table({name: column_of(dataset, name) for name in dataset.column_names})
    schema = dataset.data.table.schema
    return table.replace_schema_metadata(schema.metadata) if table.schema.equals(schema) else table


def check_names(where: str, header: Sequence[str], columns: Sequence[str]) -> None:
    """Refuse a table that lacks a column, or has it twice.

    Raises:
        ValueError: Naming the column and those that are there.
    """
    if list(header) in ([], [""]):
        raise ValueError(f"{where} is empty; expected the names of columns, such as {', '.join(columns) or 'text'}")
    for name in columns:
        if header.count(name) != 1:
            told = f"no column {name!r}" if name not in header else f"several columns {name!r}"
            raise ValueError(f"{where} has {told}; it has {list(header)}")


def trimmed(header: list[str], columns: Sequence[str] | None) -> list[str]:
    """The names of a file's columns, without white space around them unless the wanted columns have it."""
    return header if columns is not None and set(columns) <= set(header) else [name.strip() for name in header]


def table_of_rows(
    path: Path | str,
    names: Sequence[str],
    rows: Iterable[Sequence[Any]],
    types: Sequence[pa.DataType | None] | None = None,
) -> pa.Table:
    """The rows of a file as a table.

    Args:
        path: What errors call the file or table.
        names: Of the columns.
        rows: One value a column each.
        types: Of the columns; None takes what the values are.

    Raises:
        ValueError: If a column has values of several types.
    """
    types = types or [None] * len(names)
    tables = [pa.table([pa.array([], type or pa.null()) for type in types], list(names))]
    for batch in _batches(iter(rows)):
        columns = zip(names, zip(*batch, strict=True), types, strict=True)
        tables.append(pa.table([_array(path, *column) for column in columns], list(names)))
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{path} has a column of mixed types ({error}); make its values all one type") from error


def _batches(rows: Iterator[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch


def _array(path: Path | str, name: str, values: Sequence[Any], type: pa.DataType | None) -> pa.Array:
    try:
        return pa.array(values, type)
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        told = f"{path}, column {name!r}: {error}"
        raise ValueError(f"{told}; make its values all one type, of valid Unicode") from error
