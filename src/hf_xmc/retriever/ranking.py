"""The ranker of a retriever: fitted on held-out texts, and carried over to other training rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from hf_xmc.hub.features_xmc import Sources
from hf_xmc.hub.filters_xmc import checked_filters
from hf_xmc.hub.ranker_xmc import Propensity, Ranker
from hf_xmc.memory.knowledge_memory import as_votes
from hf_xmc.metrics.inputs import Truth
from hf_xmc.ranker.fit import MOST_QUERIES, RankerReport, make_words
from hf_xmc.ranker.fit import fit_ranker as fit
from hf_xmc.ranker.hidden import hide
from hf_xmc.retriever.calibration import checked_truth
from hf_xmc.retriever.files import RetrieverParts
from hf_xmc.retriever.vectors import query_vectors, unseen_rows


def fit_ranker(
    parts: RetrieverParts,
    texts: list[str],
    truth: Truth,
    train_truth: Truth | None,
    propensity: tuple[float, float],
    filters: np.ndarray | None,
    hidden: float,
    **encode: Any,
) -> tuple[Ranker, RankerReport]:
    """See :meth:`hf_xmc.Retriever.fit_ranker`."""
    num_labels = len(parts.labels)
    if not 0 <= hidden < 1:
        raise ValueError(f"hidden is a share of the labels, in [0, 1), got {hidden!r}")
    if train_truth is not None:
        known = as_votes(train_truth, num_labels)
    elif parts.memory is not None:
        known = parts.memory.truth
    else:
        raise ValueError(
            "how frequent is each label? give train_truth=data.to_csr('train'), or remember(texts, truth) first"
        )
    wanted = checked_truth(truth, len(texts), num_labels)
    pairs = checked_filters(filters, len(texts), num_labels)
    if len(texts) > MOST_QUERIES:
        drawn = np.sort(np.random.default_rng(0).choice(len(texts), MOST_QUERIES, replace=False))
        texts, wanted, pairs = [texts[row] for row in drawn], wanted[drawn], _pairs_of(pairs, drawn, len(texts))
    sources = make_sources(parts, known)
    queries = query_vectors(parts, texts, **encode)
    about = Propensity(*propensity, known.shape[0])
    return fit(sources, hidden_sources(parts, sources, hidden), queries, texts, wanted, about, pairs)


def make_sources(parts: RetrieverParts, train_truth: sp.csr_matrix) -> Sources:
    """What is known of labels, from a retriever and the training rows' labels (N, at most L)."""
    rows, num_labels = parts.memory_texts, len(parts.labels)
    has_label = np.diff(parts.memory.indptr) > 0 if parts.memory is not None else np.zeros(0, dtype=bool)
    texts = set(rows)
    is_row = np.fromiter((label in texts for label in parts.labels), dtype=bool, count=num_labels)
    words = make_words(parts.labels, rows, has_label)
    counts = np.bincount(train_truth.indices, minlength=num_labels)
    return Sources(parts.index, parts.embedding, parts.classifier, counts, is_row, words, parts.memory)


def renewed(
    parts: RetrieverParts, ranker: Ranker | None = None, train_truth: sp.csr_matrix | None = None
) -> RetrieverParts:
    """The parts with a ranker that knows their labels and the training rows that they remember.

    Args:
        parts: A retriever's.
        ranker: Fitted beside another encoder or other training rows; None for the one that they have, if any.
        train_truth: (N, at most L), the labels of the training rows; None: those of the memory.
    """
    ranker = ranker or parts.ranker
    known = train_truth
    if known is None and parts.memory is not None:
        known = parts.memory.truth
    if ranker is None or known is None:
        return parts
    sources = make_sources(parts, known)
    propensity = replace(ranker.propensity, num_rows=known.shape[0])
    ranker = replace(ranker, propensity=propensity, counts=sources.counts, is_row=sources.is_row, words=sources.words)
    return replace(parts, ranker=ranker)


def hidden_sources(parts: RetrieverParts, sources: Sources, share: float) -> Sources | None:
    """The same without what training knows of a share of the labels, drawn at random."""
    hidden = np.random.default_rng(0).random(len(parts.labels)) < share
    if not hidden.any():
        return None
    rows, vectors = None, np.array(parts.index.vectors)
    if parts.classifier is not None:
        rows = np.array(parts.classifier)
        places = np.flatnonzero(hidden).tolist()
        embedding, rows[hidden], _ = unseen_rows(parts.encoder, [parts.labels[place] for place in places])
        vectors[hidden] = parts.encoder.join_labels(embedding, rows[hidden])
    return hide(sources, hidden, rows, vectors)


def _pairs_of(pairs: np.ndarray, drawn: np.ndarray, num_rows: int) -> np.ndarray:
    """The pairs of the rows drawn, counted anew."""
    place = np.full(num_rows, -1)
    place[drawn] = np.arange(len(drawn))
    rows = place[pairs[:, 0]]
    return np.stack([rows, pairs[:, 1]], axis=1)[rows >= 0]
