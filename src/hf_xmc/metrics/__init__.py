"""Metrics of extreme multi-label classification: exact, fast, numpy and scipy only."""

from __future__ import annotations

from hf_xmc.metrics.bootstrap import Interval, bootstrap_differences, bootstrap_intervals
from hf_xmc.metrics.frequency import FrequencyBin, frequency_bins, frequency_deciles
from hf_xmc.metrics.functional import inverse_propensities, label_counts, row_metrics, xmc_metrics
from hf_xmc.metrics.ranking import drop_pairs, filter_truth, top_k

__all__ = [
    "FrequencyBin",
    "Interval",
    "bootstrap_differences",
    "bootstrap_intervals",
    "drop_pairs",
    "filter_truth",
    "frequency_bins",
    "frequency_deciles",
    "inverse_propensities",
    "label_counts",
    "row_metrics",
    "top_k",
    "xmc_metrics",
]
