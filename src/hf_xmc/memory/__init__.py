"""Training rows that vote for their labels."""

from __future__ import annotations

from hf_xmc.memory.evidence import Evidence
from hf_xmc.memory.fit import MemoryFit, fit_memory
from hf_xmc.memory.form import MemoryForm
from hf_xmc.memory.knowledge_memory import KnowledgeMemory

__all__ = [
    "Evidence",
    "KnowledgeMemory",
    "MemoryFit",
    "MemoryForm",
    "fit_memory",
]
