"""What is known about the labels that a query may have: the candidates of every source, and numbers about each.

With numpy alone. This file travels inside every published repo, and the package runs it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .filters_xmc import MISSING_ID, NO_PAIRS, contains, missing, runs_of
from .memory_xmc import Memory
from .search_xmc import VectorIndex
from .words_xmc import Bags, WordIndex

# Of each query: labels by vector, training rows by vector, training rows and labels by words.
NEAR_LABELS, NEAR_ROWS, WORD_ROWS, WORD_LABELS = 50, 50, 20, 10
# 1 / temperature of the votes of near rows, and of those found by words.
_SCALE, _WORD_SCALE = 20.0, 10.0
_DIMS_AT_ONCE = 1 << 24  # numbers of label vectors that are held at once


class Words(NamedTuple):
    """The words of label texts, and of the training rows' texts where there is a memory."""

    labels: WordIndex
    rows: WordIndex | None


@dataclass(frozen=True)
class Sources:
    """Where candidates and what is known about them come from.

    Attributes:
        index: Of the L labels, searched with joint vectors.
        embedding: (L, De) float32, the labels' text half.
        classifier: (L, Dc) float32, or None.
        counts: (L,) integers, training rows of each label.
        is_row: (L,) bool, whether the label's text is that of a training row.
        words: Of labels and rows.
        memory: The training rows, or None.
    """

    index: VectorIndex
    embedding: np.ndarray
    classifier: np.ndarray | None
    counts: np.ndarray
    is_row: np.ndarray
    words: Words
    memory: Memory | None = None


@dataclass(frozen=True)
class Candidates:
    """Labels that a query may have, all queries' in one list.

    Attributes:
        query: (n,) int64, ascending.
        label: (n,) int64, ascending within a query, none twice.
        features: Name -> (n,) float32, see :data:`FEATURES`.
    """

    query: np.ndarray
    label: np.ndarray
    features: dict[str, np.ndarray]

    def table(self, names: tuple[str, ...]) -> np.ndarray:
        """(n, F) float32, the columns by name.

        Raises:
            ValueError: For a feature whose source is missing.
        """
        absent = [name for name in names if name not in self.features]
        if absent:
            raise ValueError(
                f"the ranker was fitted with {', '.join(absent)}, which this retriever has no source for; bring the "
                "memory or classifier back, or fit again: fit_ranker(texts, truth)"
            )
        return np.stack([self.features[name] for name in names], axis=1) if names else np.zeros((len(self.query), 0))


# Name -> what it says of a query and a label.
FEATURES = {
    "text": "product of the query's vector and the label text's",
    "text behind": "the same, less the largest of the query's candidates",
    "classifier": "product of the query's vector and the label's classifier row",
    "classifier behind": "the same, less the largest of the query's candidates",
    "classifier best": "that largest product",
    "frequency": "log(1 + n) of a label with n training rows",
    "is row": "1 where the label's text is that of a training row, whose labels the query is not among",
    "row votes": "share of the near training rows' votes, a softmax of their products",
    "row": "product of the query's vector and that of the nearest training row that has the label",
    "row behind": "the same, less that of the nearest row of all",
    "row best": "that of the nearest row of all",
    "rows": "number of near training rows that have the label",
    "rows share": "the same, as a share of the label's training rows",
    "word row votes": "share of the votes of training rows found by words, a softmax of their cosines",
    "word rows": "sum of these rows' cosines, of those that have the label",
    "word row": "the largest of these cosines",
    "word row best": "the largest of the query's, whatever the label",
    "word rows share": "number of rows found by words that have the label, as a share of its training rows",
    "words": "cosine of the words of query and label text",
    "words behind": "the same, less the largest of the query's candidates",
    "words of label": "share of the label's words that the query has",
    "words of query": "share of the query's words that the label has",
    "label words": "log(1 + n) of n words of the label",
    "query words": "log(1 + n) of n words of the query",
}


class Near(NamedTuple):
    """What is near each query by vector."""

    labels: np.ndarray  # (B, C) int64, -1 for none
    row_ids: np.ndarray  # (B, b) int64
    row_scores: np.ndarray  # (B, b) float32

    def part(self, queries: slice) -> Near:
        """That of some queries."""
        return Near(*(each[queries] for each in self))


def find_near(
    sources: Sources, queries: np.ndarray, filters: np.ndarray = NO_PAIRS, labels: np.ndarray | None = None
) -> Near:
    """Search labels, unless those ``labels`` (B, at least NEAR_LABELS) were found already, and training rows."""
    if labels is None:
        labels, _ = sources.index.search(queries, NEAR_LABELS, filters=filters)
    rows = missing(len(queries), 0)
    if sources.memory is not None:
        rows = sources.memory.rows.search(queries, NEAR_ROWS)
    return Near(labels[:, :NEAR_LABELS], *rows)


