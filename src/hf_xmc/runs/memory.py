"""What a recipe does with a knowledge memory: choose its form without the test split, then measure it there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hf_xmc.data.dataset import XMCDataset
from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.evaluation.evaluator import RECALL_CUTS, XMCEvaluator
from hf_xmc.index.label_index import LabelIndex
from hf_xmc.memory import MemoryForm
from hf_xmc.memory.fit import MemoryFit, fit_memory
from hf_xmc.memory.fold import fit_fold, fold_rows
from hf_xmc.memory.knowledge_memory import KnowledgeMemory
from hf_xmc.metrics.functional import inverse_propensities
from hf_xmc.retriever.retriever import Retriever
from hf_xmc.runs.record import RunRecord

_SHOWN = ("precision@1", "precision@5", "psp@1", "psp@5")
# Queries whose search is timed.
_TIMED = 2000


@dataclass(frozen=True)
class MemoryChoice:
    """How training rows vote, and how far label vectors move towards them; both 0 where no row helps."""

    fit: MemoryFit
    fold_weight: float

    @property
    def form(self) -> MemoryForm:
        """How rows and labels vote."""
        return self.fit.form

    def __str__(self) -> str:
        gain, psp_gain = (
            100 * (after - before)
            for after, before in (
                (self.fit.precision, self.fit.label_precision),
                (self.fit.psp, self.fit.label_psp),
            )
        )
        if not self.form.row_weight:
            return f"memory: no vote of the training rows helps; fold weight {self.fold_weight}"
        return f"memory: {self.form}, P@1 {gain:+.2f}, PSP@1 {psp_gain:+.2f}; fold weight {self.fold_weight}"


def choose_memory(encoder: XMCEncoder, development: XMCDataset, psp_weight: float = 0.2) -> MemoryChoice:
    """Fit on a held-out part.

    Args:
        encoder: Trained on ``development.train``, whose rows are the memory.
        development: From ``data.hold_out(...)``: its ``test`` rows are held-out rows of train.
        psp_weight: 0 for precision@1, 1 for psp@1, between them a blend.
    """
    labels = encoder.label_vectors(development.labels["text"][:])
    rows, row_truth = encoder.key_vectors(development.train["text"][:]), development.to_csr("train")
    queries, truth = encoder.query_vectors(development.test["text"][:]), development.to_csr("test")
    weights = inverse_propensities(row_truth, development.propensity.a, development.propensity.b)
    filters, memory = development.filters["test"], KnowledgeMemory(rows, row_truth, LabelIndex.exact(labels))
    fit = fit_memory(memory, queries, truth, weights, psp_weight=psp_weight, filters=filters)
    fold = fit_fold(labels, rows, row_truth, queries, truth, weights, psp_weight=psp_weight, filters=filters)
    return MemoryChoice(fit, fold)


def choose_memory_leave_one_out(
    encoder: XMCEncoder, data: XMCDataset, psp_weight: float = 0.2, *, num_rows: int = 5000, seed: int = 0
) -> MemoryChoice:
    """Fit on rows of ``data.train``, each without its own vote, where nothing is held out; folding is left at 0.

    Args:
        encoder: Trained on ``data.train``.
        data: Its ``test`` part is not looked at.
        psp_weight: As in :func:`choose_memory`.
        num_rows: Training rows that are asked, drawn at random.
        seed: For the draw.
    """
    labels, texts = encoder.label_vectors(data.labels["text"][:]), data.train["text"][:]
    rows, truth = encoder.key_vectors(texts), data.to_csr("train")
    weights = inverse_propensities(truth, data.propensity.a, data.propensity.b)
    asked = np.random.default_rng(seed).permutation(len(texts))[:num_rows]
    place = np.full(len(texts), -1)
    place[asked] = np.arange(len(asked))
    pairs = data.filters["train"]
    pairs = np.stack([place[pairs[:, 0]], pairs[:, 1]], axis=1)
    fit = fit_memory(
        KnowledgeMemory(rows, truth, LabelIndex.exact(labels)),
        encoder.query_vectors([texts[row] for row in asked]),
        truth[asked],
        weights,
        psp_weight=psp_weight,
        own_rows=asked,
        filters=pairs[pairs[:, 0] >= 0],
    )
    return MemoryChoice(fit, 0.0)


def decide_memory(
    encoder: XMCEncoder, development: XMCDataset, record: RunRecord, *, held_out: bool = True
) -> MemoryChoice:
    """:func:`choose_memory`, or leave-one-out where nothing is ``held_out``; timed and noted."""
    choose = choose_memory if held_out else choose_memory_leave_one_out
    with record.timed("fitting"):
        choice = choose(encoder, development)
    record.notes.append(str(choice))
    return choice


def memory_rows(
    retriever: Retriever, test: XMCEvaluator, choice: MemoryChoice, record: RunRecord
) -> dict[str, dict[str, float]]:
    """The rows of a recipe's table for a finished model with its memory; looks at the test split.

    Where the chosen form lets rows vote, the retriever remembers all rows of train and is saved with them.

    Args:
        retriever: With the finished encoder.
        test: Its ``data.train`` are the rows to remember.
        choice: From :func:`choose_memory`.
        record: Gets both lines, the paired gains over the plain label search, with 95 % intervals, and the costs:
            bytes beside the label index and CPU milliseconds a query of a search among 2,000, without encoding.

    Returns:
        "with memory" and "folded" -> metrics in [0, 1].
    """
    data, encoder = test.data, retriever.encoder
    texts, truth, filters = data.train["text"][:], data.to_csr("train"), data.filters["test"]
    top_k = max(RECALL_CUTS)
    queries = encoder.query_vectors(data.test["text"][:])
    plain, _ = retriever.index.search(queries, top_k, filters=filters)
    record.costs["label search"] = {"bytes": 0, "ms_per_query": _milliseconds(retriever.index.search, queries)}
    if choice.form.row_weight > 0:
        retriever.remember(texts, truth, choice.form)
    rankings: dict[str, np.ndarray] = {}
    if (memory := retriever.memory) is not None:
        rankings["with memory"], _ = memory.search(queries, top_k, filters=filters)
        cost = {"bytes": memory.num_bytes, "ms_per_query": _milliseconds(memory.search, queries)}
        record.costs["with memory"] = cost
    if choice.fold_weight > 0:
        rows = encoder.key_vectors(texts)
        index = LabelIndex.exact(fold_rows(np.asarray(retriever.index.vectors), rows, truth, choice.fold_weight))
        rankings["folded"], _ = index.search(queries, top_k, filters=filters)
        record.costs["folded"] = {"bytes": 0, "ms_per_query": _milliseconds(index.search, queries)}
    for name, ids in rankings.items():
        gains = test.intervals(ids, plain)
        record.gains[name] = {key: [gain.value, gain.low, gain.high] for key, gain in gains.items()}
    return {name: record.test(name, test, ids) for name, ids in rankings.items()}


def gain_lines(record: RunRecord) -> list[str]:
    """One line for each form of a memory that :func:`memory_rows` measured: its gains in points, and what it costs."""
    lines = []
    for name, gains in record.gains.items():
        points = {key: [100 * end for end in gains[key]] for key in _SHOWN}
        shown = (f"{key} {value:+.2f} [{low:+.2f}, {high:+.2f}]" for key, (value, low, high) in points.items())
        cost = record.costs[name]
        size, time_taken = cost["bytes"] / 2**20, cost["ms_per_query"]
        lines.append(f"{name}: {', '.join(shown)}; {size:.1f} MB, {time_taken:.2f} ms a query")
    return lines


def _milliseconds(search: Callable[[np.ndarray, int], object], queries: np.ndarray) -> float:
    """CPU time a query of a search for five labels."""
    queries = queries[:_TIMED]
    search(queries[:4], 5)
    start = time.process_time()
    search(queries, 5)
    return 1000 * (time.process_time() - start) / max(len(queries), 1)
