"""How far probabilities can be trusted: reliability by bins of equal mass, expected error, Brier scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import brier_score_loss

from hf_xmc.metrics.inputs import as_array, as_count

# Places of a ranking that are reported.
CUTS = (1, 5)
NUM_BINS = 15


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of about one probability: their mean probability, the share that is right, and their number."""

    probability: float
    right: float
    count: int


@dataclass(frozen=True)
class Reliability:
    """How well probabilities of the first k places fit what came true.

    Attributes:
        k: The places.
        error: Expected calibration error: the mean of ``|probability - right|`` over the bins, weighed by count.
        brier: Mean squared error of the probabilities.
        brier_raw: That of the scores, cut to [0, 1].
        brier_base: That of one constant, the share of right labels in the set that was fitted on.
        bins: ``NUM_BINS`` bins of equal mass, by ascending probability.
    """

    k: int
    error: float
    brier: float
    brier_raw: float
    brier_base: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class CalibrationReport:
    """Reliability of the first place and of the first five; prints as a table with a diagram of bars.

    Attributes:
        num_queries: Texts it was measured on.
        parts: One entry for each of ``CUTS``.
    """

    num_queries: int
    parts: tuple[Reliability, ...]

    def __str__(self) -> str:
        lines = [f"calibration on {self.num_queries} texts"]
        for part in self.parts:
            lines.append(
                f"top-{part.k}: expected calibration error {part.error:.4f}, Brier score {part.brier:.4f} "
                f"(raw score {part.brier_raw:.4f}, base rate {part.brier_base:.4f})"
            )
            for each in part.bins:
                bar = "#" * round(40 * each.right)
                lines.append(f"  {each.probability:6.3f} -> {each.right:6.3f} of {each.count:6d} right {bar}")
        return "\n".join(lines)


def expected_calibration_error(probabilities: np.ndarray, right: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """Mean of |mean probability - share right| over bins of equal mass, weighed by their counts.

    Args:
        probabilities: (n,) in [0, 1].
        right: (n,) bool.
        num_bins: Bins; n need not be a multiple of it.
    """
    bins = reliability_bins(probabilities, right, num_bins)
    return sum(each.count * abs(each.probability - each.right) for each in bins) / len(probabilities)


def reliability_bins(
    probabilities: np.ndarray, right: np.ndarray, num_bins: int = NUM_BINS
) -> tuple[ReliabilityBin, ...]:
    """Bins of equal mass by ascending probability; arguments as in :func:`expected_calibration_error`."""
    probabilities, right = as_array(probabilities), as_array(right)
    as_count("num_bins", num_bins)
    if probabilities.ndim != 1 or probabilities.shape != right.shape or not len(right):
        raise ValueError(f"expected (n,) probabilities and hits, got {probabilities.shape} and {right.shape}")
    if probabilities.dtype.kind not in "fiu" or not (probabilities >= 0).all() or not (probabilities <= 1).all():
        raise ValueError(f"expected probabilities in [0, 1], got {probabilities.dtype} {probabilities[:5]}")
    if right.dtype.kind not in "biu" or not np.isin(right, (0, 1)).all():
        raise ValueError(f"expected hits that are True or False, got {right.dtype} {right[:5]}")
    probabilities, right = probabilities.astype(np.float64), right.astype(bool)
    order = np.argsort(probabilities, kind="stable")
    return tuple(
        ReliabilityBin(float(probabilities[part].mean()), float(right[part].mean()), len(part))
        for part in np.array_split(order, num_bins)
        if len(part)
    )


def measure(
    probabilities: np.ndarray, scores: np.ndarray, right: np.ndarray, base_rates: Mapping[int, float]
) -> CalibrationReport:
    """Compare probabilities with what came true.

    Args:
        probabilities: (N, K), K at least 5 or the number of labels.
        scores: (N, K), -inf in missing places.
        right: (N, K) bool.
        base_rates: k -> share of right labels among the first k places of the set that was fitted on.
    """
    parts = []
    for k in CUTS:
        place = np.isfinite(scores[:, :k])
        p, hit = probabilities[:, :k][place], right[:, :k][place]
        guesses = {"brier": p, "brier_raw": np.clip(scores[:, :k][place], 0, 1)}
        guesses["brier_base"] = np.full(len(hit), base_rates[k])
        briers = {name: float(brier_score_loss(hit, guess, pos_label=True)) for name, guess in guesses.items()}
        bins = reliability_bins(p, hit)
        parts.append(Reliability(k, expected_calibration_error(p, hit), **briers, bins=bins))
    return CalibrationReport(len(scores), tuple(parts))


def base_rates(scores: np.ndarray, right: np.ndarray) -> dict[int, float]:
    """The share of right labels among the first k places, by k; arguments as in :func:`measure`."""
    return {k: float(right[:, :k][np.isfinite(scores[:, :k])].mean()) for k in CUTS}
