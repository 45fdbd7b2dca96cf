"""JSON lines, or one JSON array of objects -> tables; nothing but JSON's own types is guessed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_xmc.data.columns import check_names, table_of_rows
from hf_xmc.data.lf.read import bad_line
from hf_xmc.data.tables.text_lines import text_lines


def read_json_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The fields of the objects of a file, all of them by default.

    Raises:
        ValueError: If the file holds no object, a line is not one, a field is in none of them, or has values of
            several types.
    """
    records, seen = _records(path), dict[str, None]()
    if columns is None:
        whole = list(records)
        columns = list(dict.fromkeys(name for record in whole for name in record))
        records = iter(whole)

    def rows() -> Iterator[list[Any]]:
        for record in records:
            seen.update(dict.fromkeys(record))
            yield [record.get(name) for name in columns]

    table = table_of_rows(path, columns, rows())
    if not len(table):
        raise ValueError(f"{path} is empty; expected a JSON object a line")
    check_names(str(path), list(seen), columns)
    return table


def _records(path: Path) -> Iterator[dict[str, Any]]:
    lines, first = text_lines(path), True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if first and line.lstrip().startswith("["):
            yield from _objects(path, number, _parse(path, number, line + "".join(lines)))
        else:
            yield from _objects(path, number, [_parse(path, number, line)])
        first = False


def _parse(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad_line(path, line, f"it is not JSON ({error}); expected one object a line") from error


def _objects(path: Path, line: int, values: list[Any]) -> list[dict[str, Any]]:
    for value in values:
        if not isinstance(value, dict):
            raise bad_line(path, line, f"it holds a {type(value).__name__}, {value!r:.80}; expected objects")
    return values
