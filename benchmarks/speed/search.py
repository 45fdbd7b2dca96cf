"""Search for the best 100 labels: every kind of LabelIndex beside torch, FAISS and hnswlib, in one run on one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.search --data_dir FOLDER [--num_labels 131072] [--peers]
    OMP_NUM_THREADS=1 python -m benchmarks.speed.search --data_dir FOLDER --encoder FOLDER
    python -m benchmarks.speed.search --device cuda --data_dir FOLDER      the exact kind on a GPU

With ``--encoder``, a saved XMCEncoder or Retriever, vectors are those of its labels and of test queries. Without,
``--num_labels`` distinct texts, labels first and then training texts, stand for labels: half of their 512 numbers is
the mean token vector of WordLlama cut to unit length, half the mean itself, whose length varies tenfold, as that of
classifier rows does. Queries are texts of the test part, which no index has seen: label vectors as queries, or
synthetic clusters, give graphs and lists a recall that real queries do not.

Seconds are CPU seconds, best of --repeats, all forms in turn in every round, so that load hits all alike. "GEMM" is
the bare product of queries and labels in float32, without selection: the limit of a search that looks at every label.
Seconds differ between machines, shares of that product carry over better.
``--peers`` makes a virtual environment (.venv-peers-search) with hnswlib.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import hf_xmc
from benchmarks import ROOT
from benchmarks.table import Picture, Table, add_output, write
from hf_xmc.index.faiss_kinds import FaissSearcher

PEERS = ROOT / ".venv-peers-search"
TOP_K, SINGLE, SMALL, LARGE, NUM_QUERIES = 100, 50, 32, 200, 400
Search = Callable[[np.ndarray], object]


@dataclass
class Form:
    """A line of the table: ``search`` answers queries (N, D) float32 with ids (N, 100), or with nothing to judge."""

    name: str
    family: str
    search: Search
    build_seconds: float
    bytes_per_label: float | None


def text_vectors(data: hf_xmc.XMCDataset, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """(L, 512) and (N, 512) float32, see the top of this file."""
    tokenizer, table = hf_xmc.wordllama_embedding()

    def mean(texts: list[str]) -> np.ndarray:
        tokens = [encoding.ids or [0] for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
        offsets = np.cumsum([0] + [len(row) for row in tokens[:-1]])
        flat = torch.tensor([token for row in tokens for token in row])
        return torch.nn.functional.embedding_bag(flat, table, torch.from_numpy(offsets), mode="mean").numpy()

    texts = list(dict.fromkeys(data.labels["text"][:] + data.train["text"][:]))[:num_labels]
    if len(texts) < num_labels:
        raise ValueError(f"{data.name} has {len(texts):,} distinct texts, expected {num_labels:,}; lower --num_labels")
    labels, queries = mean(texts), mean(data.test["text"][:NUM_QUERIES])
    length = np.linalg.norm(labels, axis=1).mean()

    def both(means: np.ndarray) -> np.ndarray:
        return np.hstack(
            [means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12), means / length]
        ).astype(np.float32)

    return both(labels), both(queries)


def our_forms(labels: np.ndarray, kinds: list[str], tuning: np.ndarray) -> list[Form]:
    forms = []
    for kind in kinds:
        index = hf_xmc.LabelIndex(labels, kind=kind, recall_queries=tuning[:1])  # tuned to nothing; efforts below
        start = time.process_time()
        searcher = index.build()
        seconds, size = time.process_time() - start, index.num_bytes / len(labels)
        compute = (
            f", {str(searcher.compute_dtype).removeprefix('torch.')} products" if kind in ("half", "int8") else ""
        )
        if not isinstance(searcher, FaissSearcher):
            forms.append(Form(f"ours: {kind}{compute}", f"ours: {kind}", searching(index), seconds, size))
            continue
        word, least = ("ef", 128) if searcher.is_graph else ("re-scored x", 1) if searcher.is_codes else ("lists", 16)
        for effort in [effort for effort in searcher.efforts if effort >= least][:5]:
            name = f"ours: {kind}, {word} {effort}"
            forms.append(Form(name, f"ours: {kind}", searching(index, effort), seconds, size))
    return forms


def searching(index: hf_xmc.LabelIndex, effort: int = 0) -> Search:
    def search(queries: np.ndarray) -> np.ndarray:
        index.build().effort = effort
        return index.search(queries, TOP_K)[0]

    return search


def peer_forms(labels: np.ndarray) -> list[Form]:
    table = torch.from_numpy(labels)
    forms = [
        Form("GEMM alone, float32", "GEMM", lambda queries: torch.from_numpy(queries) @ table.T, 0.0, None),
        Form(
            "torch GEMM + topk",
            "torch",
            lambda queries: torch.topk(torch.from_numpy(queries) @ table.T, TOP_K).indices.numpy(),
            0.0,
            4.0 * labels.shape[1],
        ),
    ]
    try:
        import faiss
    except ImportError:
        return forms
    faiss.omp_set_num_threads(1)
    default = faiss.cvar.distance_compute_blas_threshold
    start = time.process_time()
    flat = faiss.IndexFlatIP(labels.shape[1])
    flat.add(labels)
    seconds = time.process_time() - start

    def search(threshold: int) -> Search:
        def inner(queries: np.ndarray) -> np.ndarray:
            faiss.cvar.distance_compute_blas_threshold = threshold
            ids = flat.search(queries, TOP_K)[1]
            faiss.cvar.distance_compute_blas_threshold = default
            return ids

        return inner

    size = 4.0 * labels.shape[1]
    forms.append(Form("FAISS flat, as it comes", "FAISS flat", search(default), seconds, size))
    forms.append(Form("FAISS flat, BLAS from 1 query on", "FAISS flat", search(1), seconds, size))
    return forms


HNSWLIB = """
import json, sys, time, numpy as np, hnswlib
labels, queries = np.load(sys.argv[1]), np.load(sys.argv[2])
index = hnswlib.Index("ip", labels.shape[1])
index.init_index(len(labels), M=32, ef_construction=200)
index.set_num_threads(1)
start = time.process_time()
index.add_items(labels, num_threads=1)
lines = [time.process_time() - start]
def timed(part, size):
    start = time.process_time()
    for first in range(0, len(part), size):
        index.knn_query(part[first:first + size], k=100, num_threads=1)
    return (time.process_time() - start) / len(part)
