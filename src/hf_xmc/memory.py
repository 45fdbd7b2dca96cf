"""KnowledgeMemory: training rows vote for their labels, beside the label texts (RAE-XMC), and say why."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_xmc.index import MISSING_SCORE, LabelIndex
from hf_xmc.memory_search import Found, as_filters, as_own_rows, compress, missing, nearest, take, write_best
from hf_xmc.metrics.functional import drop_pairs

FORMAT_VERSION = 1
MEMORY_FILE = "memory.safetensors"
_KEY_DTYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.float16): torch.float16, np.dtype(np.int8): torch.int8}
# Queries whose votes are held at once.
_VOTERS_AT_ONCE = 1 << 12


@dataclass(frozen=True)
class MemoryForm:
    """How the votes of rows and labels are weighed.

    The defaults are near the best of a held-out split (benchmarks/memory.py); the paper's are row_weight 0.5, scale 25
    and num_keys 200.

    Args:
        row_weight: lambda in [0, 1] of a label with one training row. 0 is the plain label search, 1 the nearest
            training rows alone.
        scale: 1 / tau of the softmax over the keys, above 0.
        num_keys: b, the keys that vote, at least 1. Fewer than top_k distinct labels may come of it.
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
        """lambda of labels with ``counts`` (L,) training rows each: (L,) float64 in [0, 1]."""
        if self.row_weight in (0, 1) or not self.frequency_power:
            return np.full(len(counts), float(self.row_weight))
        logit = np.log(self.row_weight / (1 - self.row_weight))
        logits = logit + self.frequency_power * np.log((np.asarray(counts) + 1) / 2)
        return 1 / (1 + np.exp(-np.clip(logits, -700, 700)))


