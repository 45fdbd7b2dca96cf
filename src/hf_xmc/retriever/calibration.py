"""Fitting what makes probabilities of scores, and the file that keeps it; ``hub/answers_xmc.py`` applies it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold

from hf_xmc.hub.answers_xmc import CONTEXT, Calibration, Ranking, facts_of, nearest, rank
from hf_xmc.hub.checks_xmc import Parts, checked_request
from hf_xmc.hub.filters_xmc import checked_filters
from hf_xmc.hub.repo_xmc import FORMAT_VERSION, check_version
from hf_xmc.memory.knowledge_memory import as_votes
from hf_xmc.metrics.inputs import Truth
from hf_xmc.metrics.reliability import CUTS, CalibrationReport, Reliability, ReliabilityBin, base_rates, measure
from hf_xmc.ranker.fit import hits

_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)


def reliability(parts: Parts, queries: np.ndarray, texts: list[str], truth: Truth, filters: Any) -> CalibrationReport:
    """See :meth:`hf_xmc.Retriever.reliability`; queries (N, D) are the vectors of the texts."""
    if parts.ranker is not None:
        wanted = checked_truth(truth, len(texts), len(parts.labels))
        request = checked_request(parts, min(max(CUTS), parts.index.num_alive))
        pairs = checked_filters(filters, len(texts), len(parts.labels))
        return measure_ranking(rank(parts, queries, texts, request, pairs), wanted)
    if not isinstance(parts.calibration, FittedCalibration):
        raise ValueError("this retriever has no probabilities; make them: fit_ranker(texts, truth)")
    fit = parts.calibration.calibration
    scores, right = judge_queries(parts, queries, truth, fit.memory, filters)
    return measure(fit.probabilities(scores, scores), scores, right, parts.calibration.base_rates)


def measure_ranking(ranking: Ranking, truth: csr_matrix) -> CalibrationReport:
    """How well the probabilities of a ranking fit its truth (N, at most L)."""
    right = hits(truth, ranking.ids)
    assert ranking.probabilities is not None
    return measure(ranking.probabilities, ranking.scores, right, base_rates(ranking.scores, right))


def fit_calibration(scores: np.ndarray, right: np.ndarray, memory: bool = False) -> Calibration:
    """The :class:`Calibration` of the largest likelihood on held-out queries; none of them a training row.

    Args:
        scores: (N, C) float, the ``CONTEXT`` best scores of each query, descending, -inf in missing places.
        right: (N, C) bool, whether the label is right. The first five places are fitted.
        memory: Kept in the result.

    Raises:
        ValueError: if no place or every place is right, or right labels do not score above wrong ones.
    """
    scores, right = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=bool)
    if scores.ndim != 2 or right.shape != scores.shape:
        raise ValueError(f"scores and right must be of one shape (N, C), got {scores.shape} and {right.shape}")
    places = np.isfinite(scores) & (np.arange(scores.shape[1]) < max(CUTS))
    wanted = right[places]
    if not wanted.any() or wanted.all():
        raise ValueError(f"{wanted.sum()} of {wanted.size} predicted labels are right; calibration needs both kinds")
    # A scale means nothing by itself: try those that tell apart scores as far apart as the best places are.
    depth = np.isfinite(scores[:, : max(CUTS)]).sum(1)
    last = scores[np.arange(len(scores)), np.maximum(depth, 1) - 1]
    spread = np.mean((scores[:, 0] - last)[depth > 1]) if (depth > 1).any() else 1.0
    tried = [_fit(scores, places, wanted, scale / max(spread, 1e-6), memory) for scale in _SCALES]
    _, values = min(tried, key=lambda one: one[0])
    if values["slope"] <= 0:
        raise ValueError(
            "right labels do not score above wrong ones on these texts; are texts and truth in one order?"
        )
    return Calibration(**values)


def _fit(
    scores: np.ndarray, places: np.ndarray, wanted: np.ndarray, scale: float, memory: bool
) -> tuple[float, dict[str, Any]]:
    """The log loss of the best fit with this scale, and its numbers."""
    top, mass = (np.broadcast_to(fact, scores.shape)[places] for fact in facts_of(scores, scale))
    facts = np.stack([scores[places], top, mass], axis=1)
    centre, spread = facts.mean(0), np.maximum(facts.std(0), 1e-12)
    model = LogisticRegression(C=1e3, max_iter=1000).fit((facts - centre) / spread, wanted)
    slopes = model.coef_[0] / spread
    loss = log_loss(wanted, model.predict_proba((facts - centre) / spread)[:, 1])
    names = dict(zip(("slope", "top", "mass"), slopes.tolist(), strict=True))
    return loss, names | {
        "offset": float(model.intercept_[0] - slopes @ centre),
        "scale": float(scale),
        "memory": memory,
    }


def cross_fitted_report(scores: np.ndarray, right: np.ndarray, num_folds: int = 5) -> CalibrationReport:
    """What :func:`fit_calibration` promises for texts it has not seen: each fifth judged by a fit on the others."""
    probabilities = np.zeros(scores.shape)
    for rest, fold in KFold(min(num_folds, len(scores)), shuffle=True, random_state=0).split(scores):
        fit = fit_calibration(scores[rest], right[rest])
        probabilities[fold] = fit.probabilities(scores[fold], scores[fold])
    return measure(probabilities, scores, right, base_rates(scores, right))


def calibrate(
    parts: Parts, queries: np.ndarray, truth: Truth, memory: bool | None, filters: np.ndarray | None
) -> tuple[FittedCalibration, CalibrationReport]:
    """See :meth:`hf_xmc.Retriever.calibrate`; queries (N, D) are vectors."""
    if parts.ranker is not None and memory is None:
        raise ValueError("the ranker has probabilities; for those of plain scores say which: memory=True or False")
    votes = bool(checked_request(parts, memory=memory).memory)
    if len(queries) < 2:
        raise ValueError(f"a calibration is fitted on some thousands of texts, at least 2, got {len(queries)}")
    scores, right = judge_queries(parts, queries, truth, votes, filters)
    report = cross_fitted_report(scores, right)
    return FittedCalibration(fit_calibration(scores, right, votes), base_rates(scores, right), report), report


def checked_truth(truth: Truth, num_texts: int, num_labels: int) -> csr_matrix:
    """The labels of held-out texts as CSR (N, at most L).

    Raises:
        ValueError: For a truth of other texts or labels, or without any text.
    """
    votes = as_votes(truth, num_labels)
    if votes.shape[0] != num_texts or votes.shape[1] > num_labels or not num_texts:
        raise ValueError(
            f"truth must have shape ({num_texts}, at most {num_labels}) for {num_texts} texts and {num_labels} "
            f"labels, at least one each, got {votes.shape}"
        )
    return votes


def judge_queries(
    parts: Parts, queries: np.ndarray, truth: Truth, memory: bool, filters: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The ``CONTEXT`` best scores of queries (N, D) and which of them are right, both (N, CONTEXT).

    Raises:
        ValueError: For a truth of other queries or labels, or without any query.
    """
    wanted = checked_truth(truth, len(queries), len(parts.labels))
    ids, scores, _ = nearest(parts, queries, CONTEXT, memory, filters=filters)
    return scores, hits(wanted, ids)


