"""How the nearest keys of a query vote for labels, and what the votes say of a prediction, with numpy alone.

This file travels inside every published repo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .filters_xmc import MISSING_SCORE, best_of_each, drop_pairs


@dataclass(frozen=True)
class MemoryForm:
    """How the votes of rows and labels are weighed.

    The defaults are near the best of a held-out split (benchmarks/README.md); the paper's are row_weight 0.5, scale 25
    and num_keys 200.

    Args:
        row_weight: lambda in [0, 1] of a label with one training row. 0 is the plain label search, 1 the nearest
            training rows alone.
        scale: 1 / tau of the softmax over the keys, above 0.
        num_keys: b, the keys that vote, at least 1. Labels that none of them votes for follow those that have votes.
        frequency_power: The odds of lambda are multiplied by ((n + 1) / 2) ** frequency_power for a label of n
            training rows. Above 0 rare labels rest on their text; below 0 frequent labels, which many rows vote for
            anyhow, are held back, which lifts PSP. 0 is one lambda for all, as in the paper.
    """

    row_weight: float = 0.1
    scale: float = 20.0
    num_keys: int = 50
    frequency_power: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.row_weight <= 1:
            raise ValueError(f"row_weight must lie in [0, 1], got {self.row_weight}")
        if not 0 < self.scale < np.inf:
            raise ValueError(f"scale must be a finite number above 0, got {self.scale}")
        if self.num_keys < 1 or self.num_keys != int(self.num_keys):
            raise ValueError(f"num_keys must be an integer, at least 1, got {self.num_keys}")
        if not np.isfinite(self.frequency_power):
            raise ValueError(f"frequency_power must be finite, got {self.frequency_power}")

    def row_weights(self, counts: np.ndarray) -> np.ndarray:
        """Lambda of labels with ``counts`` (L,) training rows each: (L,) float64 in [0, 1]."""
        if self.row_weight in (0, 1) or not self.frequency_power:
            return np.full(len(counts), float(self.row_weight))
        logit = np.log(self.row_weight / (1 - self.row_weight))
        logits = logit + self.frequency_power * np.log((np.asarray(counts) + 1) / 2)
        return 1 / (1 + np.exp(-np.clip(logits, -700, 700)))


@dataclass(frozen=True)
class Found:
    """The nearest keys of each query, of both kinds, best first, padded with -1 and -inf.

    There are at least as many labels as rows: the b nearest compete with the rows, all of them fill missing places.
    """

    row_ids: np.ndarray  # (B, b) int64
    row_scores: np.ndarray  # (B, b) float32
    label_ids: np.ndarray  # (B, K) int64
    label_scores: np.ndarray  # (B, K) float32

    def part(self, queries: slice) -> Found:
        """That of some queries."""
        parts = (self.row_ids, self.row_scores, self.label_ids, self.label_scores)
        return Found(*(part[queries] for part in parts))


@dataclass(frozen=True)
class Votes:
    """The v votes above 0: which key gives what to which label. Place -1 among the rows found is the label's text."""

    query: np.ndarray  # (v,) int64
    label: np.ndarray  # (v,) int64
    place: np.ndarray  # (v,) int64
    value: np.ndarray  # (v,) float64