@dataclass(frozen=True)
class Evidence:
    """Why each label of a prediction (N, K) was predicted: the training rows that voted for it, and its own text.

    The shares of one label, its rows' and its text's, sum to 1; where no key voted for it they are all 0.

    Attributes:
        indptr: (N K + 1,) int64; the rows of place k of query i are ``indptr[i K + k]:indptr[i K + k + 1]``.
        row_ids: (nnz,) int64 training rows, those of one label by share descending, then row ascending.
        row_scores: (nnz,) float32, query . row key.
        row_shares: (nnz,) float32 in [0, 1], the part of the label's score that came of the row.
        label_scores: (N, K) float32, query . label vector, -inf in missing places.
        label_shares: (N, K) float32 in [0, 1], the part that came of the label's text; 0 where the label is not
            among the keys that voted.
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


class KnowledgeMemory:
    """Predicts labels by the votes of the nearest training rows and label texts (RAE-XMC, arXiv 2502.10615).

        p = softmax over the top-b keys of (scale q K^T), times V,   K = [rows; labels], V = [lambda Y; (1 - lambda) I]

    One joint search: rows and labels compete for the same b places and share one softmax, equal scores by ascending
    key, rows before labels. p need not sum to 1. With row_weight 0 the rows, with 1 the labels are zero-valued keys
    and leave the search, so 0 ranks as ``labels.search`` does and 1 is the vote of the nearest rows. Rows without
    labels are never searched. Votes are the truth's values; dividing them by the number of labels of a row measured
    worse, and two searches with a softmax each no better and more sensitive to lambda.

    Only the rows are stored here. Label vectors are those of ``labels``, so a label that the index adds or removes is
    added or removed here too.

    Args:
        row_vectors: (N, D) float32, training rows in the space of the label vectors. That is
            ``encoder.key_vectors(texts)``: the query prompt, no weight.
        truth: scipy sparse (N, at most L), the labels of the rows; any values above 0.
        labels: The label vectors (L, D).
        form: How votes are weighed.
        dtype: float32, float16 or int8 (with one float32 scale a row); how the rows are kept.

    Raises:
        ValueError: for shapes that disagree, vectors that are not finite, votes that are not above 0 or another dtype.
    """

    def __init__(
        self,
        row_vectors: np.ndarray,
        truth: sp.csr_matrix | sp.csr_array,
        labels: LabelIndex,
        form: MemoryForm = MemoryForm(),
        *,
        dtype: DTypeLike = np.float32,
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
        self._set(keys, key_scales, truth, labels, form)

    def _set(
        self,
        keys: torch.Tensor,
        key_scales: torch.Tensor | None,
        truth: sp.csr_matrix,
        labels: LabelIndex,
        form: MemoryForm,
    ) -> None:
        if keys.shape[1] != labels.vectors.shape[1]:
            raise ValueError(f"rows have width {keys.shape[1]}, labels {labels.vectors.shape[1]}; use one encoder")
        if truth.shape[0] != len(keys) or truth.shape[1] > len(labels):
            raise ValueError(
                f"truth must have shape ({len(keys)}, at most {len(labels)}) for {len(keys)} rows and "
                f"{len(labels)} labels, got {truth.shape}"
            )
        self.keys = keys  # (N, D)
        self.key_scales = key_scales  # (N,)
        self.truth = truth
        self.labels = labels
        self.form = form
        self._counts = np.bincount(truth.indices, minlength=truth.shape[1])  # (L,) training rows of each label
        self._votes_nothing = torch.from_numpy(np.diff(truth.indptr) == 0)  # (N,)

    def __len__(self) -> int:
        """Number of training rows."""
        return len(self.keys)

    @property
    def num_bytes(self) -> int:
        """What the memory takes beside the label index."""
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
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``top_k`` labels of the most votes.

        Args:
            queries: (N, D) float32, as for ``LabelIndex.search``.
            top_k: At least 1. Labels beyond those that the ``form.num_keys`` keys vote for are missing places.
            own_rows: (N,) integers: the row of the memory that each query is, or -1; it does not vote.
            filters: (n, 2) integers, (query, label id) never predicted; the label leaves the keys before the softmax.

        Returns:
            ids (N, top_k) int64 padded with -1 and scores (N, top_k) float32 in [0, 1] (for votes of 1) padded with
            -inf, scores descending, ties by ascending id.

        Raises:
            ValueError: for a top_k below 1, queries of another width, or own rows that the memory does not have.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        pairs = as_filters(filters)
        found = self.find(queries, self.form, own_rows, pairs)
        return self.rank(found, self.form, top_k, pairs)

    def explain(
        self,
        queries: np.ndarray,
        ids: np.ndarray,
        *,
        own_rows: np.ndarray | None = None,
        filters: np.ndarray | None = None,
    ) -> Evidence:
        """The training rows and the label-text similarity behind predicted labels.

        Args:
            queries: (N, D) float32.
            ids: (N, K) integers, the labels to explain, distinct in a row; -1 is a missing place.
            own_rows, filters: Those of the :meth:`search` that predicted ``ids``.

        Raises:
            ValueError: for ids that are no labels, or another number of rows than queries.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or len(ids) != len(queries) or ids.dtype.kind not in "iu":
            raise ValueError(f"ids must be integers of shape ({len(queries)}, K), got {ids.dtype} {ids.shape}")
        if ids.size and not -1 <= ids.min() <= ids.max() < len(self.labels):
            raise ValueError(f"ids must lie in -1 .. {len(self.labels) - 1}, got {ids.min()} .. {ids.max()}")
        queries = np.asarray(queries, dtype=np.float32)
        found = self.find(queries, self.form, own_rows, as_filters(filters))
        label_scores = np.full(ids.shape, MISSING_SCORE, dtype=np.float32)
        place = np.nonzero(ids >= 0)
        label_scores[place] = np.einsum("nd,nd->n", queries[place[0]], self.labels.vectors[ids[place]])
        parts = [
            self._shares(found, ids, slice(start, start + _VOTERS_AT_ONCE))
            for start in range(0, len(ids), _VOTERS_AT_ONCE)
        ]
        places, row_ids, row_scores, row_shares = (
            np.concatenate([np.zeros(0, dtype), *(part[column] for part in parts)]).astype(dtype)
            for column, dtype in enumerate((np.int64, np.int64, np.float32, np.float32))
        )
        label_shares = np.concatenate([np.zeros((0, ids.shape[1]), np.float32), *(part[4] for part in parts)])
        indptr = np.searchsorted(places, np.arange(ids.size + 1))
        return Evidence(indptr, row_ids, row_scores, row_shares, label_scores, label_shares.astype(np.float32))

    def find(self, queries: np.ndarray, form: MemoryForm, own_rows: np.ndarray | None, filters: np.ndarray) -> Found:
        """The ``form.num_keys`` nearest keys of either kind, without zero-valued, own and filtered ones."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.keys.shape[1]:
            raise ValueError(f"queries must have shape (N, {self.keys.shape[1]}), got {queries.shape}")
        row_ids, row_scores = missing(len(queries), form.num_keys)
        label_ids, label_scores = missing(len(queries), form.num_keys)
        if form.row_weight > 0:
            depth = form.num_keys + (own_rows is not None)
            row_ids, row_scores = nearest(self.keys, self.key_scales, self._votes_nothing, queries, depth)
            if own_rows is not None:
                own = as_own_rows(own_rows, len(queries), len(self))
                row_ids, row_scores = drop_pairs(row_ids, row_scores, own)
        if form.row_weight < 1:
            most = int(np.bincount(filters[:, 0]).max()) if len(filters) else 0
            label_ids, label_scores = self.labels.search(queries, form.num_keys + most)
            if most:
                label_ids, label_scores = drop_pairs(label_ids, label_scores, filters)
        cut = (slice(None), slice(form.num_keys))
        return Found(row_ids[cut], row_scores[cut], label_ids[cut], label_scores[cut])

    def _weights(self, found: Found, form: MemoryForm) -> tuple[np.ndarray, np.ndarray]:
        """Softmax over the nearest ``num_keys`` keys of both kinds: (B, b) float64 each, 0 for a key left out."""
        scores = np.hstack([found.row_scores, found.label_scores]).astype(np.float64)  # (B, 2b), rows first
        order = np.argsort(-scores, axis=1, kind="stable")[:, : form.num_keys]
        best = np.take_along_axis(scores, order, 1)
        present = best > MISSING_SCORE
        shift = np.where(present[:, :1], best[:, :1], 0)
        parts = np.where(present, np.exp(form.scale * (np.where(present, best, shift) - shift)), 0)
        parts /= np.maximum(parts.sum(1, keepdims=True), np.finfo(np.float64).tiny)
        weights = np.zeros_like(scores)
        np.put_along_axis(weights, order, parts, 1)
        width = found.row_scores.shape[1]
        return weights[:, :width], weights[:, width:]

    def _lambdas(self, form: MemoryForm) -> np.ndarray:
        """(L,) float64, for all labels of the index, also those added since the memory was built."""
        counts = np.zeros(len(self.labels), dtype=np.int64)
        counts[: len(self._counts)] = self._counts
        return form.row_weights(counts)

    def rank(self, found: Found, form: MemoryForm, top_k: int, filters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ids (B, top_k) and scores of the keys that were found."""
        most = int(np.bincount(filters[:, 0]).max()) if len(filters) else 0
        ids, scores = missing(len(found.row_ids), top_k + most)
        lambdas = self._lambdas(form)
        for start in range(0, len(ids), _VOTERS_AT_ONCE):
            part = slice(start, start + _VOTERS_AT_ONCE)
            votes = self._votes(take(found, part), form, lambdas)
            write_best(votes, ids[part], scores[part])
        if most:
            ids, scores = drop_pairs(ids, scores, filters)
        return ids[:, :top_k], scores[:, :top_k]

    def _votes(self, found: Found, form: MemoryForm, lambdas: np.ndarray) -> sp.csr_matrix:
        """The votes of every label that got any: CSR (B, L) float64."""
        row_weights, label_weights = self._weights(found, form)
        shape = (len(row_weights), len(self.labels))
        query, place = np.nonzero(row_weights)
        # Only the rows that vote are looked up, so that a mapped file is read where it is needed.
        rows, column = np.unique(found.row_ids[query, place], return_inverse=True)
        weights = sp.csr_matrix((row_weights[query, place], (query, column)), shape=(len(row_weights), len(rows)))
        of_rows = (weights @ self.truth[rows]).tocoo()
        query, place = np.nonzero(label_weights)
        label = found.label_ids[query, place]
        queries = np.concatenate([of_rows.row, query])
        labels = np.concatenate([of_rows.col, label])
        values = np.concatenate(
            [lambdas[of_rows.col] * of_rows.data, (1 - lambdas[label]) * label_weights[query, place]]
        )
        alive = self.labels.alive[labels]
        return sp.coo_matrix((values[alive], (queries[alive], labels[alive])), shape=shape).tocsr()

    def _shares(self, found: Found, ids: np.ndarray, part: slice) -> tuple[np.ndarray, ...]:
        """(places, row ids, row scores, row shares) (nnz,) of the queries in ``part``, and label shares (B, K)."""
        found, ids, first = take(found, part), ids[part], part.start * ids.shape[1]
        lambdas = self._lambdas(self.form)
        row_weights, label_weights = self._weights(found, self.form)
        # Places of the predictions, sorted by (query, label), are the table in which votes are looked up.
        width = len(self.labels) + 1
        wanted = (np.arange(len(ids))[:, None] * width + np.where(ids < 0, len(self.labels), ids)).ravel()
        by_label = np.argsort(wanted, kind="stable")

        def places_of(query: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Which of the pairs are predicted, and the places of those."""
            if not len(wanted):
                return np.zeros(len(query), dtype=bool), np.zeros(0, dtype=np.int64)
            pair = query * width + label
            at = by_label[np.minimum(np.searchsorted(wanted, pair, sorter=by_label), len(wanted) - 1)]
            hit = wanted[at] == pair
            return hit, at[hit]

        text_votes, row_votes_of = np.zeros(ids.size), np.zeros(ids.size)
        query, place = np.nonzero(label_weights)
        label = found.label_ids[query, place]
        hit, at = places_of(query, label)
        text_votes[at] = (1 - lambdas[label[hit]]) * label_weights[query, place][hit]

        query, place = np.nonzero(row_weights)
        rows = found.row_ids[query, place]
        voted = self.truth[rows]
        sizes = np.diff(voted.indptr)
        voter = np.repeat(np.arange(len(rows)), sizes)
        hit, at = places_of(query[voter], voted.indices.astype(np.int64))
        voter = voter[hit]
        votes = lambdas[voted.indices[hit]] * row_weights[query, place][voter] * voted.data[hit]
        votes, voter, at = votes[votes > 0], voter[votes > 0], at[votes > 0]
        np.add.at(row_votes_of, at, votes)
        total = np.maximum(text_votes + row_votes_of, np.finfo(np.float64).tiny)
        shares = votes / total[at]
        order = np.lexsort((rows[voter], -shares, at))
        voter, at = voter[order], at[order]
        scores = found.row_scores[query, place][voter]
        return at + first, rows[voter], scores, shares[order], (text_votes / total).reshape(ids.shape)

    # -- saving and loading -------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write ``memory.safetensors``: row keys, their labels and the form; the label vectors stay in their index."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            "keys": self.keys.contiguous(),
            "indptr": torch.from_numpy(self.truth.indptr.astype(np.int64)),
            "indices": torch.from_numpy(self.truth.indices.astype(np.int32)),
        }
        if self.key_scales is not None:
            tensors["key_scales"] = self.key_scales
        if (self.truth.data != 1).any():
            tensors["votes"] = torch.from_numpy(self.truth.data)
        metadata = {
            "format_version": str(FORMAT_VERSION),
            "form": json.dumps(asdict(self.form)),
            "num_labels": str(self.truth.shape[1]),
        }
        # A memory may be saved over the file that it is mapped from, which must not be cut short meanwhile.
        scratch = folder / f".{MEMORY_FILE}.{os.getpid()}"
        try:
            save_file(tensors, scratch, metadata)
            os.replace(scratch, folder / MEMORY_FILE)
        finally:
            scratch.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | Path, labels: LabelIndex) -> KnowledgeMemory:
        """Map what :meth:`save` wrote; keys are read from the file as they are needed.

        Args:
            folder: The folder.
            labels: The index of the labels that the memory was built with.

        Raises:
            ValueError: naming the file that is missing, damaged, of a newer format version or of other labels.
        """
        file = Path(folder) / MEMORY_FILE
        if not file.is_file():
            raise ValueError(f"{folder} has no {MEMORY_FILE}; save one with KnowledgeMemory.save")
        try:
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}
            version = int(metadata["format_version"])
            if version > FORMAT_VERSION:
                raise ValueError(
                    f"{file}: format_version {version} is newer than {FORMAT_VERSION}, which this hf_xmc reads; "
                    "upgrade it: pip install -U hf_xmc"
                )
            form = MemoryForm(**json.loads(metadata["form"]))
            keys, indptr, indices = tensors["keys"], tensors["indptr"].numpy(), tensors["indices"].numpy()
            num_labels = int(metadata["num_labels"])
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is damaged ({error}); fetch or save it again") from error
        votes = tensors["votes"].numpy() if "votes" in tensors else np.ones(len(indices), np.float32)
        truth = sp.csr_matrix((votes, indices, indptr), shape=(len(keys), num_labels))
        memory = cls.__new__(cls)
        memory._set(keys, tensors.get("key_scales"), truth, labels, form)
        return memory
