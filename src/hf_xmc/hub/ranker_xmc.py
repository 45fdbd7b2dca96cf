"""The fitted ranker: what is known about a candidate becomes the probability that it is right, with numpy alone.

This file travels inside every published repo, and the package runs it too; ``hf_xmc.ranker`` fits.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .features_xmc import NEAR_LABELS, Candidates, Sources, Words, find_near, look
from .filters_xmc import NO_PAIRS, best_of_each, contains, missing, pairs_within
from .repo_xmc import Files, check_version, map_tensors, required
from .words_xmc import Bags, Vocabulary, WordIndex

RANKER_FILE, WORDS_FILE = "ranker/ranker.safetensors", "ranker/words.safetensors"
# Labels of a query that a promise is about.
PROMISED = 5
# Queries whose candidates are looked at at once.
_QUERIES_AT_ONCE = 128


@dataclass(frozen=True)
class Network:
    """One hidden layer over piecewise-linear codes of the features (Gorishniy et al., arXiv 2203.05556).

        z = w2 . silu(W1 c + b1) + b2,   c_fj = clip((x_f - e_fj) / (e_fj+1 - e_fj), 0, 1)

    Each feature has T bins between quantiles of it. z changes continuously with the features, so that doors which
    differ in the last bit of a vector do not differ in the order of labels.

    Attributes:
        starts: (F, T) float32, where the bins of a feature begin, and
        widths: (F, T) float32 above 0, how wide they are; those not needed begin beyond all numbers.
        hidden: (F T, H) float32.
        hidden_bias: (H,) float32.
        out: (H,) float32.
        out_bias: A number.
    """

    starts: np.ndarray
    widths: np.ndarray
    hidden: np.ndarray
    hidden_bias: np.ndarray
    out: np.ndarray
    out_bias: float

    def code(self, table: np.ndarray) -> np.ndarray:
        """(n, F) float32 -> (n, F T) float32 in [0, 1]."""
        coded = table[:, :, None] - self.starts
        coded /= self.widths
        return np.clip(coded, 0, 1, out=coded).reshape(len(table), -1)

    def logits(self, table: np.ndarray) -> np.ndarray:
        """(n, F) float32 -> (n,) float32."""
        x = self.code(table) @ self.hidden + self.hidden_bias
        x /= 1 + np.exp(-np.clip(x, -80, 80))
        return x @ self.out + np.float32(self.out_bias)


@dataclass(frozen=True)
class Promise:
    """Which labels to keep so that a wished share of all kept labels is right, with a certain confidence.

    Attributes:
        precisions: (P,) ascending, the wishes that were tried.
        thresholds: (P,) the least logit of a label that is kept; inf where nothing can be promised.
        confidence: Probability, over the held-out rows, that a promise holds.
    """

    precisions: np.ndarray
    thresholds: np.ndarray
    confidence: float

    def threshold(self, precision: float) -> float:
        """The least logit for a wish in (0, 1]: that of the next wish tried that is no smaller; inf for none."""
        place = int(np.searchsorted(self.precisions, precision - 1e-9))
        return float(self.thresholds[place]) if place < len(self.thresholds) else np.inf

    @property
    def most(self) -> float:
        """The largest precision that can be promised; 0 for none."""
        kept = self.precisions[np.isfinite(self.thresholds)]
        return float(kept.max()) if len(kept) else 0.0


@dataclass(frozen=True)
class Propensity:
    """How likely a right label is to be listed, ``1 / (1 + C (n + b)^-a)`` of n rows (Jain et al., KDD 2016)."""

    a: float
    b: float
    num_rows: int

    def log_inverse(self, counts: np.ndarray) -> np.ndarray:
        """(L,) training rows of each label -> (L,) float32, the logarithm of the inverse propensity."""
        scale = (np.log(max(self.num_rows, 3)) - 1) * (self.b + 1) ** self.a
        return np.log1p(scale * (np.asarray(counts, dtype=np.float64) + self.b) ** -self.a).astype(np.float32)


@dataclass(frozen=True)
class Ranker:
    """Orders the candidates of a query by the probability that they are right, or from there towards rare labels.

    Attributes:
        names: The F features that it weighs, of :data:`~.features_xmc.FEATURES`.
        network: Their logit.
        means: (F,) float32 of held-out candidates, what a feature is compared with to say what it did.
        promise: What may be kept.
        propensity: Of the training rows.
        counts: (L,) int64, training rows of each label.
        is_row: (L,) bool, whether the label's text is that of a training row.
        words: Of label texts and training rows.
    """

    names: tuple[str, ...]
    network: Network
    means: np.ndarray
    promise: Promise
    propensity: Propensity
    counts: np.ndarray
    is_row: np.ndarray
    words: Words

    @cached_property
    def rarity(self) -> np.ndarray:
        """(L,) float32, the logarithm of each label's inverse propensity."""
        return self.propensity.log_inverse(self.counts)

    def bags(self, texts: Sequence[str]) -> Bags:
        """The words of queries."""
        return self.words.labels.vocabulary.bags(texts)

    def with_labels(self, texts: Sequence[str]) -> Ranker:
        """For further labels, of no training row yet."""
        labels, rows = self.words.labels.with_texts(texts), self.words.rows
        words = Words(labels, None if rows is None else rows.with_vocabulary(labels.vocabulary))
        nothing = np.zeros(len(texts), dtype=np.int64)
        return replace(
            self,
            words=words,
            counts=np.concatenate([self.counts, nothing]),
            is_row=np.concatenate([self.is_row, nothing.astype(bool)]),
        )

    def promised(self, logits: np.ndarray, precision: float) -> np.ndarray:
        """Which of the best labels of queries (B, K) are kept so that this share of them all is right.

        None, with a warning, where nothing can be promised.
        """
        threshold = self.promise.threshold(precision)
        if threshold == np.inf:
            most = f"at most {self.promise.most:.2f}" if self.promise.most else "nothing"
            warnings.warn(
                f"min_precision={precision}: no label is kept, as the held-out rows of the fit allow {most} to be "
                "promised; fit_ranker with more of them, or ask for less",
                stacklevel=2,
            )
        return (logits >= threshold) & (np.arange(logits.shape[1]) < PROMISED)

    def sources(self, parts: Any) -> Sources:
        """What candidates come from, of a retriever or a published repo."""
        return Sources(
            parts.index, parts.embedding, parts.classifier, self.counts, self.is_row, self.words, parts.memory
        )

    def rank(
        self,
        parts: Any,
        queries: np.ndarray,
        texts: Sequence[str],
        top_k: int,
        *,
        tail: float = 0.0,
        candidates: np.ndarray | None = None,
        filters: np.ndarray = NO_PAIRS,
    ) -> Ranked:
        """The best labels of queries (B, D) with the given texts.

        Labels that no source calls a candidate follow those that one does, in the order of the label search.

        Args:
            parts: Encoder's label halves, index and memory.
            queries: (B, D) float32, joint vectors.
            texts: B texts, for their words.
            top_k: At least 1.
            tail: In [0, 1]; by how much of the logarithm of its inverse propensity a label is lifted.
            candidates: (C,) int64, the only labels to choose from; None for all.
            filters: (n, 2) int64, (query, label id) that are never predicted.
        """
        sources, depth = self.sources(parts), max(top_k, NEAR_LABELS)
        rest, _ = parts.index.search(queries, depth, filters=filters)
        near, extra = find_near(sources, queries, labels=rest), None
        if candidates is not None:
            rest, _ = parts.index.search(queries, depth, candidates, filters=filters)
            extra, chosen = rest[:, :NEAR_LABELS], np.sort(candidates)
        blocks = []
        for start in range(0, max(len(queries), 1), _QUERIES_AT_ONCE):
            part = slice(start, start + _QUERIES_AT_ONCE)
            here = pairs_within(filters, part)
            others = None if extra is None else extra[part]
            found = look(sources, queries[part], self.bags(texts[part]), near.part(part), here, others)
            logits = self.network.logits(found.table(self.names))
            if candidates is not None:
                kept = contains(chosen, found.label)
                found, logits = Candidates(found.query[kept], found.label[kept], {}), logits[kept]
            scores = logits + np.float32(tail) * self.rarity[found.label] if tail else logits
            blocks.append(_placed(found, scores, logits, rest[part], top_k, len(parts.index)))
        return Ranked(*(np.concatenate(each) for each in zip(*blocks, strict=True)))

    def contributions(
        self, parts: Any, queries: np.ndarray, texts: Sequence[str], ids: np.ndarray
    ) -> list[list[dict[str, float]]]:
        """What each feature did to the labels ids (B, K): by how much the logit falls where it is an average one.

        Returns:
            For each query and place a dict of name -> difference, largest first; empty for a missing place and for a
            label that no source calls a candidate.
        """
        sources = self.sources(parts)
        found = look(sources, queries, self.bags(texts), find_near(sources, queries), extra=ids)
        wanted = np.arange(len(ids))[:, None] * len(parts.index) + ids
        keys = found.query * len(parts.index) + found.label
        place = np.minimum(np.searchsorted(keys, wanted.ravel()), max(len(keys) - 1, 0))
        hit = (keys[place] == wanted.ravel()) & (ids.ravel() >= 0) if len(keys) else np.zeros(ids.size, dtype=bool)
        table = found.table(self.names)[place[hit]]
        whole = self.network.logits(table)
        parted = np.empty_like(table)
        for column in range(len(self.names)):
            without = table.copy()
            without[:, column] = self.means[column]
            parted[:, column] = whole - self.network.logits(without)
        lines = iter(parted.tolist())
        told = [
            dict(sorted(zip(self.names, next(lines), strict=True), key=lambda one: -abs(one[1]))) if there else {}
            for there in hit
        ]
        return [told[row * ids.shape[1] : (row + 1) * ids.shape[1]] for row in range(len(ids))]


