"""Raw text to label strings: p50 and p99 of single queries, queries per CPU second in batch, for each kind of index.

    python -m benchmarks.speed.serving --data_dir DIR --model FOLDER --output benchmarks/results/serving.json
    python -m benchmarks.speed.serving --peers pecos-1 pecos-3 omikuji    label trees beside ours
    python -m benchmarks.speed.serving --quick                            the tiny set, to see that it runs

FOLDER is what a recipe saved with a memory and a ranker; without one, recipes/unidec.py trains three epochs of the
static preset with lf-gutenberg-titles' settings first. One thread, CPU seconds. Forms take turns, --repeats times: the
least p50 and p99 and the best batch count. recall@100 is the part of the best 100 labels of an exact search, over the
same label vectors and with memory over the same rows, that is found.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import hf_xmc
from benchmarks import RECIPES, TINY, TITLES
from benchmarks.peers.environment import default_folder, peers_python
from benchmarks.peers.servers import PeerServer
from benchmarks.peers.tasks import export_task
from benchmarks.table import Table, add_output, write
from hf_xmc.memory.knowledge_memory import KnowledgeMemory
from recipes import unidec

Searcher = hf_xmc.LabelIndex | KnowledgeMemory


@dataclass
class Form:
    """What is timed: ``single(count)`` gives CPU seconds of each query, ``batch(count)`` of all together."""

    name: str
    index: str
    single: Callable[[int], list[float]]
    batch: Callable[[int], float]
    recall: float | None = None
    megabytes: float | None = None
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def measure(self, num_single: int, num_batch: int) -> None:
        times = self.single(num_single)
        self.p50.append(float(np.percentile(times, 50)))
        self.p99.append(float(np.percentile(times, 99)))
        self.rates.append(num_batch / self.batch(num_batch))


def train(data_dir: Path, folder: Path) -> None:
    """The static preset, three epochs."""
    config = RECIPES / "configs" / "lf-gutenberg-titles" / "unidec.yaml"
    settings = ["refit=false", "memory=true", "num_train_epochs=3", f"output_dir={folder}"]
    unidec.main(["--config", str(config), "--data_dir", str(data_dir), *settings])


def ours(
    name: str,
    retriever: hf_xmc.Retriever,
    index: hf_xmc.LabelIndex,
    texts: list[str],
    top_k: int,
    memory: KnowledgeMemory | None = None,
    votes: bool | None = False,
) -> Form:
    def predict(some: list[str]) -> float:
        retriever.index, retriever.memory = index, memory
        start = time.process_time()
        answers = retriever.predict(some, top_k, memory=votes)
        seconds = time.process_time() - start
        if len(answers) != len(some) or not all(isinstance(answer[0]["label"], str) for answer in answers):
            raise RuntimeError("a query came back without a label")
        return seconds

    index.build()
    return Form(
        name,
        index.kind,
        lambda count: [predict([text]) for text in texts[:count]],
        lambda count: predict(texts[:count]),
        megabytes=(index.num_bytes + (memory.num_bytes if memory else 0)) / 1e6,
    )


def recall(searcher: Searcher, exact: Searcher, queries: np.ndarray) -> float:
    """The share of the exact best 100 labels that are found."""
    found, best = (some.search(queries, 100)[0] for some in (searcher, exact))
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(best, found, strict=True)]))


def tree(peer: PeerServer, name: str, top_k: int) -> Form:
    return Form(name, "tree", lambda count: peer.single(0, count, top_k), lambda count: peer.batch(0, count, top_k))


def label_forms(
    retriever: hf_xmc.Retriever, data: hf_xmc.XMCDataset, texts: list[str], options: argparse.Namespace
) -> tuple[list[tuple[int, Form]], list[hf_xmc.LabelIndex]]:
    """(top k, form) of every kind of index by labels alone, and the indexes."""
    vectors, alive = np.asarray(retriever.index.vectors), retriever.index.alive
    queries = retriever.encoder.query_vectors(texts[: options.batch])
    # Like queries to come, and none of the timed ones.
    known = {"recall_queries": retriever.encoder.query_vectors(data.train["text"][:1000])}
    indexes = [hf_xmc.LabelIndex(vectors, alive, kind, **known) for kind in options.kinds]
    found = []
    for index in indexes:
        share = recall(index, hf_xmc.LabelIndex(index.vectors, index.alive, "exact"), queries)
        for top_k in options.top_k:
            found.append((top_k, ours("labels only", retriever, index, texts, top_k)))
            found[-1][1].recall = share
    return found, indexes


def memory_forms(
    retriever: hf_xmc.Retriever, labels: list[hf_xmc.LabelIndex], texts: list[str], options: argparse.Namespace
) -> list[tuple[int, Form]]:
    """(top k, form) of the memory beside the first and the last of the label indexes, its votes and the ranker."""
    if retriever.memory is None:
        return []
    queries = retriever.encoder.query_vectors(texts[: options.batch])
    with tempfile.TemporaryDirectory() as folder:
        retriever.memory.save(Path(folder) / "memory")
        memories = [KnowledgeMemory.load(Path(folder) / "memory", index) for index in (labels[0], labels[-1])]
    found = []
    for memory in memories:
        share = recall(memory, memories[0], queries)
        for top_k in options.top_k:
            found.append((top_k, ours("with memory", retriever, memory.labels, texts, top_k, memory, True)))
            found[-1][1].recall = share
            if retriever.ranker is not None:
                found.append((top_k, ours("with ranker", retriever, memory.labels, texts, top_k, memory, None)))
    return found


def tree_forms(
    data: hf_xmc.XMCDataset, stack: ExitStack, scratch: Path, options: argparse.Namespace
) -> list[tuple[int, Form]]:
    """(top k, form) of every peer, each trained in a process of its own that ends with the stack."""
    if not options.peers:
        return []
    export_task(data, scratch / "task")
    found = []
    for name in options.peers:
        peer = stack.enter_context(PeerServer(peers_python(options.peers_env), name, scratch / "task"))
        found += [(top_k, tree(peer, name, top_k)) for top_k in options.top_k]
    return found


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=TITLES)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--kinds", nargs="*", default=["exact", "half", "int8", "hnsw", "pq"])
    parser.add_argument("--top_k", type=int, nargs="*", default=[5, 100])
    parser.add_argument("--peers", nargs="*", default=[], help="pecos-1, pecos-3, omikuji, napkinxc")
    parser.add_argument("--peers_env", type=Path, default=default_folder())
    parser.add_argument("--single", type=int, default=300)
    parser.add_argument("--batch", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    add_output(parser)
    options = parser.parse_args()
    if options.quick:
        options.data_dir, options.single, options.batch, options.repeats = TINY, 10, 50, 1
    return options


def main() -> None:
    options = parse()
    data = hf_xmc.load_lf(options.data_dir)
    texts = data.test["text"][:]
    columns = {"form": "", "index": "", "top k": "d", "p50 ms": ".2f", "p99 ms": ".2f"}
    columns |= {"queries/CPU s": ",.0f", "recall@100": ".4f", "searched MB": ".1f"}
    table = Table(
        "Serving, raw text to label strings",
        columns,
        about=f"{data.name}, {data.num_labels:,} labels, a static encoder. One thread, CPU seconds; p50 and p99 of "
        f"{options.single} single queries, batches of {options.batch}.",
    )
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = options.model or Path(scratch) / "model"
        if options.model is None:
            train(options.data_dir, folder)
        torch.set_num_threads(1)  # here: training takes its share of the cores
        retriever = hf_xmc.Retriever.from_pretrained(folder, device="cpu")
        found, labels = label_forms(retriever, data, texts, options)
        found += memory_forms(retriever, labels, texts, options)
        found += tree_forms(data, stack, Path(scratch), options)
        for _ in range(options.repeats):
            for _, form in found:
                form.measure(options.single, options.batch)
        for top_k, form in found:
            times = 1000 * min(form.p50), 1000 * min(form.p99)
            table.add(form.name, form.index, top_k, *times, max(form.rates), form.recall, form.megabytes)
    write(options.output, table)


if __name__ == "__main__":
    main()
