"""Choosing how a KnowledgeMemory votes, on held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from hf_xmc.hub.votes_xmc import MemoryForm
from hf_xmc.memory.knowledge_memory import KnowledgeMemory
from hf_xmc.metrics.judged import judge, ranking_ratios

# What `fit_memory` tries, in this order within a round. Ends of row_weight are the label search and plain kNN.
_GRID: dict[str, tuple[Any, ...]] = {
    "scale": (5, 7, 10, 14, 20, 28, 40, 80),
    "row_weight": (0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 0.9, 1),
    "frequency_power": (-0.4, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.4),
    "num_keys": (10, 25, 50, 100, 200),
}
# Standard errors from a gain to the lower end of its 95 % interval.
_SURE = 1.96
# What a blend may cost either of its metrics: a quarter of a point.
_MOST_LOST = 0.0025


@dataclass(frozen=True)
class MemoryFit:
    """What a fit found: the best form, its two metrics and those of the plain label search, all in [0, 1]."""

    form: MemoryForm
    precision: float  # precision@1
    psp: float  # psp@1
    label_precision: float
    label_psp: float
    num_trials: int


def fit_memory(
    memory: KnowledgeMemory,
    queries: np.ndarray,
    truth: sp.csr_matrix,
    inverse_propensities: np.ndarray,
    *,
    psp_weight: float = 0.2,
    own_rows: np.ndarray | None = None,
    filters: np.ndarray | None = None,
) -> MemoryFit:
    """The form of the surest gain over the label search, one parameter at a time; the label search where none is sure.

    The gain is of (1 - psp_weight) precision@1 + psp_weight psp@1, and of it counts the lower end of the paired 95 %
    interval over the queries. The largest gain instead is that of the luckiest of some forty forms: on a few hundred
    queries it took rows to vote where they say nothing, and promised points that test did not keep. A blend may cost
    neither metric more than a quarter of a point on the queries; votes favour frequent labels, so that without the
    limit psp@1 pays for precision@1.

    Queries are held-out rows, or training rows left out one by one (``own_rows``). The latter need no split and found
    nearly the same form in our measurement, but the metrics of the fit are then those of rows that the encoder knows.

    Args:
        memory: Not changed; use the result by ``memory.form = fit.form``.
        queries: (N, D) float32.
        truth: scipy sparse (N, L), the labels of the queries.
        inverse_propensities: (L,), of the training rows.
        psp_weight: 0 for precision@1, 1 for psp@1, between them a blend.
        own_rows: As in :meth:`KnowledgeMemory.search`, and
        filters: likewise.
    """
    score = target_of(truth, inverse_propensities, psp_weight)
    widest = MemoryForm(row_weight=0.5, num_keys=int(max(_GRID["num_keys"])))
    found = memory.find(queries, widest, own_rows, filters)
    plain = MemoryForm(row_weight=0)
    baseline = score(memory.rank(found, plain, 1, filters)[0])
    trials = {plain: (0.0, baseline)}

    def value_of(form: MemoryForm) -> float:
        if form not in trials:
            scored = score(memory.rank(found, form, 1, filters)[0])
            trials[form] = sure_gain(scored, baseline), scored
        return trials[form][0]

    best, before = MemoryForm(), None
    while best != before:
        before = best
        for name, values in _GRID.items():
            for value in values:
                form = replace(best, **{name: value})
                best = form if value_of(form) > value_of(best) else best
    best = best if value_of(best) > 0 else plain
    chosen = trials[best][1]
    return MemoryFit(best, chosen.precision, chosen.psp, baseline.precision, baseline.psp, len(trials))


@dataclass(frozen=True)
class Scored:
    """What a ranking of one place gives."""

    rows: np.ndarray  # (N,) float64, what each query gives to the blend, which is their mean
    precision: float
    psp: float
    is_blend: bool

    def floor(self, baseline: Scored) -> float:
        """The gain of the metric that gains less; of a blend alone, else 0."""
        gains = self.precision - baseline.precision, self.psp - baseline.psp
        return min(gains) if self.is_blend else 0.0


def target_of(
    truth: sp.csr_matrix, inverse_propensities: np.ndarray, psp_weight: float
) -> Callable[[np.ndarray], Scored]:
    """What judges ids (N, 1) by (1 - psp_weight) precision@1 + psp_weight psp@1."""
    if not 0 <= psp_weight <= 1:
        raise ValueError(f"psp_weight must lie in [0, 1], got {psp_weight}")

    def score(ids: np.ndarray) -> Scored:
        ratios = ranking_ratios(judge(ids, truth, 1, inverse_propensities))
        precision, psp = (
            top[:, 0] * (len(top) / max(bottom.sum(), np.finfo(np.float64).tiny))
            for top, bottom in (ratios["precision"], ratios["psp"])
        )
        rows = (1 - psp_weight) * precision + psp_weight * psp
        return Scored(rows, float(precision.mean()), float(psp.mean()), 0 < psp_weight < 1)

    return score


def sure_gain(scored: Scored, baseline: Scored) -> float:
    """The lower end of the paired 95 % interval of the gain; -inf of a single query, or where a metric loses."""
    gains = scored.rows - baseline.rows
    if len(gains) < 2 or scored.floor(baseline) < -_MOST_LOST:
        return -np.inf
    return float(gains.mean() - _SURE * gains.std(ddof=1) / np.sqrt(len(gains)))
