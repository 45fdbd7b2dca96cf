"""Score tiles on a GPU that never leave the chip: the CUDA path of the blockwise losses.

Each kernel makes a tile of S = scale * queries @ labels.T in registers (float32 sums), sets hidden pairs to -inf there
and reduces it, or writes its derivative for the two gradient products, which the vendor's GEMM does best.

Pairs come sorted by tile, so a program walks only over those of its own tiles: a hidden pair is masked exactly where
its score is made, never subtracted afterwards. Rows are reduced in two stages, so results do not depend on timing.

Axes: R rows, L labels, D dims, K columns of offset and factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_ROWS = 128
BLOCK_LABELS = 128
BLOCK_DIMS = 64
# Enough programs for a few rounds on every multiprocessor of a large GPU.
MIN_PROGRAMS = 512

EXP, SIGMOID, BELL = (tl.constexpr(number) for number in range(3))
_ROWS, _LABELS, _DIMS = (tl.constexpr(size) for size in (BLOCK_ROWS, BLOCK_LABELS, BLOCK_DIMS))


@dataclass(frozen=True)
class Buckets:
    """Pairs sorted by (row block, label tile).

    rows, columns (nnz,) int32; starts (row blocks x label tiles + 1,) int64, where the pairs of each tile begin; order
    (nnz,) int64, their places in the list they were made from.
    """

    rows: Tensor
    columns: Tensor
    starts: Tensor
    order: Tensor

    @classmethod
    def of(cls, rows: Tensor, columns: Tensor, num_rows: int, num_labels: int) -> Buckets:
        """Sort pairs given as rows, columns (nnz,) int64."""
        num_blocks, num_tiles = triton.cdiv(num_rows, BLOCK_ROWS), triton.cdiv(num_labels, BLOCK_LABELS)
        tiles, order = ((rows // BLOCK_ROWS) * num_tiles + columns // BLOCK_LABELS).sort(stable=True)
        starts = torch.searchsorted(tiles, torch.arange(num_blocks * num_tiles + 1, device=rows.device))
        return cls(rows[order].int(), columns[order].int(), starts, order)


def log_sum_exp(queries: Tensor, labels: Tensor, scale: float, hidden: Buckets) -> tuple[Tensor, Tensor]:
    """The largest score m (R,) of every row, the least float where all are hidden, and sum_j exp(S_j - m) (R,).

    Args:
        queries: (R, D) bfloat16 or float32.
        labels: (L, D) of the same type.
        scale: S = scale * queries @ labels.T.
        hidden: Pairs whose score counts as -inf.
    """
    largest, total = _reduce(queries, labels, scale, hidden, None, 1.0)
    overall = largest.amax(dim=0)  # (R,)
    return overall, (total * (largest - overall).exp()).sum(dim=0)


def sigmoid_sums(
    queries: Tensor, labels: Tensor, scale: float, hidden: Buckets, offset: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """sum_j sigma(u_j) and sum_j sigma(u_j) (1 - sigma(u_j)), each (R,), for u = alpha S + offset, offset (R,)."""
    first, second = _reduce(queries, labels, scale, hidden, offset, alpha)
    return first.sum(dim=0), second.sum(dim=0)


def derivative_tile(
    queries: Tensor,
    labels: Tensor,
    scale: float,
    hidden: Buckets,
    positives: Buckets,
    grad_positives: Tensor,
    shape: int,
    alpha: float,
    offset: Tensor,
    factor: Tensor,
    tile: slice,
) -> Tensor:
    """sum_k factor_k shape(alpha S + offset_k) plus the positives' own gradients, for the labels of a tile.

    Args:
        queries: (R, D).
        labels: (L, D), all of them.
        scale: S = scale * queries @ labels.T.
        hidden: Pairs whose score counts as -inf.
        positives: Pairs with a part of their own.
        grad_positives: (nnz,) what to add there, in the order the pairs were given in.
        shape: EXP, SIGMOID or BELL = sigma (1 - sigma).
        alpha: Factor of the scores.
        offset: (R, K).
        factor: (R, K).
        tile: Which labels; begins at a multiple of BLOCK_LABELS.

    Returns:
        (R, T) in the type of queries.
    """
    num_rows, width = len(queries), tile.stop - tile.start
    if tile.start % BLOCK_LABELS:
        raise ValueError(f"a tile must begin at a multiple of {BLOCK_LABELS}, got {tile.start}")
    out = torch.empty(num_rows, width, dtype=queries.dtype, device=queries.device)
    grid = (triton.cdiv(num_rows, BLOCK_ROWS), triton.cdiv(width, BLOCK_LABELS))
    _derivative_kernel[grid](
        queries.contiguous(),
        labels.contiguous(),
        out,
        offset.float().contiguous(),
        factor.float().contiguous(),
        hidden.rows,
        hidden.columns,
        hidden.starts,
        positives.rows,
        positives.columns,
        positives.starts,
        grad_positives.float()[positives.order].contiguous(),
        num_rows,
        len(labels),
        tile.start // BLOCK_LABELS,
        width,
        scale,
        alpha,
        SHAPE=shape,
        K=offset.shape[1],
        **_launch_options(queries),
    )
    return out


def _reduce(
    queries: Tensor, labels: Tensor, scale: float, hidden: Buckets, offset: Tensor | None, alpha: float
) -> tuple[Tensor, Tensor]:
    """Two numbers for every row and split of the labels, each (splits, R): those of a log-sum-exp, or sigmoid sums."""
    num_rows = len(queries)
    num_blocks, num_tiles = triton.cdiv(num_rows, BLOCK_ROWS), triton.cdiv(len(labels), BLOCK_LABELS)
    num_splits = max(1, min(num_tiles, triton.cdiv(MIN_PROGRAMS, num_blocks)))
    first = torch.empty(num_splits, num_rows, dtype=torch.float32, device=queries.device)
    second = torch.empty_like(first)
    _reduce_kernel[(num_blocks, num_splits)](
        queries.contiguous(),
        labels.contiguous(),
        first,
        second,
        first if offset is None else offset.float().contiguous(),
        hidden.rows,
        hidden.columns,
        hidden.starts,
        num_rows,
        len(labels),
        triton.cdiv(num_tiles, num_splits),
        scale,
        alpha,
        SIGMOIDS=offset is not None,
        **_launch_options(queries),
    )
    return first, second


def _launch_options(queries: Tensor) -> dict[str, Any]:
    return {
        "DIM": queries.shape[1],
        "PRECISION": "ieee" if queries.dtype == torch.float32 else "tf32",
        "WIDEN": triton.knobs.runtime.interpret,
        "num_warps": 8,
    }


@triton.jit
def _score_tile(
    queries,
    labels,
    hidden_rows,
    hidden_columns,
    hidden_starts,
    rows,
    columns,
    bucket,
    num_rows,
    num_labels,
    scale,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """S for rows (_ROWS,) and columns (_LABELS,); -inf beyond the last label and at the bucket's pairs."""
    scores = tl.zeros((_ROWS, _LABELS), dtype=tl.float32)
    # R x D and L x D may pass 2^31.
    row_start = rows.to(tl.int64)[:, None] * DIM
    column_start = columns.to(tl.int64)[None, :] * DIM
    for start in range(0, DIM, _DIMS):
        dims = start + tl.arange(0, _DIMS)
        query = tl.load(
            queries + row_start + dims[None, :], mask=(rows[:, None] < num_rows) & (dims[None, :] < DIM), other=0.0
        )
        label = tl.load(
            labels + column_start + dims[:, None],
            mask=(columns[None, :] < num_labels) & (dims[:, None] < DIM),
            other=0.0,
        )
        if WIDEN:  # the interpreter multiplies the bits of bfloat16 as integers
            query, label = query.to(tl.float32), label.to(tl.float32)
        scores = tl.dot(query, label, scores, input_precision=PRECISION)
    scores = tl.where(columns[None, :] < num_labels, scores * scale, float("-inf"))
    for pair in range(tl.load(hidden_starts + bucket), tl.load(hidden_starts + bucket + 1)):
        row = tl.load(hidden_rows + pair)
        column = tl.load(hidden_columns + pair)
        scores = tl.where((rows[:, None] == row) & (columns[None, :] == column), float("-inf"), scores)
    return scores


