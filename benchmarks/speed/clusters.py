"""Tightness and time of batches of near neighbors beside k-means of free sizes, printed as a table.

    python -m benchmarks.speed.clusters            one thread, CPU seconds
    python -m benchmarks.speed.clusters --quick    small sizes, to see that everything runs

Quality is the mean cosine of a row to the centroid of its group; "cut elsewhere" is the mean over batches cut after a
quarter, half and three quarters of a group. The rows are synthetic: leaves of very different sizes under a few
hundred branches. The last lines give the time for 2.2 M rows, from the time of 300,000: assignment grows with rows
and groups, so that it is scaled at a like number of groups.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.table import Table, add_output, write
from hf_xmc.training.clusters import cluster_order

DIM = 384
MANY = 2_248_619


def make_vectors(num_rows: int) -> np.ndarray:
    """Unit rows (N, D) float32, one in a hundred a leaf center, sizes log-normal."""
    rng = np.random.default_rng(0)
    num_leaves = max(2, num_rows // 100)
    branches = rng.standard_normal((max(2, num_leaves // 30), DIM), dtype=np.float32)
    leaves = 0.8 * branches[rng.integers(len(branches), size=num_leaves)]
    leaves += rng.standard_normal((num_leaves, DIM), dtype=np.float32)
    share = rng.lognormal(size=num_leaves)
    rows = leaves[rng.choice(num_leaves, num_rows, p=share / share.sum())]
    rows += 0.8 * rng.standard_normal((num_rows, DIM), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def quality(vectors: np.ndarray, order: np.ndarray, batch_size: int, offset: int = 0) -> float:
    order = np.roll(order, -offset)
    sums = np.add.reduceat(vectors[order], np.arange(0, len(order), batch_size), axis=0)
    return float(np.linalg.norm(sums, axis=1).sum() / len(order))


def free_groups(vectors: np.ndarray, num_groups: int) -> np.ndarray:
    """Groups (N,) of FAISS's spherical k-means: four rounds on 64 rows a centroid, then the nearest centroid."""
    import faiss

    faiss.omp_set_num_threads(1)
    kmeans = faiss.Kmeans(DIM, num_groups, niter=4, spherical=True, max_points_per_centroid=64, seed=1)
    kmeans.train(vectors)
    return kmeans.index.search(vectors, 1)[1][:, 0]


def seconds_of(function: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.process_time()
    found = function()
    return time.process_time() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    add_output(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    shrink = 64 if args.quick else 1
    columns = {"N, batch": "", "form": "", "CPU s": ".1f", "rows/s": ",.0f", "quality": ".3f", "of FAISS": ".2f"}
    table = Table(
        "Batches of near neighbors",
        columns | {"cut elsewhere": ".3f", "sizes": ""},
        about=f"Quality: mean cosine of a row to the centroid of its group; synthetic rows of {DIM} numbers.",
    )
    for num_rows, batch_size in ((131_072 // shrink, 128), (300_000 // shrink, 147), (300_000 // shrink, 1098)):
        vectors = make_vectors(num_rows)
        num_groups = -(-num_rows // batch_size)
        sizes = f"{num_rows:,}, {batch_size:,}"
        random = np.random.default_rng(0).permutation(num_rows)
        table.add(sizes, "random", None, None, quality(vectors, random, batch_size), None, None, "exact")
        seconds, groups = seconds_of(partial(free_groups, vectors, num_groups))
        sums = np.zeros((num_groups, DIM), dtype=np.float32)
        np.add.at(sums, groups, vectors)
        free = float(np.linalg.norm(sums, axis=1).sum() / num_rows)
        counts = np.bincount(groups, minlength=num_groups)
        spread = f"{counts.min()}..{counts.max()}"
        table.add(sizes, "FAISS k-means", seconds, num_rows / seconds, free, 1.0, None, spread)
        seconds, order = seconds_of(partial(cluster_order, vectors, batch_size))
        own = quality(vectors, order, batch_size)
        cuts = float(np.mean([quality(vectors, order, batch_size, batch_size * part // 4) for part in (1, 2, 3)]))
        table.add(sizes, "cluster_order", seconds, num_rows / seconds, own, float(own / free), cuts, "exact")
        if batch_size == 147:
            scaled = seconds * MANY / num_rows
            table.add(f"{MANY:,}, 1,098", "cluster_order, scaled", scaled, None, None, None, None, None)
    write(args.output, table)


if __name__ == "__main__":
    main()
