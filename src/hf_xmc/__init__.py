"""Extreme multi-label classification for the Hugging Face ecosystem."""

from __future__ import annotations

__version__ = "0.1.0"
