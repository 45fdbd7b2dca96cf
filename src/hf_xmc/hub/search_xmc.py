"""Query vectors in, labels out: the search of a published repo, with numpy alone; it uses faiss where installed.

This file travels inside every published repo, beside the pipeline and the servers that encode the queries.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from safetensors import safe_open

try:
    import faiss
except ImportError:
    faiss = None

FORMAT_VERSION = 1
# Scores of a brute-force search held at once, and keys of the memory decoded at once.
_SCORES_AT_ONCE, _KEYS_AT_ONCE = 1 << 24, 1 << 14

# Gives the local path of a file of the repo, or None where the repo has no such file.
Files = Callable[[str], "str | None"]


class LabelSearch:
    """Finds the labels of query vectors among those of one repo, and lets its training rows vote where it has any.

    Args:
        files: Gives the local path of a file of the repo by its name, or None.

    Raises:
        ValueError: naming a file that is missing, of a newer format version, or at odds with another.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self.config = read_json(files, "xmc_config.json")
        check_version(self.config["format_version"], "xmc_config.json")
        self.labels: list[str] = read_json(files, "labels.json")
        self.alive = np.ones(len(self.labels), dtype=bool)
        self.alive[self.config.get("removed_ids", [])] = False
        self.vectors = self._read_vectors()  # (L, D)
        self.index = self._read_index()
        path = files("memory/memory.safetensors")
        self.memory = None if path is None else _Memory(path, self)

    def _read_vectors(self) -> np.ndarray:
        path = required(self.files, "label_embeddings.safetensors")
        with safe_open(path, "numpy") as file:
            halves = {name: file.get_tensor(name).astype(np.float32, copy=False) for name in file.keys()}
        vectors = halves["embedding"]
        if "classifier" in halves:
            rows = halves["classifier"]
            if self.config["search"]["normalize_classifier"]:
                rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            if has_two_vectors(self.files):
                vectors = np.hstack([vectors, rows])
            else:  # both halves of a query are one vector, so those of a label are added up
                share = self.config["search"]["classifier_weight"]
                vectors = ((1 - share) * vectors + share * rows).astype(np.float32)
        if len(vectors) != len(self.labels):
            raise ValueError(
                f"labels.json has {len(self.labels)} labels, label_embeddings.safetensors {len(vectors)} rows; "
                "the repo is damaged, fetch or save it again"
            )
        return vectors

    def _read_index(self) -> Any:
        path = self.files("index.faiss") if faiss is not None else None
        return None if path is None else faiss.read_index(path, faiss.IO_FLAG_MMAP)

    # -- labels -------------------------------------------------------------------------------------------------------

    def predict(
        self,
        queries: np.ndarray,
        top_k: int = 5,
        *,
        memory: bool | None = None,
        return_evidence: bool = False,
        num_evidence: int = 3,
    ) -> list[list[dict[str, Any]]]:
        """The best labels of each query (B, D) float32: ``{"label": str, "score": float, "label_id": int}``.

        Args:
            queries: (B, D) float32.
            top_k: Labels of each query, at most the number of labels.
            memory: Whether training rows vote; None: if there is a memory.
            return_evidence: Whether each label comes with the training rows and the label text behind it.
            num_evidence: Training rows shown for a label.

        Raises:
            ValueError: for a top_k out of range, or a memory that is asked for but not there.
        """
        self.check(top_k, memory, return_evidence)
        votes = None
        if self.memory is not None and (memory is not False or return_evidence):
            votes = self.memory.vote(queries, top_k)
        if votes is None or memory is False:
            found = list(zip(*self.search(queries, top_k), strict=True))
        else:
            found = [(vote.ids, vote.scores) for vote in votes]
        answers = [
            [
                {"label": self.labels[i], "score": score, "label_id": i}
                for i, score in zip(ids.tolist(), scores.tolist(), strict=True)
            ]
            for ids, scores in found
        ]
        if return_evidence and self.memory is not None and votes is not None:
            for query, vote, answer in zip(queries, votes, answers, strict=True):
                for label in answer:
                    label["evidence"] = self.memory.evidence(query, vote, label["label_id"], num_evidence)
        return answers

    def check(self, top_k: int = 1, memory: bool | None = None, return_evidence: bool = False) -> None:
        """Refuse what :meth:`predict` cannot do."""
        num_labels = int(self.alive.sum())
        if not 1 <= top_k <= num_labels:
            raise ValueError(f"top_k must lie between 1 and the {num_labels} labels, got {top_k}")
        if self.memory is None and (memory or return_evidence):
            raise ValueError("this repo has no memory; make one: Retriever.remember(texts, truth), and save it again")

    def search(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, D) -> the ``count`` labels of the largest inner product, at most all: ids and scores (B, count), scores
        descending, equal scores by ascending id."""
        num_alive = int(self.alive.sum())
        count = min(count, num_alive)
        if self.index is None:
            return self._scan(queries, count)
        # One more shows whether the cut falls among equal scores.
        depth = min(count + 1, num_alive)
        rows = None if self.index.ntotal < len(self.labels) else self.alive
        params = None
        if rows is not None and not rows.all():
            params = faiss.SearchParameters(sel=faiss.IDSelectorBatch(np.flatnonzero(rows)))
        scores, ids = self.index.search(queries, depth, params=params)
        if rows is None:  # an index of the labels that are left
            ids = np.flatnonzero(self.alive)[ids]
        if depth > count:
            tied = np.flatnonzero(scores[:, count - 1] == scores[:, count])
            for row in tied:
                ids[row : row + 1, :count], scores[row : row + 1, :count] = self._scan(queries[row : row + 1], count)
        ids, scores = ids[:, :count], scores[:, :count]
        order = np.lexsort((ids, -scores))
        return np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)

    def _scan(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        found = []
        step = max(1, _SCORES_AT_ONCE // max(1, len(self.vectors)))
        for start in range(0, len(queries), step):
            scores = queries[start : start + step] @ self.vectors.T  # (B, L)
            scores[:, ~self.alive] = -np.inf
            found.append(best(scores, count))
        return tuple(np.concatenate(part) for part in zip(*found, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class _Vote:
    """The labels of one query, and all votes behind them."""

    ids: np.ndarray  # (k,) int64, best first
    scores: np.ndarray  # (k,) float32
    voter: np.ndarray  # (v,) place in the rows found, -1 for the label's own text
    label: np.ndarray  # (v,) int64
    value: np.ndarray  # (v,) float64
    row_ids: np.ndarray  # (b,) int64, the rows found
    row_scores: np.ndarray  # (b,) float32


class _Memory:
    """Training rows that vote for their labels beside the label texts (RAE-XMC, arXiv 2502.10615)."""

    def __init__(self, path: str, labels: LabelSearch) -> None:
        self.labels = labels
        self.file = safe_open(path, "numpy")
        metadata = self.file.metadata()
        check_version(int(metadata["format_version"]), "memory/memory.safetensors")
        self.form = json.loads(metadata["form"])
        names = self.file.keys()
        self.keys = self.file.get_slice("keys")  # (N, D), read block by block
        self.scales = self.file.get_tensor("key_scales") if "key_scales" in names else None  # (N,)
        self.indptr, self.indices = self.file.get_tensor("indptr"), self.file.get_tensor("indices")
        self.votes = self.file.get_tensor("votes") if "votes" in names else np.ones(len(self.indices), np.float32)
        self.lambdas = self._lambdas(np.bincount(self.indices, minlength=len(labels.labels)))  # (L,)

    @cached_property
    def texts(self) -> list[str]:
        """The training rows' own texts, read when evidence is first shown."""
        return read_json(self.labels.files, "memory/texts.json")

    def _lambdas(self, counts: np.ndarray) -> np.ndarray:
        weight, power = self.form["row_weight"], self.form["frequency_power"]
        if weight in (0, 1) or not power:
            return np.full(len(counts), float(weight))
        logits = np.log(weight / (1 - weight)) + power * np.log((counts + 1) / 2)
        return 1 / (1 + np.exp(-np.clip(logits, -700, 700)))

    def vote(self, queries: np.ndarray, top_k: int) -> list[_Vote]:
        """For each query at most ``top_k`` labels, those of the most votes."""
        num_keys, batch = self.form["num_keys"], len(queries)
        none = np.zeros((batch, 0), np.int64), np.zeros((batch, 0), np.float32)
        row_ids, row_scores = self._nearest(queries, num_keys) if self.form["row_weight"] > 0 else none
        label_ids, label_scores = self.labels.search(queries, num_keys) if self.form["row_weight"] < 1 else none
        return [self._vote(*parts, top_k) for parts in zip(row_ids, row_scores, label_ids, label_scores, strict=True)]

    def _vote(
        self, row_ids: np.ndarray, row_scores: np.ndarray, label_ids: np.ndarray, label_scores: np.ndarray, top_k: int
    ) -> _Vote:
        scores = np.concatenate([row_scores, label_scores]).astype(np.float64)  # rows win ties
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
        here = self.labels.alive[label]
        voter, label, value = voter[here], label[here], value[here]
        ids, place = np.unique(label, return_inverse=True)
        totals = np.bincount(place, weights=value, minlength=len(ids))
        first = np.lexsort((ids, -totals))[:top_k]
        return _Vote(ids[first], totals[first].astype(np.float32), voter, label, value, row_ids, row_scores)

    def evidence(self, query: np.ndarray, vote: _Vote, label_id: int, count: int) -> dict[str, Any]:
        """What made one label: its text's score and share, and the training rows of the largest share."""
        mine = (vote.label == label_id) & (vote.value > 0)
        voter, value, row_ids = vote.voter[mine], vote.value[mine], vote.row_ids
        shares = value / max(float(value.sum()), np.finfo(np.float64).tiny)
        rows = np.flatnonzero(voter >= 0)
        rows = rows[np.lexsort((row_ids[voter[rows]], -shares[rows]))][:count]
        return {
            "label": {
                "score": float(self.labels.vectors[label_id] @ query),
                "share": float(shares[voter < 0].sum()),
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

    def _nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, at most count) rows that have labels, and their scores, equal scores by ascending row."""
        ids, scores = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
        num_rows = len(self.indptr) - 1
        for first in range(0, num_rows, _KEYS_AT_ONCE):
            last = min(first + _KEYS_AT_ONCE, num_rows)
            block = queries @ self.keys[first:last].astype(np.float32).T  # (B, C)
            if self.scales is not None:
                block *= self.scales[first:last]
            block[:, self.indptr[first + 1 : last + 1] == self.indptr[first:last]] = -np.inf
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


def read_json(files: Files, name: str) -> Any:
    with open(required(files, name), encoding="utf8") as file:
        return json.load(file)


def required(files: Files, name: str) -> str:
    path = files(name)
    if path is None:
        raise ValueError(f"the repo has no {name}; fetch the whole repo, or save it with Retriever.save_pretrained")
    return path


def check_version(version: int, name: str) -> None:
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{name}: format_version {version} is newer than {FORMAT_VERSION}, which this file reads; "
            "upgrade: pip install -U hf_xmc"
        )


def query_prompt(files: Files) -> str:
    """What is put before every query."""
    settings = read_json(files, "config_sentence_transformers.json")
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    return (prompts.get(default) if prompts.get("query") is None else prompts["query"]) or ""


def has_two_vectors(files: Files) -> bool:
    """Whether a text has a second vector for the classifier, of a head of its own."""
    dense = [row["path"] for row in read_json(files, "modules.json") if row["type"].endswith(".Dense")]
    heads = (read_json(files, f"{path}/config.json") for path in dense)
    return any(head.get("module_output_name") == "classifier_embedding" for head in heads)
