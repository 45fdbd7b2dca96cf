"""CPU seconds and memory of the metrics, beside other libraries and the slow loops, on synthetic predictions.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.metrics [--rows 100000 970000] [--peers]

Every contestant runs in a process of its own on the same arrays, on one thread: CPU seconds (best of 3) without
loading and without JIT compilation, and the peak of memory above the inputs. ``--peers`` makes a virtual environment
(.venv-peers) with numba and napkinXC; what does not install is left out, with the reason. pyxclib is not on PyPI, so
its published algorithm is written anew here: hits by CSR look-up, float tables (N, k), best gains by a numba top-k of
the weighted truth.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks import ROOT
from benchmarks.table import Table, add_output, write

PEERS = ROOT / ".venv-peers"
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
NUM_LABELS, TOP_K, MEAN_POSITIVES, REPEATS, SLOW_ROWS = 1_300_000, 100, 20, 3, 2000
RANKING, BY_LABEL, ALL = "P nDCG PSP PSnDCG", "coverage macro-F1", "all metrics"

Case = tuple[str, int, Callable[[], dict[str, list[float]]]]  # what, largest cut-off, the work


def make_inputs(num_rows: int, path: Path) -> None:
    """Long-tailed labels, a geometric number of positives a row, rankings in which positives tend to come early."""
    random = np.random.default_rng(0)
    names = random.permutation(NUM_LABELS).astype(np.int32)
    # One candidate from each stratum of popularity: a row has no label twice.
    edges = np.maximum(np.linspace(0, 1, 191) ** 2.5 * NUM_LABELS, np.arange(191)).astype(np.int64)
    counts, labels, rankings = [], [], []
    for start in range(0, num_rows, 10_000):
        size = min(10_000, num_rows - start)
        candidates = names[random.permuted(random.integers(edges[:-1], edges[1:], size=(size, 190)), axis=1)]
        is_true = np.arange(190) < np.minimum(random.geometric(1 / (MEAN_POSITIVES + 1), size=size) - 1, 150)[:, None]
        order = np.argsort(-random.random(is_true.shape) - 0.3 * is_true, axis=1)[:, :TOP_K]
        rankings.append(np.take_along_axis(candidates, order, axis=1))
        counts.append(is_true.sum(axis=1))
        labels.append(candidates[is_true])
    indptr = np.concatenate([[0], np.concatenate(counts).cumsum()])
    train_counts = random.zipf(1.6, size=NUM_LABELS).clip(max=100_000)
    weights = 1 + (np.log(2_248_619) - 1) * 3.6**0.6 * (train_counts + 2.6) ** -0.6
    np.savez(path, ids=np.concatenate(rankings), indptr=indptr, indices=np.concatenate(labels), weights=weights)


def load(path: Path) -> tuple[np.ndarray, sp.csr_matrix, np.ndarray]:
    """ids (N, 100) int64, truth (N, L) float32 CSR with sorted indices, weights (L,)."""
    data = np.load(path)
    indptr, indices = data["indptr"], data["indices"]
    truth = sp.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=(len(indptr) - 1, NUM_LABELS))
    truth.sort_indices()
    return data["ids"].astype(np.int64), truth, data["weights"]


def ours(ids: np.ndarray, truth: sp.csr_matrix, weights: np.ndarray) -> Iterator[Case]:
    from hf_xmc.metrics.functional import xmc_metrics
    from hf_xmc.metrics.judged import judge, label_metrics, ranking_totals

    def ranking(k: int) -> dict[str, list[float]]:
        totals = ranking_totals(judge(ids, truth, range(1, k + 1), weights))
        return {name: list(top / bottom) for name, (top, bottom) in totals.items()}

    def by_label(k: int) -> dict[str, list[float]]:
        return {name: list(row) for name, row in label_metrics(judge(ids, truth, range(1, k + 1))).items()}

    for k in (5, TOP_K):
        yield RANKING, k, lambda k=k: ranking(k)
        yield BY_LABEL, k, lambda k=k: by_label(k)
        yield ALL, k, lambda k=k: {"all": list(xmc_metrics(ids, truth, range(1, k + 1), weights).values())}


def slow_loops(ids: np.ndarray, truth: sp.csr_matrix, weights: np.ndarray) -> Iterator[Case]:
    """The first rows only; the caller scales the seconds up."""
    sys.path.insert(0, str(ROOT / "tests"))
    from reference import metrics as reference

    rankings, q = ids[:SLOW_ROWS].tolist(), weights.tolist()
    positives = [set(truth[row].indices.tolist()) for row in range(SLOW_ROWS)]

    def ranking() -> dict[str, list[float]]:
        for ranked, row in zip(rankings, positives, strict=True):
            for k in range(1, 6):
                reference.row_ratios(ranked, row, k, q)
        return {}

    yield RANKING, 5, ranking


def pyxclib_algorithm(ids: np.ndarray, truth: sp.csr_matrix, weights: np.ndarray) -> Iterator[Case]:
    import numba

    @numba.njit
    def best_labels(data, indices, indptr, k, pad):
        best = np.full((len(indptr) - 1, k), pad, dtype=np.int64)
        for row in range(len(indptr) - 1):
            start, stop = indptr[row], indptr[row + 1]
            for place, entry in enumerate(np.argsort(-data[start:stop])[:k]):
                best[row, place] = indices[start + entry]
        return best

    num_rows = len(ids)
    wide = sp.csr_matrix((truth.data, truth.indices, truth.indptr), shape=(num_rows, NUM_LABELS + 1))
    padded = np.append(weights, 0.0)

    def hits(labels: np.ndarray) -> np.ndarray:
        rows = np.repeat(np.arange(num_rows), labels.shape[1])
        return np.asarray(wide[rows, labels.ravel()]).reshape(labels.shape)

    def best(k: int) -> np.ndarray:
        weighted = truth.dot(sp.diags(weights)).tocsr()
        labels = best_labels(weighted.data, weighted.indices, weighted.indptr, k, NUM_LABELS)
        return hits(labels) * padded[labels]

    def precision(gains: np.ndarray) -> np.ndarray:
        return (gains.cumsum(axis=1) / np.arange(1, gains.shape[1] + 1)).mean(axis=0)

    def ndcg(gains: np.ndarray) -> np.ndarray:
        k = gains.shape[1]
        sizes = np.diff(truth.indptr)
        ideal = (1 / np.log2(np.arange(max(k, sizes.max())) + 2)).cumsum()
        dcg = (gains / np.log2(np.arange(k) + 2)).cumsum(axis=1)
        own = ideal[sizes - 1]
        return np.array([(dcg[:, place] / np.minimum(own, ideal[place])).mean() for place in range(k)])

    def ranking(k: int) -> dict[str, list[float]]:  # each metric finds its own hits, as the library's functions do
        top = ids[:, :k]
        return {
            "precision": list(precision(hits(top))),
            "ndcg": list(ndcg(hits(top))),
            "psp": list(precision(hits(top) * padded[top]) / precision(best(k))),
            "psndcg": list(ndcg(hits(top) * padded[top]) / ndcg(best(k))),
        }

    for k in (5, TOP_K):
        yield RANKING, k, lambda k=k: ranking(k)


def napkinxc(ids: np.ndarray, truth: sp.csr_matrix, weights: np.ndarray) -> Iterator[Case]:
    from napkinxc import metrics

    positives = [
        truth.indices[start:stop].tolist() for start, stop in zip(truth.indptr, truth.indptr[1:], strict=False)
    ]

    def ranking(k: int) -> dict[str, list[float]]:
        rankings = ids[:, :k].tolist()
        return {
            "precision": list(metrics.precision_at_k(positives, rankings, k=k)),
            "ndcg": list(metrics.ndcg_at_k(positives, rankings, k=k)),
            "psp": list(metrics.psprecision_at_k(positives, rankings, weights, k=k)),
            "psndcg": list(metrics.psndcg_at_k(positives, rankings, weights, k=k)),
        }

    def by_label(k: int) -> dict[str, list[float]]:  # its macro-F1 takes no notice of k
        rankings = ids[:, :k].tolist()
        metrics.macro_f1_measure_at_k(positives, rankings, k=k)
        return {"coverage": list(metrics.coverage_at_k(positives, rankings, k=k))}

    for k in (5, TOP_K):
        yield RANKING, k, lambda k=k: ranking(k)
        yield BY_LABEL, k, lambda k=k: by_label(k)


CONTESTANTS = {
    "hf_xmc": ours,
    "slow loops": slow_loops,
    "pyxclib's algorithm": pyxclib_algorithm,
    "napkinXC": napkinxc,
}


def memory(field: str) -> float:
    """VmRSS or VmHWM of this process in GiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 2**20


