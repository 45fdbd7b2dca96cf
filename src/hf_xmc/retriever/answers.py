"""What a retriever answers: labels of texts with scores, probabilities and evidence, or their ids as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hf_xmc.index.label_index import MISSING_ID
from hf_xmc.memory.knowledge_memory import Evidence
from hf_xmc.retriever.calibration import CONTEXT, longest_prefix
from hf_xmc.retriever.files import RetrieverParts
from hf_xmc.retriever.ranking import Ranking, as_ids, checked_texts


class RetrieverAnswers(RetrieverParts):
    """The part of a :class:`~hf_xmc.Retriever` that reads: it searches and changes nothing."""

    def predict(
        self,
        texts: str | Sequence[str],
        top_k: int = 5,
        *,
        threshold: float | None = None,
        min_precision: float | None = None,
        candidates: Iterable[int] | None = None,
        memory: bool | None = None,
        return_evidence: bool = False,
        num_evidence: int = 3,
        **encode: Any,
    ) -> list[list[dict[str, Any]]]:
        """The best labels of each text.

        Args:
            texts: N texts (one text counts as a list of one).
            top_k: Labels for each text, at most the number of labels.
            threshold: The least score of a label that is kept, None for any. Always the score, also where there are
                probabilities, so that a calibration changes no answer.
            min_precision: In (0, 1]: of each text's labels keep the longest list whose mean probability reaches this,
                perhaps none. Needs :meth:`calibrate`. A memory does not keep wishes near 1 (benchmarks/README.md).
            candidates: Ids of the only labels to choose from, for all texts alike; None for all. A text has fewer
                than top_k labels where there are fewer candidates.
            memory: Whether training rows vote; None: if there is a memory. Scores are then shares of the vote; labels
                that got none follow in the order of their label score.
            return_evidence: Whether each label comes with the training rows and the label text behind it.
            num_evidence: Training rows shown for a label, those of the largest share.
            encode: Passed to ``encode`` (batch_size, show_progress_bar, ...).

        Returns:
            N lists of at most top_k ``{"label": str, "score": float, "label_id": int}``, best first, ties by ascending
            id; once calibrated also ``"probability": float``; with evidence also ``"evidence": {"label": {"score",
            "share"}, "rows": [{"text", "row", "score", "share"}]}``.

        Raises:
            ValueError: for a top_k below 1 or above the number of labels, a text that is no str, candidates that are
                none or no labels, a memory that is asked for but was never made, or min_precision without calibration.
        """
        texts = checked_texts(texts)
        memory = self._uses_memory(memory)
        if self.memory is None and return_evidence:
            raise ValueError("this retriever has no memory; make one: remember(texts, truth)")
        chosen = None if candidates is None else self._as_candidates(candidates)
        queries = self._queries(texts, **encode)
        ranking = self._rank(queries, top_k, threshold, min_precision, chosen, memory)
        answers: list[list[dict[str, Any]]] = [
            [
                {"label": self.labels[i], "score": s, "label_id": i}
                for i, s in zip(ids, scores, strict=True)
                if i != MISSING_ID
            ]
            for ids, scores in zip(ranking.ids.tolist(), ranking.scores.tolist(), strict=True)
        ]
        if ranking.probabilities is not None:
            for answer, probabilities in zip(answers, ranking.probabilities.tolist(), strict=True):
                for label, probability in zip(answer, probabilities, strict=False):
                    label["probability"] = probability
        if return_evidence and self.memory is not None:
            evidence = self.memory.explain(queries, ranking.ids, candidates=chosen)
            for query, answer in enumerate(answers):
                for place, label in enumerate(answer):
                    label["evidence"] = self._shown(evidence, query, place, num_evidence)
        return answers

    def rank(
        self,
        texts: Sequence[str],
        top_k: int = 5,
        *,
        threshold: float | None = None,
        min_precision: float | None = None,
        candidates: Iterable[int] | None = None,
        memory: bool | None = None,
        **encode: Any,
    ) -> Ranking:
        """What :meth:`predict` answers, as arrays of ids and scores; arguments and errors are the same."""
        memory = self._uses_memory(memory)
        chosen = None if candidates is None else self._as_candidates(candidates)
        queries = self._queries(checked_texts(texts), **encode)
        return self._rank(queries, top_k, threshold, min_precision, chosen, memory)

    def _rank(
        self,
        queries: np.ndarray,
        top_k: int,
        threshold: float | None,
        min_precision: float | None,
        candidates: np.ndarray | None,
        memory: bool,
    ) -> Ranking:
        if not 1 <= top_k <= self.index.num_alive:
            raise ValueError(f"top_k must lie between 1 and the {self.index.num_alive} labels, got {top_k}")
        fitted = self.calibration if self.calibration and self.calibration.calibration.memory == memory else None
        if min_precision is not None and fitted is None:
            raise ValueError(f"min_precision needs probabilities; make them: calibrate(texts, truth, memory={memory})")
        places = top_k if candidates is None else min(top_k, len(candidates))
        if fitted is None:
            ranking = Ranking(*self._nearest(queries, places, memory, candidates))
        else:
            # What a score means depends on the best ones among all labels.
            ids, context = self._nearest(queries, max(places, CONTEXT), memory, None)
            scores = context
            if candidates is not None:
                ids, scores = self._nearest(queries, places, memory, candidates)
            ids, scores = ids[:, :places], scores[:, :places]
            ranking = Ranking(ids, scores, fitted.calibration.probabilities(scores, context))
        if threshold is not None:
            ranking = ranking.keep(ranking.scores >= threshold)
        if min_precision is not None and ranking.probabilities is not None:
            lengths = longest_prefix(ranking.probabilities, min_precision)
            ranking = ranking.keep(np.arange(places) < lengths[:, None])
        return ranking

    def _nearest(
        self, queries: np.ndarray, top_k: int, memory: bool, candidates: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if memory and self.memory is not None:
            return self.memory.search(queries, top_k, candidates=candidates)
        return self.index.search(queries, top_k, candidates)

    def _queries(self, texts: list[str], **encode: Any) -> np.ndarray:
        if not texts:
            return np.zeros((0, self.index.vectors.shape[1]), dtype=np.float32)
        try:
            return self.encoder.query_vectors(texts, **encode)
        except RuntimeError as error:
            # A transformer whose tokenizer adds no special tokens cannot run a batch of nothing.
            blank = next((place for place, text in enumerate(texts) if not text.strip()), None)
            if blank is None:
                raise
            raise ValueError(
                f"the text at place {blank} is empty, and no token to this encoder; leave it out"
            ) from error

    def _uses_memory(self, memory: bool | None) -> bool:
        if memory and self.memory is None:
            raise ValueError("this retriever has no memory; make one: remember(texts, truth)")
        return self.memory is not None if memory is None else memory

    def _as_candidates(self, candidates: Iterable[int]) -> np.ndarray:
        ids = np.unique(as_ids(candidates))
        if not len(ids):
            raise ValueError("candidates is empty; give at least one label id, or None for all labels")
        wrong = [int(i) for i in ids if not 0 <= i < len(self.labels) or not self.index.alive[i]]
        if wrong:
            raise ValueError(f"candidates {wrong[:10]} are not among the {self.index.num_alive} labels present")
        return ids

    def _shown(self, evidence: Evidence, query: int, place: int, count: int) -> dict[str, Any]:
        rows, scores, shares = (part[:count].tolist() for part in evidence.rows(query, place))
        return {
            "label": {
                "score": float(evidence.label_scores[query, place]),
                "share": float(evidence.label_shares[query, place]),
            },
            "rows": [
                {"text": self.memory_texts[row], "row": row, "score": score, "share": share}
                for row, score, share in zip(rows, scores, shares, strict=True)
            ],
        }
