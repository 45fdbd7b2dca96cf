"""The files that travel inside every published repo and run there without this package."""

from __future__ import annotations

from pathlib import Path

PUBLISHED_FILES = tuple(sorted(Path(__file__).parent.glob("*_xmc.py")))