def measure(contestant: str, path: Path) -> list[dict[str, Any]]:
    """Best CPU seconds and peak memory above the inputs, of each case; runs in a process of its own."""
    results = []
    for what, k, work in CONTESTANTS[contestant](*load(path)):
        seconds, peak = [], 0.0
        for _ in range(1 if contestant == "napkinXC" else REPEATS):
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            before, start = memory("VmRSS"), time.process_time()
            values = work()
            seconds.append(time.process_time() - start)
            peak = max(peak, memory("VmHWM") - before)
        values = {name: [float(value) for value in row] for name, row in values.items()}
        results.append(
            {"what": what, "k": k, "seconds": min(seconds), "first": seconds[0], "peak": peak, "values": values}
        )
    return results


def peers_python() -> Path | None:
    """The interpreter of the environment with the peers; None, with the reason printed, where it cannot be made."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "numba", "scipy", "napkinxc==0.7.2"]
        made = subprocess.run(install, capture_output=True, text=True)
        if made.returncode:
            print(f"peers left out: pip install failed:\n{made.stderr[-500:]}")
            return None
    return python


def run(contestant: str, python: Path, path: Path) -> list[dict[str, Any]]:
    command = [python, "-m", "benchmarks.speed.metrics", "--contestant", contestant, "--inputs", path]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE_THREAD)
    if done.returncode:
        print(f"{contestant} left out: {done.stderr.strip().splitlines()[-1]}")
        return []
    return json.loads(done.stdout.splitlines()[-1])


def compare(num_rows: int, with_peers: bool) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.npz"
        make_inputs(num_rows, path)
        peers = peers_python() if with_peers else None
        table = {"hf_xmc": run("hf_xmc", Path(sys.executable), path)}
        table["slow loops"] = run("slow loops", Path(sys.executable), path)
        for name in ("pyxclib's algorithm", "napkinXC") if peers else ():
            table[name] = run(name, peers, path)
    for result in table["slow loops"]:
        result["seconds"] *= num_rows / SLOW_ROWS
    own = {(result["what"], result["k"]): result for result in table["hf_xmc"]}
    columns = {"contestant": "", "metrics": "", "k": "", "CPU s": ".3f", "x ours": ".1f", "peak GiB": ".2f"}
    made = Table(
        f"Metrics of {num_rows:,} rows x {NUM_LABELS:,} labels x top-{TOP_K}",
        columns | {"largest difference": ".0e"},
        about=f"{MEAN_POSITIVES} positives a row. Slow loops: {SLOW_ROWS} rows, scaled. Ours includes recall. "
        "napkinXC: one run.",
    )
    for name, results in table.items():
        for result in results:
            same = own[result["what"], result["k"]]
            gaps = [np.abs(np.subtract(row, same["values"][key])).max() for key, row in result["values"].items()]
            gap = float(max(gaps)) if gaps and name != "hf_xmc" else None
            ratio, cutoffs = result["seconds"] / same["seconds"], f"1..{result['k']}"
            made.add(name, result["what"], cutoffs, result["seconds"], ratio, result["peak"], gap)
    for result in table.get("pyxclib's algorithm", [])[:1]:
        compilation = result["first"] - result["seconds"]
        made.about += f" JIT compilation of pyxclib's algorithm, left out: {compilation:.1f} CPU s in each process."
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--peers", action="store_true", help="install and time pyxclib's algorithm and napkinXC too")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    add_output(parser)
    arguments = parser.parse_args()
    if arguments.contestant:
        print(json.dumps(measure(arguments.contestant, arguments.inputs)))
        return
    tables = [compare(rows, arguments.peers and number == 0) for number, rows in enumerate(arguments.rows)]
    write(arguments.output, *tables)


if __name__ == "__main__":
    main()