@dataclass(frozen=True)
class Evidence:
    """Why each label of a prediction (N, K) was predicted: the training rows that voted for it, and its own text.

    The shares of one label, its rows' and its text's, sum to 1. A label that no key voted for rests on its text alone.

    Attributes:
        indptr: (N K + 1,) int64; the rows of place k of query i are ``indptr[i K + k]:indptr[i K + k + 1]``.
        row_ids: (nnz,) int64 training rows, those of one label by share descending, then row ascending.
        row_scores: (nnz,) float32, query . row key.
        row_shares: (nnz,) float32 in [0, 1], the part of the label's score that came of the row.
        label_scores: (N, K) float32, query . label vector, -inf in missing places.
        label_shares: (N, K) float32 in [0, 1], the part that came of the label's text; 0 where the label is not
            among the keys that voted but has the votes of rows, and in missing places.
    """

    indptr: np.ndarray
    row_ids: np.ndarray
    row_scores: np.ndarray
    row_shares: np.ndarray
    label_scores: np.ndarray
    label_shares: np.ndarray

    def rows(self, query: int, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row ids, scores and shares (n,) behind the label at one place of one query, largest share first."""
        num_queries, num_places = self.label_scores.shape
        if not (0 <= query < num_queries and 0 <= place < num_places):
            raise ValueError(f"there is no place ({query}, {place}) in a prediction {self.label_scores.shape}")
        at = query * num_places + place
        part = slice(int(self.indptr[at]), int(self.indptr[at + 1]))
        return self.row_ids[part], self.row_scores[part], self.row_shares[part]


def weigh(found: Found, form: MemoryForm) -> tuple[np.ndarray, np.ndarray]:
    """Softmax over the nearest ``num_keys`` keys of both kinds: (B, b) float64 of rows and of labels."""
    kinds = [found.row_scores[:, : form.num_keys], found.label_scores[:, : form.num_keys]]
    for place, weight in enumerate((form.row_weight, 1 - form.row_weight)):
        if weight == 0:
            kinds[place] = np.full_like(kinds[place], MISSING_SCORE)
    scores = np.hstack(kinds).astype(np.float64)  # (B, 2b), rows first
    order = np.argsort(-scores, axis=1, kind="stable")[:, : form.num_keys]
    best = np.take_along_axis(scores, order, 1)
    present = best > MISSING_SCORE
    shift = np.where(present[:, :1], best[:, :1], 0)
    parts = np.where(present, np.exp(form.scale * (np.where(present, best, shift) - shift)), 0)
    parts /= np.maximum(parts.sum(1, keepdims=True), np.finfo(np.float64).tiny)
    weights = np.zeros_like(scores)
    np.put_along_axis(weights, order, parts, 1)
    width = kinds[0].shape[1]
    return weights[:, :width], weights[:, width:]


def write_best(votes: Votes, ids: np.ndarray, scores: np.ndarray, num_labels: int) -> None:
    """Write the labels of the most votes into ids (B, K) int64 and scores (B, K) float64, equal ones by id.

    Not float32, which the tiny differences that the softmax makes are lost in.
    """
    pair = votes.query * num_labels + votes.label
    order = np.argsort(pair, kind="stable")
    pair = pair[order]
    first = np.flatnonzero(np.diff(pair, prepend=-1))  # of the votes of one label
    totals = np.add.reduceat(votes.value[order], first) if len(first) else votes.value
    query, label = np.divmod(pair[first], num_labels)
    kept, query, place = best_of_each(query, totals, ids.shape[1])  # equal totals keep the ascending labels
    ids[query, place], scores[query, place] = label[kept], totals[kept]


def fill_places(ids: np.ndarray, scores: np.ndarray, found: Found, scale: float) -> None:
    """Fill the missing places of ids and scores (B, K) with the labels found that are not among them, in their order.

    The first scores half of the last one that was voted for, or 1/2 where none was; each further one exp(scale times
    what its label score lies behind the first's) of that. Missing places remain where labels run out.
    """
    short = np.flatnonzero(ids[:, -1] < 0)
    if not len(short):
        return
    query, place = np.nonzero(ids[short] >= 0)
    voted = np.stack([query, ids[short[query], place]], axis=1)
    rest_ids, rest_scores = drop_pairs(found.label_ids[short], found.label_scores[short].astype(np.float64), voted)
    num_voted = np.bincount(query, minlength=len(short))
    least = np.where(num_voted > 0, scores[short, np.maximum(num_voted, 1) - 1], 1.0)
    there = rest_ids >= 0
    behind = np.where(there, rest_scores, 0) - np.where(there[:, :1], rest_scores[:, :1], 0)
    filled = least[:, None] / 2 * np.exp(scale * np.minimum(behind, 0))
    place = num_voted[:, None] + np.arange(rest_ids.shape[1])
    row, column = np.nonzero(there & (place < ids.shape[1]))
    ids[short[row], place[row, column]] = rest_ids[row, column]
    scores[short[row], place[row, column]] = filled[row, column]


def collect_evidence(
    votes: Votes, found: Found, ids: np.ndarray, label_scores: np.ndarray, num_labels: int
) -> Evidence:
    """The votes for the labels ids (B, K), sorted by the places of these."""
    # Places of the predictions, sorted by (query, label), are the table in which votes are looked up.
    width = num_labels + 1
    wanted = (np.arange(len(ids))[:, None] * width + np.where(ids < 0, num_labels, ids)).ravel()
    by_label = np.argsort(wanted, kind="stable")
    pair = votes.query * width + votes.label
    at = np.searchsorted(wanted, pair, sorter=by_label)
    at = by_label[np.minimum(at, len(wanted) - 1)] if len(wanted) else at
    hit = wanted[at] == pair if len(wanted) else np.zeros(len(pair), dtype=bool)
    at, query, place, value = at[hit], votes.query[hit], votes.place[hit], votes.value[hit]
    of_row = place >= 0
    text_votes = np.bincount(at[~of_row], weights=value[~of_row], minlength=ids.size)
    total = np.bincount(at, weights=value, minlength=ids.size)
    alone = (total == 0) & (ids.ravel() >= 0)
    text_votes[alone] = total[alone] = 1
    at, query, place, value = at[of_row], query[of_row], place[of_row], value[of_row]
    shares, rows = value / total[at], found.row_ids[query, place]
    order = np.lexsort((rows, -shares, at))
    return Evidence(
        np.searchsorted(at[order], np.arange(ids.size + 1)),
        rows[order],
        found.row_scores[query, place][order],
        shares[order].astype(np.float32),
        label_scores,
        (text_votes / np.where(total > 0, total, 1)).reshape(ids.shape).astype(np.float32),
    )


def join_evidence(parts: list[Evidence]) -> Evidence:
    """The evidence of one block of queries after the other; at least one block."""
    starts = np.cumsum([0, *(len(part.row_ids) for part in parts)])
    indptr = [part.indptr[:-1] + start for part, start in zip(parts, starts[:-1], strict=True)]
    names = ("row_ids", "row_scores", "row_shares", "label_scores", "label_shares")
    return Evidence(
        np.concatenate([*indptr, starts[-1:]]),
        *(np.concatenate([getattr(part, name) for part in parts]) for name in names),
    )
