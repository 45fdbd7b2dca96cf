"""Bytes of raw LF files -> Arrow tables, with the file, line and field of whatever is wrong.

Blocks of whole lines are parsed by Arrow. A block that Arrow refuses is read once more line by line, slowly: what is
merely unusual (ids as strings, numbers as uids) is converted there, what is wrong is named.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import scipy.sparse as sp

from hf_xmc.data.columns import join_texts

BLOCK_BYTES = 1 << 24
NO_PAIRS = np.zeros((0, 2), np.int64)
_UTF8_MARK, _UTF16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_IDS, _WEIGHTS = pa.list_(pa.int32()), pa.list_(pa.float32())


def bad_line(path: Path | str, line: int, problem: str, field: str | None = None) -> ValueError:
    """The error for one line, 1-based, of a raw file."""
    where = f"{path}, line {line}" + (f", field {field!r}" if field else "")
    return ValueError(f"{where}: {problem}")


def read_blocks(path: Path | str) -> Iterator[tuple[int, bytes]]:
    r"""Yields (1-based number of its first line, block of whole lines) in UTF-8, every line ended by "\n".

    Takes gzip by the suffix `.gz`; drops a byte-order mark and Windows line ends; a line that is not UTF-8 is read as
    latin-1.
    """
    path = Path(path)
    line = 1
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                block += file.readline()
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


# ---------------------------------------------------------------- JSON lines


def first_record(path: Path | str) -> dict[str, object]:
    """The object in the first line of a JSON lines file; empty where it cannot be read (`read_json` will say why)."""
    try:
        with gzip.open(path, "rb") if Path(path).suffix == ".gz" else open(path, "rb") as file:
            record = json.loads(_as_utf8(file.readline().removeprefix(_UTF8_MARK)))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def read_json(path: Path | str, schema: pa.Schema) -> Iterator[tuple[int, pa.Table]]:
    """Yields (number of its first line, table) for every block of a JSON lines file; row r of a table is line `first
    + r`.

    Args:
        path: the file.
        schema: the fields to read: strings, lists of int32, lists of float32. Others are ignored, absent ones are
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
            table = _parse_json(body, lines, schema)
            yield first, _parse_json_lines(path, first, body, schema) if table is None else table


