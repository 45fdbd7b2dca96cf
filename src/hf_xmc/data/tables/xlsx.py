"""Excel workbooks -> tables; needs openpyxl."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_xmc.data.columns import check_names, table_of_rows, trimmed

_PLAIN_FORMATS = ("General", "0", "@")


def read_xlsx(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The columns of the first sheet, all of them by default, as strings; its first row is the header.

    Excel keeps numbers without the digits that were typed (``004`` is 4, ``1.10`` is 1.1), so that only whole numbers
    that are shown as such are taken for their digits. Rows without a value are left out.

    Raises:
        ValueError: If the workbook is damaged, lacks a column, or a cell holds another number, a date, a truth value
            or an error; the cell is named.
    """
    rows = _rows(path)
    header = trimmed([str(cell.value or "") for cell in next(rows, ())], columns)
    names = [name for name in header if name] if columns is None else columns
    check_names(str(path), header, names)
    places = [header.index(name) for name in names]
    picked = ([_text(path, row[place]) if place < len(row) else None for place in places] for row in rows)
    return table_of_rows(path, names, picked, [pa.string()] * len(names))


def _rows(path: Path) -> Iterator[tuple[Any, ...]]:
    try:
        import openpyxl
    except ImportError as error:
        raise ImportError("openpyxl is required: pip install hf_xmc[xlsx]") from error
    try:
        with path.open("rb") as file:
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # a file may tell fewer rows than it has
            if len(book.worksheets) > 1:
                warnings.warn(f"{path} has {len(book.worksheets)} sheets; {sheet.title!r} is read", stacklevel=2)
            yield from (row for row in sheet.iter_rows() if any(cell.value is not None for cell in row))
    except Exception as error:  # zipfile, XML and openpyxl each have their own
        raise ValueError(f"{path} is damaged, or no workbook: {error}") from error


def _text(path: Path, cell: Any) -> str | None:
    value = cell.value
    if value is None or (isinstance(value, str) and cell.data_type != "e"):
        return value
    if type(value) is int and cell.number_format in _PLAIN_FORMATS:
        return str(value)
    raise ValueError(
        f"{path}, cell {cell.coordinate}: {value!r} ({type(value).__name__}, shown as {cell.number_format!r}) is no "
        "text; give the column the format Text in Excel and type its values again, or save it as CSV"
    )
