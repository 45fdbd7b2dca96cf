"""What a repo answers: labels with scores, probabilities and evidence.

With numpy alone. This file travels inside every published repo, and the package runs it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .checks_xmc import Parts, Request, calibrated
from .filters_xmc import MISSING_ID, MISSING_SCORE, NO_PAIRS
from .memory_xmc import read_memory
from .ranker_xmc import RANKER_FILE, Ranker, probability, read_ranker
from .repo_xmc import (
    CALIBRATION_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    MEMORY_FILE,
    MEMORY_TEXTS_FILE,
    SETTINGS_FILE,
    Files,
    SearchForm,
    Step,
    cut_to,
    read_alive,
    read_halves,
    read_index,
    read_json,
    read_labels,
    read_steps,
    read_versioned,
)
from .votes_xmc import Evidence, Found
from .whole_xmc import read_whole

# Best scores of a query that tell what any of its scores means.
CONTEXT = 100


@dataclass(frozen=True)
class Calibration:
    """The probability that a label is right, from its score s and the best scores s_1 >= s_2 >= ... of its query.

        p = sigmoid(slope s + top s_1 + mass m + offset),   m = 1 / scale log sum_j exp(scale s_j)

    Platt's scaling (1999) with two facts of the query: how good its best label is, and how many are as good; with
    slope = -mass = scale and no more, p/(1 - p) is the softmax. Within a query p rises strictly with the score, so no
    ranking changes.

    Args:
        slope: Above 0.
        top: Any finite number, and
        mass: likewise, and
        offset: likewise.
        scale: Above 0, in units of 1 / score.
        memory: Whether it is of the votes of a memory, whose scores are others than those of a label search.
    """

    slope: float
    top: float
    mass: float
    offset: float
    scale: float
    memory: bool = False

    def __post_init__(self) -> None:
        numbers = (self.slope, self.top, self.mass, self.offset, self.scale)
        if not np.isfinite(numbers).all() or self.slope <= 0 or self.scale <= 0:
            raise ValueError(f"expected finite numbers with slope and scale above 0, got {self}")

    def probabilities(self, scores: np.ndarray, context: np.ndarray) -> np.ndarray:
        """P of each score.

        Args:
            scores: (N, K) float, -inf for a missing place.
            context: (N, C) float, the ``CONTEXT`` best scores of each query among all labels, descending.

        Returns:
            (N, K) float64 in [0, 1], 0 in missing places.
        """
        scores = np.asarray(scores, dtype=np.float64)
        top, mass = facts_of(context, self.scale)
        logits = self.slope * scores + self.top * top + self.mass * mass + self.offset
        return np.where(np.isfinite(scores), probability(logits), 0.0)


def facts_of(context: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """s_1 and m (N, 1) of the best scores (N, C), see :class:`Calibration`; 0 for a query without any."""
    context = np.asarray(context, dtype=np.float64)[:, :CONTEXT]
    top = np.where(np.isfinite(context[:, :1]), context[:, :1], 0.0)
    mass = top + np.log(np.maximum(np.exp(scale * (context - top)).sum(1, keepdims=True), 1e-300)) / scale
    return top, np.where(np.isfinite(context[:, :1]), mass, 0.0)


def longest_prefix(probabilities: np.ndarray, min_precision: float) -> np.ndarray:
    """How many labels of each query to keep so that their expected precision reaches a wish, and no longer list does.

    Args:
        probabilities: (N, K), descending.
        min_precision: In (0, 1].

    Returns:
        (N,) int64 in 0 .. K: the largest k with ``probabilities[:, :k].mean() >= min_precision``. As p descends, so do
        the means, and 0 says that not even the first label is that likely.
    """
    if not 0 < min_precision <= 1:
        raise ValueError(f"min_precision must lie in (0, 1], got {min_precision}")
    means = np.cumsum(probabilities, axis=1) / np.arange(1, probabilities.shape[1] + 1)
    return (means >= min_precision).sum(1)


@dataclass(frozen=True)
class Ranking:
    """The best labels of N queries.

    Attributes:
        ids: (N, K) int64, padded with -1.
        scores: (N, K) float32, descending, equal ones by ascending id, padded with -inf; of a ranker in [0, 1].
        probabilities: (N, K) float64 in [0, 1] that the label is right, or None where nothing was calibrated.
    """

    ids: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray | None = None

    def keep(self, kept: np.ndarray) -> Ranking:
        """The same without the places where ``kept`` (N, K) is False, which must be the last of a row."""
        probabilities = None if self.probabilities is None else np.where(kept, self.probabilities, 0.0)
        return Ranking(
            np.where(kept, self.ids, MISSING_ID),
            np.where(kept, self.scores, np.float32(MISSING_SCORE)),
            probabilities,
        )


# -- what is answered -------------------------------------------------------------------------------------------------


def rank(
    parts: Parts, queries: np.ndarray, texts: Sequence[str], request: Request, filters: np.ndarray = NO_PAIRS
) -> Ranking:
    """The best labels of query vectors (N, D) and texts, as arrays, without ``filters`` (n, 2): (query, label id)."""
    return _rank(parts, queries, texts, request, filters)[0]


def answer(parts: Parts, queries: np.ndarray, texts: Sequence[str], request: Request) -> list[list[dict[str, Any]]]:
    """The best labels of query vectors (N, D).

    Returns:
        N lists of at most top_k ``{"label": str, "score": float, "label_id": int}``, best first, ties by ascending id;
        with a ranker or a calibration also ``"probability": float``; with evidence also ``"evidence": {"label":
        {"score", "share"}, "rows": [{"text", "row", "score", "share"}]}``, and of a ranker ``"features"``, what each
        feature added to the logit, largest first.
    """
    ranking, found = _rank(parts, queries, texts, request)
    labels = parts.labels
    answers: list[list[dict[str, Any]]] = [
        [{"label": labels[i], "score": s, "label_id": i} for i, s in zip(ids, scores, strict=True) if i != MISSING_ID]
        for ids, scores in zip(ranking.ids.tolist(), ranking.scores.tolist(), strict=True)
    ]
    if ranking.probabilities is not None:
        for line, probabilities in zip(answers, ranking.probabilities.tolist(), strict=True):
            for label, probability in zip(line, probabilities, strict=False):
                label["probability"] = probability
    if request.return_evidence:
        _explain(parts, queries, texts, request, ranking, found, answers)
    return answers


def _explain(
    parts: Parts,
    queries: np.ndarray,
    texts: Sequence[str],
    request: Request,
    ranking: Ranking,
    found: Found | None,
    answers: list[list[dict[str, Any]]],
) -> None:
    """Write the evidence into each label of the answers."""
    for line in answers:
        for label in line:
            label["evidence"] = {}
    if parts.memory is not None:
        if found is None:  # the labels were not voted for
            found = parts.memory.find(queries, parts.memory.form, candidates=request.candidates)
        evidence = parts.memory.evidence(queries, found, ranking.ids, candidates=request.candidates)
        for query, line in enumerate(answers):
            for place, label in enumerate(line):
                label["evidence"] = _shown(evidence, query, place, parts.memory_texts, request.num_evidence)
    if request.memory is None and parts.ranker is not None:
        told = parts.ranker.contributions(parts, queries, texts, ranking.ids)
        for line, features in zip(answers, told, strict=True):
            for label, feature in zip(line, features, strict=False):
                label["evidence"]["features"] = feature


def nearest(
    parts: Parts,
    queries: np.ndarray,
    top_k: int,
    memory: bool,
    candidates: np.ndarray | None = None,
    filters: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, Found | None]:
    """Ids and scores (N, top_k), and of a vote the keys that were found."""
    if not memory or parts.memory is None:
        return *parts.index.search(queries, top_k, candidates, filters=filters), None
    form = parts.memory.form
    found = parts.memory.find(queries, form, None, filters, candidates, num_labels=top_k)
    return *parts.memory.rank(found, form, top_k, filters, candidates), found


def _rank(
    parts: Parts, queries: np.ndarray, texts: Sequence[str], request: Request, filters: np.ndarray = NO_PAIRS
) -> tuple[Ranking, Found | None]:
    candidates, memory = request.candidates, request.memory
    places = request.top_k if candidates is None else min(request.top_k, len(candidates))
    if memory is None and parts.ranker is not None:
        return _ranked(parts, parts.ranker, queries, texts, request, places, filters), None
    fitted = calibrated(parts, bool(memory))
    if fitted is None:
        ids, scores, found = nearest(parts, queries, places, bool(memory), candidates, filters)
        ranking = Ranking(ids, scores)
    else:
        # What a score means depends on the best ones among all labels.
        ids, context, found = nearest(parts, queries, max(places, CONTEXT), bool(memory), None, filters)
        scores = context
        if candidates is not None:
            ids, scores, found = nearest(parts, queries, places, bool(memory), candidates, filters)
        ids, scores = ids[:, :places], scores[:, :places]
        ranking = Ranking(ids, scores, fitted.probabilities(scores, context))
    if request.threshold is not None:
        ranking = ranking.keep(ranking.scores >= request.threshold)
    if request.min_precision is not None and ranking.probabilities is not None:
        lengths = longest_prefix(ranking.probabilities, request.min_precision)
        ranking = ranking.keep(np.arange(places) < lengths[:, None])
    return ranking, found


def _ranked(
    parts: Parts,
    ranker: Ranker,
    queries: np.ndarray,
    texts: Sequence[str],
    request: Request,
    places: int,
    filters: np.ndarray,
) -> Ranking:
    found = ranker.rank(
        parts, queries, texts, places, tail=request.tail, candidates=request.candidates, filters=filters
    )
    kept, scores = found.ids != MISSING_ID, probability(found.scores).astype(np.float32)
    if request.threshold is not None:
        kept &= scores >= request.threshold
    if request.min_precision is not None:
        kept &= ranker.promised(found.logits, request.min_precision)
    order = np.argsort(~kept, axis=1, kind="stable")  # with a tail a label that is not kept may stand before others
    moved = (np.take_along_axis(part, order, 1) for part in (found.ids, scores, found.probabilities))
    return Ranking(*moved).keep(np.take_along_axis(kept, order, 1))


def _shown(evidence: Evidence, query: int, place: int, texts: Sequence[str], count: int) -> dict[str, Any]:
    rows, scores, shares = (part[:count].tolist() for part in evidence.rows(query, place))
    return {
        "label": {
            "score": float(evidence.label_scores[query, place]),
            "share": float(evidence.label_shares[query, place]),
        },
        "rows": [
            {"text": texts[row], "row": row, "score": score, "share": share}
            for row, score, share in zip(rows, scores, shares, strict=True)
        ],
    }


# -- the parts of a repo ----------------------------------------------------------------------------------------------


class RepoParts:
    """The parts of a published repo, and how its encoder's halves are joined.

    Args:
        files: Gives the local path of a file of the repo by its name, or None.

    Raises:
        ValueError: Naming a file that is missing, damaged, of a newer format version, or at odds with another.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self._memory_texts: list[str] | None = None
        read_whole(files, self._read)

    def _read(self) -> None:
        files = self.files
        config = read_versioned(files, CONFIG_FILE)
        self.form = SearchForm(**config.get("search", {}))
        self.labels = read_labels(files)
        self.steps: list[Step] = read_steps(files)
        shares_vector = all(step.config.get("module_output_name") != "classifier_embedding" for step in self.steps)
        self.embedding, self.classifier = read_halves(files, len(self.labels))
        vectors = self.form.join_labels(self.embedding, self.classifier, shares_vector)
        self.index = read_index(files, INDEX_FILE, vectors, read_alive(config, len(self.labels)))
        self.memory = None if files(MEMORY_FILE) is None else read_memory(files, MEMORY_FILE, self.index)
        self.ranker = None if files(RANKER_FILE) is None else read_ranker(files, len(self.labels))
        self.calibration: Calibration | None = None
        if files(CALIBRATION_FILE) is not None:
            self.calibration = Calibration(**read_versioned(files, CALIBRATION_FILE)["calibration"])
        self.truncate_dim: int | None = read_json(files, SETTINGS_FILE).get("truncate_dim")

    def join(self, encoder_half: np.ndarray, classifier_half: np.ndarray | None) -> np.ndarray:
        """Both vectors of queries, (N, De) and (N, Dc) or None -> (N, D), what is searched with."""
        return self.form.join_queries(cut_to(encoder_half, self.truncate_dim), classifier_half)

    @property
    def memory_texts(self) -> Sequence[str]:
        """The training rows' own texts, read when evidence is first shown."""
        if self._memory_texts is None and self.memory is not None:
            self._memory_texts = read_texts(self.files, len(self.memory))
        return self._memory_texts or ()


def read_texts(files: Files, num_rows: int) -> list[str]:
    """The texts of a memory's training rows.

    Raises:
        ValueError: Naming a file that is missing or damaged, or has texts of other rows.
    """
    texts = read_json(files, MEMORY_TEXTS_FILE)
    if not isinstance(texts, list) or len(texts) != num_rows:
        count = len(texts) if isinstance(texts, list) else "no"
        raise ValueError(
            f"{files(MEMORY_TEXTS_FILE)}: texts.json has {count} texts, the memory {num_rows} rows; the repo is "
            "damaged, fetch or save it again"
        )
    return texts
