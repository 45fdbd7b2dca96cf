"""Scores into probabilities of the label being right, cut-offs made of them, and the file that keeps them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold

from hf_xmc.metrics.reliability import CUTS, CalibrationReport, Reliability, ReliabilityBin, base_rates, measure

FORMAT_VERSION = 1
# Best scores of a query that its mass is summed over.
CONTEXT = 100
_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class Calibration:
    """The probability that a label is right, from its score s and the best scores s_1 >= s_2 >= ... of its query:

        p = sigmoid(slope s + top s_1 + mass m + offset),   m = 1 / scale log sum_j exp(scale s_j)

    Platt's scaling (1999) with two facts of the query: how good its best label is, and how many are as good; with
    slope = -mass = scale and no more, p/(1 - p) is the softmax. Within a query p rises strictly with the score, so no
    ranking changes.

    Args:
        slope: Above 0.
        top, mass, offset: Any finite number.
        scale: Above 0, in units of 1 / score.
        memory: Whether it is of the votes of a memory, whose scores are others than those of a label search.
    """

    slope: float
    top: float
    mass: float
    offset: float
    scale: float
    memory: bool = False

    def __post_init__(self) -> None:
        numbers = (self.slope, self.top, self.mass, self.offset, self.scale)
        if not np.isfinite(numbers).all() or self.slope <= 0 or self.scale <= 0:
            raise ValueError(f"expected finite numbers with slope and scale above 0, got {self}")

    def probabilities(self, scores: np.ndarray, context: np.ndarray) -> np.ndarray:
        """p of each score.

        Args:
            scores: (N, K) float, -inf for a missing place.
            context: (N, C) float, the ``CONTEXT`` best scores of each query among all labels, descending.

        Returns:
            (N, K) float64 in [0, 1], 0 in missing places.
        """
        scores = np.asarray(scores, dtype=np.float64)
        top, mass = _facts(context, self.scale)
        logits = self.slope * scores + self.top * top + self.mass * mass + self.offset
        return np.where(np.isfinite(scores), 1 / (1 + np.exp(-np.clip(logits, -700, 700))), 0.0)


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
    top, mass = (np.broadcast_to(fact, scores.shape)[places] for fact in _facts(scores, scale))
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


def _facts(context: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """s_1 and m (N, 1) of the best scores (N, C); 0 for a query without any."""
    context = np.asarray(context, dtype=np.float64)[:, :CONTEXT]
    top = np.where(np.isfinite(context[:, :1]), context[:, :1], 0.0)
    mass = top + np.log(np.maximum(np.exp(scale * (context - top)).sum(1, keepdims=True), 1e-300)) / scale
    return top, np.where(np.isfinite(context[:, :1]), mass, 0.0)


def longest_prefix(probabilities: np.ndarray, min_precision: float) -> np.ndarray:
    """How many labels of each query to keep so that their expected precision reaches a wish, and no longer list does.

    Args:
        probabilities: (N, K), descending.
        min_precision: In (0, 1].

    Returns:
        (N,) int64 in 0 .. K: the largest k with ``probabilities[:, :k].mean() >= min_precision``. As p descends, so do
        the means, and 0 says that not even the first label is that likely.
    """
    if not 0 < min_precision <= 1:
        raise ValueError(f"min_precision must lie in (0, 1], got {min_precision}")
    means = np.cumsum(probabilities, axis=1) / np.arange(1, probabilities.shape[1] + 1)
    return (means >= min_precision).sum(1)


def cross_fitted_report(scores: np.ndarray, right: np.ndarray, num_folds: int = 5) -> CalibrationReport:
    """What :func:`fit_calibration` promises for texts it has not seen: each fifth judged by a fit on the others."""
    probabilities = np.zeros(scores.shape)
    for rest, fold in KFold(min(num_folds, len(scores)), shuffle=True, random_state=0).split(scores):
        fit = fit_calibration(scores[rest], right[rest])
        probabilities[fold] = fit.probabilities(scores[fold], scores[fold])
    return measure(probabilities, scores, right, base_rates(scores, right))


# -- saving and loading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FittedCalibration:
    """A calibration, the base rates of the set it was fitted on, and the cross-fitted report of that set."""

    calibration: Calibration
    base_rates: dict[int, float]
    report: CalibrationReport

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
            version = content["format_version"]
            if version > FORMAT_VERSION:
                raise ValueError(f"format_version {version} is newer than {FORMAT_VERSION}: pip install -U hf_xmc")
            report = content["report"]
            parts = tuple(
                Reliability(**part | {"bins": tuple(ReliabilityBin(**each) for each in part["bins"])})
                for part in report["parts"]
            )
            rates = {int(k): rate for k, rate in content["base_rates"].items()}
            return cls(Calibration(**content["calibration"]), rates, CalibrationReport(report["num_queries"], parts))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} cannot be read ({error}); calibrate and save again, or delete it") from error