# -- saving and loading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FittedCalibration:
    """A calibration, the base rates of the set it was fitted on, and the cross-fitted report of that set."""

    calibration: Calibration
    base_rates: dict[int, float]
    report: CalibrationReport

    @property
    def memory(self) -> bool:
        """Whether it is of the votes of a memory."""
        return self.calibration.memory

    def probabilities(self, scores: np.ndarray, context: np.ndarray) -> np.ndarray:
        """See :class:`~hf_xmc.hub.answers_xmc.Calibration`."""
        return self.calibration.probabilities(scores, context)

    def save(self, file: str | Path) -> None:
        """Write ``calibration.json``."""
        content = {"format_version": FORMAT_VERSION} | asdict(self)
        Path(file).write_text(json.dumps(content, indent=2), encoding="utf8")

    @classmethod
    def load(cls, file: str | Path) -> FittedCalibration:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: naming a file that is damaged or of a newer format version.
        """
        try:
            content = json.loads(Path(file).read_text(encoding="utf8"))
            check_version(content["format_version"], file)
            report = content["report"]
            parts = tuple(
                Reliability(**part | {"bins": tuple(ReliabilityBin(**each) for each in part["bins"])})
                for part in report["parts"]
            )
            rates = {int(k): rate for k, rate in content["base_rates"].items()}
            return cls(Calibration(**content["calibration"]), rates, CalibrationReport(report["num_queries"], parts))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} cannot be read ({error}); calibrate and save again, or delete it") from error
