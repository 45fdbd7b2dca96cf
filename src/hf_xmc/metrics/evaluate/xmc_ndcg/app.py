"""The page of this Space."""

from __future__ import annotations

from pathlib import Path

from hf_xmc.metrics.evaluate.space import build_page

build_page(Path(__file__).parent).launch()
