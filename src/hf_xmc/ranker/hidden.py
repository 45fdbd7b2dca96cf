"""Sources that do not know a share of the labels, as they will not know those that are added later."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hf_xmc.hub.features_xmc import Sources
from hf_xmc.hub.memory_xmc import Memory, MemoryParts
from hf_xmc.hub.search_xmc import VectorIndex
from hf_xmc.hub.words_xmc import WordIndex


def hide(sources: Sources, hidden: np.ndarray, fresh: np.ndarray | None, vectors: np.ndarray) -> Sources:
    """The same sources, as if some labels had no training row: only their texts speak for them.

    Args:
        sources: Of a retriever.
        hidden: (L,) bool.
        fresh: (L, Dc) float32, the classifier row of each label if it were new; None without a classifier.
        vectors: (L, D) float32, the joint label vectors with fresh rows for hidden labels.
    """
    classifier = sources.classifier
    if classifier is not None and fresh is not None:
        classifier = np.where(hidden[:, None], fresh, classifier)
    memory, words = sources.memory, sources.words
    if memory is not None:
        memory = _without(memory, hidden)
        if words.rows is not None:
            rows = WordIndex(words.rows.vocabulary, words.rows.bags, np.diff(memory.indptr) > 0)
            words = words._replace(rows=rows)
    return replace(
        sources,
        index=VectorIndex(vectors, sources.index.alive),
        classifier=classifier,
        counts=np.where(hidden, 0, sources.counts),
        is_row=sources.is_row & ~hidden,
        words=words,
        memory=memory,
    )


def _without(memory: Memory, hidden: np.ndarray) -> Memory:
    """A memory whose rows do not vote for the hidden labels."""
    kept = ~hidden[memory.indices]
    indptr = np.concatenate([[0], np.cumsum(kept)])[memory.indptr]
    parts = MemoryParts(memory.keys, indptr, memory.indices[kept], memory.votes[kept], memory.num_labels, memory.form)
    rows = VectorIndex(memory.rows.vectors, np.diff(indptr) > 0, memory.rows.build())
    return Memory(parts, memory.labels, rows)
