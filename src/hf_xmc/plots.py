"""The PNGs of cards and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_xmc.metrics.frequency import FrequencyBin


def plot_head_to_tail(bins: Mapping[str, Sequence[FrequencyBin]], path: str | Path, *, k: int) -> Path:
    """
    Draw what each bin of label frequency gives to precision@k, and its recall@k, head on the left, as a PNG.

    Args:
        bins: one entry per model, its name -> what `frequency_bins` or `frequency_deciles` return for it, all with the
            same labels in each bin.
        path: the file to write.
        k: the cut-off the bins were made with, for the axis titles.

    Returns:
        The path.

    Raises:
        ValueError: no model, or models whose bins differ.
        ImportError: matplotlib is not installed.
    """
    edges = {tuple((each.num_labels, each.min_count, each.max_count) for each in model) for model in bins.values()}
    if len(edges) != 1:
        raise ValueError(
            f"bins have {len(edges)} different divisions of the labels; expected models with the same one"
        )
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is required for plots: pip install hf_xmc[plots]") from error

    # A Figure of its own, not pyplot: no global state, no display.
    figure = Figure(figsize=(10, 4), layout="constrained")
    titles = (f"contribution to precision@{k} (%)", f"recall@{k} (%)")
    ticks = [f"{least}-{most}\n{num_labels:,} labels" for num_labels, least, most in edges.pop()]
    width = 0.8 / len(bins)
    for axis, title, field in zip(figure.subplots(1, 2), titles, ("precision_share", "recall"), strict=True):
        for number, (name, model) in enumerate(bins.items()):
            centres = [place + (number - (len(bins) - 1) / 2) * width for place in range(len(model))]
            axis.bar(centres, [100 * getattr(each, field) for each in model], width=width, label=name)
        axis.set_xticks(range(len(ticks)), ticks, fontsize=7)
        axis.set_xlabel("train rows per label, head to tail")
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(bins), frameon=False)
    figure.savefig(path, format="png", dpi=150)
    return Path(path)
