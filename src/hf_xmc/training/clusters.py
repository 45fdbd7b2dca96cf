"""An order of rows in which every run of a batch is a group of near neighbors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# More groups than this are found in two levels: one level compares every row with every group.
MAX_CENTROIDS = 4096
SAMPLES_PER_CENTROID = 48
NUM_ITERATIONS = 4
NUM_CHOICES = 8
# A centroid with less than this share of a full group moves to where the rows are too many for their centroid.
SMALL_GROUP = 0.25
LARGE_GROUP = 1.2


def cluster_order(vectors: np.ndarray | Tensor, batch_size: int, *, seed: int = 0) -> np.ndarray:
    """Order rows so that rows ``[i * batch_size, (i + 1) * batch_size)`` are near neighbors for every i.

    Groups of exactly ``batch_size`` (the last one has what is left) are made by spherical k-means on a sample, then
    each row goes to one of its nearest centroids so that no group overflows and no row and group would both rather
    have each other. Groups follow each other along a tree over the centroids, and a row stands where in its group the
    neighboring group is nearest, so that batches cut elsewhere are still made of neighbors.

    Args:
        vectors: (N, D) float, compared by cosine; on a GPU as a tensor, the work is done there.
        batch_size: Rows in a group, at least 1.
        seed: Settles the sample; the order is the same for the same seed.

    Returns:
        (N,) int64, a permutation of ``range(N)``.

    Raises:
        ValueError: If ``vectors`` is not a matrix or ``batch_size`` is not positive.
    """
    rows = torch.as_tensor(vectors)
    if rows.dim() != 2:
        raise ValueError(f"vectors must be (N, D), got {tuple(rows.shape)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return _order(rows, batch_size, np.random.default_rng(seed))


def _order(vectors: Tensor, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    num_rows = len(vectors)
    num_groups = -(-num_rows // batch_size)
    if num_groups < 2:
        return np.arange(num_rows)
    if num_groups > MAX_CENTROIDS:
        coarse_size = batch_size * round(num_groups**0.5)
        coarse = _order(vectors, coarse_size, rng)
        parts = (coarse[start : start + coarse_size] for start in range(0, num_rows, coarse_size))
        return np.concatenate([part[_order(vectors[part], batch_size, rng)] for part in parts])
    centroids = spherical_kmeans(vectors, num_groups, rng)
    centroids = centroids[torch.from_numpy(tree_order(centroids)).to(centroids.device)]
    capacity = np.full(num_groups, batch_size)
    capacity[-1] = num_rows - batch_size * (num_groups - 1)
    groups = balanced_groups(vectors, centroids, capacity)  # (N,)
    return np.lexsort((_lean(vectors, centroids, groups), groups))


def spherical_kmeans(vectors: Tensor, num_groups: int, rng: np.random.Generator) -> Tensor:
    """Unit centroids (num_groups, D) float32 of a sample of the rows, by cosine.

    Unlike plain k-means it moves centroids of few rows to crowded places, as every group will have to be of one size.
    """
    sample = rng.permutation(len(vectors))[: SAMPLES_PER_CENTROID * num_groups]
    rows = _unit(vectors[torch.from_numpy(sample).to(vectors.device)])  # (S, D)
    centroids = rows[:num_groups].clone()
    size = len(rows) / num_groups
    for _ in range(NUM_ITERATIONS):
        nearest = torch.cat([(part @ centroids.T).argmax(dim=1) for _, part in _chunks(rows, num_groups)])  # (S,)
        counts = torch.bincount(nearest, minlength=num_groups).cpu().numpy()  # (G,)
        centroids = F.normalize(torch.zeros_like(centroids).index_add_(0, nearest, rows), dim=1)
        # Every group will hold as many rows: a centroid of few moves to where rows would find their groups full.
        small = np.argsort(counts, kind="stable")[: (counts < SMALL_GROUP * size).sum()]
        excess = np.maximum(counts - LARGE_GROUP * size, 0) / np.maximum(counts, 1)  # (G,)
        chance = excess[nearest.cpu().numpy()]  # (S,)
        small = small[: min(int(chance.sum() / size), np.count_nonzero(chance))]
        if len(small):
            fresh = rng.choice(len(rows), len(small), replace=False, p=chance / chance.sum())
            centroids[torch.from_numpy(small).to(rows.device)] = rows[torch.from_numpy(fresh).to(rows.device)]
    return centroids


def balanced_groups(vectors: Tensor, centroids: Tensor, capacity: np.ndarray) -> np.ndarray:
    """The group (N,) int64 of each row, group c taking exactly ``capacity[c]`` rows; capacities sum to N.

    Every row asks its nearest centroid; a group with too many keeps the nearest ones and the others ask their next.
    The result is that of going through all pairs of row and group from the most similar on and taking each that fits,
    without the loop. Rows whose :data:`NUM_CHOICES` nearest are all full choose again among the groups with room.
    """
    groups = np.full(len(vectors), -1)
    # Each round fills a group or seats every row that asks: it ends, mostly after the first.
    room = np.array(capacity)
    while len(left := np.flatnonzero(groups < 0)):
        open_groups = np.flatnonzero(room)
        rows = vectors if len(left) == len(vectors) else vectors[torch.from_numpy(left).to(vectors.device)]
        candidates = centroids[torch.from_numpy(open_groups).to(centroids.device)]
        scores, choices = _nearest(rows, candidates, min(NUM_CHOICES, len(open_groups)))
        taken = _defer(scores, choices, room[open_groups])
        found = taken >= 0
        groups[left[found]] = open_groups[taken[found]]
        room -= np.bincount(open_groups[taken[found]], minlength=len(room))
    return groups


def _nearest(vectors: Tensor, centroids: Tensor, num_choices: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (N, K) float32 and numbers (N, K) int64 of the nearest centroids, best first."""
    scores = np.empty((len(vectors), num_choices), dtype=np.float32)
    choices = np.empty((len(vectors), num_choices), dtype=np.int64)
    for start, part in _chunks(vectors, len(centroids)):
        best = (_unit(part) @ centroids.T).topk(num_choices, dim=1)
        scores[start : start + len(part)] = best.values.cpu()
        choices[start : start + len(part)] = best.indices.cpu()
    return scores, choices


