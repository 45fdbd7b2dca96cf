"""Pairs of a row and a label, checked and in the order in which a sweep meets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Csr = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Pairs:
    """(row, label) pairs: rows and columns (nnz,) int64, weights (nnz,) floating."""

    rows: Tensor
    columns: Tensor
    weights: Tensor

    def __getitem__(self, index: Any) -> Pairs:
        return Pairs(self.rows[index], self.columns[index], self.weights[index])

    def __len__(self) -> int:
        return len(self.rows)

    def join(self, other: Pairs) -> Pairs:
        """The pairs of both, by label id."""
        parts = zip((self.rows, self.columns, self.weights), (other.rows, other.columns, other.weights), strict=True)
        rows, columns, weights = (torch.cat(part) for part in parts)
        return Pairs(rows, columns, weights)[columns.argsort()]

    def within(self, rows: slice) -> Pairs:
        """The pairs of some rows, which are numbered from the first of them on."""
        kept = self[(self.rows >= rows.start) & (self.rows < rows.stop)]
        return Pairs(kept.rows - rows.start, kept.columns, kept.weights)


def read_csr(csr: Csr, num_rows: int, num_labels: int, like: Tensor, name: str) -> Pairs:
    """The pairs of a CSR (indptr (B+1,), indices (nnz,)[, weights (nnz,)]) in the order of (label, row).

    Raises:
        ValueError: If the three do not fit each other, a label id lies outside [0, L) or a row lists a label twice.
    """
    indptr, indices = (torch.as_tensor(part, dtype=torch.int64, device=like.device) for part in csr[:2])
    weights = torch.ones_like(indices, dtype=like.dtype)
    if len(csr) == 3 and csr[2] is not None:
        weights = torch.as_tensor(csr[2], device=like.device).to(like.dtype)
    counts = indptr.diff()
    ends = (int(indptr[0]), int(indptr[-1])) if len(indptr) == num_rows + 1 else None
    if ends != (0, len(indices)) or bool((counts < 0).any()):
        raise ValueError(
            f"{name} must be CSR with indptr ({num_rows + 1},) that rises from 0 to the number of indices; "
            f"got indptr of {len(indptr)} entries and {len(indices)} indices"
        )
    if weights.shape != indices.shape:
        raise ValueError(f"{name} has {len(indices)} indices but weights of shape {tuple(weights.shape)}")
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < num_labels:
        raise ValueError(
            f"{name} holds label ids from {int(indices.min())} to {int(indices.max())}, expected ids in "
            f"[0, {num_labels}); with a group, ids count from the first label of this rank's shard"
        )
    if bool(((weights < 0) | (weights > 1)).any()):
        spread = f"{float(weights.min()):g} to {float(weights.max()):g}"
        raise ValueError(f"{name} has weights from {spread}, expected soft targets in [0, 1]; scale them")
    rows = torch.arange(num_rows, device=like.device).repeat_interleave(counts)  # (nnz,)
    # By label first: the pairs of a tile of labels are then one slice, and a label given twice stands side by side.
    keys, order = (indices * num_rows + rows).sort()
    twice = (keys[1:] == keys[:-1]).nonzero()
    if len(twice):
        key = int(keys[twice[0]])
        raise ValueError(f"{name} lists label {key // num_rows} twice in row {key % num_rows}; list each label once")
    return Pairs(rows, indices, weights)[order]
