"""Label cells -> entries of (row, value): one label, a list, a list written out as a string, or a row of 0 and 1."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_xmc.data.columns import list_lengths

_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_VALUE = rf"(?:{_STRING}|None|True|False|-?(?:0|[1-9]\d*))"
_PYTHON_LIST = re.compile(
    rf"\[\s*(?:{_VALUE}\s*(?:,\s*{_VALUE}\s*)*,?\s*)?\]"
    rf"|[({{]\s*(?:{_STRING})\s*(?:,\s*(?:{_STRING})\s*)*,?\s*[)}}]",
    re.DOTALL,
)
# What begins and ends as a list does, so that it is no name: quotes, numbers and truth values in brackets, calls.
_LIKE_A_LIST = re.compile(
    r"""\[\s*(?:["'{\[\-+.\d].*|(?:True|False|None|nan)\b.*)?\]|[({]\s*["'].*["']\s*,?\s*[)}]"""
    r"""|(?:array|(?:frozen)?set|list|tuple|deque|dict_keys)\([\[{].*[\]}].*\)""",
    re.DOTALL,
)
_WORDS_IN_BRACKETS = re.compile(r"\[[^\[\]]*\]|\{[^{}]*\}")  # a list only where all cells are
_ZEROS_AND_ONES = ("0", "1", "0.0", "1.0", "False", "True", "false", "true")  # zeros at even places


@dataclass(frozen=True)
class Entries:
    """What stands in the label cells of num_rows rows: row int64 (nnz,) in ascending order, value (nnz,)."""

    num_rows: int
    rows: np.ndarray
    values: pa.Array


@dataclass(frozen=True)
class Place:
    """Where labels stand, as errors call it."""

    split: str
    column: str

    def __str__(self) -> str:
        return f"{self.split}, column {self.column!r}"

    def row(self, row: int) -> str:
        """One row of it."""
        return f"{self.split}, row {row}, column {self.column!r}"


def read_entries(cells: pa.Array, separator: str | None, where: Place) -> Entries:
    """The labels of a column.

    A cell that is null or an empty string has none. Where every other cell of a column of strings is a list as JSON or
    Python writes it, its members are the labels.

    Args:
        cells: (N,) labels, lists of labels, or strings.
        separator: Splits cells that are strings, white space aside, into several labels.
        where: What errors call the column.

    Raises:
        ValueError: If some cells are lists and others are not, a cell looks like a list that cannot be read, or a
            label within a list is null or empty; the row is named.
    """
    if cells.null_count:
        row = pc.index(cells.is_null(), True).as_py()
        told = f"{cells.null_count} of {len(cells)} rows have null for labels, the first is row {row}"
        warnings.warn(f"{where}: {told}; they are kept without labels", stacklevel=2)
    if pa.types.is_string(cells.type):
        lists = _written_lists(cells, where)
        if lists is None and separator is not None:
            return _split(cells, separator)
        cells = cells if lists is None else lists
    if pa.types.is_list(cells.type):
        entries = Entries(len(cells), np.repeat(np.arange(len(cells)), list_lengths(cells)), cells.flatten())
        return _without_gaps(entries, where)
    given = cells.is_valid()
    if pa.types.is_string(cells.type):
        given = pc.fill_null(pc.not_equal(cells, ""), False)
    return Entries(len(cells), np.flatnonzero(given.to_numpy(zero_copy_only=False)), cells.filter(given))


def _split(cells: pa.Array, separator: str) -> Entries:
    lists = pc.split_pattern(cells, separator)
    rows, values = np.repeat(np.arange(len(cells)), list_lengths(lists)), pc.utf8_trim_whitespace(lists.flatten())
    given = pc.not_equal(values, "")
    return Entries(len(cells), rows[given.to_numpy(zero_copy_only=False)], values.filter(given))


def _without_gaps(entries: Entries, where: Place) -> Entries:
    values = entries.values
    gaps = pc.equal(values, "") if pa.types.is_string(values.type) else values.is_null()
    gaps = pc.fill_null(gaps, True)
    if pc.any(gaps).as_py():
        row = entries.rows[pc.index(gaps, True).as_py()]
        raise ValueError(f"{where.row(row)}: a label is null or empty; remove it from the list")
    return entries


def _written_lists(cells: pa.Array, where: Place) -> pa.Array | None:
    """The lists that the strings are written forms of, None if they are none."""
    if not pc.any(pc.match_substring_regex(cells, r"^\s*([a-z_]+\()?[\[({]")).as_py():
        return None
    texts = [(row, text.strip()) for row, text in enumerate(cells.to_pylist()) if text]
    lists = {row: _written_list(text) for row, text in texts}
    wrong = next((row for row in lists if lists[row] is None), None)
    if wrong is None:
        try:
            return pa.array([lists.get(row, []) for row in range(len(cells))])
        except (pa.ArrowException, UnicodeError, OverflowError) as error:
            raise ValueError(
                f"{where}: the lists have labels of several types ({error}); make them strings"
            ) from error
    like = next((row for row, text in texts if lists[row] is not None or _LIKE_A_LIST.fullmatch(text)), None)
    if like is None and all(_WORDS_IN_BRACKETS.fullmatch(text) for _, text in texts):
        like = wrong
    if like is None:
        return None
    told = f"{cells[like].as_py()!r:.80} is written as a list"
    if lists[like] is None:
        raise ValueError(f"{where.row(like)}: {told}, but cannot be read as JSON or Python's; write all as JSON")
    raise ValueError(f"{where.row(like)}: {told}, row {wrong} is not: {cells[wrong].as_py()!r:.80}; write all alike")


def _written_list(text: str) -> list[Any] | None:
    try:
        value = json.loads(text) if text.startswith("[") else None
    except (ValueError, RecursionError):
        value = None
    if value is None and _PYTHON_LIST.fullmatch(text):
        try:
            value = ast.literal_eval(f"[{text[1:-1]}]")
        except (ValueError, SyntaxError):  # an unknown escape, or half a Unicode one
            return None
    return value


def without_multi_hot(parts: Mapping[str, Entries], num_labels: int | None) -> dict[str, Entries]:
    """Rows of 0 and 1, one number a label, become lists of the places of the ones; other entries stay.

    Rows are multi-hot if they are truth values or fractions, or if a row of whole numbers names 0 or 1 twice, which
    ids do not.

    Args:
        parts: Split -> entries.
        num_labels: The labels there are, None if unknown.

    Raises:
        ValueError: If every row is a 0 and a 1, so that nothing tells, the rows differ in length, the length is not
            the number of labels, or the rows are of -1 and 1.
    """
    _refuse_signs(parts)
    found = {split: _zeros_and_ones(part.values) for split, part in parts.items()}
    digits = {split: values for split, values in found.items() if values is not None}
    lengths = np.concatenate([np.bincount(part.rows, minlength=part.num_rows) for part in parts.values()])
    if len(digits) < len(parts) or lengths.max(initial=0) < 2:
        return dict(parts)
    widths = np.unique(lengths[lengths > 0]).tolist()
    if not any(_is_mask(part, digits[split]) for split, part in parts.items()):
        if 0 in lengths or widths != [2] or num_labels not in (None, 2):
            return dict(parts)
        told = "every row of labels is a 0 and a 1: two ids, or a multi-hot row?"
        raise ValueError(f"{told} Give texts for ids, or True and False for multi-hot rows")
    if len(widths) > 1 or num_labels not in (None, widths[0]):
        told = f"labels are rows of {' or '.join(map(str, widths[:3]))} numbers that are 0 or 1"
        told += f", and there are {num_labels} labels" if num_labels else ""
        raise ValueError(f"{told}; expected one number a label in every row, or lists of ids without repeats")
    return {split: _ones(part, digits[split], widths[0]) for split, part in parts.items()}


def _refuse_signs(parts: Mapping[str, Entries]) -> None:
    """Refuse rows of several values where all of them are -1 or 1."""
    numbers = pa.types.is_integer, pa.types.is_floating
    values = [part.values.unique() for part in parts.values() if any(known(part.values.type) for known in numbers)]
    several = any(np.bincount(part.rows).max(initial=0) > 1 for part in parts.values())
    if several and {value for own in values for value in own.to_pylist()} == {-1, 1}:
        raise ValueError("labels are rows of -1 and 1; expected 0 and 1 in multi-hot rows, or lists of ids")


def _zeros_and_ones(values: pa.Array) -> np.ndarray | None:
    """(nnz,) bool, None where something else stands among them."""
    types = pa.types
    if types.is_string(values.type):
        values = pc.index_in(values, value_set=pa.array(_ZEROS_AND_ONES))
        values = None if values.null_count else pc.bit_wise_and(values, 1)
    elif not (types.is_boolean(values.type) or types.is_integer(values.type) or types.is_floating(values.type)):
        return None if len(values) else np.zeros(0, bool)
    if values is None or values.null_count:
        return None
    numbers = values.to_numpy(zero_copy_only=False)
    return numbers.astype(bool) if np.isin(numbers, (0, 1)).all() else None


def _is_mask(part: Entries, digits: np.ndarray) -> bool:
    """Whether the values cannot be ids, or a row has one of them twice."""
    lengths = np.bincount(part.rows, minlength=part.num_rows)
    ones = np.bincount(part.rows, digits, minlength=part.num_rows)
    typed = pa.types.is_boolean(part.values.type) or pa.types.is_floating(part.values.type)
    return typed or bool(((lengths > 2) | (lengths == 2) & (ones != 1)).any())


def _ones(part: Entries, digits: np.ndarray, width: int) -> Entries:
    places = np.arange(len(part.rows)) % width
    return Entries(part.num_rows, part.rows[digits], pa.array(places[digits], pa.int64()))
