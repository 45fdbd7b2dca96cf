"""Training rows that vote for their labels."""

from __future__ import annotations

from hf_xmc.hub.votes_xmc import Evidence, MemoryForm
from hf_xmc.memory.fit import MemoryFit, fit_memory
from hf_xmc.memory.fold import fit_fold, fold_rows
from hf_xmc.memory.knowledge_memory import KnowledgeMemory

__all__ = [
    "Evidence",
    "KnowledgeMemory",
    "MemoryFit",
    "MemoryForm",
    "fit_fold",
    "fit_memory",
    "fold_rows",
]
