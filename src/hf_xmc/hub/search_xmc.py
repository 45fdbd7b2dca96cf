"""Query vectors in, labels out: the search of a published repo, with numpy alone; it uses faiss where installed.

This file travels inside every published repo, beside the pipeline and the servers that encode the queries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from safetensors import safe_open

try:
    import faiss
except ImportError:
    faiss = None
try:
    from .memory_xmc import Memory, Vote, best
except ImportError:  # imported from the repo's own folder, which is no package
    from memory_xmc import Memory, Vote, best

FORMAT_VERSION = 1
# Scores of a brute-force search held at once.
_SCORES_AT_ONCE = 1 << 24
# Best scores of a query that tell what any of its scores means; as in hf_xmc.retriever.
_CONTEXT = 100

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
        self.memory = None if path is None else Memory(path, lambda: read_json(files, "memory/texts.json"), self)
        path = files("calibration.json")
        self.calibration = None if path is None else read_json(files, "calibration.json")["calibration"]

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
        about = self.files("index.json")
        if path is None or about is None:
            return None
        try:
            index = faiss.read_index(path, faiss.IO_FLAG_MMAP)
        except RuntimeError:  # damaged; the vectors are searched without it
            return None
        about = read_json(self.files, "index.json")
        if about["kind"] == "hnsw":
            faiss.downcast_index(index).hnsw.efSearch = about["effort"]
        elif about["kind"] == "ivf":
            faiss.extract_index_ivf(index).nprobe = about["effort"]
        return index if index.ntotal == len(self.labels) else None

    # -- labels -------------------------------------------------------------------------------------------------------

    def predict(
        self,
        queries: np.ndarray,
        top_k: int = 5,
        *,
        threshold: float | None = None,
        min_precision: float | None = None,
        candidates: Iterable[int] | None = None,
        memory: bool | None = None,
        return_evidence: bool = False,
        num_evidence: int = 3,
    ) -> list[list[dict[str, Any]]]:
        """The best labels of each query; what ``Retriever.predict`` answers.

        Args:
            queries: (B, D) float32.
            top_k: Labels of each query, at most the number of labels.
            threshold: The least score of a label that is kept.
            min_precision: In (0, 1]: keep the longest list whose mean probability reaches this.
            candidates: Ids of the only labels to choose from; None for all.
            memory: Whether training rows vote; None: if there is a memory.
            return_evidence: Whether each label comes with the training rows and the label text behind it.
            num_evidence: Training rows shown for a label.

        Returns:
            B lists of ``{"label": str, "score": float, "label_id": int}``, and "probability" where the scores are
            calibrated, and "evidence" where it is asked for.

        Raises:
            ValueError: for a top_k or candidates out of range, or a memory or probabilities that are not there.
        """
        chosen = self.check(top_k, min_precision, candidates, memory, return_evidence)
        uses_memory = self.memory is not None and memory is not False
        fitted = self._fitted(uses_memory)
        places = top_k if chosen is None else min(top_k, len(chosen))
        nearest = self._voted if uses_memory else self._searched
        # What a score means depends on the best ones among all labels.
        context = nearest(queries, max(places, _CONTEXT), None) if fitted else []
        found = context if fitted and chosen is None else nearest(queries, places, chosen)
        votes: list[Vote] = []
        if return_evidence and self.memory is not None:
            votes = self.memory.vote(queries, 0, chosen)
        answers = []
        for i, (ids, scores) in enumerate(found):
            ids, scores = ids[:places], scores[:places]
            kept = np.ones(len(ids), dtype=bool) if threshold is None else scores >= threshold
            probabilities = _probabilities(fitted, scores, context[i][1]) if fitted else None
            if min_precision is not None and probabilities is not None:
                means = np.cumsum(np.where(kept, probabilities, 0)) / np.arange(1, len(ids) + 1)
                kept &= np.arange(len(ids)) < (means >= min_precision).sum()
            answer = []
            for place in np.flatnonzero(kept):
                label_id = int(ids[place])
                label = {"label": self.labels[label_id], "score": float(scores[place]), "label_id": label_id}
                if probabilities is not None:
                    label["probability"] = float(probabilities[place])
                if votes and self.memory is not None:
                    label["evidence"] = self.memory.evidence(queries[i], votes[i], label_id, num_evidence)
                answer.append(label)
            answers.append(answer)
        return answers

    def check(
        self,
        top_k: int = 1,
        min_precision: float | None = None,
        candidates: Iterable[int] | None = None,
        memory: bool | None = None,
        return_evidence: bool = False,
    ) -> np.ndarray | None:
        """Refuse what :meth:`predict` cannot do; returns the candidates, each once and ascending."""
        num_labels = int(self.alive.sum())
        if not 1 <= top_k <= num_labels:
            raise ValueError(f"top_k must lie between 1 and the {num_labels} labels, got {top_k}")
        if self.memory is None and (memory or return_evidence):
            raise ValueError("this repo has no memory; make one: Retriever.remember(texts, truth), and save it again")
        if min_precision is not None:
            if not 0 < min_precision <= 1:
                raise ValueError(f"min_precision must lie in (0, 1], got {min_precision}")
            if self._fitted(self.memory is not None and memory is not False) is None:
                raise ValueError("min_precision needs probabilities; make them: Retriever.calibrate(texts, truth)")
        if candidates is None:
            return None
        ids = np.unique(np.asarray(list(candidates), dtype=np.int64))
        wrong = [int(i) for i in ids if not 0 <= i < len(self.labels) or not self.alive[i]]
        if wrong or not len(ids):
            raise ValueError(f"candidates must be ids of the {num_labels} labels present, got {wrong[:10] or 'none'}")
        return ids

    def _fitted(self, memory: bool) -> dict[str, Any] | None:
        return self.calibration if self.calibration and self.calibration["memory"] == memory else None

    def _voted(self, queries: np.ndarray, count: int, candidates: np.ndarray | None) -> list[Any]:
        assert self.memory is not None
        return [(vote.ids, vote.scores) for vote in self.memory.vote(queries, count, candidates)]

    def _searched(self, queries: np.ndarray, count: int, candidates: np.ndarray | None) -> list[Any]:
        return list(zip(*self.search(queries, count, candidates), strict=True))

    def search(
        self, queries: np.ndarray, count: int, candidates: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(B, D) -> the ``count`` labels of the largest inner product, at most all: ids and scores (B, count), scores
        descending, equal scores by ascending id."""
        if candidates is not None:
            places, scores = self._scan(queries, count, candidates)
            return candidates[places], scores
        alive = np.flatnonzero(self.alive)
        if self.index is None:
            places, scores = self._scan(queries, count, alive)
            return alive[places], scores
        count = min(count, len(alive))
        # More than are wanted: some were removed, and the index may round what it compares.
        ids = self.index.search(queries, min(count + max(64, count // 2), len(self.labels)))[1]
        scores = np.stack([self.vectors[found] @ query for found, query in zip(ids, queries, strict=True)])
        scores[(ids < 0) | ~self.alive[ids]] = -np.inf
        order = np.lexsort((ids, -scores))
        ids, scores = np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
        whole = ids.shape[1] >= len(self.labels)
        # Too few were found, or equal scores may go on beyond what was found.
        short = (scores[:, count - 1] == -np.inf) | ((scores[:, count - 1] == scores[:, -1]) & (not whole))
        ids, scores = ids[:, :count].copy(), scores[:, :count].copy()
        for row in np.flatnonzero(short):
            places, every = self._scan(queries[row : row + 1], count, alive)
            ids[row], scores[row] = alive[places[0]], every[0]
        return ids, scores

    def _scan(self, queries: np.ndarray, count: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places among ``rows`` and scores (B, at most count), by looking at every row."""
        vectors = self.vectors if len(rows) == len(self.labels) else self.vectors[rows]
        step = max(1, _SCORES_AT_ONCE // max(1, len(rows)))
        found = [
            best(queries[start : start + step] @ vectors.T, min(count, len(rows)))
            for start in range(0, len(queries), step)
        ]
        places, scores = zip(*found, strict=True)
        return np.concatenate(places), np.concatenate(scores)


def _probabilities(fitted: dict[str, Any], scores: np.ndarray, context: np.ndarray) -> np.ndarray:
    """(K,) scores of a query and its ``_CONTEXT`` best ones -> (K,) probabilities; see hf_xmc.retriever."""
    if not len(context):
        return np.zeros(len(scores))
    context = context[:_CONTEXT].astype(np.float64)
    mass = context[0] + np.log(np.exp(fitted["scale"] * (context - context[0])).sum()) / fitted["scale"]
    logits = fitted["slope"] * scores.astype(np.float64) + fitted["top"] * context[0] + fitted["mass"] * mass
    return 1 / (1 + np.exp(-np.clip(logits + fitted["offset"], -700, 700)))


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
