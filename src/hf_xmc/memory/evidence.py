"""Why a KnowledgeMemory predicted a label: the training rows and the label text behind its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_xmc.memory.votes import Votes


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


def collect_evidence(votes: Votes, ids: np.ndarray, label_scores: np.ndarray) -> Evidence:
    """Take apart the scores of predicted labels.

    Args:
        votes: Of the B queries.
        ids: (B, K) int64, labels of a row distinct, padded with -1.
        label_scores: (B, K) float32, query . label vector.
    """
    found, lambdas, num_labels = votes.found, votes.lambdas, len(votes.lambdas)
    # Places of the predictions, sorted by (query, label), are the table in which votes are looked up.
    width = num_labels + 1
    wanted = (np.arange(len(ids))[:, None] * width + np.where(ids < 0, num_labels, ids)).ravel()
    by_label = np.argsort(wanted, kind="stable")

    def places_of(query: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the pairs are predicted, and the places of those."""
        if not len(wanted):
            return np.zeros(len(query), dtype=bool), np.zeros(0, dtype=np.int64)
        pair = query * width + label
        at = by_label[np.minimum(np.searchsorted(wanted, pair, sorter=by_label), len(wanted) - 1)]
        hit = wanted[at] == pair
        return hit, at[hit]

    text_votes, row_votes = np.zeros(ids.size), np.zeros(ids.size)
    query, place = np.nonzero(votes.label_weights)
    label = found.label_ids[query, place]
    hit, at = places_of(query, label)
    text_votes[at] = (1 - lambdas[label[hit]]) * votes.label_weights[query, place][hit]

    query, place = np.nonzero(votes.row_weights)
    rows = found.row_ids[query, place]
    voted = votes.truth[rows]
    voter = np.repeat(np.arange(len(rows)), np.diff(voted.indptr))
    hit, at = places_of(query[voter], voted.indices.astype(np.int64))
    voter = voter[hit]
    values = lambdas[voted.indices[hit]] * votes.row_weights[query, place][voter] * voted.data[hit]
    values, voter, at = values[values > 0], voter[values > 0], at[values > 0]
    np.add.at(row_votes, at, values)
    text_votes[(text_votes + row_votes == 0) & (ids.ravel() >= 0)] = 1
    total = np.maximum(text_votes + row_votes, np.finfo(np.float64).tiny)
    shares = values / total[at]
    order = np.lexsort((rows[voter], -shares, at))
    voter, at = voter[order], at[order]
    return Evidence(
        np.searchsorted(at, np.arange(ids.size + 1)),
        rows[voter],
        found.row_scores[query, place][voter],
        shares[order].astype(np.float32),
        label_scores,
        (text_votes / total).reshape(ids.shape).astype(np.float32),
    )


def join_evidence(parts: Sequence[Evidence]) -> Evidence:
    """The evidence of one block of queries after the other; at least one block."""
    starts = np.cumsum([0, *(len(part.row_ids) for part in parts)])
    indptr = [part.indptr[:-1] + start for part, start in zip(parts, starts[:-1], strict=True)]
    return Evidence(
        np.concatenate([*indptr, starts[-1:]]),
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("row_ids", "row_scores", "row_shares", "label_scores", "label_shares")
        ),
    )
