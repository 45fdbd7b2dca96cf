"""The keys nearest to a query among blocks of any dtype: the parts of a KnowledgeMemory's search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hf_xmc.index.label_index import MISSING_ID, MISSING_SCORE

# Keys decoded at once, and the queries they meet at once: a score block of 64 MB.
_KEYS_AT_ONCE, _QUERIES_AT_ONCE = 1 << 15, 512


@dataclass(frozen=True)
class Found:
    """The nearest keys of each query, of both kinds, best first, padded with -1 and -inf.

    There are at least as many labels as rows: the b nearest compete with the rows, all of them fill missing places.
    """

    row_ids: np.ndarray  # (B, b) int64
    row_scores: np.ndarray  # (B, b) float32
    label_ids: np.ndarray  # (B, K) int64
    label_scores: np.ndarray  # (B, K) float32


def compress(vectors: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(N, D) float32 -> keys (N, D) of the dtype and, for int8, what a unit of each row is worth, (N,) float32."""
    if dtype != torch.int8:
        return vectors.to(dtype), None
    scales = vectors.abs().amax(1) / 127 if vectors.numel() else torch.zeros(len(vectors))
    return (vectors / scales.clamp_min(1e-30)[:, None]).round().to(torch.int8), scales


def widened(keys: torch.Tensor, key_scales: torch.Tensor | None) -> torch.Tensor:
    """What :func:`compress` made, in float32: (N, D); float32 keys are themselves."""
    return keys.float() if key_scales is None else keys.float().mul_(key_scales[:, None])


def nearest(
    keys: torch.Tensor, key_scales: torch.Tensor | None, dead: torch.Tensor, queries: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` keys of the largest inner product, exactly: ids and scores (N, count), ties by ascending id.

    For keys whose float32 copy is too large: they stay in the mapped file in their own dtype and are decoded block by
    block. A LabelIndex of the copy answers alike.
    """
    best_ids, best_scores = (torch.from_numpy(part) for part in missing(len(queries), count))
    rows = torch.from_numpy(queries)
    for first in range(0, len(keys), _KEYS_AT_ONCE):
        block = keys[first : first + _KEYS_AT_ONCE].float()  # (C, D)
        skipped = dead[first : first + len(block)]
        for start in range(0, len(rows), _QUERIES_AT_ONCE):
            part = slice(start, start + _QUERIES_AT_ONCE)
            scores = rows[part] @ block.T  # (B, C)
            if key_scales is not None:
                scores *= key_scales[first : first + len(block)]
            if skipped.any():
                scores.masked_fill_(skipped, MISSING_SCORE)
            values, places = top(scores, min(count, len(block)))
            # Stable, and earlier blocks come first: equal scores stay by ascending id.
            values = torch.cat([best_scores[part], values], 1)
            ids = torch.cat([best_ids[part], places + first], 1)
            order = torch.sort(values, dim=1, descending=True, stable=True).indices[:, :count]
            best_scores[part], best_ids[part] = values.gather(1, order), ids.gather(1, order)
    best_ids[best_scores == MISSING_SCORE] = MISSING_ID
    return best_ids.numpy(), best_scores.numpy()


def top(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and places (B, count) of the largest scores (B, C), equal ones by ascending place."""
    # One place more shows whether the cut falls inside a group of equal scores, of which topk keeps any.
    values, places = torch.topk(scores, min(count + 1, scores.shape[1]), dim=1)
    if values.shape[1] > count:
        tied = (values[:, count - 1] == values[:, count]).nonzero()[:, 0]
        values, places = values[:, :count], places[:, :count]
        if len(tied):
            order = torch.sort(scores[tied], dim=1, descending=True, stable=True).indices[:, :count]
            places[tied], values[tied] = order, scores[tied].gather(1, order)
    places, order = torch.sort(places, dim=1)
    values, order = torch.sort(values.gather(1, order), dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


def missing(num_rows: int, num_places: int, dtype: type[np.floating] = np.float32) -> tuple[np.ndarray, np.ndarray]:
    shape = (num_rows, num_places)
    return np.full(shape, MISSING_ID, dtype=np.int64), np.full(shape, MISSING_SCORE, dtype=dtype)


def take(found: Found, part: slice) -> Found:
    return Found(found.row_ids[part], found.row_scores[part], found.label_ids[part], found.label_scores[part])


def as_filters(pairs: np.ndarray | None) -> np.ndarray:
    return np.zeros((0, 2), dtype=np.int64) if pairs is None else np.asarray(pairs, dtype=np.int64)


def as_own_rows(own_rows: np.ndarray, num_queries: int, num_rows: int) -> np.ndarray:
    """(N,) rows or -1 -> the (n, 2) pairs (query, row)."""
    own_rows = np.asarray(own_rows)
    if own_rows.shape != (num_queries,) or own_rows.dtype.kind not in "iu":
        raise ValueError(f"own_rows must be integers of shape ({num_queries},), got {own_rows.dtype} {own_rows.shape}")
    if own_rows.size and not -1 <= own_rows.min() <= own_rows.max() < num_rows:
        raise ValueError(f"own_rows must lie in -1 .. {num_rows - 1}, got {own_rows.min()} .. {own_rows.max()}")
    queries = np.flatnonzero(own_rows >= 0)
    return np.stack([queries, own_rows[queries]], axis=1)
