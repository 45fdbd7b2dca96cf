"""Bytes of raw LF files -> blocks of whole lines in UTF-8, and the error that names file, line and field.

Arrow parses the blocks. One that it refuses is read once more line by line, slowly: what is merely unusual (ids as
strings, numbers as uids) is converted there, what is wrong is named.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 24
MAX_LINE_BYTES = 1 << 25
_UTF8_MARK, _UTF16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


def bad_line(path: Path | str, line: int, problem: str, field: str | None = None) -> ValueError:
    """The error for one line, 1-based, of a raw file."""
    where = f"{path}, line {line}" + (f", field {field!r}" if field else "")
    return ValueError(f"{where}: {problem}")


def read_blocks(path: Path | str) -> Iterator[tuple[int, bytes]]:
    r"""Yield (1-based number of its first line, block of whole lines) in UTF-8, every line ended by "\n".

    Takes gzip by the suffix ``.gz``; drops a byte-order mark and Windows line ends; a line that is not UTF-8 is read
    as latin-1; one past 32 MiB is refused.
    """
    path = Path(path)
    line = 1
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                block += _rest_of_line(path, line, block, file)
                if line == 1 and block.startswith(_UTF16_MARKS):
                    raise bad_line(path, 1, "the file is UTF-16; convert it to UTF-8 first")
                block = block.removeprefix(_UTF8_MARK) if line == 1 else block
                block = block.replace(b"\r\n", b"\n") if b"\r" in block else block
                block = _as_utf8(block if block.endswith(b"\n") else block + b"\n")
                yield line, block
                line += block.count(b"\n")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        told = f"the gzip stream is damaged or cut off ({error}); fetch the file again"
        raise bad_line(path, _last_whole_line(path) + 1, told) from error


def _rest_of_line(path: Path, line: int, block: bytes, file: Any) -> bytes:
    rest = b"" if block.endswith(b"\n") else file.readline(MAX_LINE_BYTES)
    if len(block) - block.rfind(b"\n") + len(rest) > MAX_LINE_BYTES:
        told = f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; cut it"
        raise bad_line(path, line + block.count(b"\n"), told)
    return rest


def _as_utf8(block: bytes) -> bytes:
    try:
        block.decode()
        return block
    except UnicodeDecodeError:
        return b"".join(map(_line_as_utf8, block.splitlines(keepends=True)))


def _line_as_utf8(line: bytes) -> bytes:
    try:
        line.decode()
        return line
    except UnicodeDecodeError:
        return line.decode("latin-1").encode()


def _last_whole_line(path: Path) -> int:
    lines = 0
    try:
        with gzip.open(path, "rb") as file:
            while piece := file.read1(1 << 14):
                lines += piece.count(b"\n")
    except (EOFError, zlib.error, gzip.BadGzipFile):
        pass
    return lines


def is_json(path: Path | str) -> bool:
    """Whether a raw file holds JSON lines rather than one text a line."""
    return str(path).removesuffix(".gz").endswith(".json")


def num_lines(path: Path | str) -> int:
    """Lines of a file, not counting empty ones at its end."""
    lines = 0
    for first, block in read_blocks(path):
        body = block.rstrip()
        lines = first + body.count(b"\n") if body else lines
    return lines


def max_lines(path: Path | str) -> int:
    """More lines than a file can have, without reading it; gzip makes 1032 bytes of one at most."""
    return (Path(path).stat().st_size + 1) * (1032 if Path(path).suffix == ".gz" else 1)


def first_record(path: Path | str) -> dict[str, object]:
    """The object in the first line of a JSON lines file; empty where it cannot be read (reading it all says why)."""
    try:
        with gzip.open(path, "rb") if Path(path).suffix == ".gz" else open(path, "rb") as file:
            record = json.loads(_as_utf8(file.readline(MAX_LINE_BYTES).removeprefix(_UTF8_MARK)))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
