"""Rows that grow at their end without being copied each time."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

Rows = TypeVar("Rows", np.ndarray, Tensor)


class GrowingRows(Generic[Rows]):
    """Rows (L, ...) in a buffer with room for more, which is made half as large again when it is full.

    What was read before stays as it was: rows are only ever written behind those that anyone has.

    Args:
        rows: (L, ...), read in place until the first ones are appended.
    """

    def __init__(self, rows: Rows) -> None:
        self._buffer: Rows = rows
        self._num_used = len(rows)

    def append(self, rows: Rows, new: Rows) -> Rows:
        """(L + n, ...): ``rows``, which are these, and ``new`` (n, ...) behind them.

        Copies of an index share the buffer: where another one has appended meanwhile, ``rows`` move to a new buffer.
        """
        start, stop = len(rows), len(rows) + len(new)
        ours = _address(rows) == _address(self._buffer) and start == self._num_used
        if not ours or stop > len(self._buffer):
            buffer = _empty_like(rows, max(stop, start + start // 2))
            buffer[:start] = rows
            self._buffer = buffer
        self._buffer[start:stop] = new
        self._num_used = stop
        return self._buffer[:stop]


def _empty_like(rows: Rows, count: int) -> Rows:
    shape = (count, *rows.shape[1:])
    return rows.new_empty(shape) if isinstance(rows, Tensor) else np.empty(shape, rows.dtype)


def _address(rows: Rows) -> int:
    return rows.data_ptr() if isinstance(rows, Tensor) else rows.ctypes.data