def look(
    sources: Sources,
    queries: np.ndarray,
    bags: Bags,
    near: Near,
    filters: np.ndarray = NO_PAIRS,
    extra: np.ndarray | None = None,
) -> Candidates:
    """The candidates of queries and what is known about them.

    Args:
        sources: Of the retriever.
        queries: (B, D) float32, joint vectors.
        bags: The queries' words.
        near: From :func:`find_near` with these filters.
        filters: (n, 2) int64, (query, label id) that are no candidates.
        extra: (B, C) int64, further candidates, -1 for none.
    """
    num_queries, num_labels = len(queries), len(sources.index)
    memory, rows, word_rows = sources.memory, None, None
    if memory is not None:
        rows = _voters(memory, (near.row_ids, near.row_scores), _SCALE, num_labels)
        if sources.words.rows is not None:
            word_rows = _voters(memory, sources.words.rows.search(bags, WORD_ROWS), _WORD_SCALE, num_labels)
    word_labels, _ = sources.words.labels.search(bags, WORD_LABELS)
    found = [near.labels, word_labels, *([] if extra is None else [extra])]
    keys = [(np.arange(num_queries)[:, None] * num_labels + ids)[ids >= 0] for ids in found]
    keys += [part.key for part in (rows, word_rows) if part is not None]
    key = np.unique(np.concatenate(keys))
    if len(filters):
        key = key[~contains(np.sort(filters[:, 0] * num_labels + filters[:, 1]), key)]
    if sources.index.num_alive < num_labels:
        key = key[sources.index.alive[key % num_labels]]
    query, label = np.divmod(key, num_labels)
    features = _products(sources, queries, query, label)
    counts = sources.counts[label]
    features["frequency"] = np.log1p(counts).astype(np.float32)
    features["is row"] = sources.is_row[label].astype(np.float32)
    if rows is not None:
        features |= _of_rows(rows, key, query, counts)
    if word_rows is not None:
        features |= _of_word_rows(word_rows, key, query, counts)
    features |= _of_words(sources.words.labels, bags, query, label)
    return Candidates(query, label, features)


class _Voters(NamedTuple):
    """Training rows found for queries and the labels that they have, one entry a label of a row."""

    key: np.ndarray  # (v,) query * L + label
    score: np.ndarray  # (v,) float32 of the row, best first within a query
    weight: np.ndarray  # (v,) float32 of the row among the query's rows, a softmax
    best: np.ndarray  # (B,) float32, the score of the best row; 0 without any

    def counted(self, key: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of each candidate (n,): weights and scores of its rows summed, their number, best score; 0 without any."""
        place = np.minimum(np.searchsorted(key, self.key), max(len(key) - 1, 0))
        kept = np.flatnonzero(key[place] == self.key) if len(key) else place[:0]
        place, score = place[kept], self.score[kept]
        best = np.zeros(len(key), dtype=np.float32)
        best[place[::-1]] = score[::-1]  # the first, which is the best, is written last
        weight, total = (np.bincount(place, weights=w, minlength=len(key)) for w in (self.weight[kept], score))
        return weight, total, np.bincount(place, minlength=len(key)), best


def _voters(memory: Memory, found: tuple[np.ndarray, np.ndarray], scale: float, num_labels: int) -> _Voters:
    ids, scores = found
    there = ids >= 0
    scores = np.where(there, scores, 0)
    weights = np.where(there, np.exp(scale * (scores - scores[:, :1])), 0)
    weights /= np.maximum(weights.sum(1, keepdims=True), 1e-9)
    query, place = np.nonzero(there)
    row = ids[query, place]
    sizes = memory.indptr[row + 1] - memory.indptr[row]
    labels = memory.indices[runs_of(memory.indptr[row], sizes)].astype(np.int64)
    key = np.repeat(query, sizes) * num_labels + labels
    score, weight = (np.repeat(each[query, place], sizes) for each in (scores, weights))
    return _Voters(key, score, weight, scores[:, 0])


def _of_rows(voters: _Voters, key: np.ndarray, query: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    votes, _, number, best = voters.counted(key)
    return {
        "row votes": np.sqrt(votes).astype(np.float32),
        "row": best,
        "row behind": best - voters.best[query],
        "row best": voters.best[query],
        "rows": np.sqrt(number).astype(np.float32),
        "rows share": np.sqrt(number / np.maximum(counts, 1)).astype(np.float32),
    }


def _of_word_rows(voters: _Voters, key: np.ndarray, query: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    votes, total, number, best = voters.counted(key)
    return {
        "word row votes": np.sqrt(votes).astype(np.float32),
        "word rows": np.sqrt(total).astype(np.float32),
        "word row": best,
        "word row best": voters.best[query],
        "word rows share": np.sqrt(number / np.maximum(counts, 1)).astype(np.float32),
    }


def _of_words(words: WordIndex, bags: Bags, query: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    cosine, of_label = words.overlap(bags, query, label)
    label_words, query_words = words.bags.sizes(label), bags.sizes(query)
    return {
        "words": cosine,
        "words behind": cosine - _best(cosine, query, len(bags))[query],
        "words of label": of_label,
        "words of query": (of_label * label_words / np.maximum(query_words, 1)).astype(np.float32),
        "label words": np.log1p(label_words).astype(np.float32),
        "query words": np.log1p(query_words).astype(np.float32),
    }


def _products(sources: Sources, queries: np.ndarray, query: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    width = sources.embedding.shape[1]
    text = _pair_products(queries[:, :width], sources.embedding, query, label)
    features = {"text": text, "text behind": text - _best(text, query, len(queries))[query]}
    if sources.classifier is not None:
        second = queries[:, -sources.classifier.shape[1] :]  # of a shared vector the same numbers
        product = _pair_products(second, sources.classifier, query, label)
        best = _best(product, query, len(queries))
        features["classifier"] = product
        features["classifier behind"] = product - best[query]
        features["classifier best"] = best[query]
    return features


def _pair_products(queries: np.ndarray, labels: np.ndarray, query: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(n,) float32, the product of each query and label of a pair."""
    out = np.empty(len(query), dtype=np.float32)
    step = max(1, _DIMS_AT_ONCE // max(labels.shape[1], 1))
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        out[part] = np.einsum("nd,nd->n", queries[query[part]], labels[label[part]])
    return out


def _best(values: np.ndarray, query: np.ndarray, num_queries: int) -> np.ndarray:
    """(B,) float32, the largest value of each query's candidates; 0 without any."""
    best = np.zeros(num_queries, dtype=np.float32)
    first = np.flatnonzero(np.diff(query, prepend=MISSING_ID))
    if len(first):
        best[query[first]] = np.maximum.reduceat(values, first)
    return best
