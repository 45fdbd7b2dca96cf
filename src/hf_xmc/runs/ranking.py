"""What a recipe does when its encoder is trained: fit a ranker on held-out rows, test every way of answering."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hf_xmc.data.dataset import XMCDataset
from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.evaluation.evaluator import RECALL_CUTS, XMCEvaluator
from hf_xmc.hub.ranker_xmc import Ranker
from hf_xmc.retriever.calibration import measure_ranking
from hf_xmc.retriever.ranking import renewed
from hf_xmc.retriever.retriever import Retriever
from hf_xmc.runs.record import RunRecord

# From the likeliest labels first towards rare ones, for the line that shows what the dial does.
TAIL = 0.7
_SHOWN = ("precision@1", "precision@5", "psp@1", "psp@5")
# Queries whose answers are timed.
_TIMED = 2000


def fit_held_out(
    encoder: XMCEncoder, development: XMCDataset, memory: bool, record: RunRecord
) -> tuple[Ranker | None, str]:
    """Fit a ranker on held-out rows of train; timed and noted.

    Args:
        encoder: Trained on ``development.train``, with the search form of the final retriever.
        development: From ``data.hold_out(..., answerable_only=True)``.
        memory: Whether the training rows are remembered, for what they say.
        record: Gets its report, in one line.

    Returns:
        For the final retriever, and the report as a table; None, with a note why, where the held-out rows tell
        nothing, for a long training must not end for want of a ranker.
    """
    with record.timed("fitting"):
        retriever = Retriever.build(encoder, development.labels["text"])
        if memory:
            retriever.remember(development.train["text"], development.to_csr("train"))
        try:
            report = retriever.fit_ranker(
                development.test["text"],
                development.to_csr("test"),
                train_truth=development.to_csr("train"),
                propensity=(development.propensity.a, development.propensity.b),
                filters=development.filters["test"],
            )
        except ValueError as error:
            record.notes.append(f"ranker: none, {error}")
            return None, ""
    record.notes.append(report.summary)
    record.metrics["held out"] = report.before
    record.metrics["held out, ranked"] = report.after
    return retriever.ranker, str(report)


def test_lines(
    retriever: Retriever, line: str, test: XMCEvaluator, ranker: Ranker | None, memory: bool, record: RunRecord
) -> dict[str, dict[str, float]]:
    """The lines of a recipe's table for a finished model; looks at the test split.

    Args:
        retriever: With the finished encoder. It gets the training rows and the ranker.
        line: Name of the results of the encoder by itself.
        test: Its ``data.train`` are the rows to remember.
        ranker: From :func:`fit_held_out`.
        memory: Whether training rows are remembered.
        record: Gets every line, the paired gains over the plain label search, with 95 % intervals, and CPU
            milliseconds a query of an answer with five labels among 2,000, encoding included.

    Returns:
        Line -> metrics in [0, 1]: the encoder alone, "with memory" the votes of rows and labels (RAE-XMC), "with
        ranker", and that with the dial towards rare labels.
    """
    data, truth = test.data, test.data.to_csr("train")
    if memory:
        retriever.remember(data.train["text"], truth)
    if ranker is not None:
        retriever.parts = renewed(retriever.parts, ranker, truth)
    ways: dict[str, dict[str, Any]] = {line: {"memory": False}}
    if memory:
        ways["with memory"] = {"memory": True}
    if ranker is not None:
        ways |= {"with ranker": {}, f"with ranker, tail {TAIL}": {"tail": TAIL}}
    texts, filters = data.test["text"][:], data.filters["test"]
    found = {
        name: retriever.rank(texts, min(max(RECALL_CUTS), data.num_labels), filters=filters, **options)
        for name, options in ways.items()
    }
    rankings = {name: ranking.ids for name, ranking in found.items()}
    for name, ids in rankings.items():
        record.costs[name] = {"ms_per_query": _milliseconds(partial(retriever.rank, **ways[name]), texts)}
        if name != line:
            gains = test.intervals(ids, rankings[line])
            record.gains[name] = {key: [gain.value, gain.low, gain.high] for key, gain in gains.items()}
    if ranker is not None:
        report = measure_ranking(found["with ranker"], data.to_csr("test"))
        errors = ", ".join(f"top-{part.k} {part.error:.3f}" for part in report.parts)
        record.notes.append(f"test split: expected calibration error {errors}")
    return {name: record.test(name, test, ids) for name, ids in rankings.items()}


def gain_lines(record: RunRecord) -> list[str]:
    """One line for each way of answering that :func:`test_lines` measured: its gains in points, and what it costs."""
    lines = []
    for name, gains in record.gains.items():
        points = {key: [100 * end for end in gains[key]] for key in _SHOWN}
        shown = (f"{key} {value:+.2f} [{low:+.2f}, {high:+.2f}]" for key, (value, low, high) in points.items())
        lines.append(f"{name}: {', '.join(shown)}; {record.costs[name]['ms_per_query']:.2f} ms a query")
    return lines


def _milliseconds(answer: Callable[[Sequence[str]], object], texts: Sequence[str]) -> float:
    """CPU time a text."""
    texts = texts[:_TIMED]
    answer(texts[:4])
    start = time.process_time()
    answer(texts)
    return 1000 * (time.process_time() - start) / max(len(texts), 1)
