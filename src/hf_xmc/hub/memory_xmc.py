"""Training rows that vote for their labels beside the label texts (RAE-XMC), and why, with numpy alone.

This file travels inside every published repo.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from .filters_xmc import contains, missing, pairs_within, runs_of
from .repo_xmc import INDEX_FILE, Files, check_version, map_tensors, read_index, required
from .search_xmc import StoredRows, VectorIndex
from .votes_xmc import (
    Evidence,
    Found,
    MemoryForm,
    Votes,
    collect_evidence,
    fill_places,
    join_evidence,
    weigh,
    write_best,
)

# Queries whose votes are held at once.
VOTERS_AT_ONCE = 1 << 12
# Bytes up to which rows kept in 16 or 8 bits are searched in a float32 copy; beyond, block by block from the file.
MAX_COPY = 1 << 29


class MemoryParts(NamedTuple):
    """What is stored: everything but the label vectors."""

    keys: StoredRows  # (N, D)
    indptr: np.ndarray  # (N + 1,) integers
    indices: np.ndarray  # (nnz,) integers, the labels of row n: indices[indptr[n] : indptr[n + 1]], none twice
    votes: np.ndarray  # (nnz,) float32 above 0
    num_labels: int
    form: MemoryForm


class Memory:
    """Predicts labels by the votes of the nearest training rows and label texts (RAE-XMC, arXiv 2502.10615).

        p = softmax over the top-b keys of (scale q K^T), times V,   K = [rows; labels], V = [lambda Y; (1 - lambda) I]

    One joint search: rows and labels compete for the same b places and share one softmax, equal scores by ascending
    key, rows before labels. p need not sum to 1. With row_weight 0 the rows, with 1 the labels are zero-valued keys
    and leave the search, so 0 ranks as ``labels.search`` does and 1 is the vote of the nearest rows. Rows without
    labels are never searched. Votes are the truth's values; dividing them by the number of labels of a row measured
    worse, and two searches with a softmax each no better and more sensitive to lambda.

    Labels without a vote follow those that have one, in the order of their label score s = q . label, and score

        p(l) = m / 2 exp(scale (s(l) - s*)),   m = the least vote of the query's labels (1 without any),
                                               s* = the largest label score without a vote

    so that scores descend, and stay above 0 but for what float32 rounds to it.

    Args:
        parts: The training rows, their labels and how they vote.
        labels: Searches the L label vectors; a label that it adds or removes is added or removed here too.
        rows: Searches the keys of the rows, those without a label not alive; None to look at every one.

    Raises:
        ValueError: For vectors of another width than the labels', or more labels.
    """

    def __init__(self, parts: MemoryParts, labels: VectorIndex, rows: VectorIndex | None = None) -> None:
        if parts.keys.shape[1] != labels.vectors.shape[1]:
            raise ValueError(
                f"rows have width {parts.keys.shape[1]}, labels {labels.vectors.shape[1]}; use one encoder"
            )
        if parts.num_labels > len(labels):
            raise ValueError(f"rows vote for {parts.num_labels} labels, expected at most {len(labels)}")
        self.keys, self.indptr, self.indices, self.votes, self.num_labels, self.form = parts
        self.labels = labels
        self._rows = rows
        self._counts = np.bincount(self.indices, minlength=1)  # training rows of each label
        self._kept_lambdas: tuple[tuple[MemoryForm, int], np.ndarray] | None = None

    @property
    def rows(self) -> VectorIndex:
        """What searches the training rows, made by the first search."""
        if self._rows is None:
            self._rows = self._index_rows(np.diff(self.indptr) > 0)
        return self._rows

    def _index_rows(self, alive: np.ndarray) -> VectorIndex:
        small = self.keys.stored.dtype == np.float32 or 4 * self.keys.stored.size <= MAX_COPY
        return VectorIndex(self.keys[:] if small else self.keys, alive)

    def __len__(self) -> int:
        """Number of training rows."""
        return len(self.keys)

    def search(
        self,
        queries: np.ndarray,
        top_k: int,
        *,
        own_rows: np.ndarray | None = None,
        filters: np.ndarray | None = None,
        candidates: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``top_k`` labels of the most votes, then those of the largest label score.

        Args:
            queries: (N, D) float32, as for ``VectorIndex.search``.
            top_k: At least 1. Places beyond the number of labels are missing.
            own_rows: (N,) integers: the row of the memory that each query is, or -1; it does not vote.
            filters: (n, 2) int64, (query, label id) never predicted; the label leaves the keys before the softmax.
            candidates: (C,) int64, the only labels to predict, None for all; other labels and the rows that have none
                of these leave the keys before the softmax, as if this were a memory of the candidates alone.

        Returns:
            ids (N, top_k) int64 padded with -1 and scores (N, top_k) float32 in [0, 1] (for votes of 1) padded with
            -inf, scores descending, ties by ascending id.

        Raises:
            ValueError: For a top_k below 1, queries of another width, or own rows that the memory does not have.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        found = self.find(queries, self.form, own_rows, filters, candidates, num_labels=top_k)
        return self.rank(found, self.form, top_k, filters, candidates)

    def find(
        self,
        queries: np.ndarray,
        form: MemoryForm,
        own_rows: np.ndarray | None = None,
        filters: np.ndarray | None = None,
        candidates: np.ndarray | None = None,
        *,
        num_labels: int = 1,
    ) -> Found:
        """The nearest ``form.num_keys`` rows but own ones, and ``num_labels`` or so many labels but filtered ones."""
        row_ids, row_scores = missing(len(queries), form.num_keys)
        if form.row_weight > 0:
            own = None if own_rows is None else _own_pairs(own_rows, len(queries), len(self))
            heard = None if candidates is None else self._rows_with(candidates)
            row_ids, row_scores = self.rows.search(queries, form.num_keys, heard, filters=own)
        width = max(form.num_keys, num_labels)
        return Found(row_ids, row_scores, *self.labels.search(queries, width, candidates, filters=filters))

    def rank(
        self,
        found: Found,
        form: MemoryForm,
        top_k: int,
        filters: np.ndarray | None = None,
        candidates: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best labels by the keys that were found: ids (B, top_k) int64 and scores float32."""
        ids, scores = missing(len(found.row_ids), top_k, np.float64)
        allowed = self._allowed(candidates)
        for part in _blocks(len(ids)):
            here = pairs_within(filters, part)
            votes = self._count(found.part(part), form, allowed, here)
            write_best(votes, ids[part], scores[part], len(allowed))
        fill_places(ids, scores, found, form.scale)
        return ids, scores.astype(np.float32)

    def explain(
        self,
        queries: np.ndarray,
        ids: np.ndarray,
        *,
        own_rows: np.ndarray | None = None,
        filters: np.ndarray | None = None,
        candidates: np.ndarray | None = None,
    ) -> Evidence:
        """The training rows and the label-text similarity behind predicted labels.

        Args:
            queries: (N, D) float32.
            ids: (N, K) integers, the labels to explain, distinct in a row; -1 is a missing place.
            own_rows: As in the :meth:`search` that predicted ``ids``, and
            filters: likewise, and
            candidates: likewise.

        Raises:
            ValueError: For ids that are no labels, or another number of rows than queries.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or len(ids) != len(queries) or ids.dtype.kind not in "iu":
            raise ValueError(f"ids must be integers of shape ({len(queries)}, K), got {ids.dtype} {ids.shape}")
        if ids.size and not -1 <= ids.min() <= ids.max() < len(self.labels):
            raise ValueError(f"ids must lie in -1 .. {len(self.labels) - 1}, got {ids.min()} .. {ids.max()}")
        found = self.find(queries, self.form, own_rows, filters, candidates)
        return self.evidence(queries, found, ids, filters, candidates)

    def evidence(
        self,
        queries: np.ndarray,
        found: Found,
        ids: np.ndarray,
        filters: np.ndarray | None = None,
        candidates: np.ndarray | None = None,
    ) -> Evidence:
        """What :meth:`explain` tells, of keys that were found already."""
        label_scores = missing(*ids.shape)[1]
        place = np.nonzero(ids >= 0)
        vectors = np.asarray(queries, dtype=np.float32)[place[0]]
        label_scores[place] = np.einsum("nd,nd->n", vectors, self.labels.vectors[ids[place]])
        allowed, parts = self._allowed(candidates), []
        for part in _blocks(max(len(ids), 1)):
            votes = self._count(found.part(part), self.form, allowed, pairs_within(filters, part))
            parts.append(collect_evidence(votes, found.part(part), ids[part], label_scores[part], len(allowed)))
        return join_evidence(parts)

    def _count(self, found: Found, form: MemoryForm, allowed: np.ndarray, filters: np.ndarray) -> Votes:
        """The votes of a block of queries."""
        row_weights, label_weights = weigh(found, form)
        lambdas = self._lambdas(form)
        query, place = np.nonzero(row_weights)
        row = found.row_ids[query, place]
        # Only the rows that vote are looked up, so that a mapped file is read where it is needed.
        sizes = self.indptr[row + 1] - self.indptr[row]
        at = runs_of(self.indptr[row], sizes)
        of_rows = self.indices[at].astype(np.int64)
        text_query, text_place = np.nonzero(label_weights)
        of_texts = found.label_ids[text_query, text_place]
        queries = np.concatenate([np.repeat(query, sizes), text_query])
        labels = np.concatenate([of_rows, of_texts])
        places = np.concatenate([np.repeat(place, sizes), np.full(len(of_texts), -1)])
        values = np.concatenate(
            [
                lambdas[of_rows] * np.repeat(row_weights[query, place], sizes) * self.votes[at],
                (1 - lambdas[of_texts]) * label_weights[text_query, text_place],
            ]
        )
        kept = allowed[labels] & (values > 0)
        if len(filters):
            width = len(allowed)
            kept &= ~contains(np.sort(filters[:, 0] * width + filters[:, 1]), queries * width + labels)
        return Votes(queries[kept], labels[kept], places[kept], values[kept])

    def _lambdas(self, form: MemoryForm) -> np.ndarray:
        """(L,) float64, for all labels of the index, also those added since the memory was built."""
        made_for = form, len(self.labels)
        kept = self._kept_lambdas
        if kept is None or kept[0] != made_for:  # a power a label: long for one query
            counts = np.zeros(len(self.labels), dtype=np.int64)
            counts[: len(self._counts)] = self._counts[: len(counts)]
            kept = self._kept_lambdas = made_for, form.row_weights(counts)
        return kept[1]

    def _allowed(self, candidates: np.ndarray | None) -> np.ndarray:
        """(L,) bool, the labels that may be predicted."""
        if candidates is None:
            return self.labels.alive
        chosen = np.zeros(len(self.labels), dtype=bool)
        chosen[candidates] = self.labels.alive[candidates]
        return chosen

    def _rows_with(self, candidates: np.ndarray) -> np.ndarray:
        """(n,) the rows that have one of the candidates."""
        hits = np.concatenate([[0], np.cumsum(self._allowed(candidates)[self.indices])])
        return np.flatnonzero(hits[self.indptr[1:]] > hits[self.indptr[:-1]])


def read_parts(path: Path) -> MemoryParts:
    """The training rows of a memory, mapped from their safetensors file.

    Raises:
        ValueError: Naming a file that is damaged or of a newer format version.
    """
    tensors, metadata = map_tensors(path)
    try:
        check_version(int(metadata["format_version"]), path)
        form = MemoryForm(**json.loads(metadata["form"]))
        keys, indptr, indices = tensors["keys"], tensors["indptr"], tensors["indices"]
        num_labels = int(metadata["num_labels"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); fetch or save it again") from error
    scales, votes = tensors.get("key_scales"), tensors.get("votes")
    wrong = {
        "keys that are no matrix": keys.ndim != 2,
        "int8 keys without key_scales": keys.dtype == np.int8 and scales is None,
        "another number of key_scales": scales is not None and scales.shape != keys.shape[:1],
        "an indptr of other rows": indptr.shape != (len(keys) + 1,) or bool((np.diff(indptr) < 0).any()),
        "other indices than indptr counts": not len(indptr) or indptr[0] != 0 or indptr[-1] != len(indices),
        "labels that are none": bool(len(indices)) and not 0 <= indices.min() <= indices.max() < num_labels,
        "votes for other labels": votes is not None and votes.shape != indices.shape,
        "votes below zero or not finite": votes is not None and not (np.isfinite(votes) & (votes >= 0)).all(),
    }
    if told := [what for what, is_wrong in wrong.items() if is_wrong]:
        raise ValueError(f"{path} is damaged (it has {', '.join(told)}); fetch or save it again")
    votes = np.ones(len(indices), np.float32) if votes is None else votes
    return MemoryParts(StoredRows(keys, scales), indptr, indices, votes, num_labels, form)


def read_memory(files: Files, name: str, labels: VectorIndex) -> Memory:
    """The memory of a repo, searched by the index that lies beside its file, if one does.

    Args:
        files: Of the repo.
        name: The safetensors file.
        labels: The label index that it was built with.

    Raises:
        ValueError: Naming a file that is damaged, of a newer format version or of other labels.
    """
    memory = Memory(read_parts(required(files, name)), labels)
    index = str(PurePosixPath(name).with_name(INDEX_FILE))
    if files(str(PurePosixPath(index).with_suffix(".json"))) is not None:
        memory._rows = read_index(files, index, memory.keys, np.diff(memory.indptr) > 0)
    return memory


def _blocks(num_queries: int) -> list[slice]:
    return [slice(start, start + VOTERS_AT_ONCE) for start in range(0, num_queries, VOTERS_AT_ONCE)]


def _own_pairs(own_rows: np.ndarray, num_queries: int, num_rows: int) -> np.ndarray:
    """(N,) rows or -1 -> the (n, 2) pairs (query, row)."""
    own_rows = np.asarray(own_rows)
    if own_rows.shape != (num_queries,) or own_rows.dtype.kind not in "iu":
        raise ValueError(f"own_rows must be integers of shape ({num_queries},), got {own_rows.dtype} {own_rows.shape}")
    if own_rows.size and not -1 <= own_rows.min() <= own_rows.max() < num_rows:
        raise ValueError(f"own_rows must lie in -1 .. {num_rows - 1}, got {own_rows.min()} .. {own_rows.max()}")
    queries = np.flatnonzero(own_rows >= 0)
    return np.stack([queries, own_rows[queries]], axis=1)