for effort in (128, 256, 512, 1024):
    index.set_ef(effort)
    singles = []
    for query in queries[:50]:
        start = time.process_time()
        index.knn_query(query[None], k=100, num_threads=1)
        singles.append(time.process_time() - start)
    seconds = [min(timed(queries, size) for _ in range(int(sys.argv[3]))) for size in (32, 200)]
    ids = index.knn_query(queries, k=100, num_threads=1)[0]
    lines.append([effort, *seconds, float(np.median(singles)), ids.tolist()])
print(json.dumps(lines))
"""


def hnswlib_rows(labels: np.ndarray, queries: np.ndarray, repeats: int) -> list | None:
    """Build seconds, then effort, seconds a query in batches of 32 and 200, median alone and ids; None if it fails."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
        made = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "hnswlib==0.8.0"], capture_output=True, text=True
        )
        if made.returncode:
            print(f"hnswlib left out: pip install failed:\n{made.stderr[-500:]}")
            return None
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/labels.npy", labels)
        np.save(f"{folder}/queries.npy", queries)
        command = [python, "-c", HNSWLIB, f"{folder}/labels.npy", f"{folder}/queries.npy", str(repeats)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"hnswlib left out: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return json.loads(done.stdout)


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure(forms: list[Form], queries: np.ndarray, repeats: int) -> dict[str, tuple[float, float, float]]:
    """Seconds a query in batches of 32 and of 200, and the median alone."""
    best = {form.name: [np.inf, np.inf, np.inf] for form in forms}
    for form in forms:
        form.search(queries[:SMALL])
    for _ in range(repeats):
        for form in forms:
            for place, size in enumerate((SMALL, LARGE)):
                start = clock()
                for first in range(0, len(queries) // size * size, size):
                    form.search(queries[first : first + size])
                seconds = (clock() - start) / (len(queries) // size * size)
                best[form.name][place] = min(best[form.name][place], seconds)
            singles = []
            for query in queries[:SINGLE]:
                start = clock()
                form.search(query[None])
                singles.append(clock() - start)
            best[form.name][2] = min(best[form.name][2], float(np.median(singles)))
    return {name: tuple(values) for name, values in best.items()}


def recall(ids: np.ndarray, labels: np.ndarray, queries: np.ndarray, least: np.ndarray) -> float:
    """Share of the ids whose exact score is among the 100 best; equal scores stand for each other."""
    scores = np.stack([labels[found] @ query for found, query in zip(ids, queries, strict=True)])
    return float(((scores >= least - 1e-5 * np.abs(least)) & (ids >= 0)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--num_labels", type=int, default=131_072)
    parser.add_argument("--kinds", nargs="+", help="kinds to measure; default: all that run on the device")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peers", action="store_true", help="install and time hnswlib too")
    add_output(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = hf_xmc.load_lf(args.data_dir)
    if args.encoder:
        encoder = hf_xmc.XMCEncoder(str(args.encoder), device="cpu")
        labels, queries = (
            encoder.label_vectors(data.labels["text"][:]),
            encoder.query_vectors(data.test["text"][:NUM_QUERIES]),
        )
        source = f"Label vectors of a trained {args.encoder.name} and test queries"
    else:
        labels, queries = text_vectors(data, args.num_labels)
        source = "Texts as half unit, half un-normalized mean token vectors, test texts as queries"
    lengths = np.percentile(np.linalg.norm(labels, axis=1), [1, 50, 99])
    kinds = args.kinds or (["cuda"] if args.device == "cuda" else ["exact", "half", "int8", "pq", "hnsw", "ivf"])
    forms = (peer_forms(labels) if args.device == "cpu" else []) + our_forms(labels, kinds, queries)
    seconds = measure(forms, queries, args.repeats)
    exact = -np.partition(-(queries @ labels.T), TOP_K - 1, axis=1)[:, TOP_K - 1 : TOP_K]
    gemm = seconds.get("GEMM alone, float32")
    table = Table(
        f"Search of {len(labels):,} x {labels.shape[1]} ({data.name})",
        {
            "form": "",
            "build s": ".1f",
            f"q/s, batch {SMALL}": ",.0f",
            "of GEMM": ".2f",
            f"q/s, batch {LARGE}": ",.0f",
            "of GEMM ": ".2f",
            "ms alone": ".2f",
            f"recall@{TOP_K}": ".4f",
            "bytes a label": ",.0f",
            "kind": "",
        },
        about=f"{source}; lengths (1, 50, 99 %) {lengths[0]:.2f}, {lengths[1]:.2f}, {lengths[2]:.2f}. The best "
        f"{TOP_K}, {'seconds on a GPU' if args.device == 'cuda' else 'CPU seconds'}, best of {args.repeats}.",
        picture=Picture(x=f"q/s, batch {LARGE}", y=f"recall@{TOP_K}", by="kind", log_x=True),
    )

    def row(name: str, family: str, build: float, times: tuple[float, ...], found: float | None, size: float | None):
        shares = [gemm[place] / times[place] if gemm else None for place in range(2)]
        small, large, alone = times
        table.add(name, build, 1 / small, shares[0], 1 / large, shares[1], 1e3 * alone, found, size, family)

    for form in forms:
        found = None if form.family == "GEMM" else recall(form.search(queries), labels, queries, exact)
        row(form.name, form.family, form.build_seconds, seconds[form.name], found, form.bytes_per_label)
    if args.peers:
        lines = hnswlib_rows(labels, queries, args.repeats)
        for effort, small, large, alone, ids in lines[1:] if lines else ():
            found = recall(np.asarray(ids), labels, queries, exact)
            row(f"hnswlib, ef {effort}", "hnswlib", lines[0], (small, large, alone), found, 4 * labels.shape[1] + 272)
    write(args.output, table)


if __name__ == "__main__":
    main()
