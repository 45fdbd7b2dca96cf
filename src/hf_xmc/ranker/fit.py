"""Fitting a ranker on held-out rows, and on held-out labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from hf_xmc.hub.features_xmc import Sources, Words, find_near, look
from hf_xmc.hub.filters_xmc import NO_PAIRS, best_of_each, contains, missing, pairs_within
from hf_xmc.hub.ranker_xmc import PROMISED, Promise, Propensity, Ranker, probability
from hf_xmc.hub.words_xmc import Vocabulary, WordIndex
from hf_xmc.metrics.bootstrap import Interval, bootstrap_differences
from hf_xmc.metrics.functional import xmc_metrics
from hf_xmc.metrics.reliability import CalibrationReport, base_rates, measure
from hf_xmc.ranker.network import bins_of, fit_network
from hf_xmc.ranker.promise import fit_promise

# Held-out rows that are looked at, and those looked at at once.
MOST_QUERIES, QUERIES_AT_ONCE = 10_000, 1024
NUM_FOLDS = 3
SHOWN_PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class RankerReport:
    """What a fit found, on rows that each network had not seen; prints as a table.

    Attributes:
        num_queries: Held-out rows.
        before: Metric -> value in [0, 1] of the label search alone.
        after: The same of the ranker.
        gains: Metric -> what the ranker adds, with its paired 95 % interval.
        calibration: How well its probabilities fit.
        promise: What precision can be promised.
        answered: Wish -> share of the rows that are answered under the promise.
    """

    num_queries: int
    before: dict[str, float]
    after: dict[str, float]
    gains: dict[str, Interval]
    calibration: CalibrationReport
    promise: Promise
    answered: dict[float, float]

    @property
    def summary(self) -> str:
        """In one line."""
        gains = ", ".join(
            f"{name} {100 * each.value:+.2f} [{100 * each.low:+.2f}, {100 * each.high:+.2f}]"
            for name, each in self.gains.items()
        )
        errors = ", ".join(f"top-{part.k} {part.error:.3f}" for part in self.calibration.parts)
        return (
            f"ranker: fitted on {self.num_queries:,} held-out rows, where it adds {gains}; expected calibration error "
            f"{errors}; promises a precision of up to {self.promise.most:.2f}"
        )

    def __str__(self) -> str:
        lines = [f"ranker, {self.num_queries:,} held-out rows, each ranked by a network that had not seen it; percent"]
        lines.append(f"  {'':14}{'search':>8}{'ranker':>8}    gain, 95 % interval")
        for name, gain in self.gains.items():
            ends = f"{100 * gain.value:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"
            lines.append(f"  {name:14}{100 * self.before[name]:8.2f}{100 * self.after[name]:8.2f}    {ends}")
        for part in self.calibration.parts:
            lines.append(f"  expected calibration error, top-{part.k}: {part.error:.3f}")
        lines.append(f"  min_precision, kept with probability {self.promise.confidence:.2f}:")
        for wish, share in self.answered.items():
            kept = np.isfinite(self.promise.threshold(wish))
            lines.append(f"    {wish:.2f}  " + (f"{100 * share:.1f} % of rows answered" if kept else "no promise"))
        return "\n".join(lines)


@dataclass(frozen=True)
class Shown:
    """Candidates of some queries with their features as a table and their truth."""

    names: tuple[str, ...]  # F features
    query: np.ndarray  # (n,) int64, ascending
    label: np.ndarray  # (n,) int64
    table: np.ndarray  # (n, F) float32
    right: np.ndarray  # (n,) bool
    nearest: np.ndarray  # (N, C) int64, the label search of all queries

    def part(self, wanted: np.ndarray) -> Shown:
        """Those of the queries that are wanted (N,) bool."""
        kept = wanted[self.query]
        query, label, table, right = self.query[kept], self.label[kept], self.table[kept], self.right[kept]
        return replace(self, query=query, label=label, table=table, right=right)

    def without(self, names: Sequence[str]) -> Shown:
        """The same without some features."""
        kept = [place for place, name in enumerate(self.names) if name not in names]
        return replace(self, names=tuple(self.names[place] for place in kept), table=self.table[:, kept])


def make_words(labels: Sequence[str], rows: Sequence[str], has_label: np.ndarray) -> Words:
    """The words of labels and training rows, those without a label found by none."""
    vocabulary = Vocabulary.of([*labels, *rows])
    found = WordIndex(vocabulary, vocabulary.bags(labels))
    return Words(found, WordIndex(vocabulary, vocabulary.bags(rows), has_label) if len(rows) else None)


def fit_ranker(
    sources: Sources,
    hidden: Sources | None,
    queries: np.ndarray,
    texts: Sequence[str],
    truth: sp.csr_matrix,
    propensity: Propensity,
    filters: np.ndarray = NO_PAIRS,
) -> tuple[Ranker, RankerReport]:
    """The ranker of the least log loss over the candidates of held-out rows.

    Half of what it learns from are the candidates as they are, half those of ``hidden``, where a share of the labels
    has no training rows, so that labels which are added later are weighed by what is known of them then.

    Args:
        sources: Of the retriever, whose encoder and memory have not seen the rows.
        hidden: The same without what is known of some labels; None to fit without.
        queries: (N, D) float32, the held-out rows' joint vectors; N at least 6.
        texts: N texts.
        truth: scipy sparse (N, at most L), the labels of the rows.
        propensity: Of the training rows.
        filters: (n, 2) int64, (row, label id) that are never predicted.

    Raises:
        ValueError: For too few rows, or where no candidate, or every one, is right.
    """
    if len(queries) < 2 * NUM_FOLDS:
        raise ValueError(
            f"a ranker is fitted on some thousands of held-out rows, at least {2 * NUM_FOLDS}, got {len(queries)}"
        )
    plain = show(sources, queries, texts, truth, filters)
    if not plain.right.any() or plain.right.all():
        raise ValueError(f"{plain.right.sum()} of {plain.right.size} candidates are right; a ranker needs both kinds")
    worlds = [plain] if hidden is None else [plain, show(hidden, queries, texts, truth, filters)]
    bins = bins_of(np.concatenate([world.table for world in worlds]))
    logits = cross_fit(worlds, len(queries), bins)
    ids, scores, right = placed(plain, logits, len(queries))
    ranker = Ranker(
        plain.names,
        fit_network(*joined(worlds, len(queries)), bins),
        plain.table.mean(0).astype(np.float32),
        fit_promise(scores, right),
        propensity,
        sources.counts,
        sources.is_row,
        sources.words,
    )
    return ranker, _report(plain.nearest, truth, ranker, ids, scores, right)


def show(
    sources: Sources,
    queries: np.ndarray,
    texts: Sequence[str],
    truth: sp.csr_matrix,
    filters: np.ndarray = NO_PAIRS,
) -> Shown:
    """The candidates of queries (N, D), all their features and whether they are right."""
    bags, parts = sources.words.labels.vocabulary.bags(texts), []
    names: tuple[str, ...] = ()
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        rows = slice(start, min(start + QUERIES_AT_ONCE, len(queries)))
        here = pairs_within(filters, rows)
        near = find_near(sources, queries[rows], here)
        found = look(sources, queries[rows], bags.part(np.arange(rows.start, rows.stop)), near, here)
        names = tuple(found.features)
        parts.append((found.query + start, found.label, found.table(names), near.labels))
    query, label, table, nearest = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Shown(names, query, label, table, is_right(truth, query, label), nearest)


def cross_fit(worlds: Sequence[Shown], num_queries: int, bins: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(n,) float32, logits of the first world's candidates, by networks that have not seen their queries."""
    plain = worlds[0]
    folds = np.random.default_rng(0).integers(0, NUM_FOLDS, num_queries)
    logits = np.zeros(len(plain.query), dtype=np.float32)
    for fold in range(NUM_FOLDS):
        network = fit_network(*joined([world.part(folds != fold) for world in worlds], num_queries), bins)
        unseen = folds[plain.query] == fold
        logits[unseen] = network.logits(plain.table[unseen])
    return logits


