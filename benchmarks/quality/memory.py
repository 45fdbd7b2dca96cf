"""What a knowledge memory adds to a finished encoder: metrics on test beside the plain label search, and its cost.

    OMP_NUM_THREADS=1 python -m benchmarks.quality.memory --data_dir FOLDER [--fields title content] [--encoder FOLDER]

FOLDER of the encoder is a saved XMCEncoder that was trained on the train part of ``hold_out(fraction,
answerable_only=True)``, seed 0; without ``--encoder`` a static one is trained so (four epochs, minutes on two cores)
and saved with ``--save_encoder``. The forms are fitted on the held-out rows; test is looked at once. Memory and folds
hold the train part alone. Differences are to the plain label search in points, with paired 95 % intervals over the
test rows. Milliseconds are CPU time per query, of queries searched together and one by one, without encoding.

Tried and left out of the library; sums of P@1 and PSP@1 in points, best of a grid, on 2,500 held-out rows of a set of
46,000 titles: votes as they are 72.7, divided by the number of labels of a row 71.9; two searches with a softmax each
72.1 (57.2 at lambda 0.1, where the joint search is best); folded labels as they are 71.8, cut to unit length 62.5.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

import hf_xmc
from benchmarks.table import Table, add_output, write
from hf_xmc.memory import MemoryFit, MemoryForm, fit_fold, fit_memory, fold_rows
from hf_xmc.memory.knowledge_memory import KnowledgeMemory
from hf_xmc.metrics.bootstrap import bootstrap_differences
from hf_xmc.metrics.functional import inverse_propensities, xmc_metrics

METRICS = ("precision@1", "precision@5", "psp@1", "psp@5")
TOP_K, SINGLE_QUERIES = 5, 50


def train(data: hf_xmc.XMCDataset) -> hf_xmc.XMCEncoder:
    encoder = hf_xmc.XMCEncoder(modules=[StaticEmbedding(*hf_xmc.wordllama_embedding())], device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        arguments = hf_xmc.XMCTrainingArguments(
            per_device_train_batch_size=1024,
            learning_rate=1e-2,
            num_train_epochs=4,
            random_negatives=1000,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            output_dir=folder,
        )
        loss = hf_xmc.losses.DecoupledSoftmaxLoss(encoder, scale=20)
        hf_xmc.XMCTrainer(model=encoder, args=arguments, train_dataset=data, loss=loss).train()
    return encoder


def milliseconds(search: Callable[[np.ndarray], object], queries: np.ndarray) -> tuple[float, float]:
    """CPU time per query: all together, and one by one."""
    search(queries[:4])
    start = time.process_time()
    search(queries)
    together = (time.process_time() - start) / len(queries)
    start = time.process_time()
    for query in queries[:SINGLE_QUERIES]:
        search(query[None])
    alone = (time.process_time() - start) / len(queries[:SINGLE_QUERIES])
    return 1000 * together, 1000 * alone


@dataclass
class Vectors:
    """Everything that the forms are fitted and judged on.

    Args:
        data: Whose ``test`` rows are judged.
        part: What the encoder was trained on; its ``test`` rows are the held-out ones.
        encoder: The trained one.
    """

    data: hf_xmc.XMCDataset
    part: hf_xmc.XMCDataset
    encoder: hf_xmc.XMCEncoder

    def __post_init__(self) -> None:
        self.rows = self.encoder.key_vectors(self.part.train["text"][:])
        self.labels = self.encoder.label_vectors(self.data.labels["text"][:])
        self.held_out = self.encoder.query_vectors(self.part.test["text"][:])
        self.queries = self.encoder.query_vectors(self.data.test["text"][:])
        self.row_truth, self.truth = self.part.to_csr("train"), self.data.to_csr("test")
        constants = self.data.propensity.a, self.data.propensity.b
        self.fit_weights = inverse_propensities(self.row_truth, *constants)
        self.weights = inverse_propensities(self.data.to_csr("train"), *constants)
        self.filters = self.data.filters["test"]

    def fit(self, memory: KnowledgeMemory, psp_weight: float) -> MemoryFit:
        """The form that is best on the held-out rows."""
        truth, filters = self.part.to_csr("test"), self.part.filters["test"]
        return fit_memory(memory, self.held_out, truth, self.fit_weights, psp_weight=psp_weight, filters=filters)

    def fit_fold(self, psp_weight: float) -> float:
        """The fold weight that is best on the held-out rows."""
        truth, filters = self.part.to_csr("test"), self.part.filters["test"]
        given = self.labels, self.rows, self.row_truth, self.held_out, truth, self.fit_weights
        return fit_fold(*given, psp_weight=psp_weight, filters=filters)

    def fit_leave_one_out(self, memory: KnowledgeMemory, psp_weight: float) -> MemoryFit:
        """The form that is best on as many training rows, each without its own vote."""
        sample = np.random.default_rng(0).permutation(len(self.rows))[: len(self.held_out)]
        queries = self.encoder.query_vectors(self.part.train.select(sample)["text"][:])
        place = np.full(len(self.rows), -1)
        place[sample] = np.arange(len(sample))
        own = self.part.filters["train"]
        own = np.stack([place[own[:, 0]], own[:, 1]], axis=1)
        given = {"psp_weight": psp_weight, "own_rows": sample, "filters": own[own[:, 0] >= 0]}
        return fit_memory(memory, queries, self.row_truth[sample], self.fit_weights, **given)


@dataclass(frozen=True)
class Contestant:
    """A search for (queries, pairs to drop or None), and the megabytes it needs beside the label index."""

    search: Callable[..., tuple[np.ndarray, np.ndarray]]
    megabytes: float = 0.0


def of_memory(memory: KnowledgeMemory, form: MemoryForm) -> Contestant:
    def search(queries: np.ndarray, pairs: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        memory.form = form
        return memory.search(queries, TOP_K, filters=pairs)

    return Contestant(search, memory.num_bytes / 2**20)


def of_labels(index: hf_xmc.LabelIndex) -> Contestant:
    return Contestant(lambda queries, pairs=None: index.search(queries, TOP_K, filters=pairs))


def contestants(vectors: Vectors, psp_weight: float) -> dict[str, Contestant]:
    """Name -> what is compared, the plain label search first; forms are fitted and printed on the way."""
    fold_weight = vectors.fit_fold(psp_weight)
    plain = hf_xmc.LabelIndex(vectors.labels)
    folded = hf_xmc.LabelIndex(fold_rows(vectors.labels, vectors.rows, vectors.row_truth, fold_weight))
    memory, both = (KnowledgeMemory(vectors.rows, vectors.row_truth, index) for index in (plain, folded))
    found = {"label search": of_labels(plain), f"folded, weight {fold_weight}": of_labels(folded)}
    forms: dict[str, MemoryForm] = {}
    for name, each, weight in (
        ("memory, for the blend", memory, psp_weight),
        ("memory, for P@1", memory, 0.0),
        ("memory, for PSP@1", memory, 1.0),
        ("memory on folded labels", both, psp_weight),
    ):
        fit = vectors.fit(each, weight)
        forms[name] = fit.form
        found[name] = of_memory(each, fit.form)
        print(f"{name}: {fit.form}, held-out P@1 {100 * fit.precision:.2f} PSP@1 {100 * fit.psp:.2f}")
    fit = vectors.fit_leave_one_out(memory, psp_weight)
    print(f"leave-one-out on {len(vectors.held_out):,} rows: {fit.form}\nfold weight {fold_weight}\n")
    blend = forms["memory, for the blend"]
    found["memory, fitted leave-one-out"] = of_memory(memory, fit.form)
    found["memory, the paper's form"] = of_memory(memory, MemoryForm(0.5, 25.0, 200))
    found["memory, one lambda for all"] = of_memory(memory, replace(blend, frequency_power=0.0))
    for dtype in (np.float16, np.int8):
        small = KnowledgeMemory(vectors.rows, vectors.row_truth, plain, dtype=dtype)
        found[f"memory, for the blend, {np.dtype(dtype)}"] = of_memory(small, blend)
    return found


def cells(ids: np.ndarray, baseline: np.ndarray | None, vectors: Vectors) -> list[str]:
    """The metrics of a ranking, and their differences to the baseline where there is one."""
    values = xmc_metrics(ids, vectors.truth, (1, 5), vectors.weights)
    shown = [f"{100 * values[metric]:.2f}" for metric in METRICS]
    if baseline is None:
        return shown
    gaps = bootstrap_differences(ids, baseline, vectors.truth, (1, 5), vectors.weights)
    return [
        f"{cell} {100 * gap.value:+.2f} [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}]"
        for cell, gap in zip(shown, (gaps[metric] for metric in METRICS), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--fields", nargs="+", default=["title"])
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--save_encoder", type=Path)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--psp_weight", type=float, default=0.5)
    add_output(parser)
    options = parser.parse_args()

    data = hf_xmc.load_lf(options.data_dir, fields=tuple(options.fields), label_fields=tuple(options.fields))
    part = data.hold_out(options.fraction, answerable_only=True)
    encoder = hf_xmc.XMCEncoder(str(options.encoder), device="cpu") if options.encoder else train(part)
    if options.save_encoder:
        encoder.save_pretrained(str(options.save_encoder))
    vectors = Vectors(data, part, encoder)
    rows, width = vectors.rows.shape
    print(f"{data!r}; {rows:,} rows in the memory, {len(vectors.held_out):,} held out, width {width}")
    table = Table(
        f"What a memory adds ({data.name})",
        dict.fromkeys(("form", "P@1", "P@5", "PSP@1", "PSP@5"), "")
        | {"extra MB": ".1f", "CPU ms": ".2f", "ms alone": ".2f"},
        about="Differences to the label search in points, with paired 95 % intervals; CPU ms a query, searched "
        "together and alone, without encoding.",
    )
    baseline = None
    for name, contestant in contestants(vectors, options.psp_weight).items():
        ids = contestant.search(vectors.queries, vectors.filters)[0]
        shown = cells(ids, baseline, vectors)
        baseline = ids if baseline is None else baseline
        table.add(name, *shown, contestant.megabytes, *milliseconds(contestant.search, vectors.queries[:2000]))
    write(options.output, table)


if __name__ == "__main__":
    main()