def _defer(scores: np.ndarray, choices: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Deferred acceptance: the choice each row ends with, or -1. scores, choices: (N, K), room: (G,) -> (N,)."""
    num_rows, num_choices = choices.shape
    turn = np.zeros(num_rows, dtype=np.int64)
    taken = choices[:, 0].copy()  # (N,)
    counts = np.bincount(taken, minlength=len(room))
    # A refused row never asks the same group again, so the loop ends; whom a group keeps does not depend on the order
    # in which rows ask. That is what makes it the same as going through all pairs from the most similar on.
    while (full := counts > room).any():
        members = np.flatnonzero(full[taken] & (taken >= 0))
        members = members[np.lexsort((-scores[members, turn[members]], taken[members]))]
        asked = taken[members]
        starts = np.flatnonzero(np.r_[True, asked[1:] != asked[:-1]])
        place = np.arange(len(members)) - np.repeat(starts, np.diff(np.r_[starts, len(members)]))
        refused = members[place >= room[asked]]
        counts = np.minimum(counts, room)
        turn[refused] += 1
        taken[refused] = -1
        again = refused[turn[refused] < num_choices]
        taken[again] = choices[again, turn[again]]
        counts += np.bincount(taken[again], minlength=len(room))
    return taken


def tree_order(centroids: Tensor) -> np.ndarray:
    """The order (G,) int64 of centroids (G, D) along a tree that halves them where they differ most."""
    points = centroids.double().cpu().numpy()

    def split(part: np.ndarray) -> np.ndarray:
        if len(part) < 3:
            return part
        centered = points[part] - points[part].mean(axis=0)
        direction = centered[np.argmax((centered**2).sum(axis=1))]
        for _ in range(8):  # power iteration towards the direction of most variance
            direction = centered.T @ (centered @ direction)
            direction /= max(np.linalg.norm(direction), 1e-300)
        part = part[np.argsort(centered @ direction, kind="stable")]
        left, right = (split(half) for half in np.array_split(part, 2))
        # Each half may be turned round; the ends that meet should be the nearest pair.
        ends = points[left[[-1, 0]]] @ points[right[[0, -1]]].T  # (2, 2)
        turn_left, turn_right = divmod(int(ends.argmax()), 2)
        return np.concatenate([left[::-1] if turn_left else left, right[::-1] if turn_right else right])

    return split(np.arange(len(points)))


def _lean(vectors: Tensor, centroids: Tensor, groups: np.ndarray) -> np.ndarray:
    """How much nearer each row is to the next group than to the one before: (N,) float32."""
    # An end of the tree has one neighbor, which counts on both sides.
    towards = centroids[1:] - centroids[:-1]
    towards = torch.cat([towards[:1], centroids[2:] - centroids[:-2], towards[-1:]])  # (G, D)
    index = torch.from_numpy(groups).to(vectors.device)
    lean = [
        (_unit(part) * towards[index[start : start + len(part)]]).sum(dim=1)
        for start, part in _chunks(vectors, vectors.shape[1])
    ]
    return torch.cat(lean).cpu().numpy()


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.float(), dim=1)


def _chunks(vectors: Tensor, width: int) -> Iterator[tuple[int, Tensor]]:
    """Start and rows of chunks whose products with ``width`` columns stay small."""
    size = max(1, (2**22 if vectors.device.type == "cpu" else 2**28) // max(1, width))
    for start in range(0, len(vectors), size):
        yield start, vectors[start : start + size]
