"""Raw LF files of one text a line, and the truth matrix beside them -> Arrow arrays."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import scipy.sparse as sp

from hf_xmc.data.lf.read import bad_line, read_blocks

_HEADER = 1 << 12  # more bytes than the header of an array and a few numbers have


def read_texts(path: Path | str) -> Iterator[tuple[int, pa.Array]]:
    """Yield (number of its first line, (rows,) strings) for every block of a file with one text a line."""
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


def read_truth(path: Path | str, max_rows: int = 1 << 32) -> Truth:
    """Read ``trn_X_Y.txt`` ("rows columns", then a line "label:value label:value ..." a row) or a scipy ``.npz``.

    A matrix that tells more than ``max_rows``, or holds more than its shape can, is refused before it is unpacked.
    """
    path = Path(path)
    return _read_npz_truth(path, max_rows) if path.suffix == ".npz" else _read_text_truth(path)


def _read_npz_truth(path: Path, max_rows: int) -> Truth:
    try:
        _check_size(path, max_rows)
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


def _check_size(path: Path, max_rows: int) -> None:
    with zipfile.ZipFile(path) as packed:
        sizes = {member.filename: member.file_size for member in packed.infolist()}
        if sizes["shape.npy"] > _HEADER:
            raise ValueError("its shape is no pair of numbers")
        with packed.open("shape.npy") as file:
            rows, columns = map(int, np.lib.format.read_array(file))
    if rows > max_rows:
        raise ValueError(f"it has {rows} rows, more than there can be texts")
    if sum(sizes.values()) > _HEADER * len(sizes) + 8 * (rows + columns + 3 * rows * columns):
        raise ValueError(f"it holds more than a matrix of {rows} x {columns} can")


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
    if b"x" in block or b"X" in block:  # Arrow reads 0x1 as a number
        return None
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