def _parse_json(body: bytes, lines: int, schema: pa.Schema) -> pa.Table | None:
    """The block as Arrow reads it, or None where a slow look is due."""
    # Arrow 26 crashes on a line that is a bare `null`, so nothing but objects may reach it.
    if not body.startswith(b"{") or body.count(b"\n{") != lines - 1:
        return None
    options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = pa.json.read_json(io.BytesIO(body), pa.json.ReadOptions(block_size=BLOCK_BYTES // 4), options)
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
    if (weights := _as_list(value)) is None:
        return None
    for place, weight in enumerate(weights):
        try:
            if isinstance(weight, bool):
                raise TypeError
            weights[place] = float(weight)
        except (TypeError, ValueError):
            raise ValueError(f"{weight!r:.80} is not a weight; expected a number") from None
    return weights


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
    """The label ids (`target_ind`) and weights (`target_rel`) of a block, checked.

    Args:
        path, first: the file, and the line of the table's first row.
        table: with lists of int32 and of float32 in the two fields; null ids are no labels, null weights are ones.
        num_labels: ids must be below.

    Returns:
        (rows,) lists of int32 and (rows,) lists of float32 of equal lengths. Raises a ValueError naming the line
        otherwise.
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


# ---------------------------------------------------------------- one text a line, and its truth matrix


def read_texts(path: Path | str) -> Iterator[tuple[int, pa.Array]]:
    """Yields (number of its first line, (rows,) strings) for every block of a file with one text a line."""
    for first, block in read_blocks(path):
        yield first, pa.array(block.decode().split("\n")[:-1], pa.string())


@dataclass(frozen=True)
class Truth:
    """A truth matrix: num_rows x num_labels, indptr int64 (N + 1,), ids int32 (nnz,), weights float32 (nnz,)."""

    num_rows: int
    num_labels: int
    indptr: np.ndarray
    ids: np.ndarray
    weights: np.ndarray

    def lists(self, start: int, stop: int) -> tuple[pa.Array, pa.Array]:
        """(stop - start,) lists of int32 ids and of float32 weights."""
        indptr = self.indptr[start : stop + 1]
        offsets = (indptr - indptr[0]).astype(np.int32)
        part = slice(int(indptr[0]), int(indptr[-1]))
        return pa.ListArray.from_arrays(offsets, self.ids[part]), pa.ListArray.from_arrays(offsets, self.weights[part])


def read_truth(path: Path | str) -> Truth:
    """Reads `trn_X_Y.txt` ("rows columns", then a line "label:value label:value ..." a row) or a scipy `.npz`."""
    path = Path(path)
    return _read_npz_truth(path) if path.suffix == ".npz" else _read_text_truth(path)


def _read_npz_truth(path: Path) -> Truth:
    try:
        matrix = sp.load_npz(path).tocsr()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except Exception as error:  # numpy, zipfile and zlib each have their own
        raise ValueError(f"{path} is not a sparse matrix written by scipy.sparse.save_npz: {error}") from error
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(f"{path} holds a damaged matrix: {error}") from error
    if not np.all(np.isfinite(matrix.data) & (matrix.data >= 0)):
        raise ValueError(f"{path} holds weights that are negative or not finite")
    ids, weights = matrix.indices.astype(np.int32), matrix.data.astype(np.float32)
    num_rows, num_labels = matrix.shape
    return Truth(num_rows, num_labels, matrix.indptr.astype(np.int64), ids, weights)


def _read_text_truth(path: Path) -> Truth:
    counts: list[np.ndarray] = []
    ids: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    shape, line = None, 1
    for first, block in read_blocks(path):
        if shape is None:
            header, _, block = block.partition(b"\n")
            if not re.fullmatch(rb"\s*\d+\s+\d+\s*", header):
                raise bad_line(path, 1, f"the header is {header[:80].decode()!r}; expected 'rows columns'")
            shape, first = tuple(map(int, header.split())), 2
        parsed = _parse_truth(block) or _parse_truth_lines(path, first, block)
        for parts, part in zip((counts, ids, weights), parsed, strict=True):
            parts.append(part)
        line = first + block.count(b"\n")
        if len(wrong := np.flatnonzero((parsed[1] < 0) | (parsed[1] >= shape[1]))):
            row = int(np.searchsorted(np.cumsum(parsed[0]), wrong[0], "right"))
            told = f"label id {parsed[1][wrong[0]]} is out of range; the header says {shape[1]} columns"
            raise bad_line(path, first + row, told, "label")
    if shape is None:
        raise ValueError(f"{path} is empty; expected a header 'rows columns' and a line for every row")
    if line - 2 == shape[0] - 1:
        counts.append(np.zeros(1, np.int64))  # a last row without labels whose line has no end cannot be seen
    elif line - 2 != shape[0]:
        raise bad_line(path, line - 1, f"the file ends after {line - 2} rows; its header says {shape[0]}")
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts), dtype=np.int64)])
    ids_, weights_ = np.concatenate(ids).astype(np.int32), np.concatenate(weights).astype(np.float32)
    return Truth(shape[0], shape[1], indptr, ids_, weights_)


def _parse_truth(block: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(rows,) counts, (nnz,) int64 ids and (nnz,) float32 weights of whole lines; None where a slow look is due."""
    characters = np.frombuffer(block, np.uint8)
    ends, colons = np.flatnonzero(characters == ord("\n")), np.flatnonzero(characters == ord(":"))
    counts = np.diff(np.searchsorted(colons, ends), prepend=0)
    if not len(colons):
        return None if block.strip() else (counts, np.zeros(0, np.int64), np.zeros(0, np.float32))
    try:
        pairs = pa.csv.read_csv(
            io.BytesIO(block.replace(b" ", b"\n")),
            pa.csv.ReadOptions(column_names=["id", "weight"]),
            pa.csv.ParseOptions(delimiter=":", quote_char=False),
            pa.csv.ConvertOptions(column_types={"id": pa.int64(), "weight": pa.float32()}),
        )
    except pa.ArrowInvalid:
        return None
    ids, weights = pairs.column("id"), pairs.column("weight")
    if len(pairs) != len(colons) or ids.null_count or weights.null_count or not pc.all(pc.is_finite(weights)).as_py():
        return None
    if pc.min(weights).as_py() < 0:
        return None
    return counts, ids.to_numpy(), weights.to_numpy()


def _parse_truth_lines(path: Path, first: int, block: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts, ids, weights = [], [], []
    for line, text in enumerate(block.decode().split("\n")[:-1], first):
        pairs = text.split()
        counts.append(len(pairs))
        for pair in pairs:
            match = re.fullmatch(r"(-?\d{1,18}):([+]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)", pair, re.ASCII)
            if match is None:
                told = f"{pair[:80]!r} is not label:value with a value of 0 or more"
                raise bad_line(path, line, told, "label:value")
            ids.append(int(match[1]))
            weights.append(float(match[2]))
    return np.array(counts, np.int64), np.array(ids, np.int64), np.array(weights, np.float32)


# ---------------------------------------------------------------- filter pairs


def read_filter_pairs(path: Path | str, num_rows: int, num_labels: int) -> np.ndarray:
    """Reads "row label" lines; blank lines and comments (`#`, `%`) are skipped.

    Returns:
        int64 (n, 2) in the order of the file. Raises a ValueError naming the line where a pair is out of range or not
        two whole numbers.
    """
    parts = [_parse_pairs(block, first) or _parse_pair_lines(path, first, block) for first, block in read_blocks(path)]
    pairs = np.concatenate([NO_PAIRS, *(pairs for pairs, _ in parts)])
    lines = np.concatenate([np.zeros(0, np.int64), *(lines for _, lines in parts)])
    for column, (field, limit) in enumerate((("row", num_rows), ("label", num_labels))):
        if len(wrong := np.flatnonzero((pairs[:, column] < 0) | (pairs[:, column] >= limit))):
            told = f"{field} {pairs[wrong[0], column]} is out of range; there are {limit}, counted from 0"
            raise bad_line(path, int(lines[wrong[0]]), told, field)
    return pairs


def _parse_pairs(block: bytes, first: int) -> tuple[np.ndarray, np.ndarray] | None:
    """int64 (n, 2) pairs and (n,) line numbers of whole lines; None where a slow look is due."""
    try:
        table = pa.csv.read_csv(
            io.BytesIO(block),
            pa.csv.ReadOptions(column_names=["row", "label"]),
            pa.csv.ParseOptions(delimiter=" ", quote_char=False),
            pa.csv.ConvertOptions(column_types={"row": pa.int64(), "label": pa.int64()}),
        )
    except pa.ArrowInvalid:
        return None
    pairs = np.stack([column.to_numpy() for column in table.columns], axis=1)
    if pairs.dtype != np.int64 or len(pairs) != block.count(b"\n"):
        return None
    return pairs, np.arange(first, first + len(pairs))


def _parse_pair_lines(path: Path | str, first: int, block: bytes) -> tuple[np.ndarray, np.ndarray]:
    pairs, lines = [], []
    for line, text in enumerate(block.decode().split("\n")[:-1], first):
        cells = text.replace(",", " ").split()
        if not cells or cells[0][0] in "#%":
            continue
        if len(cells) != 2 or not all(re.fullmatch(r"-?\d{1,18}", cell, re.ASCII) for cell in cells):
            told = f"{text[:80]!r} is not a filter pair; expected two whole numbers, 'row label'"
            raise bad_line(path, line, told)
        pairs.append((int(cells[0]), int(cells[1])))
        lines.append(line)
    return np.array(pairs, np.int64).reshape(-1, 2), np.array(lines, np.int64)
