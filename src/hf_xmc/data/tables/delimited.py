"""CSV and TSV files -> tables whose cells are the strings that stand in the file.

No word is read as a missing value, a number or a date. CSV has quotation marks and a separator among comma, semicolon,
tab and "|", found in its header or named in a line "sep=;" before it; TSV has neither quoting nor escapes: a line is a
row, a tab ends a cell.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from hf_xmc.data.columns import check_names, table_of_rows, trimmed
from hf_xmc.data.lf.read import MAX_LINE_BYTES, bad_line
from hf_xmc.data.tables.headerless import find_layout
from hf_xmc.data.tables.text_lines import text_lines

_PEEKED = 100
_SPACE_AND_QUOTES = re.compile(r'\s+".*"\s*', re.DOTALL)
Row = tuple[int, list[str]]


def read_csv(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The columns of a CSV file, all of them by default, as strings.

    Raises:
        ValueError: If a column is missing or there twice, a row has another number of cells than the header, or a
            quotation mark stands where it has no meaning; the line is named.
    """
    lines = text_lines(path, newline="")
    header = next(lines, "")
    named = re.fullmatch(r"sep=(.)\s*", header)  # Excel's
    rows = _csv_rows(path, chain([header], lines), named[1] if named else _separator(path, header, columns))
    if named:
        next(rows)
    return _table(path, next(rows, (1, []))[1], rows, columns)


def read_tsv(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The columns of a TSV file, all of them by default, as strings; also Annif's and PECOS's files without a header.

    Raises:
        ValueError: If a column is missing or there twice, or a row has another number of cells than the header; the
            line is named.
    """
    lines = enumerate(text_lines(path), 1)
    rows = ((number, line.removesuffix("\n").removesuffix("\r").split("\t")) for number, line in lines)
    peeked = list(islice(rows, _PEEKED))
    whole = chain(peeked, rows)
    layout = find_layout([cells for _, cells in peeked], columns)
    if layout is not None:
        names = columns or ["uid", "text"]
        return table_of_rows(path, names, layout.rows(path, whole), layout.types)
    table = _table(path, next(whole, (1, []))[1], whole, columns)
    for name in table.column_names:
        _tell_quoting(path, name, table.column(name))
    return table


def _csv_rows(path: Path, lines: Iterable[str], separator: str) -> Iterator[Row]:
    read: list[str] = []  # the lines of a row

    def kept() -> Iterator[str]:
        for line in lines:
            read.append(line)
            yield line

    reader = csv.reader(kept(), delimiter=separator, strict=True)
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        for cells in reader:
            if any(map(_SPACE_AND_QUOTES.fullmatch, cells)):
                _refuse_unquoted(cells, next(csv.reader(read, delimiter=separator, skipinitialspace=True)))
            read.clear()
            yield reader.line_num, cells or [""]
    except csv.Error as error:
        told = f'{error}; write "" for a quotation mark inside a quoted cell, or save as .tsv, which has no quoting'
        raise bad_line(path, reader.line_num, told) from error
    finally:
        csv.field_size_limit(limit)


def _refuse_unquoted(cells: list[str], without_spaces: list[str]) -> None:
    """Refuse a cell that is quoted but for a space before its quotation mark."""
    for cell, other in zip(cells, without_spaces, strict=False):
        if cell != other and _SPACE_AND_QUOTES.fullmatch(cell):
            raise csv.Error(f"{cell[:80]!r} has a space before its quotation mark; remove it")


def _separator(path: Path, header: str, columns: Sequence[str] | None) -> str:
    """The separator by which the header has the columns, or the most of them."""
    names = {separator: _cells(header, separator) for separator in ",;\t|"}
    for separator, cells in names.items():
        if columns and set(columns) <= set(trimmed(cells, columns)):
            return separator
    most = sorted(names, key=lambda separator: -len(names[separator]))
    if len(names[most[0]]) == len(names[most[1]]) > 1:
        told = f"the header can be cut at {most[0]!r} and at {most[1]!r}: {header.strip()[:80]!r}; quote its names"
        raise bad_line(path, 1, told)
    return most[0]


def _cells(header: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([header], delimiter=separator, strict=True), [])
    except csv.Error:
        return []


def _table(path: Path, header: list[str], rows: Iterable[Row], columns: Sequence[str] | None) -> pa.Table:
    header = trimmed(header, columns)
    names = header if columns is None else columns
    check_names(str(path), header, names)
    places = [header.index(name) for name in names]
    picked = ([cells[place] for place in places] for cells in _whole_rows(path, rows, len(header)))
    return table_of_rows(path, names, picked, [pa.string()] * len(names))


def _whole_rows(path: Path, rows: Iterable[Row], width: int) -> Iterator[list[str]]:
    for line, cells in rows:
        if len(cells) == width:
            yield cells
        elif cells != [""]:  # an empty line is no row
            raise bad_line(path, line, f"{len(cells)} cells; the header has {width} (a separator inside a cell?)")


def _tell_quoting(path: Path, name: str, cells: pa.ChunkedArray) -> None:
    quoted = pc.match_substring_regex(cells, '(?s)^".*"".*"$')
    if count := pc.sum(quoted).as_py():
        example = cells.filter(quoted)[0].as_py()[:80]
        told = f"{path}, column {name!r}: {count} cells look quoted, such as {example!r}. TSV has no quoting, so the "
        warnings.warn(f"{told}marks are part of the text; save quoted tables as .csv", stacklevel=4)
