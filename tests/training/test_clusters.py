from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_xmc.training.clusters import balanced_groups, cluster_order, spherical_kmeans, tree_order


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def uneven_blobs(num_rows: int, num_blobs: int = 40, dim: int = 16) -> np.ndarray:
    """Unit rows (N, D) around centres of very different sizes."""
    rng = np.random.default_rng(0)
    share = rng.lognormal(size=num_blobs)
    blob = rng.choice(num_blobs, num_rows, p=share / share.sum())
    return unit(rng.standard_normal((num_blobs, dim))[blob] + 0.4 * rng.standard_normal((num_rows, dim)))


def quality(vectors: np.ndarray, groups: np.ndarray) -> float:
    """Mean cosine of a unit row to the centroid of its group."""
    return sum(np.linalg.norm(vectors[groups == group].sum(axis=0)) for group in np.unique(groups)) / len(vectors)


def batches_of(order: np.ndarray, batch_size: int) -> np.ndarray:
    groups = np.empty(len(order), dtype=np.int64)
    groups[order] = np.arange(len(order)) // batch_size
    return groups


@pytest.mark.parametrize(
    ("num_rows", "batch_size"), [(0, 3), (1, 1), (1, 5), (7, 3), (100, 100), (101, 100), (500, 37), (64, 1), (50, 2)]
)
def test_every_row_has_one_place_whatever_the_batch_size(num_rows: int, batch_size: int) -> None:
    order = cluster_order(np.random.default_rng(0).standard_normal((num_rows, 4)).astype("float32"), batch_size)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_rows))


def test_blobs_of_the_batch_size_become_the_batches() -> None:
    blob = np.random.default_rng(1).permutation(np.repeat(np.arange(12), 30))
    vectors = unit(np.eye(12)[blob] + 0.05 * np.random.default_rng(2).standard_normal((360, 12)))
    # Of ten seeds, as k-means may start with two centroids in one blob.
    best = max(
        (cluster_order(vectors, 30, seed=seed) for seed in range(10)),
        key=lambda o: quality(vectors, batches_of(o, 30)),
    )
    assert (blob[best].reshape(12, 30) == blob[best].reshape(12, 30)[:, :1]).all()


@pytest.mark.parametrize("batch_size", [64, 75, 300])
def test_batches_are_nearly_as_tight_as_groups_of_free_size(batch_size: int) -> None:
    vectors = uneven_blobs(6000)
    num_groups = -(-6000 // batch_size)
    centroids = spherical_kmeans(torch.from_numpy(vectors), num_groups, np.random.default_rng(0)).numpy()
    free = quality(vectors, (vectors @ centroids.T).argmax(axis=1))
    order = cluster_order(vectors, batch_size)
    ours = quality(vectors, batches_of(order, batch_size))
    random = quality(vectors, batches_of(np.random.default_rng(0).permutation(6000), batch_size))
    assert ours > 0.9 * free
    assert ours > 2 * random
    # Cut in the middle of the groups, as after a roll of the order.
    rolled = quality(vectors, batches_of(np.roll(order, batch_size // 2), batch_size))
    assert rolled > random + 0.6 * (ours - random)


def slow_balanced_groups(scores: np.ndarray, room: list[int]) -> list[int]:
    """All pairs of row and group, the most similar first, each taken if the row is free and the group has room."""
    groups, room = [-1] * len(scores), list(room)
    pairs = sorted(((-scores[row, group], row, group) for row, group in np.ndindex(*scores.shape)))
    for _, row, group in pairs:
        if groups[row] < 0 and room[group]:
            groups[row], room[group] = group, room[group] - 1
    return groups


@pytest.mark.parametrize("capacity", [[20, 20, 20, 20, 20], [1, 50, 9, 39, 1], [100, 0, 0, 0, 0]])
def test_balanced_groups_equal_the_loop_over_sorted_pairs(capacity: list[int]) -> None:
    vectors, centroids = uneven_blobs(100, 7), uneven_blobs(5, 5)
    groups = balanced_groups(torch.from_numpy(vectors), torch.from_numpy(centroids), np.array(capacity))
    assert np.bincount(groups, minlength=5).tolist() == capacity
    assert groups.tolist() == slow_balanced_groups(vectors @ centroids.T, capacity)


def test_equal_rows_and_rows_of_zeros_fill_groups_too() -> None:
    for vectors in (np.zeros((50, 3), "float32"), np.ones((50, 3), "float32")):
        assert sorted(cluster_order(vectors, 7).tolist()) == list(range(50))


def test_many_groups_are_found_in_two_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = uneven_blobs(3000)
    flat = quality(vectors, batches_of(cluster_order(vectors, 20), 20))
    monkeypatch.setattr("hf_xmc.training.clusters.MAX_CENTROIDS", 50)
    order = cluster_order(vectors, 20)
    assert sorted(order.tolist()) == list(range(3000))
    assert quality(vectors, batches_of(order, 20)) > 0.93 * flat


def test_the_seed_settles_the_order_and_the_length_of_rows_does_not_count() -> None:
    vectors = uneven_blobs(1000)
    order = cluster_order(vectors, 30, seed=3)
    assert np.array_equal(order, cluster_order(vectors, 30, seed=3))
    assert not np.array_equal(order, cluster_order(vectors, 30, seed=4))
    longer = vectors * 2.0 ** np.random.default_rng(0).integers(-3, 4, (1000, 1)).astype("float32")
    assert np.array_equal(order, cluster_order(torch.from_numpy(longer), 30, seed=3))


def test_tree_order_walks_along_an_arc() -> None:
    place = np.random.default_rng(0).permutation(33)
    arc = torch.from_numpy(np.stack([np.cos(place / 20), np.sin(place / 20)], axis=1))
    found = place[tree_order(arc)].tolist()
    assert found[:: 1 if found[0] == 0 else -1] == list(range(33))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(N, D\), got \(4,\)"):
        cluster_order(np.ones(4, "float32"), 2)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        cluster_order(np.ones((4, 2), "float32"), 0)