def joined(worlds: Sequence[Shown], num_queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Table, truth and query of all worlds' candidates, the queries of each world after those of the one before."""
    table = np.concatenate([world.table for world in worlds])
    right = np.concatenate([world.right for world in worlds])
    query = np.concatenate([world.query + place * num_queries for place, world in enumerate(worlds)])
    return table, right, query


def placed(shown: Shown, logits: np.ndarray, num_queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The 100 best candidates: ids (N, 100) int64, logits float32 and whether they are right."""
    kept, query, column = best_of_each(shown.query, logits, 100)
    ids, scores = missing(num_queries, 100)
    right = np.zeros((num_queries, 100), dtype=bool)
    at = query, column
    ids[at], scores[at], right[at] = shown.label[kept], logits[kept], shown.right[kept]
    return ids, scores, right


def is_right(truth: sp.csr_matrix, query: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(n,) bool, whether labels are among those of their queries."""
    pairs, width = truth.tocoo(), np.int64(label.max(initial=0) + 1 + truth.shape[1])
    return contains(np.sort(pairs.row.astype(np.int64) * width + pairs.col), query * width + label)


def hits(truth: sp.csr_matrix, ids: np.ndarray) -> np.ndarray:
    """(N, K) bool, which labels ids (N, K) of a ranking are right; a missing place is not."""
    query = np.repeat(np.arange(len(ids)), ids.shape[1])
    return is_right(truth, query, ids.ravel()).reshape(ids.shape)


def _report(
    base: np.ndarray,
    truth: sp.csr_matrix,
    ranker: Ranker,
    ids: np.ndarray,
    scores: np.ndarray,
    right: np.ndarray,
) -> RankerReport:
    weights = np.exp(ranker.rarity.astype(np.float64))
    wide = sp.csr_matrix((truth.data, truth.indices, truth.indptr), shape=(truth.shape[0], len(weights)))
    before, after = (xmc_metrics(each, wide, (1, 5), weights) for each in (base, ids))
    gains = bootstrap_differences(ids, base, wide, (1, 5), weights, num_samples=200)
    shown = ("precision@1", "precision@5", "psp@1", "psp@5")
    answered = {
        wish: float((scores[:, :PROMISED] >= ranker.promise.threshold(wish)).any(1).mean())
        for wish in SHOWN_PRECISIONS
    }
    calibration = measure(probability(scores), scores, right, base_rates(scores, right))
    return RankerReport(
        len(ids),
        {name: before[name] for name in shown},
        {name: after[name] for name in shown},
        {name: gains[name] for name in shown},
        calibration,
        ranker.promise,
        answered,
    )
