"""Tab-separated files without a header, known by their cells: Annif's corpora and vocabularies, PECOS's text2text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_xmc.data.lf.read import bad_line

URI = r"<[A-Za-z][A-Za-z0-9+.-]*:[^<>\s]+>|[A-Za-z][A-Za-z0-9+.-]*:[^<>\s]+"
_URI, _IDS = re.compile(URI), re.compile(r"\d{1,9}(,\d{1,9})*", re.ASCII)


def bare_uri(label: str) -> str:
    """``uri`` of ``<uri>``."""
    return label.removeprefix("<").removesuffix(">")


def _annif_document(cells: list[str]) -> tuple[str, list[str]] | None:
    """``text<TAB><uri> <uri>``."""
    uris = cells[-1].split()
    return (cells[0], uris) if len(cells) == 2 and all(map(_URI.fullmatch, uris)) else None


def _pecos_line(cells: list[str]) -> tuple[str, list[int]] | None:
    """``0,2<TAB>text``."""
    if len(cells) < 2 or not (cells[0] == "" or _IDS.fullmatch(cells[0])):
        return None
    return "\t".join(cells[1:]), [int(id) for id in cells[0].split(",") if id]


def _annif_subject(cells: list[str]) -> tuple[str, str] | None:
    """``<uri><TAB>label``, perhaps a tab and a notation."""
    return (bare_uri(cells[0]), cells[1]) if len(cells) > 1 and _URI.fullmatch(cells[0]) else None


@dataclass(frozen=True)
class Layout:
    """How the lines of a headerless file are read: cells -> the values of two columns, None for another layout."""

    read: Callable[[list[str]], tuple[str, Any] | None]
    types: tuple[pa.DataType, pa.DataType]

    def fits(self, rows: Sequence[list[str]]) -> bool:
        """Whether all rows have this layout, and one of them something in its second column."""
        read = [self.read(cells) for cells in rows]
        return any(row and row[1] for row in read) and None not in read

    def rows(self, path: Path, rows: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[str, Any]]:
        """The two values of each line.

        Raises:
            ValueError: If a line has another layout; it is named.
        """
        for line, cells in rows:
            row = self.read(cells)
            if row is None and cells != [""]:
                told = f"{'<TAB>'.join(cells)[:80]!r} is not of the form {self.read.__doc__} as the lines before it"
                raise bad_line(path, line, told)
            if row is not None:
                yield row


_DOCUMENTS = (
    Layout(_annif_document, (pa.string(), pa.list_(pa.string()))),
    Layout(_pecos_line, (pa.string(), pa.list_(pa.int64()))),
)
_SUBJECTS = Layout(_annif_subject, (pa.string(), pa.string()))


def find_layout(rows: Sequence[list[str]], columns: Sequence[str] | None) -> Layout | None:
    """The layout of a file without a header, or None where the first row is one.

    Args:
        rows: The cells of the first lines.
        columns: What its columns are to be called: the texts, then the labels. None for a vocabulary.
    """
    rows = [cells for cells in rows if cells != [""]]
    if columns is None:
        return _SUBJECTS if _SUBJECTS.fits(rows) else None
    if len(columns) != 2 or set(columns) <= set(rows[0] if rows else ()):
        return None
    return next((layout for layout in _DOCUMENTS if layout.fits(rows)), None)
