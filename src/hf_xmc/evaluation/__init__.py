"""An encoder judged on a split, and what is fitted on a held-out one."""

from __future__ import annotations

from hf_xmc.evaluation.evaluator import XMCEvaluator
from hf_xmc.evaluation.row_lengths import RowLengths, fit_row_lengths, lengthen_rows
from hf_xmc.evaluation.search_form import fit_search_form

__all__ = [
    "RowLengths",
    "XMCEvaluator",
    "fit_row_lengths",
    "fit_search_form",
    "lengthen_rows",
]
