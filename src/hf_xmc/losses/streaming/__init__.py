"""Sweeps over the score matrix of all queries and labels, tile by tile."""

from __future__ import annotations
