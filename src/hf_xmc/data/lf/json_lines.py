"""Raw LF files of one JSON object a line -> Arrow tables."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from hf_xmc.data.columns import join_texts
from hf_xmc.data.lf import read
from hf_xmc.data.lf.read import bad_line, read_blocks

_IDS, _WEIGHTS = pa.list_(pa.int32()), pa.list_(pa.float32())
_MAX_DEPTH = 100


def read_json(path: Path | str, schema: pa.Schema) -> Iterator[tuple[int, pa.Table]]:
    """Yield (number of its first line, table) for every block of a JSON lines file, one row a line.

    Args:
        path: The file.
        schema: The fields to read: strings, lists of int32, lists of float32. Others are ignored, absent ones are
            null.
    """
    blank = None
    for first, block in read_blocks(path):
        body = block.rstrip()
        if body and blank:
            raise bad_line(path, blank, "the line is empty; expected one JSON object, as the line number is the id")
        lines = body.count(b"\n") + 1 if body else 0
        if block.count(b"\n") > lines:
            blank = blank or first + lines
        if lines:
            _check_depth(path, first, body)
            table = _parse_json(body, lines, schema)
            yield first, _parse_json_lines(path, first, body, schema) if table is None else table


def _check_depth(path: Path | str, first: int, body: bytes) -> None:
    """Refuse deep nesting, which neither parser looks at in the same way."""
    characters = np.frombuffer(body, np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))
    openers = np.flatnonzero((characters == ord("[")) | (characters == ord("{")))
    counts = np.bincount(np.searchsorted(ends, openers), minlength=len(ends) + 1)
    for line in np.flatnonzero(counts > _MAX_DEPTH).tolist():
        start, stop = ends[line - 1] + 1 if line else 0, ends[line] if line < len(ends) else len(body)
        brackets = re.sub(rb'"(?:[^"\\]|\\.)*"|[^][{}]', b"", body[start:stop])
        steps = np.where(np.isin(np.frombuffer(brackets, np.uint8), (ord("["), ord("{"))), 1, -1)
        if steps.cumsum().max(initial=0) > _MAX_DEPTH:
            raise bad_line(path, first + line, f"the JSON is nested more than {_MAX_DEPTH} deep; expected one object")


def _parse_json(body: bytes, lines: int, schema: pa.Schema) -> pa.Table | None:
    """The block as Arrow reads it, or None where a slow look is due."""
    # Arrow 26 crashes on a line that is a bare null, so nothing but objects may reach it.
    if not body.startswith(b"{") or body.count(b"\n{") != lines - 1:
        return None
    options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = pa.json.read_json(io.BytesIO(body), pa.json.ReadOptions(block_size=read.BLOCK_BYTES // 4), options)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    return table.combine_chunks() if table.num_rows == lines else None


def _parse_json_lines(path: Path | str, first: int, body: bytes, schema: pa.Schema) -> pa.Table:
    records = []
    for line, text in enumerate(body.split(b"\n"), first):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            told = "is empty" if not text.strip() else f"is not JSON ({error})"
            raise bad_line(path, line, f"the line {told}; expected one JSON object") from None
        if not isinstance(record, dict):
            raise bad_line(path, line, f"the line is a JSON {type(record).__name__}; expected an object")
        try:
            values = {}
            for field in schema:
                values[field.name] = _CONVERTERS.get(field.type, _as_text)(record.get(field.name), field.name)
        except ValueError as error:
            raise bad_line(path, line, str(error), field.name) from None
        records.append(values)
    return pa.Table.from_pylist(records, schema=schema)


def _as_text(value: object, name: str) -> str | None:
    if name == "uid" and type(value) is int:
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{value!r:.80} is not text")
    if value is not None and re.search("[\ud800-\udfff]", value):
        raise ValueError("the text holds one half of a surrogate pair, which no UTF-8 file can keep; remove it")
    return value


def _as_ids(value: object, name: str) -> list[int] | None:
    if (ids := _as_list(value)) is None:
        return None
    for place, id in enumerate(ids):
        if isinstance(id, str) and re.fullmatch(r"\s*[+-]?\d+\s*", id, re.ASCII):
            id = ids[place] = int(id)
        elif isinstance(id, float) and id.is_integer():
            id = ids[place] = int(id)
        if type(id) is not int:
            raise ValueError(f"{id!r:.80} is not a label id; expected a whole number")
        if not -(2**31) <= id < 2**31:
            raise ValueError(f"label id {id} is out of range")
    return ids


def _as_weights(value: object, name: str) -> list[float] | None:
    weights = _as_list(value)
    return None if weights is None else [_as_weight(weight) for weight in weights]


def _as_weight(value: Any) -> float:
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{value!r:.80} is not a weight; expected a number")


def _as_list(value: object) -> list | None:
    """A list given as such, or as a string: "[1, 2]", "1, 2" or "1 2"."""
    if isinstance(value, str):
        return re.findall(r"[^\s,\[\]]+", value)
    if value is not None and not isinstance(value, list):
        raise ValueError(f"{value!r:.80} is not a list")
    return list(value) if value is not None else None


_CONVERTERS = {_IDS: _as_ids, _WEIGHTS: _as_weights}


def join_fields(table: pa.Table, fields: Sequence[str]) -> pa.Array:
    """(rows,) strings: the fields that are neither missing nor empty, joined by a space; "" where all are."""
    return join_texts([_array(table, field) for field in fields])


def check_targets(path: Path | str, first: int, table: pa.Table, num_labels: int) -> tuple[pa.Array, pa.Array]:
    """The label ids (``target_ind``) and weights (``target_rel``) of a block, checked.

    Args:
        path: The file.
        first: The line of the table's first row.
        table: With lists of int32 and of float32 in the two fields; null ids are no labels, null weights are ones.
        num_labels: Ids must be below.

    Returns:
        (rows,) lists of int32 and (rows,) lists of float32 of equal lengths.

    Raises:
        ValueError: If an id is out of range, or a weight is missing, negative or not finite; the line is named.
    """
    ids = pc.coalesce(_array(table, "target_ind"), pa.scalar([], _IDS))
    weights = _array(table, "target_rel")
    lengths = pc.list_value_length(ids).to_numpy()
    rows = np.repeat(np.arange(len(ids)), lengths)  # (nnz,)
    flat = pc.fill_null(ids.flatten(), -1).to_numpy()
    if len(wrong := np.flatnonzero((flat < 0) | (flat >= num_labels))):
        told = f"label id {ids.flatten()[wrong[0]]} is out of range; there are {num_labels} labels, counted from 0"
        raise bad_line(path, first + int(rows[wrong[0]]), told, "target_ind")
    given = pc.is_valid(weights).to_numpy(zero_copy_only=False)
    weight_lengths = pc.fill_null(pc.list_value_length(weights), 0).to_numpy()
    if len(wrong := np.flatnonzero(given & (weight_lengths != lengths))):
        told = f"{weight_lengths[wrong[0]]} weights for {lengths[wrong[0]]} label ids in 'target_ind'"
        raise bad_line(path, first + int(wrong[0]), told, "target_rel")
    values = np.ones(len(flat), np.float32)
    values[given[rows]] = pc.fill_null(weights.flatten(), np.nan).to_numpy()
    if len(wrong := np.flatnonzero(~(values >= 0) | np.isinf(values))):
        told = f"weight {values[wrong[0]]} of a label; expected a finite number, 0 or more"
        raise bad_line(path, first + int(rows[wrong[0]]), told, "target_rel")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return ids, pa.ListArray.from_arrays(offsets, values)


def _array(table: pa.Table, name: str) -> pa.Array:
    return table.column(name).combine_chunks()
