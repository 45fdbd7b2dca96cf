"""Raw files of filter pairs -> arrays."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from hf_xmc.data.lf.read import bad_line, read_blocks
from hf_xmc.hub.filters_xmc import NO_PAIRS


def read_filter_pairs(path: Path | str, num_rows: int, num_labels: int) -> np.ndarray:
    """Read "row label" lines; blank lines and comments (``#``, ``%``) are skipped.

    Returns:
        int64 (n, 2) in the order of the file.

    Raises:
        ValueError: If a pair is out of range or not two whole numbers; the line is named.
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
    if b"x" in block or b"X" in block:  # Arrow reads 0x1 as a number
        return None
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
