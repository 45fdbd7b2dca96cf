"""An encoder judged on a split, and what is fitted on a held-out one."""

from __future__ import annotations

from hf_xmc.evaluation.evaluator import XMCEvaluator, fit_search_form
from hf_xmc.evaluation.row_lengths import RowLengths, fit_row_lengths, lengthen_rows

__all__ = [
    "RowLengths",
    "XMCEvaluator",
    "fit_row_lengths",
    "fit_search_form",
    "lengthen_rows",
]