@triton.jit
def _reduce_kernel(
    queries,
    labels,
    first,
    second,
    offset,
    hidden_rows,
    hidden_columns,
    hidden_starts,
    num_rows,
    num_labels,
    tiles_per_split,
    scale,
    alpha,
    SIGMOIDS: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    block = tl.program_id(0)
    split = tl.program_id(1)
    num_tiles = tl.cdiv(num_labels, _LABELS)
    rows = block * _ROWS + tl.arange(0, _ROWS)
    # Of a log-sum-exp the largest score and the sum; of sigmoids the two sums.
    one = tl.full((_ROWS,), 0.0 if SIGMOIDS else -3.4028234663852886e38, tl.float32)
    two = tl.zeros((_ROWS,), dtype=tl.float32)
    shift = one
    if SIGMOIDS:
        shift = tl.load(offset + rows, mask=rows < num_rows, other=0.0)
    for tile in range(split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, num_tiles)):
        columns = tile * _LABELS + tl.arange(0, _LABELS)
        bucket = block.to(tl.int64) * num_tiles + tile
        scores = _score_tile(
            queries,
            labels,
            hidden_rows,
            hidden_columns,
            hidden_starts,
            rows,
            columns,
            bucket,
            num_rows,
            num_labels,
            scale,
            DIM,
            PRECISION,
            WIDEN,
        )
        if SIGMOIDS:
            probability = tl.sigmoid(alpha * scores + shift[:, None])
            one += tl.sum(probability, axis=1)
            two += tl.sum(probability * (1 - probability), axis=1)
        else:
            largest = tl.maximum(one, tl.max(scores, axis=1))
            two = two * tl.exp(one - largest) + tl.sum(tl.exp(scores - largest[:, None]), axis=1)
            one = largest
    place = split.to(tl.int64) * num_rows + rows
    tl.store(first + place, one, mask=rows < num_rows)
    tl.store(second + place, two, mask=rows < num_rows)


