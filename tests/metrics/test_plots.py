"""The head-to-tail picture is a PNG with one bar per bin and model."""

from __future__ import annotations

import numpy as np
import pytest

from hf_xmc.metrics.frequency import frequency_bins
from hf_xmc.plots import CostPoint, plot_cost_quality, plot_head_to_tail

COUNTS = np.array([9, 5, 5, 3, 2, 2, 1, 1, 1])
TRUTH = [[0, 3], [1], [6, 2]]


def test_one_bar_per_bin_and_model(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(
        Axes, "bar", lambda self, *args, _bar=Axes.bar, **kw: drawn.append(args) or _bar(self, *args, **kw)
    )
    bins = {
        "ours": frequency_bins([[0, 3], [1, 2], [6, 2]], TRUTH, COUNTS, 2),
        "theirs": frequency_bins([[0], [0], [0]], TRUTH, COUNTS, 2),
    }
    path = plot_head_to_tail(bins, tmp_path / "head_to_tail.png", k=2)
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    shares = [[100 * each.precision_share for each in bins[name]] for name in ("ours", "theirs")]
    assert [heights for _, heights in drawn[:2]] == shares
    assert sum(shares[0]) == pytest.approx(100 * 5 / 6) and sum(shares[1]) == pytest.approx(100 / 6)


def test_models_with_other_bins_are_refused(tmp_path):
    bins = {"ours": frequency_bins([[0]], [[0]], COUNTS, 1), "theirs": frequency_bins([[0]], [[0]], COUNTS[1:], 1)}
    with pytest.raises(ValueError, match="2 different divisions"):
        plot_head_to_tail(bins, tmp_path / "head_to_tail.png", k=1)


def test_cost_and_quality_with_the_ends_of_the_intervals(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(
        Axes,
        "errorbar",
        lambda self, *args, _bar=Axes.errorbar, **kw: drawn.append(args[:3]) or _bar(self, *args, **kw),
    )
    metrics = {"precision@1": (0.5, 0.4, 0.7), "psp@1": (0.3, 0.2, 0.35)}
    points = [CostPoint("cheap", 10.0, metrics), CostPoint("dear", 1000.0, metrics)]
    path = plot_cost_quality(points, tmp_path / "cost.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert [each[:2] for each in drawn] == [(10.0, 50.0), (1000.0, 50.0), (10.0, 30.0), (1000.0, 30.0)]
    assert [sum(each[2], []) for each in drawn[::2]] == [pytest.approx([10, 20]), pytest.approx([10, 5])]
    with pytest.raises(ValueError, match="points are empty"):
        plot_cost_quality([], tmp_path / "none.png")
