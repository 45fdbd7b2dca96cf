"""KnowledgeMemory: training rows vote for their labels, beside the label texts (RAE-XMC), and say why."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_xmc.index import MISSING_ID, MISSING_SCORE, LabelIndex
from hf_xmc.metrics.functional import drop_pairs, xmc_metrics

FORMAT_VERSION = 1
MEMORY_FILE = "memory.safetensors"
_KEY_DTYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.float16): torch.float16, np.dtype(np.int8): torch.int8}
# Keys decoded at once, and the queries they meet at once: a score block of 64 MB.
_KEYS_AT_ONCE, _QUERIES_AT_ONCE = 1 << 15, 512
# Queries whose votes are held at once.
_VOTERS_AT_ONCE = 1 << 12
# What `fit_memory` tries, in this order within a round. Ends of row_weight are the label search and plain kNN.
_GRID: dict[str, tuple[Any, ...]] = {
    "scale": (5, 7, 10, 14, 20, 28, 40, 80),
    "row_weight": (0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 0.9, 1),
    "frequency_power": (-0.4, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.4),
    "num_keys": (10, 25, 50, 100, 200),
}
_FOLD_WEIGHTS = (0, 0.2, 0.4, 0.5, 0.6, 0.8)


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


@dataclass(frozen=True)
class MemoryFit:
    """What a fit found: the best form, its two metrics and those of the plain label search, all in [0, 1]."""

    form: MemoryForm
    precision: float  # precision@1
    psp: float  # psp@1
    label_precision: float
    label_psp: float
    num_trials: int


@dataclass(frozen=True)
class _Found:
    """The nearest keys of each query, of both kinds, best first, padded with -1 and -inf."""

    row_ids: np.ndarray  # (B, b) int64
    row_scores: np.ndarray  # (B, b) float32
    label_ids: np.ndarray  # (B, b) int64
    label_scores: np.ndarray  # (B, b) float32


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
        row_vectors: (N, D) float32, training rows in the space of the label vectors. For joint vectors of an encoder
            with a classifier that is ``encoder.join_labels(*encoder.encode_halves(texts))``: keys carry no weight.
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
        keys, key_scales = _compress(torch.from_numpy(row_vectors), _KEY_DTYPES[np.dtype(dtype)])
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
        pairs = _as_filters(filters)
        found = self._find(queries, self.form, own_rows, pairs)
        return self._rank(found, self.form, top_k, pairs)

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
        found = self._find(queries, self.form, own_rows, _as_filters(filters))
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

    def _find(self, queries: np.ndarray, form: MemoryForm, own_rows: np.ndarray | None, filters: np.ndarray) -> _Found:
        """The ``form.num_keys`` nearest keys of either kind, without zero-valued, own and filtered ones."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.keys.shape[1]:
            raise ValueError(f"queries must have shape (N, {self.keys.shape[1]}), got {queries.shape}")
        row_ids, row_scores = _missing(len(queries), form.num_keys)
        label_ids, label_scores = _missing(len(queries), form.num_keys)
        if form.row_weight > 0:
            depth = form.num_keys + (own_rows is not None)
            row_ids, row_scores = _nearest(self.keys, self.key_scales, self._votes_nothing, queries, depth)
            if own_rows is not None:
                own = _as_own_rows(own_rows, len(queries), len(self))
                row_ids, row_scores = drop_pairs(row_ids, row_scores, own)
        if form.row_weight < 1:
            most = int(np.bincount(filters[:, 0]).max()) if len(filters) else 0
            label_ids, label_scores = self.labels.search(queries, form.num_keys + most)
            if most:
                label_ids, label_scores = drop_pairs(label_ids, label_scores, filters)
        cut = (slice(None), slice(form.num_keys))
        return _Found(row_ids[cut], row_scores[cut], label_ids[cut], label_scores[cut])

    def _weights(self, found: _Found, form: MemoryForm) -> tuple[np.ndarray, np.ndarray]:
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

    def _rank(self, found: _Found, form: MemoryForm, top_k: int, filters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ids (B, top_k) and scores of the keys that were found."""
        most = int(np.bincount(filters[:, 0]).max()) if len(filters) else 0
        ids, scores = _missing(len(found.row_ids), top_k + most)
        lambdas = self._lambdas(form)
        for start in range(0, len(ids), _VOTERS_AT_ONCE):
            part = slice(start, start + _VOTERS_AT_ONCE)
            votes = self._votes(_take(found, part), form, lambdas)
            _best(votes, ids[part], scores[part])
        if most:
            ids, scores = drop_pairs(ids, scores, filters)
        return ids[:, :top_k], scores[:, :top_k]

    def _votes(self, found: _Found, form: MemoryForm, lambdas: np.ndarray) -> sp.csr_matrix:
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

    def _shares(self, found: _Found, ids: np.ndarray, part: slice) -> tuple[np.ndarray, ...]:
        """(places, row ids, row scores, row shares) (nnz,) of the queries in ``part``, and label shares (B, K)."""
        found, ids, first = _take(found, part), ids[part], part.start * ids.shape[1]
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


# -- choosing --------------------------------------------------------------------------------------------------------


def fit_memory(
    memory: KnowledgeMemory,
    queries: np.ndarray,
    truth: sp.csr_matrix,
    inverse_propensities: np.ndarray,
    *,
    psp_weight: float = 0.5,
    own_rows: np.ndarray | None = None,
    filters: np.ndarray | None = None,
) -> MemoryFit:
    """The form of the largest (1 - psp_weight) precision@1 + psp_weight psp@1, one parameter at a time.

    Queries are held-out rows, or training rows left out one by one (``own_rows``). The latter need no split and found
    nearly the same form in our measurement, but the metrics of the fit are then those of rows that the encoder knows.

    Args:
        memory: Not changed; use the result by ``memory.form = fit.form``.
        queries: (N, D) float32.
        truth: scipy sparse (N, L), the labels of the queries.
        inverse_propensities: (L,), of the training rows.
        psp_weight: 0 for precision@1, 1 for psp@1, between them a blend.
        own_rows, filters: As in :meth:`KnowledgeMemory.search`.
    """
    score = _target(truth, inverse_propensities, psp_weight)
    pairs = _as_filters(filters)
    widest = MemoryForm(row_weight=0.5, num_keys=int(max(_GRID["num_keys"])))
    found = memory._find(queries, widest, own_rows, pairs)
    empty = _Found(*_missing(len(queries), widest.num_keys), *_missing(len(queries), widest.num_keys))
    trials: dict[MemoryForm, tuple[float, float, float]] = {}

    def value_of(form: MemoryForm) -> float:
        if form not in trials:
            keys = found
            if form.row_weight == 0:
                keys = replace(found, row_ids=empty.row_ids, row_scores=empty.row_scores)
            if form.row_weight == 1:
                keys = replace(found, label_ids=empty.label_ids, label_scores=empty.label_scores)
            trials[form] = score(memory._rank(_narrow(keys, form.num_keys), form, 1, pairs)[0])
        return trials[form][0]

    plain = MemoryForm(row_weight=0)
    value_of(plain)
    best, before = MemoryForm(), None
    while best != before:
        before = best
        for name, values in _GRID.items():
            for value in values:
                form = replace(best, **{name: value})
                best = form if value_of(form) > value_of(best) else best
    best = plain if value_of(plain) >= value_of(best) else best
    return MemoryFit(best, *trials[best][1:], *trials[plain][1:], len(trials))


def fold_rows(
    label_vectors: np.ndarray, row_vectors: np.ndarray, truth: sp.csr_matrix, row_weight: float = 0.5
) -> np.ndarray:
    """Label vectors that remember their training rows: a memory without a larger index (PEFA-XS).

        z'_l = (1 - row_weight) z_l + row_weight |z_l| m_l / |m_l|,   m_l = sum of the vectors of l's training rows

    The sum is not cut to unit length again: a label whose text and rows disagree becomes shorter and so less ready to
    be predicted, which measured several points better. Labels without training rows stay as they are.

    Args:
        label_vectors: (L, D) float32.
        row_vectors: (N, D) float32, in the space of the label vectors (see :class:`KnowledgeMemory`).
        truth: scipy sparse (N, L).
        row_weight: In [0, 1]; 0 changes nothing.

    Returns:
        (L, D) float32, for a :class:`~hf_xmc.LabelIndex`.
    """
    if not 0 <= row_weight <= 1:
        raise ValueError(f"row_weight must lie in [0, 1], got {row_weight}")
    if truth.shape != (len(row_vectors), len(label_vectors)):
        raise ValueError(f"truth must have shape {(len(row_vectors), len(label_vectors))}, got {truth.shape}")
    labels = np.asarray(label_vectors, dtype=np.float32)
    sums = np.asarray(sp.csr_matrix(truth).T @ np.asarray(row_vectors, dtype=np.float32))  # (L, D)
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    towards = np.linalg.norm(labels, axis=1, keepdims=True) * sums / np.maximum(length, 1e-12)
    folded = (1 - row_weight) * labels + row_weight * towards
    return np.where(length > 0, folded, labels).astype(np.float32)


def fit_fold(
    label_vectors: np.ndarray,
    row_vectors: np.ndarray,
    row_truth: sp.csr_matrix,
    queries: np.ndarray,
    truth: sp.csr_matrix,
    inverse_propensities: np.ndarray,
    *,
    psp_weight: float = 0.5,
    filters: np.ndarray | None = None,
) -> float:
    """The row_weight of :func:`fold_rows` of the largest (1 - psp_weight) precision@1 + psp_weight psp@1.

    The queries must be held-out rows: a training row is part of its own labels' vectors.

    Args:
        label_vectors, row_vectors, row_truth: What :func:`fold_rows` folds.
        queries, truth, inverse_propensities, psp_weight, filters: As in :func:`fit_memory`.
    """
    score, pairs = _target(truth, inverse_propensities, psp_weight), _as_filters(filters)
    depth = 1 + (int(np.bincount(pairs[:, 0]).max()) if len(pairs) else 0)

    def value_of(weight: float) -> float:
        folded = LabelIndex(fold_rows(label_vectors, row_vectors, row_truth, weight))
        return score(drop_pairs(*folded.search(queries, depth), pairs)[0][:, :1])[0]

    return max(_FOLD_WEIGHTS, key=value_of)


def _target(
    truth: sp.csr_matrix, inverse_propensities: np.ndarray, psp_weight: float
) -> Callable[[np.ndarray], tuple[float, float, float]]:
    """ids (N, 1) -> the blend, precision@1 and psp@1."""
    if not 0 <= psp_weight <= 1:
        raise ValueError(f"psp_weight must lie in [0, 1], got {psp_weight}")

    def score(ids: np.ndarray) -> tuple[float, float, float]:
        metrics = xmc_metrics(ids, truth, 1, inverse_propensities)
        precision, psp = metrics["precision@1"], metrics["psp@1"]
        return (1 - psp_weight) * precision + psp_weight * psp, precision, psp

    return score


# -- parts -----------------------------------------------------------------------------------------------------------


def _compress(vectors: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(N, D) float32 -> keys (N, D) of the dtype and, for int8, what a unit of each row is worth, (N,) float32."""
    if dtype != torch.int8:
        return vectors.to(dtype), None
    scales = vectors.abs().amax(1) / 127 if vectors.numel() else torch.zeros(len(vectors))
    return (vectors / scales.clamp_min(1e-30)[:, None]).round().to(torch.int8), scales


def _nearest(
    keys: torch.Tensor, key_scales: torch.Tensor | None, dead: torch.Tensor, queries: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` keys of the largest inner product, exactly: ids and scores (N, count), ties by ascending id.

    Not by FAISS: keys stay in the mapped file in their own dtype and are decoded block by block, and it works without.
    """
    best_ids, best_scores = (torch.from_numpy(part) for part in _missing(len(queries), count))
    rows = torch.from_numpy(queries)
    for first in range(0, len(keys), _KEYS_AT_ONCE):
        block = keys[first : first + _KEYS_AT_ONCE].float()  # (C, D)
        skipped = dead[first : first + len(block)]
        for start in range(0, len(rows), _QUERIES_AT_ONCE):
            part = slice(start, start + _QUERIES_AT_ONCE)
            scores = rows[part] @ block.T  # (B, C)
            if key_scales is not None:
                scores *= key_scales[first : first + len(block)]
            if skipped.any():
                scores.masked_fill_(skipped, MISSING_SCORE)
            values, places = _top(scores, min(count, len(block)))
            # Stable, and earlier blocks come first: equal scores stay by ascending id.
            values = torch.cat([best_scores[part], values], 1)
            ids = torch.cat([best_ids[part], places + first], 1)
            order = torch.sort(values, dim=1, descending=True, stable=True).indices[:, :count]
            best_scores[part], best_ids[part] = values.gather(1, order), ids.gather(1, order)
    best_ids[best_scores == MISSING_SCORE] = MISSING_ID
    return best_ids.numpy(), best_scores.numpy()


def _top(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and places (B, count) of the largest scores (B, C), equal ones by ascending place."""
    # One place more shows whether the cut falls inside a group of equal scores, of which topk keeps any.
    values, places = torch.topk(scores, min(count + 1, scores.shape[1]), dim=1)
    if values.shape[1] > count:
        tied = (values[:, count - 1] == values[:, count]).nonzero()[:, 0]
        values, places = values[:, :count], places[:, :count]
        if len(tied):
            order = torch.sort(scores[tied], dim=1, descending=True, stable=True).indices[:, :count]
            places[tied], values[tied] = order, scores[tied].gather(1, order)
    places, order = torch.sort(places, dim=1)
    values, order = torch.sort(values.gather(1, order), dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


def _best(votes: sp.csr_matrix, ids: np.ndarray, scores: np.ndarray) -> None:
    """Write the best labels of CSR votes (B, L) into ids and scores (B, K).

    They are ordered before they are rounded to float32, so that differences that the softmax makes tiny still count.
    """
    row = np.repeat(np.arange(votes.shape[0]), np.diff(votes.indptr))
    order = np.lexsort((votes.indices, -votes.data, row))
    rank = np.arange(len(row)) - votes.indptr[row]
    kept = rank < ids.shape[1]
    ids[row[kept], rank[kept]] = votes.indices[order][kept]
    scores[row[kept], rank[kept]] = votes.data[order][kept]


def _missing(num_rows: int, num_places: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (num_rows, num_places)
    return np.full(shape, MISSING_ID, dtype=np.int64), np.full(shape, MISSING_SCORE, dtype=np.float32)


def _take(found: _Found, part: slice) -> _Found:
    return _Found(found.row_ids[part], found.row_scores[part], found.label_ids[part], found.label_scores[part])


def _narrow(found: _Found, count: int) -> _Found:
    return _Found(
        found.row_ids[:, :count],
        found.row_scores[:, :count],
        found.label_ids[:, :count],
        found.label_scores[:, :count],
    )


def _as_filters(pairs: np.ndarray | None) -> np.ndarray:
    return np.zeros((0, 2), dtype=np.int64) if pairs is None else np.asarray(pairs, dtype=np.int64)


def _as_own_rows(own_rows: np.ndarray, num_queries: int, num_rows: int) -> np.ndarray:
    """(N,) rows or -1 -> the (n, 2) pairs (query, row)."""
    own_rows = np.asarray(own_rows)
    if own_rows.shape != (num_queries,) or own_rows.dtype.kind not in "iu":
        raise ValueError(f"own_rows must be integers of shape ({num_queries},), got {own_rows.dtype} {own_rows.shape}")
    if own_rows.size and not -1 <= own_rows.min() <= own_rows.max() < num_rows:
        raise ValueError(f"own_rows must lie in -1 .. {num_rows - 1}, got {own_rows.min()} .. {own_rows.max()}")
    queries = np.flatnonzero(own_rows >= 0)
    return np.stack([queries, own_rows[queries]], axis=1)
