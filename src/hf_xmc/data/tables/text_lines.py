"""Text files of unknown encoding -> lines."""

from __future__ import annotations

import gzip
import io
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hf_xmc.data.lf.read import MAX_LINE_BYTES, bad_line

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def text_lines(path: Path, newline: str = "\n") -> Iterator[str]:
    r"""Yield the lines of a text file, each with its line end as it stands.

    Args:
        path: The file; gzip by the suffix ``.gz``. UTF-8 (a byte-order mark is dropped), UTF-16 where it begins with
            its mark, else Windows-1252, which is told in a warning.
        newline: "\n" ends lines there alone; "" at "\r", "\n" and "\r\n", as the csv module wants it.

    Raises:
        ValueError: If the file is missing, damaged, in neither encoding or in two, or has a line past 32 MiB.
    """
    try:
        encoding = _encoding(path)
        with _opened(path) as file, io.TextIOWrapper(file, encoding, newline=newline) as lines:
            yield from lines
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _encoding(path: Path) -> str:
    as_utf8, other, example = 0, 0, b""
    with _opened(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if number == 1 and line.startswith(_UTF16_MARKS):
                return "utf-16"
            if number == 1 and 3 * line.count(0) > len(line):
                told = "it seems to be UTF-16 without a byte-order mark; save it as UTF-8"
                raise bad_line(path, number, told)
            if len(line) > MAX_LINE_BYTES:
                raise bad_line(path, number, f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; expected rows")
            if line.isascii():
                continue
            try:
                line.decode()
                as_utf8 = as_utf8 or number
            except UnicodeDecodeError:
                other, example = (other, example) if other else (number, line)
                line.decode("cp1252")
    if not other:
        return "utf-8-sig"
    if as_utf8:
        raise bad_line(path, other, f"it is not UTF-8, though line {as_utf8} is; save the whole file as UTF-8")
    warnings.warn(
        f"{path} is not UTF-8 and read as Windows-1252: line {other} is {example.decode('cp1252').strip()[:80]!r}. "
        "Save it as UTF-8 if that is wrong",
        stacklevel=2,
    )
    return "cp1252"
