"""The head-to-tail picture is a PNG with one bar per bin and model."""

from __future__ import annotations

import numpy as np
import pytest

from hf_xmc.metrics.frequency import frequency_bins
from hf_xmc.metrics.plots import CostPoint, plot_cost_quality, plot_head_to_tail

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


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    from matplotlib.figure import Figure

    saved = []
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, *args, _save=Figure.savefig, **kw: saved.append(self) or _save(self, *args, **kw),
    )
    return saved


def names_below(figure):
    """The names of the legend, which clears the axes and is not cut off."""
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0
    assert all(axis.get_tightbbox().y0 >= box.y1 for axis in figure.axes)
    return [text.get_text() for text in legend.get_texts()]


def test_the_names_of_many_rankings_fit_below_their_bars(tmp_path, figures):
    bins = frequency_bins(np.array([[0], [1], [2]]), TRUTH, COUNTS, 1)
    rankings = {f"a ranking of some length, number {n}": bins for n in range(8)}
    plot_head_to_tail(rankings, tmp_path / "bars.png", k=1)
    assert names_below(figures[0]) == list(rankings)


def test_peers_come_after_ours_hollow_and_each_with_its_own_look_and_nothing_is_cut_off(tmp_path, figures):
    from matplotlib.colors import to_rgba

    metrics = {"precision@1": (0.5, 0.4, 0.7), "psp@1": (0.3, 0.2, 0.35)}
    points = [CostPoint(f"a contestant of some name {n}", 10.0 + n, metrics, peer=n % 2 == 0) for n in range(12)]
    plot_cost_quality(points, tmp_path / "cost.png")
    (figure,) = figures
    lines = [each.lines[0] for each in figure.axes[0].containers]
    hollow = [to_rgba(line.get_markerfacecolor()) == to_rgba("white") for line in lines]
    assert hollow == [False] * 6 + [True] * 6
    assert len({(line.get_marker(), line.get_markeredgecolor()) for line in lines}) == 12
    assert [name[-2:].strip() for name in names_below(figure)] == [*"13579", "11", *"02468", "10"]
    assert "peers of training" in figure.axes[0].get_xlabel()
