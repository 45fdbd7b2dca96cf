"""Bootstrap confidence intervals of the metrics over test rows, for one prediction set or the difference of two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_xmc.metrics.inputs import FloatArray, IntArray, Truth, as_count
from hf_xmc.metrics.judged import Judged, judge, label_metrics, ranking_ratios

SAMPLES_PER_BLOCK = 8  # the row counts of a block, (8, N) float64, stay small for a million rows


@dataclass(frozen=True)
class Interval:
    """A metric, or a difference of metrics, with the ends of its confidence interval."""

    value: float
    low: float
    high: float


def bootstrap_intervals(
    ids: Any,
    truth: Truth,
    k: int | Iterable[int] = (1, 3, 5),
    inverse_propensities: Any = None,
    *,
    level: float = 0.95,
    num_samples: int = 1000,
    seed: int = 0,
    num_labels: int | None = None,
) -> dict[str, Interval]:
    """Percentile interval of every metric when the test rows are drawn again with replacement.

    A ratio of sums (psp, psndcg) is the ratio of the resampled sums, not a mean of row values. A resampled test set
    repeats rows and so sees fewer labels, which makes coverage and macro-F1 come out low: their samples are shifted to
    have the value as mean. They also need the labels counted once per sample, about 90 % of the time.

    Arguments as in :func:`~hf_xmc.metrics.xmc_metrics`, and ``level``, the confidence level between 0 and 1;
    ``num_samples`` test sets are drawn, the same ones for the same ``seed``.

    Returns:
        ``{"precision@1": Interval(value, low, high), ...}``, in [0, 1].
    """
    _check_draws(level, num_samples, seed)
    judged = judge(ids, truth, k, inverse_propensities, num_labels)
    values, samples = _values(judged), _samples([judged], num_samples, seed)[0]
    return _intervals(values, samples, judged.cutoffs, level, lowest=0.0)


def bootstrap_differences(
    ids: Any,
    baseline_ids: Any,
    truth: Truth,
    k: int | Iterable[int] = (1, 3, 5),
    inverse_propensities: Any = None,
    *,
    level: float = 0.95,
    num_samples: int = 1000,
    seed: int = 0,
    num_labels: int | None = None,
) -> dict[str, Interval]:
    """Interval of metric(ids) - metric(baseline_ids), both on the same resampled rows (a paired bootstrap).

    An interval above 0 says that ``ids`` are better on rows like these; seeds of training are not resampled. Much
    narrower than two separate intervals, since what makes a row hard is hard for both. Arguments as in
    :func:`bootstrap_intervals`, values in [-1, 1].

    Raises:
        ValueError: If the two could be judged by different numbers of labels.
    """
    _check_draws(level, num_samples, seed)
    if num_labels is None and not hasattr(truth, "shape") and inverse_propensities is None:
        raise ValueError("num_labels is missing; with truth as lists both prediction sets need the same one")
    both = [judge(each, truth, k, inverse_propensities, num_labels) for each in (ids, baseline_ids)]
    (value, baseline), (sample, baseline_sample) = map(_values, both), _samples(both, num_samples, seed)
    return _intervals(
        {name: value[name] - baseline[name] for name in value},
        {name: sample[name] - baseline_sample[name] for name in sample},
        both[0].cutoffs,
        level,
        lowest=-1.0,
    )


def _check_draws(level: float, num_samples: int, seed: int) -> None:
    as_count("num_samples", num_samples)
    as_count("seed", seed, least=0, most=2**63 - 1)
    if isinstance(level, bool) or not isinstance(level, float | int | np.floating) or not 0 < level < 1:
        raise ValueError(f"level is {level!r}; expected a number between 0 and 1, such as 0.95")


def _values(judged: Judged) -> dict[str, FloatArray]:
    """Every metric, (num_cutoffs,) each."""
    ratios = ranking_ratios(judged)
    values = {name: top.sum(axis=0) / bottom.sum(axis=0) for name, (top, bottom) in ratios.items()}
    return values | label_metrics(judged)


def _samples(judged: Sequence[Judged], num_samples: int, seed: int) -> list[dict[str, FloatArray]]:
    """Every metric of each prediction set on ``num_samples`` drawn test sets, (num_samples, num_cutoffs) each."""
    ratios = [ranking_ratios(each) for each in judged]
    tables = [np.hstack([part for ratio in each.values() for part in ratio]) for each in ratios]  # (N, columns)
    sums: list[list[FloatArray]] = [[] for _ in judged]
    labels: list[list[dict[str, FloatArray]]] = [[] for _ in judged]
    # The draws outermost: both prediction sets are judged on the same rows.
    for draws in _draws(len(judged[0].ids), num_samples, seed):
        counts = np.stack([np.bincount(rows, minlength=len(rows)) for rows in draws]).astype(np.float64)
        for place, table in enumerate(tables):
            sums[place].append(counts @ table)
            labels[place] += [label_metrics(judged[place].take(rows)) for rows in draws]
    return [
        _resampled_ratios(list(each), np.concatenate(own))
        | {name: np.stack([one[name] for one in drawn]) for name in drawn[0]}
        for each, own, drawn in zip(ratios, sums, labels, strict=True)
    ]


def _resampled_ratios(names: list[str], sums: FloatArray) -> dict[str, FloatArray]:
    """The ratios (num_samples, num_cutoffs) from sums (num_samples, 2 x names x num_cutoffs)."""
    parts = np.split(sums, 2 * len(names), axis=1)
    # Sums are 0/0 where a drawn test set is without positives: 0, as for a row without positives.
    return {
        name: np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
        for name, top, bottom in zip(names, parts[::2], parts[1::2], strict=True)
    }


def _draws(num_rows: int, num_samples: int, seed: int) -> Iterator[list[IntArray]]:
    """Blocks of drawn row numbers, (num_rows,) each, the rows of a test set with replacement."""
    random = np.random.default_rng(seed)
    for start in range(0, num_samples, SAMPLES_PER_BLOCK):
        size = min(SAMPLES_PER_BLOCK, num_samples - start)
        yield [random.integers(num_rows, size=num_rows) for _ in range(size)]


def _intervals(
    values: dict[str, FloatArray], samples: dict[str, FloatArray], cutoffs: IntArray, level: float, lowest: float
) -> dict[str, Interval]:
    """Percentile intervals of samples (num_samples, num_cutoffs) around values (num_cutoffs,)."""
    intervals = {}
    for name, value in values.items():
        sample = samples[name]
        if name in ("coverage", "macro_f1"):
            sample = np.clip(sample - sample.mean(axis=0) + value, lowest, 1.0)
        low, high = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2], axis=0)
        for column, cutoff in enumerate(cutoffs):
            intervals[f"{name}@{cutoff}"] = Interval(float(value[column]), float(low[column]), float(high[column]))
    return intervals
