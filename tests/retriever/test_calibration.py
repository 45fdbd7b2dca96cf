from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from reference.retriever import slow_calibration_error

from hf_xmc.hub.answers_xmc import CONTEXT, Calibration, longest_prefix
from hf_xmc.metrics.reliability import base_rates, expected_calibration_error, measure, reliability_bins
from hf_xmc.retriever.calibration import FittedCalibration, cross_fitted_report, fit_calibration


def draw(num_queries: int, seed: int = 0, width: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, hits and the probabilities that the hits were drawn with: those of a softmax at scale 12."""
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.normal(0, 0.3, (num_queries, width)), axis=1)
    odds = np.exp(12 * scores) / np.exp(12 * scores).sum(1, keepdims=True)
    p = odds / (odds + 0.5)
    return scores, rng.random(scores.shape) < p, p


@pytest.mark.parametrize("num_rows,num_bins", [(1, 15), (7, 3), (100, 15), (15, 15)])
def test_the_expected_error_equals_the_slow_loop(num_rows: int, num_bins: int) -> None:
    rng = np.random.default_rng(num_rows)
    p, right = rng.random(num_rows), rng.random(num_rows) < 0.4
    expected = slow_calibration_error(p.tolist(), right.tolist(), num_bins)
    assert expected_calibration_error(p, right, num_bins) == pytest.approx(expected, abs=1e-12)
    bins = reliability_bins(p, right, num_bins)
    assert sum(each.count for each in bins) == num_rows
    assert max(each.count for each in bins) - min(each.count for each in bins) <= 1


def test_probabilities_of_a_known_law_are_found_again() -> None:
    fit = fit_calibration(*draw(4000)[:2])
    scores, right, truth = draw(4000, seed=1)
    p = fit.probabilities(scores, scores)
    assert np.abs(p - truth)[:, :5].mean() < 0.03
    report = measure(p, scores, right, base_rates(scores, right))
    for part in report.parts:
        assert part.error < 0.03
        assert part.brier < min(part.brier_raw, part.brier_base)
        assert len(part.bins) == 15
    assert "top-5: expected calibration error 0.0" in str(report)
    assert max(part.error for part in cross_fitted_report(scores, right).parts) < 0.03


def test_a_probability_rises_strictly_with_the_score_whatever_the_query() -> None:
    scores, right, _ = draw(500)
    p = fit_calibration(scores, right).probabilities(scores, scores)
    assert (np.diff(p, axis=1) < 0).all() and 0 < p.min() and p.max() < 1


def test_missing_places_have_probability_zero_and_count_for_nothing() -> None:
    scores, right, _ = draw(800)
    padded = np.pad(scores, ((0, 0), (0, 30)), constant_values=-np.inf)
    wide = np.pad(right, ((0, 0), (0, 30)))
    fit = fit_calibration(padded, wide)
    assert asdict(fit) == pytest.approx(asdict(fit_calibration(scores, right)), rel=1e-6)
    p = fit.probabilities(padded, padded)
    assert (p[:, 20:] == 0).all() and (p[:, :20] > 0).all()
    empty = np.full((1, CONTEXT), -np.inf)
    assert (fit.probabilities(empty, empty) == 0).all()


def test_the_cut_off_keeps_the_longest_list_that_is_good_enough() -> None:
    p = np.array([[0.9, 0.5, 0.1], [0.4, 0.3, 0.2], [0.6, 0.6, 0.6]])
    for wish in (0.35, 0.5, 0.6, 0.7, 1.0):
        expected = [max([0] + [k for k in (1, 2, 3) if row[:k].mean() >= wish - 1e-12]) for row in p]
        assert longest_prefix(p, wish - 1e-12).tolist() == expected
    with pytest.raises(ValueError, match=r"min_precision must lie in \(0, 1\], got 0"):
        longest_prefix(p, 0)


def test_what_cannot_be_calibrated_is_refused() -> None:
    scores, right, _ = draw(50)
    with pytest.raises(ValueError, match="0 of 250 predicted labels are right"):
        fit_calibration(scores, np.zeros_like(right))
    with pytest.raises(ValueError, match="do not score above wrong ones"):
        fit_calibration(scores, np.arange(20) >= np.arange(50)[:, None] % 2 + 3)
    with pytest.raises(ValueError, match="must be of one shape"):
        fit_calibration(scores, right[:, :5])
    with pytest.raises(ValueError, match="slope and scale above 0"):
        Calibration(slope=-1.0, top=0.0, mass=0.0, offset=0.0, scale=1.0)


def test_a_file_gives_back_what_was_saved_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    scores, right, _ = draw(100)
    fitted = FittedCalibration(
        fit_calibration(scores, right), base_rates(scores, right), cross_fitted_report(scores, right)
    )
    file = tmp_path / "calibration.json"
    fitted.save(file)
    assert FittedCalibration.load(file) == fitted
    content = json.loads(file.read_text())
    for damaged in ("{", json.dumps(content | {"format_version": 2}), json.dumps({"format_version": 1})):
        file.write_text(damaged)
        with pytest.raises(ValueError, match=r"calibration.json cannot be read .*; calibrate and save again"):
            FittedCalibration.load(file)
