"""The labels that a user names, as a list, a map, a table or a file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from hf_xmc.data.tables.labels import TEXT_NAMES, UID_NAMES, GivenLabels, as_strings, without_brackets
from hf_xmc.data.tables.read import read_table
from hf_xmc.data.tables.skos import FORMATS, read_skos
from hf_xmc.data.tables.text_lines import text_lines
from hf_xmc.hub.checks_xmc import checked_texts
from hf_xmc.hub.filters_xmc import is_integer

WHERE = "label_texts"


def read_label_texts(source: Any) -> GivenLabels:
    """Labels in the order of their ids.

    Args:
        source: A list, array or column of texts; a map of uid to text (``id2label``) or of text to whole number
            (``label2id``), in the order of their numbers where they have them; a table with ``text`` and perhaps
            ``uid`` (or ``uri``, ``id``, ``label_id``); a pandas series or frame, whose index is the uids unless it
            is 0, 1, 2 ...; a ClassLabel; or a file: such a table, one text a line (``.txt``), a map or a
            ``config.json`` in JSON, or a SKOS vocabulary.

    Raises:
        ValueError: For anything else, or a text that is none; its place and type are named.
    """
    if isinstance(source, str | Path):
        source = _read_file(Path(source).expanduser())
    if isinstance(source, datasets.ClassLabel):
        source = source.names
    if isinstance(source, list) and source and all(isinstance(row, Mapping) for row in source):
        source = {
            name: [row.get(name) for row in source] for name in dict.fromkeys(name for row in source for name in row)
        }
    if isinstance(source, Mapping):
        source = source["id2label"] if isinstance(source.get("id2label"), Mapping) else source
        is_table = source and all(isinstance(column, list | tuple) for column in source.values())
        given = _of_table(_table_of_columns(source)) if is_table else _of_map(list(source), list(source.values()))
    elif isinstance(source, datasets.Dataset | pa.Table) or hasattr(source, "columns"):
        if _has_index(source) and not {*UID_NAMES} & {*source.columns}:
            source = source.assign(uid=source.index)
        given = _of_table(read_table(source, None, WHERE))
    elif _has_index(source):
        given = _of_map(source.index.tolist(), source.tolist())
    else:
        given = GivenLabels(_texts(source))
    if not len(given.texts):
        raise ValueError(f"{WHERE} is empty; expected at least one text")
    return given


def _has_index(source: Any) -> bool:
    """Whether it is a pandas series or frame whose rows are known by something else than their numbers."""
    return hasattr(source, "iloc") and source.index.tolist() != list(range(len(source)))


def _texts(texts: Any) -> pa.Array:
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    if isinstance(texts, pa.Array) and pa.types.is_string(texts.type) and not texts.null_count:
        return texts
    try:
        return pa.array(checked_texts(texts), pa.string())
    except ValueError as error:
        raise ValueError(f"{WHERE}: {error}") from error


def _of_map(uids: list[Any], texts: list[Any]) -> GivenLabels:
    if texts and all(map(is_integer, texts)):
        texts, uids = uids, texts
    if wrong := [uid for uid in uids if not isinstance(uid, str) and not is_integer(uid)]:
        raise ValueError(f"{WHERE} is a map of {wrong[0]!r:.80} ({type(wrong[0]).__name__}); expected uid to text")
    uids = [str(uid) for uid in uids]
    twice, count = Counter(uids).most_common(1)[0] if uids else ("", 1)
    if count > 1:
        told = "expected a uid a text (reset_index numbers the rows of a series)"
        raise ValueError(f"{WHERE} is a map in which {twice} stands twice; {told}")
    order = list(range(len(uids)))
    if all(re.fullmatch(r"0|[1-9]\d*", uid, re.ASCII) for uid in uids):
        order = sorted(order, key=lambda place: int(uids[place]))
    columns = [_texts([column[place] for place in order]) for column in (texts, uids)]
    return GivenLabels(columns[0], columns[1], is_map=True)


def _table_of_columns(columns: Mapping[str, Any]) -> pa.Table:
    try:
        return pa.table({str(name): pa.array(values) for name, values in columns.items()})
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{WHERE} is no table of texts: {error}; expected columns 'text' and perhaps 'uid'"
        ) from error


def _of_table(table: pa.Table) -> GivenLabels:
    columns = []
    for names in (TEXT_NAMES, UID_NAMES):
        name = next((name for name in names if name in table.column_names), None)
        columns.append(None if name is None else as_strings(table.column(name).combine_chunks(), f"{WHERE}, {name!r}"))
        if columns[-1] is not None and columns[-1].null_count:
            raise ValueError(
                f"{WHERE}, column {name!r}, row {pc.index(columns[-1].is_null(), True)}: expected text, got null"
            )
    texts, uids = columns
    if texts is None:
        raise ValueError(f"{WHERE} has no column 'text'; it has {table.column_names}")
    return GivenLabels(texts, None if uids is None else without_brackets(uids))


def _read_file(path: Path) -> Any:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in FORMATS:
        return read_skos(path)
    if suffix in (".txt", ".json"):
        if not path.is_file():
            raise ValueError(f"{path} does not exist")
        return _read_lines(path) if suffix == ".txt" else _read_json(path)
    return read_table(path, None, WHERE)


def _read_lines(path: Path) -> list[str]:
    lines = [line.removesuffix("\n").removesuffix("\r") for line in text_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _read_json(path: Path) -> Any:
    try:
        value = json.loads("".join(text_lines(path)))
    except (json.JSONDecodeError, RecursionError):  # an object a line
        return read_table(path, None, WHERE)
    if not isinstance(value, dict | list):
        raise ValueError(f"{path} holds a {type(value).__name__}; expected a map of uid to text, a list or a table")
    return value
