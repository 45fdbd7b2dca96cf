"""How the nearest keys of a query vote: their weights, the sums of the labels, and the places that no vote fills."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from hf_xmc.index.label_index import MISSING_SCORE
from hf_xmc.memory.form import MemoryForm
from hf_xmc.memory.keys import Found
from hf_xmc.metrics.functional import drop_pairs


@dataclass(frozen=True)
class Votes:
    """What a search counts, key by key."""

    found: Found
    row_weights: np.ndarray  # (B, b) float64, softmax over the keys, 0 for a key left out
    label_weights: np.ndarray  # (B, b) float64
    lambdas: np.ndarray  # (L,) float64
    truth: sp.csr_matrix  # (N, L), the votes of a row


def weigh(found: Found, form: MemoryForm, lambdas: np.ndarray, truth: sp.csr_matrix) -> Votes:
    """Softmax over the nearest ``num_keys`` keys of both kinds, without those of weight 0."""
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
    return Votes(found, weights[:, :width], weights[:, width:], lambdas, truth)


def count_votes(votes: Votes, allowed: np.ndarray) -> sp.csr_matrix:
    """The votes of every label of ``allowed`` (L,) bool that got any: CSR (B, L) float64."""
    found, lambdas, truth = votes.found, votes.lambdas, votes.truth
    shape = (len(votes.row_weights), len(lambdas))
    query, place = np.nonzero(votes.row_weights)
    row = found.row_ids[query, place]
    # Only the rows that vote are looked up, so that a mapped file is read where it is needed.
    sizes = truth.indptr[row + 1] - truth.indptr[row]
    ends = np.cumsum(sizes)
    at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(truth.indptr[row] - ends + sizes, sizes)
    of_rows = truth.indices[at]
    text_query, text_place = np.nonzero(votes.label_weights)
    label = found.label_ids[text_query, text_place]
    queries = np.concatenate([np.repeat(query, sizes), text_query])
    labels = np.concatenate([of_rows, label])
    values = np.concatenate(
        [
            lambdas[of_rows] * np.repeat(votes.row_weights[query, place], sizes) * truth.data[at],
            (1 - lambdas[label]) * votes.label_weights[text_query, text_place],
        ]
    )
    kept = allowed[labels] & (values > 0)
    return sp.coo_matrix((values[kept], (queries[kept], labels[kept])), shape=shape).tocsr()


def write_best(votes: sp.csr_matrix, ids: np.ndarray, scores: np.ndarray) -> None:
    """Write the best labels of CSR votes (B, L) into ids (B, K) int64 and scores (B, K) float64, equal ones by id.

    Not float32, which the tiny differences that the softmax makes are lost in.
    """
    row = np.repeat(np.arange(votes.shape[0]), np.diff(votes.indptr))
    order = np.lexsort((votes.indices, -votes.data, row))
    rank = np.arange(len(row)) - votes.indptr[row]
    kept = rank < ids.shape[1]
    ids[row[kept], rank[kept]] = votes.indices[order][kept]
    scores[row[kept], rank[kept]] = votes.data[order][kept]


def fill_places(ids: np.ndarray, scores: np.ndarray, found: Found, scale: float) -> None:
    """Fill the missing places of ids and scores (B, K) with the labels found that are not among them, in their order.

    The first scores half of the last one that was voted for, or 1/2 where none was; each further one exp(scale times
    what its label score lies behind the first's) of that. Missing places remain where labels run out.

    Args:
        ids: (B, K) int64, all labels that got a vote where places are missing; written to.
        scores: (B, K) float64; written to.
        found: At least K labels of each query, or all that it may get.
        scale: Above 0.
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
