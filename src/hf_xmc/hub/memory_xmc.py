"""Training rows of a published repo that vote for their labels, and the evidence of it, with numpy alone.

This file travels inside every published repo.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from safetensors import safe_open

# Keys decoded at once, and the bytes up to which a float32 copy of all is kept.
_KEYS_AT_ONCE, _MAX_COPY = 1 << 14, 1 << 29
# Scores of a search in that copy held at once.
_SCORES_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Vote:
    """The labels of one query, and all votes behind them."""

    ids: np.ndarray  # (k,) int64, best first
    scores: np.ndarray  # (k,) float32
    voter: np.ndarray  # (v,) place in the rows found, -1 for the label's own text
    label: np.ndarray  # (v,) int64
    value: np.ndarray  # (v,) float64
    row_ids: np.ndarray  # (b,) int64, the rows found
    row_scores: np.ndarray  # (b,) float32


class Memory:
    """Training rows that vote for their labels beside the label texts (RAE-XMC, arXiv 2502.10615)."""

    def __init__(self, path: str, texts: Callable[[], list[str]], labels: Any) -> None:
        self._texts = texts
        self.labels = labels
        self.file = safe_open(path, "numpy")
        metadata = self.file.metadata()
        self.form = json.loads(metadata["form"])
        names = self.file.keys()
        self.keys = self.file.get_slice("keys")  # (N, D), read block by block
        self.scales = self.file.get_tensor("key_scales") if "key_scales" in names else None  # (N,)
        self.indptr, self.indices = self.file.get_tensor("indptr"), self.file.get_tensor("indices")
        self.votes = self.file.get_tensor("votes") if "votes" in names else np.ones(len(self.indices), np.float32)
        self.lambdas = self._lambdas(np.bincount(self.indices, minlength=len(labels.labels)))  # (L,)

    @cached_property
    def _owner(self) -> np.ndarray:
        """(nnz,) the row of each stored label."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))

    @cached_property
    def texts(self) -> list[str]:
        """The training rows' own texts, read when evidence is first shown."""
        texts = self._texts()
        if len(texts) != len(self.indptr) - 1:
            raise ValueError(
                f"memory/texts.json has {len(texts)} texts, the memory {len(self.indptr) - 1} rows; "
                "the repo is damaged, fetch or save it again"
            )
        return texts

    def _lambdas(self, counts: np.ndarray) -> np.ndarray:
        weight, power = self.form["row_weight"], self.form["frequency_power"]
        if weight in (0, 1) or not power:
            return np.full(len(counts), float(weight))
        logits = np.log(weight / (1 - weight)) + power * np.log((counts + 1) / 2)
        return 1 / (1 + np.exp(-np.clip(logits, -700, 700)))

    def vote(self, queries: np.ndarray, top_k: int, candidates: np.ndarray | None = None) -> list[Vote]:
        """For each query at most ``top_k`` labels, those of the most votes, then those of the largest label score;
        ``candidates``, ids of the only labels to vote for, take all other labels and the rows without any of these out
        of the search."""
        allowed = self.labels.alive.copy()
        silent = np.diff(self.indptr) == 0  # (N,)
        if candidates is not None:
            allowed[:] = False
            allowed[candidates] = True
            silent = np.bincount(self._owner[allowed[self.indices]], minlength=len(silent)) == 0
        num_keys, batch = self.form["num_keys"], len(queries)
        none = np.zeros((batch, 0), np.int64), np.zeros((batch, 0), np.float32)
        row_ids, row_scores = self._nearest(queries, num_keys, silent) if self.form["row_weight"] > 0 else none
        label_ids, label_scores = self.labels.search(queries, max(num_keys, top_k), candidates)
        return [
            self._vote(*parts, top_k, allowed)
            for parts in zip(row_ids, row_scores, label_ids, label_scores, strict=True)
        ]

    def _vote(
        self,
        row_ids: np.ndarray,
        row_scores: np.ndarray,
        label_ids: np.ndarray,
        label_scores: np.ndarray,
        top_k: int,
        allowed: np.ndarray,
    ) -> Vote:
        keys = label_scores[: self.form["num_keys"] if self.form["row_weight"] < 1 else 0]
        scores = np.concatenate([row_scores, keys]).astype(np.float64)  # rows win ties
        order = np.argsort(-scores, kind="stable")[: self.form["num_keys"]]
        order = order[scores[order] > -np.inf]
        weights = np.zeros(len(scores))
        if len(order):
            parts = np.exp(self.form["scale"] * (scores[order] - scores[order[0]]))
            weights[order] = parts / parts.sum()
        row_weights, label_weights = weights[: len(row_ids)], weights[len(row_ids) :]
        voters, texts = np.flatnonzero(row_weights), np.flatnonzero(label_weights)
        rows = row_ids[voters]
        sizes = self.indptr[rows + 1] - self.indptr[rows]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        at = np.repeat(self.indptr[rows], sizes) + within
        voter = np.concatenate([np.repeat(voters, sizes), np.full(len(texts), -1)])  # -1: the label's own text
        label = np.concatenate([self.indices[at].astype(np.int64), label_ids[texts]])
        value = np.concatenate(
            [
                self.lambdas[self.indices[at]] * np.repeat(row_weights[voters], sizes) * self.votes[at],
                (1 - self.lambdas[label_ids[texts]]) * label_weights[texts],
            ]
        )
        here = allowed[label] & (value > 0)
        voter, label, value = voter[here], label[here], value[here]
        ids, place = np.unique(label, return_inverse=True)
        totals = np.bincount(place, weights=value, minlength=len(ids))
        order = np.lexsort((ids, -totals))
        ids, totals = ids[order], totals[order]
        # Labels without a vote: half of the least vote, and less by what their label score lies behind the first's.
        rest = np.flatnonzero(~np.isin(label_ids, ids))[: max(top_k - len(ids), 0)]
        least = totals[-1] if len(totals) else 1.0
        behind = label_scores[rest].astype(np.float64)
        filled = least / 2 * np.exp(self.form["scale"] * (behind - behind[:1]))
        ids, totals = np.concatenate([ids, label_ids[rest]])[:top_k], np.concatenate([totals, filled])[:top_k]
        return Vote(ids, totals.astype(np.float32), voter, label, value, row_ids, row_scores)

    def evidence(self, query: np.ndarray, vote: Vote, label_id: int, count: int) -> dict[str, Any]:
        """What made one label: its text's score and share, and the training rows of the largest share."""
        mine = vote.label == label_id
        voter, value, row_ids = vote.voter[mine], vote.value[mine], vote.row_ids
        shares = value / max(float(value.sum()), np.finfo(np.float64).tiny)
        rows = np.flatnonzero(voter >= 0)
        rows = rows[np.lexsort((row_ids[voter[rows]], -shares[rows]))][:count]
        return {
            "label": {
                "score": float(self.labels.vectors[label_id] @ query),
                "share": float(shares[voter < 0].sum()) if len(value) else 1.0,
            },
            "rows": [
                {
                    "text": self.texts[row_ids[voter[row]]],
                    "row": int(row_ids[voter[row]]),
                    "score": float(vote.row_scores[voter[row]]),
                    "share": float(shares[row]),
                }
                for row in rows
            ],
        }

    @cached_property
    def _decoded(self) -> np.ndarray:
        """(N, D) float32"""
        keys = self.keys[:].astype(np.float32, copy=False)
        return keys if self.scales is None else keys * self.scales[:, None]

    def _nearest(self, queries: np.ndarray, count: int, silent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, at most count) rows that are not silent, and their scores, equal scores by ascending row."""
        ids, scores = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
        num_rows = len(self.indptr) - 1
        if len(queries) and 4 * num_rows * queries.shape[1] <= _MAX_COPY:
            parts = []
            step = max(1, _SCORES_AT_ONCE // max(1, num_rows))
            for start in range(0, len(queries), step):
                block = queries[start : start + step] @ self._decoded.T  # (B, N)
                block[:, silent] = -np.inf
                parts.append(best(block, min(count, num_rows)))
            ids, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
            return ids, scores
        for first in range(0, num_rows, _KEYS_AT_ONCE):
            last = min(first + _KEYS_AT_ONCE, num_rows)
            block = queries @ self.keys[first:last].astype(np.float32).T  # (B, C)
            if self.scales is not None:
                block *= self.scales[first:last]
            block[:, silent[first:last]] = -np.inf
            block_ids, block_scores = best(block, min(count, last - first))
            scores = np.hstack([scores, block_scores])
            ids = np.hstack([ids, block_ids + first])
            order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
            ids, scores = np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
        return ids, scores


def best(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, C) -> places and values (B, count) of the largest scores, equal ones by ascending place."""
    if count < scores.shape[1]:
        places = np.argpartition(-scores, count, axis=1)
        values = np.take_along_axis(scores, places[:, : count + 1], 1)
        tied = np.flatnonzero(values[:, :count].min(1, initial=np.inf) == values[:, count])
        places = places[:, :count]
        for row in tied:  # the cut falls among equal scores
            places[row] = np.argsort(-scores[row], kind="stable")[:count]
    else:
        places = np.broadcast_to(np.arange(count), (len(scores), count))
    values = np.take_along_axis(scores, places, 1)
    order = np.lexsort((places, -values))
    return np.take_along_axis(places, order, 1), np.take_along_axis(values, order, 1)
