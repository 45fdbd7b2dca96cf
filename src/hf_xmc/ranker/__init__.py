"""The fitted ranker: candidates of every source, what is known about each, and the probability that it is right."""

from __future__ import annotations

from hf_xmc.hub.features_xmc import FEATURES
from hf_xmc.hub.ranker_xmc import Ranker
from hf_xmc.ranker.fit import RankerReport, fit_ranker

__all__ = ["FEATURES", "Ranker", "RankerReport", "fit_ranker"]
