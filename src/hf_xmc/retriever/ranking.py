"""What held-out texts teach a retriever: a ranker, which is carried over to other training rows, or a calibration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from hf_xmc.hub.checks_xmc import checked_request
from hf_xmc.hub.features_xmc import Sources
from hf_xmc.hub.filters_xmc import NO_PAIRS, checked_pairs
from hf_xmc.hub.ranker_xmc import Propensity, Ranker, probability
from hf_xmc.memory.knowledge_memory import as_votes
from hf_xmc.metrics.inputs import Truth
from hf_xmc.metrics.reliability import CUTS, CalibrationReport, base_rates, measure
from hf_xmc.ranker.fit import MOST_QUERIES, RankerReport, is_right, make_words
from hf_xmc.ranker.fit import fit_ranker as fit
from hf_xmc.ranker.hidden import hide, training_counts
from hf_xmc.retriever.calibration import FittedCalibration, cross_fitted_report, fit_calibration, judge_queries
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
    wanted = as_votes(truth, num_labels)
    if wanted.shape[0] != len(texts) or wanted.shape[1] > num_labels:
        raise ValueError(
            f"truth must have shape ({len(texts)}, at most {num_labels}) for {len(texts)} texts and {num_labels} "
            f"labels, got {wanted.shape}"
        )
    pairs = NO_PAIRS if filters is None else checked_pairs(filters, len(texts), num_labels, "filters")
    if len(texts) > MOST_QUERIES:
        drawn = np.sort(np.random.default_rng(0).choice(len(texts), MOST_QUERIES, replace=False))
        texts, wanted, pairs = [texts[row] for row in drawn], wanted[drawn], _pairs_of(pairs, drawn, len(texts))
    sources = make_sources(parts, known)
    queries = query_vectors(parts, texts, **encode)
    about = Propensity(*propensity, known.shape[0])
    return fit(sources, hidden_sources(parts, sources, hidden), queries, texts, wanted, about, pairs)


def calibrate(
    parts: RetrieverParts,
    texts: list[str],
    truth: Truth,
    memory: bool | None,
    filters: np.ndarray | None,
    **encode: Any,
) -> tuple[FittedCalibration, CalibrationReport]:
    """See :meth:`hf_xmc.Retriever.calibrate`."""
    if parts.ranker is not None and memory is None:
        raise ValueError("the ranker has probabilities; for those of plain scores say which: memory=True or False")
    votes = bool(checked_request(parts, memory=memory).memory)
    if len(texts) < 2:
        raise ValueError(f"a calibration is fitted on some thousands of texts, at least 2, got {len(texts)}")
    queries = query_vectors(parts, texts, **encode)
    scores, right = judge_queries(parts, queries, truth, votes, filters)
    report = cross_fitted_report(scores, right)
    return FittedCalibration(fit_calibration(scores, right, votes), base_rates(scores, right), report), report


def reliability(
    parts: RetrieverParts, texts: list[str], truth: Truth, filters: np.ndarray | None, **encode: Any
) -> CalibrationReport:
    """See :meth:`hf_xmc.Retriever.reliability`."""
    queries = query_vectors(parts, texts, **encode)
    if parts.ranker is not None:
        wanted, pairs = as_votes(truth, len(parts.labels)), NO_PAIRS
        if filters is not None:
            pairs = checked_pairs(filters, len(texts), len(parts.labels), "filters")
        found = parts.ranker.rank(parts, queries, texts, max(CUTS), filters=pairs)
        query = np.repeat(np.arange(len(texts)), max(CUTS))
        right = is_right(wanted, query, found.ids.ravel()).reshape(found.ids.shape)
        return measure(probability(found.logits), found.scores, right, base_rates(found.scores, right))
    if parts.calibration is None:
        raise ValueError("this retriever has no probabilities; make them: fit_ranker(texts, truth)")
    fit = parts.calibration.calibration
    scores, right = judge_queries(parts, queries, truth, fit.memory, filters)
    return measure(fit.probabilities(scores, scores), scores, right, parts.calibration.base_rates)


def make_sources(parts: RetrieverParts, train_truth: sp.csr_matrix) -> Sources:
    """What is known of labels, from a retriever and the training rows' labels (N, at most L)."""
    rows, num_labels = parts.memory_texts, len(parts.labels)
    has_label = np.diff(parts.memory.indptr) > 0 if parts.memory is not None else np.zeros(0, dtype=bool)
    texts = set(rows)
    is_row = np.fromiter((label in texts for label in parts.labels), dtype=bool, count=num_labels)
    words = make_words(parts.labels, rows, has_label)
    counts = training_counts(train_truth, num_labels)
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
