"""Speed, memory and quality beside peers and slow twins; a file is run as ``python -m benchmarks.FOLDER.NAME``."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"
TINY = RECIPES / "data" / "lf-gutenberg-science-tiny"
TITLES = RECIPES / "data" / "lf-gutenberg-titles"
