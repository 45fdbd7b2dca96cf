"""The PNGs of cards and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_xmc.metrics.frequency import FrequencyBin
from hf_xmc.metrics.reliability import CalibrationReport


@dataclass(frozen=True)
class CostPoint:
    """One model in the cost-quality picture: its CPU seconds, and metric -> (value, low, high) in [0, 1].

    A peer is what ours are compared with: hollow and gray, its seconds those of training alone.
    """

    name: str
    cpu_seconds: float
    metrics: Mapping[str, tuple[float, float, float]]
    peer: bool = False


def plot_cost_quality(points: Sequence[CostPoint], path: str | Path) -> Path:
    """Draw precision@1 and psp@1 against CPU seconds, seconds on a logarithmic axis, with intervals, as a PNG.

    Args:
        points: One entry per model, each with the metrics ``precision@1`` and ``psp@1``.
        path: The file to write.

    Returns:
        The path.

    Raises:
        ValueError: If there is no point.
        ImportError: If matplotlib is not installed.
    """
    if not points:
        raise ValueError("points are empty; expected at least one model")
    figure = new_figure(10, 4 + _legend_height(len(points)))
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ours, peers = ([point for point in points if point.peer is peer] for peer in (False, True))
    # Ten colors, then the next marker; peers are told apart by their markers alone.
    styles = [{"fmt": "osD^vP*X"[number // 10 % 8], "color": f"C{number % 10}"} for number in range(len(ours))]
    styles += [{"fmt": "s^vDPX*p"[number % 8], "color": "gray", "mfc": "white"} for number in range(len(peers))]
    axes = figure.subplots(1, 2)
    for axis, metric, title in zip(axes, ("precision@1", "psp@1"), ("P@1 (%)", "PSP@1 (%)"), strict=True):
        for point, style in zip([*ours, *peers], styles, strict=True):
            value, low, high = (100 * each for each in point.metrics[metric])
            ends = [[value - low], [high - value]]
            axis.errorbar(point.cpu_seconds, value, ends, label=point.name, **style)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("CPU seconds, ours of the whole run" + (", peers of training" if peers else ""))
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
    _legend_below(figure, axes[0])
    figure.savefig(path, format="png", dpi=150)
    return Path(path)


def plot_head_to_tail(bins: Mapping[str, Sequence[FrequencyBin]], path: str | Path, *, k: int) -> Path:
    """Draw what each bin of label frequency gives to precision@k, and its recall@k, head on the left, as a PNG.

    Args:
        bins: One entry per model, its name -> what :func:`~hf_xmc.metrics.frequency_bins` or ``frequency_deciles``
            return for it, all with the same labels in each bin.
        path: The file to write.
        k: The cut-off the bins were made with, for the axis titles.

    Returns:
        The path.

    Raises:
        ValueError: If there is no model, or their bins differ.
        ImportError: If matplotlib is not installed.
    """
    edges = {tuple((each.num_labels, each.min_count, each.max_count) for each in model) for model in bins.values()}
    if len(edges) != 1:
        raise ValueError(
            f"bins have {len(edges)} different divisions of the labels; expected models with the same one"
        )
    figure = new_figure(10, 4 + _legend_height(len(bins)))
    titles = (f"contribution to precision@{k} (%)", f"recall@{k} (%)")
    ticks = [f"{least}-{most}\n{num_labels:,} labels" for num_labels, least, most in edges.pop()]
    width = 0.8 / len(bins)
    for axis, title, field in zip(figure.subplots(1, 2), titles, ("precision_share", "recall"), strict=True):
        for number, (name, model) in enumerate(bins.items()):
            centers = [place + (number - (len(bins) - 1) / 2) * width for place in range(len(model))]
            axis.bar(centers, [100 * getattr(each, field) for each in model], width=width, label=name)
        axis.set_xticks(range(len(ticks)), ticks, fontsize=7)
        axis.set_xlabel("train rows per label, head to tail")
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
    _legend_below(figure, axis)
    figure.savefig(path, format="png", dpi=150)
    return Path(path)


def plot_reliability(report: CalibrationReport, path: str | Path) -> Path:
    """Draw the share of right labels over the probability they were given, one line a cut-off, as a PNG.

    Args:
        report: What ``Retriever.calibrate`` or ``Retriever.reliability`` return.
        path: The file to write.

    Returns:
        The path.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = new_figure(5, 5)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="gray", linestyle="dotted", linewidth=1)
    for part in report.parts:
        points = [(each.probability, each.right) for each in part.bins]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=f"top-{part.k}, error {part.error:.3f}")
    axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="probability", ylabel="share of right labels")
    axis.set_title(f"{report.num_queries:,} texts, bins of equal mass", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, format="png", dpi=150)
    return Path(path)


def new_figure(width: float, height: float) -> Any:
    """A matplotlib ``Figure`` of some inches; its own, not pyplot's: no global state, no display.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is required for plots: pip install hf_xmc[plots]") from error
    return Figure(figsize=(width, height), layout="constrained")


def _legend_below(figure: Any, axis: Any) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def _legend_height(num_names: int) -> float:
    """Inches of lines of three names."""
    return 0.2 * -(-num_names // 3)