@triton.jit
def _derivative_kernel(
    queries,
    labels,
    out,
    offset,
    factor,
    hidden_rows,
    hidden_columns,
    hidden_starts,
    positive_rows,
    positive_columns,
    positive_starts,
    grad_positives,
    num_rows,
    num_labels,
    first_tile,
    width,
    scale,
    alpha,
    SHAPE: tl.constexpr,
    K: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    block = tl.program_id(0)
    tile = first_tile + tl.program_id(1)
    num_tiles = tl.cdiv(num_labels, _LABELS)
    rows = block * _ROWS + tl.arange(0, _ROWS)
    columns = tile * _LABELS + tl.arange(0, _LABELS)
    bucket = block.to(tl.int64) * num_tiles + tile
    scores = _score_tile(
        queries,
        labels,
        hidden_rows,
        hidden_columns,
        hidden_starts,
        rows,
        columns,
        bucket,
        num_rows,
        num_labels,
        scale,
        DIM,
        PRECISION,
        WIDEN,
    )
    result = tl.zeros((_ROWS, _LABELS), dtype=tl.float32)
    for top in tl.static_range(K):
        shift = tl.load(offset + rows * K + top, mask=rows < num_rows, other=0.0)
        weight = tl.load(factor + rows * K + top, mask=rows < num_rows, other=0.0)
        argument = alpha * scores + shift[:, None]
        if SHAPE == EXP:
            value = tl.exp(argument)
        else:
            value = tl.sigmoid(argument)
            if SHAPE == BELL:
                value = value * (1 - value)
        result += weight[:, None] * value
    for pair in range(tl.load(positive_starts + bucket), tl.load(positive_starts + bucket + 1)):
        row = tl.load(positive_rows + pair)
        column = tl.load(positive_columns + pair)
        grad = tl.load(grad_positives + pair)
        result += tl.where((rows[:, None] == row) & (columns[None, :] == column), grad, 0.0)
    # R x T may pass 2^31.
    local = tl.program_id(1) * _LABELS + tl.arange(0, _LABELS)
    place = rows.to(tl.int64)[:, None] * width + local[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=(rows[:, None] < num_rows) & (local[None, :] < width))
