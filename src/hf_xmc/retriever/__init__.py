"""What a user predicts with, saves and publishes."""

from __future__ import annotations

from hf_xmc.hub.answers_xmc import Calibration, Ranking
from hf_xmc.retriever.retriever import Retriever

__all__ = [
    "Calibration",
    "Ranking",
    "Retriever",
]
