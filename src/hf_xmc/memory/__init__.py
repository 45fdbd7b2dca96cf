"""Training rows that vote for their labels."""

from __future__ import annotations

from hf_xmc.hub.votes_xmc import Evidence, MemoryForm
from hf_xmc.memory.knowledge_memory import KnowledgeMemory

__all__ = ["Evidence", "KnowledgeMemory", "MemoryForm"]
