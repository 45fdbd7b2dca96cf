"""An encoder judged on a split."""

from __future__ import annotations

from hf_xmc.evaluation.evaluator import XMCEvaluator

__all__ = ["XMCEvaluator"]
