"""Retriever: an encoder, the index of its labels and their texts. What a user predicts with, saves and publishes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, snapshot_download
from scipy.sparse import csr_matrix

from hf_xmc.calibration import (
    CONTEXT,
    CalibrationReport,
    FittedCalibration,
    base_rates,
    cross_fitted_report,
    fit_calibration,
    longest_prefix,
    measure,
)
from hf_xmc.encoder import XMCEncoder
from hf_xmc.index import MISSING_ID, LabelIndex
from hf_xmc.memory import Evidence, KnowledgeMemory, MemoryForm
from hf_xmc.metrics.functional import drop_pairs
from hf_xmc.prediction_files import digest, predict_to_parquet
from hf_xmc.ranking import Ranking, as_ids, checked_texts
from hf_xmc.retriever_files import RetrieverParts, read_parts, save_parts, write_parts


class Retriever(RetrieverParts):
    """Answers texts with labels. :meth:`build` one from a trained encoder, or load a saved one.

    Its attributes are those of :class:`~hf_xmc.retriever_files.RetrieverParts`.
    """

    @classmethod
    def build(cls, encoder: XMCEncoder, labels: Sequence[str], *, index: str = "auto", **encode: Any) -> Retriever:
        """Encode and index all labels.

        Args:
            encoder: A trained encoder.
            labels: L label texts in id order, for example ``data.labels["text"]``.
            index: The kind of index, see :class:`~hf_xmc.LabelIndex`.
            encode: Passed to ``encode`` (batch_size, show_progress_bar, ...).
        """
        labels = list(labels)
        halves = encoder.label_halves(labels, **encode)
        return cls(encoder, labels, *halves, LabelIndex(encoder.join_labels(*halves), kind=index))

    def remember(
        self,
        texts: Sequence[str],
        truth: csr_matrix,
        form: MemoryForm | None = None,
        dtype: str = "float16",
        **encode: Any,
    ) -> None:
        """Let training rows vote in later predictions: the knowledge memory of RAE-XMC, without further training.

        Args:
            texts: N texts, for example ``data.train["text"]``.
            truth: (N, L) scipy sparse, their labels, for example ``data.to_csr("train")``.
            form: How votes are weighed, None for the defaults; :func:`hf_xmc.memory_fit.fit_memory` fits one on a
                held-out part.
            dtype: float32, float16 or int8, how the rows are kept.
            encode: Passed to ``encode``.
        """
        texts = list(texts)
        keys = self.encoder.key_vectors(texts, **encode)
        self.memory = KnowledgeMemory(keys, truth, self.index, form or MemoryForm(), dtype=dtype)
        self.memory_texts = texts

    # -- labels that come and go --------------------------------------------------------------------------------------

    def add_labels(self, texts: Sequence[str], *, discount: float = 0.08, **encode: Any) -> np.ndarray:
        """Give new labels the next ids; they are predicted at once, by their texts.

        The dual-encoder half is the text's own vector, and so, but for the discount, is the classifier row: the
        classifier head's vector of the text, as with residual rows an untrained label has. The encoder's classifier
        grows with them; train it with a new trainer. A memory stays; its rows do not vote for new labels until
        :meth:`remember` is called with them. A text that is a label already makes a second label.

        Args:
            texts: n label texts. Add many at once: each call copies the label vectors.
            discount: Below 1, the share of their score that labels lose for never having been trained, taken off
                their classifier rows: 0 finds more new labels and costs the old ones more
                (benchmarks/new_labels.py). Without a classifier, or with unit rows, there is none to take off.
            encode: Passed to ``encode``.

        Returns:
            (n,) int64, their ids. Those of all other labels stay.

        Raises:
            ValueError: for a text that is no str, or a discount that is not in [0, 1).
        """
        texts = checked_texts(texts)
        if not 0 <= discount < 1:
            raise ValueError(f"discount must lie in [0, 1), got {discount}")
        if not texts:
            return np.zeros(0, dtype=np.int64)
        prompt = {"prompt": self.encoder.prompts.get("document")}
        embedding, head = self.encoder.encode_halves(texts, **(prompt | encode))
        rows = None if head is None else head * self._row_scale(discount)
        ids = self.index.add(self.encoder.join_labels(embedding, rows))
        self.labels = self.labels + texts
        self.embedding = np.concatenate([self.embedding, embedding])
        classifier = self.encoder.label_classifier
        if classifier is not None and head is not None and rows is not None and self.classifier is not None:
            self.classifier = np.concatenate([self.classifier, rows])
            classifier.append(torch.from_numpy(rows - head if classifier.residual else rows))
        return ids

    def _row_scale(self, discount: float) -> np.float32:
        """What a classifier row is multiplied by, so that the joint score loses the discount."""
        weight = self.encoder.search_form.classifier_weight
        return np.float32(max(0.0, 1 - discount / weight) if weight else 1.0)

    def remove_labels(self, ids: Iterable[int]) -> None:
        """Never predict these labels again. All ids stay, theirs too: they are not given to new labels.

        Raises:
            ValueError: for an id that is no label or was removed before.
        """
        self.index.remove(as_ids(ids))

    # -- prediction ---------------------------------------------------------------------------------------------------

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
                perhaps none. Needs :meth:`calibrate`.
            candidates: Ids of the only labels to choose from, for all texts alike; None for all. A text has fewer
                than top_k labels where there are fewer candidates.
            memory: Whether training rows vote; None: if there is a memory. A text then has fewer than top_k labels
                where its nearest keys vote for fewer, and scores are shares of the vote.
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

    def predict_to_parquet(
        self,
        texts: Iterable[str],
        folder: str | Path,
        top_k: int = 5,
        *,
        rows_per_file: int = 10_000,
        show_progress_bar: bool = True,
        **predict: Any,
    ) -> Path:
        """The best labels of any number of texts, as Parquet files; a call that was killed goes on where it stopped.

        At most ``rows_per_file`` texts and their answers are in memory. Rows ``i * rows_per_file`` onwards go to
        ``part-{i:05d}.parquet``, written under another name first. Called again with the same arguments and texts,
        finished files are kept and their texts are only compared; ``datasets.load_dataset(folder)`` reads them all.

        Args:
            texts: A list, an iterator or a column of a data set, for example ``dataset["text"]``.
            folder: Where the files go; beside them ``_predicted_by.json`` says what they were made with.
            top_k: Labels of each text.
            rows_per_file: Texts of a file.
            show_progress_bar: Whether texts are counted as they are done.
            predict: Passed to :meth:`rank`: threshold, min_precision, candidates, memory, batch_size, ...

        Returns:
            The folder. Columns: ``row`` int64, the place of the text; ``label_ids``, ``labels`` and ``scores``, lists
            of one length, best first; once calibrated also ``probabilities``.

        Raises:
            ValueError: if the folder holds predictions of another model, of other labels, arguments or texts.
        """
        if predict.get("candidates") is not None:
            predict["candidates"] = self._as_candidates(predict["candidates"])
        return predict_to_parquet(
            lambda part: self.rank(part, top_k, **predict),
            texts,
            Path(folder),
            self.labels,
            made_with=self._fingerprint() | {"top_k": top_k} | predict,
            rows_per_file=rows_per_file,
            show_progress_bar=show_progress_bar,
        )

    def _fingerprint(self) -> dict[str, Any]:
        """What decides the answers, as digests."""
        model = [self.index.vectors, self.index.alive, repr(self.encoder.search_form), self.index.kind]
        if self.memory is not None:
            truth = self.memory.truth
            model += [self.memory.keys.numpy(), truth.indptr, truth.indices, truth.data, repr(self.memory.form)]
        if self.calibration is not None:
            model.append(repr(self.calibration.calibration))
        return {"model": digest(*model), "labels": digest(*self.labels)}

    # -- calibration --------------------------------------------------------------------------------------------------

    def calibrate(
        self,
        texts: Sequence[str],
        truth: csr_matrix,
        *,
        memory: bool | None = None,
        filters: np.ndarray | None = None,
        **encode: Any,
    ) -> CalibrationReport:
        """Learn what scores are worth: later answers have a probability of being right, and the same ranking.

        The texts must be as hard as those to come, and none of them a training row: the ``test`` of
        ``data.hold_out(0.1, seen_labels_only=True)`` where labels without training rows are not to be expected.

        Args:
            texts: N held-out texts; some thousands.
            truth: (N, at most L) scipy sparse, their labels.
            memory: Whether training rows vote, as for :meth:`predict`; probabilities are given for this way alone.
            filters: (n, 2) int64, (row, label id) that are dropped from the rankings.
            encode: Passed to ``encode``.

        Returns:
            How well the probabilities fit texts that were not fitted on, by cross-fitting; prints as a table.

        Raises:
            ValueError: for a truth of other texts or labels, or one without right and wrong predictions.
        """
        memory = self._uses_memory(memory)
        scores, right = self._judged(texts, truth, memory, filters, **encode)
        report = cross_fitted_report(scores, right)
        self.calibration = FittedCalibration(fit_calibration(scores, right, memory), base_rates(scores, right), report)
        return report

    def reliability(
        self, texts: Sequence[str], truth: csr_matrix, *, filters: np.ndarray | None = None, **encode: Any
    ) -> CalibrationReport:
        """How well the probabilities fit other texts, for example a test split; arguments as for :meth:`calibrate`."""
        if self.calibration is None:
            raise ValueError("this retriever has no probabilities; make them: calibrate(texts, truth)")
        fit = self.calibration.calibration
        scores, right = self._judged(texts, truth, self._uses_memory(fit.memory), filters, **encode)
        return measure(fit.probabilities(scores, scores), scores, right, self.calibration.base_rates)

    def _judged(
        self, texts: Sequence[str], truth: csr_matrix, memory: bool, filters: np.ndarray | None, **encode: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """The CONTEXT best scores of each text and which of them are right, both (N, CONTEXT)."""
        texts, truth = checked_texts(texts), csr_matrix(truth)
        if truth.shape[0] != len(texts) or truth.shape[1] > len(self.labels) or not len(texts):
            raise ValueError(
                f"truth must have shape ({len(texts)}, at most {len(self.labels)}) for {len(texts)} texts and "
                f"{len(self.labels)} labels, at least one each, got {truth.shape}"
            )
        pairs = np.zeros((0, 2), dtype=np.int64) if filters is None else np.asarray(filters)
        most = int(np.bincount(pairs[:, 0]).max()) if len(pairs) else 0
        ids, scores = self._nearest(self._queries(texts, **encode), CONTEXT + most, memory, None)
        if most:
            ids, scores = drop_pairs(ids, scores, pairs)
        ids, scores = ids[:, :CONTEXT], scores[:, :CONTEXT]
        wanted = truth.tocoo()
        known = wanted.row.astype(np.int64)[wanted.data > 0] * len(self.labels) + wanted.col[wanted.data > 0]
        pairs_found = np.arange(len(ids))[:, None] * len(self.labels) + ids
        return scores, np.isin(pairs_found, known) & (ids != MISSING_ID)

    # -- saving and loading -------------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Write the repo: a sentence-transformers folder with labels, index and pipeline beside it.

        It is written in full under another name first, so that a failure leaves no half-written folder.

        Args:
            path: The folder; files in it that this repo has too are replaced.
        """
        save_parts(self, path)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, revision: str | None = None, device: str | None = None) -> Retriever:
        """Load what :meth:`save_pretrained` or :meth:`push_to_hub` wrote.

        Args:
            path: A folder or a Hub repo id.
            revision: A branch, tag or commit of the Hub repo.
            device: Where the encoder runs, for example "cpu" or "cuda".

        Raises:
            ValueError: naming the file that is missing, damaged or of a newer format version, and the way out.
        """
        folder = Path(path)
        if not folder.is_dir():
            folder = Path(snapshot_download(str(path), revision=revision))
        return cls(**vars(read_parts(folder, device)))

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Publish the repo; the same files as :meth:`save_pretrained`. Returns the address of the commit."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            write_parts(self, Path(folder))
            return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Push retriever").commit_url
