"""Time and memory of ``label_rows``, beside scipy's product of the whole graph and in blocks with a threshold each.

    python -m benchmarks.speed.gandalf [--large] [--output benchmarks/results/gandalf.json]

Sets are synthetic, with the rows, labels and mean labels a row of known data sets: lengths are geometric, labels fall
off as 1 / (rank + 100). ``--large`` adds the shape of LF-AmazonTitles-1.3M, where the plain products are left out: the
whole one does not fit, the blocked one takes minutes. Pairs are sum_i |P_i|^2, the pairs of labels that stand in one
row; seconds a pair that stay level show that the time is linear. Every contestant runs in a process of its own; the
peak is that of the whole process, imports and the training matrix included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from benchmarks.table import Table, add_output, write

SHAPES = {  # train rows, labels, labels a row
    "LF-AmazonTitles-131K": (294_805, 131_073, 2.29),
    "LF-WikiSeeAlsoTitles-320K": (693_082, 312_330, 2.11),
    "a tenth of LF-AmazonTitles-1.3M": (224_862, 130_527, 22.0),
    "LF-AmazonTitles-1.3M": (2_248_619, 1_305_265, 22.0),
}
LARGE = "LF-AmazonTitles-1.3M"
DELTA = 0.1


def make_synthetic(num_rows: int, num_labels: int, mean: float, offset: int = 100) -> sp.csr_matrix:
    """CSR (N, L) float32 of ones, label ids in random order of frequency."""
    rng = np.random.default_rng(0)
    indptr = np.concatenate([[0], np.cumsum(rng.geometric(1 / mean, num_rows))]).astype(np.int32)
    draws = rng.random(indptr[-1], dtype=np.float32)
    draws *= np.float32(np.log((num_labels + offset) / offset))
    ranks = (offset * np.expm1(draws, out=draws)).astype(np.int32).clip(0, num_labels - 1)
    ids = rng.permutation(num_labels).astype(np.int32)[ranks]
    truth = sp.csr_matrix((np.ones(len(ids), np.float32), ids, indptr), shape=(num_rows, num_labels))
    truth.sum_duplicates()
    truth.data[:] = 1
    return truth


def with_label_rows(truth: sp.csr_matrix) -> sp.csr_matrix:
    """The library."""
    from hf_xmc.data.gandalf import label_rows

    return label_rows(truth, DELTA)


def with_whole_product(truth: sp.csr_matrix) -> sp.csr_matrix:
    """All counts first, then the threshold."""
    return _thresholded(truth.T.tocsr() @ truth, np.bincount(truth.indices, minlength=truth.shape[1]))


def with_blocked_product(truth: sp.csr_matrix, size: int = 8192) -> sp.csr_matrix:
    """8,192 labels at a time, thresholded at once."""
    by_label, frequencies = truth.T.tocsr(), np.bincount(truth.indices, minlength=truth.shape[1])
    starts = range(0, truth.shape[1], size)
    blocks = (_thresholded(by_label[a : a + size] @ truth, frequencies[a : a + size]) for a in starts)
    return sp.vstack(list(blocks), format="csr")


def _thresholded(counts: sp.csr_matrix, frequencies: np.ndarray) -> sp.csr_matrix:
    """Labels without a training row keep no entry here."""
    counts.data /= np.repeat(frequencies, np.diff(counts.indptr)).astype(np.float32)
    counts.data[counts.data <= np.float32(DELTA)] = 0
    counts.eliminate_zeros()
    return counts


CONTESTANTS: dict[str, Callable[[sp.csr_matrix], sp.csr_matrix]] = {
    "label_rows": with_label_rows,
    "scipy, blocks": with_blocked_product,
    "scipy, whole": with_whole_product,
}


def measure(contestant: str, shape: str) -> None:
    """Runs in a process of its own; prints the figures as JSON."""
    if contestant == "label_rows":
        import hf_xmc.data.gandalf  # noqa: F401
    truth = make_synthetic(*SHAPES[shape])
    base = resident()
    wall, cpu = time.perf_counter(), time.process_time()
    targets = CONTESTANTS[contestant](truth)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pairs = int((np.diff(truth.indptr).astype(np.int64) ** 2).sum())
    unseen = int((np.bincount(truth.indices, minlength=truth.shape[1]) == 0).sum())
    kept = targets.nnz - (unseen if contestant == "label_rows" else 0)
    print(json.dumps([pairs, kept, wall, cpu, peak, base]))


def resident() -> float:
    """GiB the process holds now; as the peak where the system does not tell."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--large", action="store_true", help="also the shape of LF-AmazonTitles-1.3M, a few minutes")
    parser.add_argument("--measure", nargs=2, metavar=("CONTESTANT", "SHAPE"), help=argparse.SUPPRESS)
    add_output(parser)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    table = Table(
        "Soft targets of label texts from co-occurrence",
        {"shape": "", "contestant": "", "pairs": ",", "kept": ",", "wall s": ".2f", "CPU s": ".2f"}
        | {"CPU ns a pair": ".0f", "peak GiB": ".2f", "of it before": ".2f"},
        about="Synthetic rows; delta 0.1; a process each, whose imports and training matrix count in the peak.",
    )
    for shape in SHAPES:
        if shape == LARGE and not options.large:
            continue
        for contestant in CONTESTANTS if shape != LARGE else ["label_rows"]:
            command = [sys.executable, "-m", "benchmarks.speed.gandalf", "--measure", contestant, shape]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            pairs, kept, wall, cpu, peak, base = json.loads(done.stdout.splitlines()[-1])
            table.add(shape, contestant, pairs, kept, wall, cpu, cpu / pairs * 1e9, peak, base)
    write(options.output, table)


if __name__ == "__main__":
    main()
