"""KnowledgeMemory: training rows vote for their labels, beside the label texts (RAE-XMC), and say why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import DTypeLike

from hf_xmc.index.label_index import KINDS, MISSING_SCORE, LabelIndex
from hf_xmc.memory.evidence import Evidence, collect_evidence, join_evidence
from hf_xmc.memory.files import MemoryParts, read_memory, write_memory
from hf_xmc.memory.form import MemoryForm
from hf_xmc.memory.keys import Found, as_filters, as_own_rows, compress, missing, nearest, take, widened
from hf_xmc.memory.votes import count_votes, fill_places, weigh, write_best
from hf_xmc.metrics.functional import drop_pairs

_KEY_DTYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.float16): torch.float16, np.dtype(np.int8): torch.int8}
# Queries whose votes are held at once.
_VOTERS_AT_ONCE = 1 << 12
# Bytes up to which rows kept in 16 or 8 bits are searched in a float32 copy; beyond, block by block from the file.
_MAX_COPY = 1 << 29


class KnowledgeMemory:
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

    Only the rows are stored here. Label vectors are those of ``labels``, so a label that the index adds or removes is
    added or removed here too.

    Args:
        row_vectors: (N, D) float32, training rows in the space of the label vectors. That is
            ``encoder.key_vectors(texts)``: the query prompt, no weight.
        truth: scipy sparse (N, at most L), the labels of the rows; any values above 0.
        labels: The label vectors (L, D).
        form: How votes are weighed, None for the defaults.
        dtype: float32, float16 or int8 (with one float32 scale a row); how the rows are kept.
        kind: How the rows are searched, one of ``hf_xmc.index.KINDS``; None: as the labels are, or "exact" where that
            is a graph or lists. "exact" keeps a float32 copy of up to 512 MB of rows of another dtype, and decodes
            more than that block by block. With rows and labels of "pq" a single query measured a sixth of the time.

    Raises:
        ValueError: for shapes that disagree, vectors that are not finite, votes that are not above 0, another dtype or
            an unknown kind.
    """

    def __init__(
        self,
        row_vectors: np.ndarray,
        truth: sp.csr_matrix | sp.csr_array,
        labels: LabelIndex,
        form: MemoryForm | None = None,
        *,
        dtype: DTypeLike = np.float32,
        kind: str | None = None,
    ) -> None:
        row_vectors = np.asarray(row_vectors, dtype=np.float32)
        if row_vectors.ndim != 2 or not np.isfinite(row_vectors).all():
            raise ValueError(f"row_vectors must be finite, with shape (N, D), got shape {row_vectors.shape}")
        if np.dtype(dtype) not in _KEY_DTYPES:
            raise ValueError(f"dtype must be float32, float16 or int8, got {np.dtype(dtype)}")
        keys, key_scales = compress(torch.from_numpy(row_vectors), _KEY_DTYPES[np.dtype(dtype)])
        truth = sp.csr_matrix(truth, dtype=np.float32, copy=True)
        truth.sum_duplicates()
        truth.eliminate_zeros()
        if not (truth.data > 0).all() or not np.isfinite(truth.data).all():
            raise ValueError(f"votes must be finite and above 0, got {truth.data.min()} .. {truth.data.max()}")
        self._set(MemoryParts(keys, key_scales, truth, form or MemoryForm()), labels, kind)

    def _set(self, parts: MemoryParts, labels: LabelIndex, kind: str | None) -> None:
        keys, _, truth, _ = parts
        if keys.shape[1] != labels.vectors.shape[1]:
            raise ValueError(f"rows have width {keys.shape[1]}, labels {labels.vectors.shape[1]}; use one encoder")
        if truth.shape[0] != len(keys) or truth.shape[1] > len(labels):
            raise ValueError(
                f"truth must have shape ({len(keys)}, at most {len(labels)}) for {len(keys)} rows and "
                f"{len(labels)} labels, got {truth.shape}"
            )
        self.keys, self.key_scales, self.truth, self.form = parts
        self.labels = labels
        self._counts = np.bincount(truth.indices, minlength=truth.shape[1])  # (L,) training rows of each label
        self._votes_nothing = np.diff(truth.indptr) == 0  # (N,)
        if kind is None:
            kind = "exact" if labels.kind in ("hnsw", "ivf") else labels.kind
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
        self.kind = kind
        self._rows: LabelIndex | None = None  # made by the first search
        self._kept_lambdas: tuple[tuple[MemoryForm, int], np.ndarray] | None = None

    def __len__(self) -> int:
        """Number of training rows."""
        return len(self.keys)

    @property
    def num_bytes(self) -> int:
        """What the memory takes beside the label index, as it is stored; a search may keep more, see ``kind``."""
        scales = 0 if self.key_scales is None else self.key_scales.nbytes
        return self.keys.nbytes + scales + sum(part.nbytes for part in (self.truth.indptr, self.truth.indices))

    # -- search -------------------------------------------------------------------------------------------------------

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
            queries: (N, D) float32, as for ``LabelIndex.search``.
            top_k: At least 1. Places beyond the number of labels are missing.
            own_rows: (N,) integers: the row of the memory that each query is, or -1; it does not vote.
            filters: (n, 2) integers, (query, label id) never predicted; the label leaves the keys before the softmax.
            candidates: (C,) int64, the only labels to predict, None for all; other labels and the rows that have none
                of these leave the keys before the softmax, as if this were a memory of the candidates alone.

        Returns:
            ids (N, top_k) int64 padded with -1 and scores (N, top_k) float32 in [0, 1] (for votes of 1) padded with
            -inf, scores descending, ties by ascending id.

        Raises:
            ValueError: for a top_k below 1, queries of another width, or own rows that the memory does not have.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        pairs = as_filters(filters)
        found = self.find(queries, self.form, own_rows, pairs, candidates, num_labels=top_k)
        return self.rank(found, self.form, top_k, pairs, candidates)

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
            own_rows, filters, candidates: Those of the :meth:`search` that predicted ``ids``.

        Raises:
            ValueError: for ids that are no labels, or another number of rows than queries.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or len(ids) != len(queries) or ids.dtype.kind not in "iu":
            raise ValueError(f"ids must be integers of shape ({len(queries)}, K), got {ids.dtype} {ids.shape}")
        if ids.size and not -1 <= ids.min() <= ids.max() < len(self.labels):
            raise ValueError(f"ids must lie in -1 .. {len(self.labels) - 1}, got {ids.min()} .. {ids.max()}")
        queries = np.asarray(queries, dtype=np.float32)
        found = self.find(queries, self.form, own_rows, as_filters(filters), candidates)
        label_scores = np.full(ids.shape, MISSING_SCORE, dtype=np.float32)
        place = np.nonzero(ids >= 0)
        label_scores[place] = np.einsum("nd,nd->n", queries[place[0]], self.labels.vectors[ids[place]])
        parts = [slice(start, start + _VOTERS_AT_ONCE) for start in range(0, max(len(ids), 1), _VOTERS_AT_ONCE)]
        lambdas = self._lambdas(self.form)
        return join_evidence(
            [
                collect_evidence(
                    weigh(take(found, part), self.form, lambdas, self.truth), ids[part], label_scores[part]
                )
                for part in parts
            ]
        )

    def find(
        self,
        queries: np.ndarray,
        form: MemoryForm,
        own_rows: np.ndarray | None,
        filters: np.ndarray,
        candidates: np.ndarray | None = None,
        *,
        num_labels: int = 1,
    ) -> Found:
        """The ``form.num_keys`` nearest rows, without own ones, and so many labels, or ``num_labels`` if those are
        more, without filtered ones."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.keys.shape[1]:
            raise ValueError(f"queries must have shape (N, {self.keys.shape[1]}), got {queries.shape}")
        row_ids, row_scores = missing(len(queries), form.num_keys)
        if form.row_weight > 0:
            depth = form.num_keys + (own_rows is not None)
            row_ids, row_scores = self._nearest_rows(queries, depth, candidates)
            if own_rows is not None:
                own = as_own_rows(own_rows, len(queries), len(self))
                row_ids, row_scores = drop_pairs(row_ids, row_scores, own)
        most = int(np.bincount(filters[:, 0]).max()) if len(filters) else 0
        width = max(form.num_keys, num_labels)
        label_ids, label_scores = self.labels.search(queries, width + most, candidates)
        if most:
            label_ids, label_scores = drop_pairs(label_ids, label_scores, filters)
        rows, labels = (slice(None), slice(form.num_keys)), (slice(None), slice(width))
        return Found(row_ids[rows], row_scores[rows], label_ids[labels], label_scores[labels])

    def _nearest_rows(
        self, queries: np.ndarray, count: int, candidates: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` nearest rows that have a label, one of the candidates where there are any."""
        silent = self._votes_nothing
        if candidates is not None:
            silent = self.truth @ self._among(candidates)[: self.truth.shape[1]] == 0
        if self.kind == "exact" and self.keys.dtype != torch.float32 and 4 * self.keys.numel() > _MAX_COPY:
            return nearest(self.keys, self.key_scales, torch.from_numpy(silent), queries, count)
        if self._rows is None:
            rows = widened(self.keys, self.key_scales).numpy()
            self._rows = LabelIndex(rows, ~self._votes_nothing, self.kind)
        return self._rows.search(queries, count, None if candidates is None else np.flatnonzero(~silent))

    def _lambdas(self, form: MemoryForm) -> np.ndarray:
        """(L,) float64, for all labels of the index, also those added since the memory was built."""
        made_for = form, len(self.labels)
        if self._kept_lambdas is None or self._kept_lambdas[0] != made_for:  # a power a label: long for one query
            counts = np.zeros(len(self.labels), dtype=np.int64)
            counts[: len(self._counts)] = self._counts
            self._kept_lambdas = made_for, form.row_weights(counts)
        return self._kept_lambdas[1]

    def _among(self, candidates: np.ndarray) -> np.ndarray:
        """(L,) bool"""
        chosen = np.zeros(len(self.labels), dtype=bool)
        chosen[candidates] = True
        return chosen

    def rank(
        self,
        found: Found,
        form: MemoryForm,
        top_k: int,
        filters: np.ndarray,
        candidates: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """ids (B, top_k) and scores of the keys that were found."""
        most = int(np.bincount(filters[:, 0]).max()) if len(filters) else 0
        ids, scores = missing(len(found.row_ids), top_k + most, np.float64)
        lambdas = self._lambdas(form)
        allowed = self.labels.alive if candidates is None else self.labels.alive & self._among(candidates)
        for start in range(0, len(ids), _VOTERS_AT_ONCE):
            part = slice(start, start + _VOTERS_AT_ONCE)
            votes = count_votes(weigh(take(found, part), form, lambdas, self.truth), allowed)
            write_best(votes, ids[part], scores[part])
        if most:
            ids, scores = drop_pairs(ids, scores, filters)
            ids, scores = ids[:, :top_k], scores[:, :top_k]
        fill_places(ids, scores, found, form.scale)
        return ids, scores.astype(np.float32)

    # -- saving and loading -------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write ``memory.safetensors``: row keys, their labels and the form; the label vectors stay in their index."""
        write_memory(folder, MemoryParts(self.keys, self.key_scales, self.truth, self.form))

    @classmethod
    def load(cls, folder: str | Path, labels: LabelIndex, *, kind: str | None = None) -> KnowledgeMemory:
        """Map what :meth:`save` wrote; row keys are read from the file as they are needed, by the first search.

        Args:
            folder: The folder.
            labels: The index of the labels that the memory was built with.
            kind: As for the class; nothing of it is in the file.

        Raises:
            ValueError: naming the file that is missing, damaged, of a newer format version or of other labels.
        """
        memory = cls.__new__(cls)
        memory._set(read_memory(folder), labels, kind)
        return memory