@dataclass(frozen=True)
class Ranked:
    """The best labels of B queries.

    Attributes:
        ids: (B, K) int64, padded with -1.
        scores: (B, K) float32, descending, equal ones by ascending id, padded with -inf.
        logits: (B, K) float32, of the probability that a label is right; without a tail the scores.
    """

    ids: np.ndarray
    scores: np.ndarray
    logits: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """(B, K) float64 in [0, 1], 0 in missing places."""
        return probability(self.logits)


def probability(logits: np.ndarray) -> np.ndarray:
    """Of logits, -inf for 0."""
    return 1 / (1 + np.exp(-np.clip(np.asarray(logits, dtype=np.float64), -700, 700))) * (logits > -np.inf)


def _placed(
    found: Candidates,
    scores: np.ndarray,
    logits: np.ndarray,
    rest: np.ndarray,
    top_k: int,
    num_labels: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    num_queries = len(rest)
    ids, placed = missing(num_queries, top_k)
    _, placed_logits = missing(num_queries, top_k)
    kept, query, column = best_of_each(found.query, scores, top_k)  # equal ones keep the ascending labels
    at = query, column
    ids[at], placed[at], placed_logits[at] = found.label[kept], scores[kept], logits[kept]
    counts = np.bincount(found.query, minlength=num_queries)
    if (counts < top_k).any():
        key = found.query * num_labels + found.label
        for row in np.flatnonzero(counts < top_k):
            others = rest[row][rest[row] >= 0]
            others = others[~contains(key, row * num_labels + others)][: top_k - counts[row]]
            last = slice(counts[row], counts[row] + len(others))
            # Below all candidates, each by a little, which float32 still tells apart.
            lowest = min(placed[row, : counts[row]].min(initial=0), placed_logits[row, : counts[row]].min(initial=0))
            ids[row, last] = others
            placed[row, last] = placed_logits[row, last] = lowest - 1 - 0.01 * np.arange(len(others))
    return ids, placed, placed_logits


# -- the files of a repo ----------------------------------------------------------------------------------------------


def read_ranker(files: Files, num_labels: int) -> Ranker:
    """The ranker of a repo.

    Raises:
        ValueError: Naming a file that is missing, damaged, of a newer format version or of other labels.
    """
    path = required(files, RANKER_FILE)
    arrays, metadata = map_tensors(path)
    words, texts = map_tensors(required(files, WORDS_FILE))
    try:
        check_version(int(metadata["format_version"]), path)
        about = json.loads(metadata["about"])
        vocabulary = Vocabulary(json.loads(texts["words"]), words["weights"])
        labels = WordIndex(vocabulary, Bags(words["label_indptr"], words["label_words"]))
        rows = None
        if "row_indptr" in words:
            found = words["row_found"].astype(bool)
            rows = WordIndex(vocabulary, Bags(words["row_indptr"], words["row_words"]), found)
        weights = {name: arrays[name] for name in ("starts", "widths", "hidden", "hidden_bias", "out")}
        network = Network(**weights, out_bias=float(about["out_bias"]))
        promise = Promise(arrays["precisions"], arrays["thresholds"], float(about["confidence"]))
        ranker = Ranker(
            tuple(about["names"]),
            network,
            arrays["means"],
            promise,
            Propensity(**about["propensity"]),
            arrays["counts"],
            arrays["is_row"].astype(bool),
            Words(labels, rows),
        )
    except (KeyError, TypeError, ValueError) as error:
        if "format_version" in str(error):
            raise
        raise ValueError(f"{path} is damaged ({error!r}); fetch or save it again") from error
    check_ranker(ranker, num_labels, path)
    return ranker


def check_ranker(ranker: Ranker, num_labels: int, path: Path) -> None:
    """Refuse shapes that disagree."""
    shape, width = ranker.network.starts.shape, len(ranker.network.out)
    shapes = {
        "features": (len(ranker.names), shape[0]),
        "bins": (ranker.network.hidden.shape, (shape[0] * shape[1], width)),
        "labels": (len(ranker.counts), num_labels),
        "label words": (len(ranker.words.labels.bags), num_labels),
        "labels that are rows": (len(ranker.is_row), num_labels),
        "promises": (len(ranker.promise.thresholds), len(ranker.promise.precisions)),
    }
    wrong = [f"{name} {came} for {expected}" for name, (came, expected) in shapes.items() if came != expected]
    if wrong:
        raise ValueError(f"{path} is damaged (it has {', '.join(wrong)}); fetch or save it again")
