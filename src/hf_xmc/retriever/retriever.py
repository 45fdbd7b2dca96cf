"""Retriever: an encoder, the index of its labels and their texts. What a user predicts with, saves and publishes."""

from __future__ import annotations

import copy
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi

from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.encoders.prompts import encode_options
from hf_xmc.hub.answers_xmc import Ranking, answer, rank
from hf_xmc.hub.checks_xmc import checked_request, checked_texts
from hf_xmc.hub.votes_xmc import MemoryForm
from hf_xmc.index.label_index import LabelIndex
from hf_xmc.memory.knowledge_memory import KnowledgeMemory
from hf_xmc.metrics.inputs import Truth
from hf_xmc.metrics.reliability import CalibrationReport, base_rates, measure
from hf_xmc.retriever.calibration import FittedCalibration, cross_fitted_report, fit_calibration, judge_queries
from hf_xmc.retriever.files import OPTIONAL, RetrieverParts, fetched, read_parts, save_parts, write_parts
from hf_xmc.retriever.parquet import digest, predict_to_parquet

# Of rank, what is no option of the encoder.
_OPTIONS = ("threshold", "min_precision", "candidates", "memory")


def _part(name: str) -> Any:
    """An attribute that is one of the parts, for reading and for replacing."""

    def read(self: Retriever) -> Any:
        return getattr(self.parts, name)

    def write(self: Retriever, value: Any) -> None:
        self.parts = replace(self.parts, **{name: value})

    return property(read, write, doc=f"``parts.{name}``.")


class Retriever:
    """Answers texts with labels. :meth:`build` one from a trained encoder, or load a saved one.

    A call reads ``parts`` once, and labels that are added or removed replace them as a whole: threads that predict
    meanwhile get an answer from before or after.

    Args:
        parts: What it owns; each is an attribute of the retriever, too.
    """

    encoder: XMCEncoder = _part("encoder")
    labels: Sequence[str] = _part("labels")
    embedding: np.ndarray = _part("embedding")
    classifier: np.ndarray | None = _part("classifier")
    index: LabelIndex = _part("index")
    memory: KnowledgeMemory | None = _part("memory")
    memory_texts: Sequence[str] = _part("memory_texts")
    calibration: FittedCalibration | None = _part("calibration")

    def __init__(self, parts: RetrieverParts) -> None:
        self.parts = parts
        self._changes = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @classmethod
    def build(cls, encoder: XMCEncoder, labels: Sequence[str], *, index: str = "auto", **encode: Any) -> Retriever:
        """Encode and index all labels.

        Args:
            encoder: A trained encoder.
            labels: L label texts in id order, for example ``data.labels["text"]``.
            index: The kind of index, see :class:`~hf_xmc.LabelIndex`.
            encode: Passed to ``encode`` (batch_size, show_progress_bar, ...).
        """
        labels = checked_texts(labels)
        if not labels or not isinstance(encoder, XMCEncoder):
            raise ValueError(
                f"expected an XMCEncoder and labels, got {type(encoder).__name__} and {len(labels)} labels; "
                "of a SentenceTransformer make one: XMCEncoder(modules=list(model))"
            )
        halves = encoder.label_halves(labels, **encode)
        return cls(RetrieverParts(encoder, labels, *halves, LabelIndex(encoder.join_labels(*halves), kind=index)))

    # -- answers ------------------------------------------------------------------------------------------------------

    def predict(
        self,
        texts: str | Iterable[str],
        top_k: int | None = None,
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
            top_k: Labels for each text, at most the number of labels; None for 5, or all where there are fewer.
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
            ValueError: For what is no text, or an option that this retriever cannot answer, with what came and what
                was expected.
        """
        parts = self.parts
        request = checked_request(
            parts,
            top_k,
            threshold=threshold,
            min_precision=min_precision,
            candidates=candidates,
            memory=memory,
            return_evidence=return_evidence,
            num_evidence=num_evidence,
        )
        return answer(parts, _queries(parts, checked_texts(texts), **encode), request)

    def rank(self, texts: str | Iterable[str], top_k: int | None = None, **options: Any) -> Ranking:
        """What :meth:`predict` answers, as arrays of ids and scores; options and errors are the same."""
        parts = self.parts
        asked = {name: options.pop(name) for name in _OPTIONS if name in options}
        request = checked_request(parts, top_k, **asked)
        return rank(parts, _queries(parts, checked_texts(texts), **options), request)

    def remember(
        self,
        texts: Iterable[str],
        truth: Truth,
        form: MemoryForm | None = None,
        dtype: str = "float16",
        **encode: Any,
    ) -> None:
        """Let training rows vote in later predictions: the knowledge memory of RAE-XMC, without further training.

        Args:
            texts: N texts, for example ``data.train["text"]``.
            truth: Their labels: (N, L) scipy sparse, for example ``data.to_csr("train")``, or N lists of label ids.
            form: How votes are weighed, None for the defaults; :func:`hf_xmc.memory.fit_memory` fits one on a
                held-out part.
            dtype: float32, float16 or int8, how the rows are kept.
            encode: Passed to ``encode``.
        """
        texts = checked_texts(texts)
        if not texts:
            raise ValueError("there are no texts to remember; to forget all, set retriever.memory = None")
        with self._changes:
            keys = self.encoder.key_vectors(texts, **encode)
            memory = KnowledgeMemory(keys, truth, self.index, form or MemoryForm(), dtype=dtype)
            self.parts = replace(self.parts, memory=memory, memory_texts=texts)

    # -- labels that come and go --------------------------------------------------------------------------------------

    def add_labels(self, texts: Sequence[str], **encode: Any) -> np.ndarray:
        """Give new labels the next ids; they are predicted at once, by their texts.

        The dual-encoder half is the text's own vector. The classifier row is the classifier head's vector of the text
        plus, with residual rows, the mean of all labels' free rows: what training did to every label alike
        (benchmarks/quality/new_labels.py). The encoder's classifier grows with them; train it with a new trainer. A
        memory stays; its rows do not vote for new labels until :meth:`remember` is called with them. A text that is a
        label already makes a second label.

        Args:
            texts: n label texts. Add many at once: each call copies the label vectors.
            encode: Passed to ``encode``.

        Returns:
            (n,) int64, their ids. Those of all other labels stay.

        Raises:
            ValueError: for a text that is no str.
        """
        texts = checked_texts(texts)
        if not texts:
            return np.zeros(0, dtype=np.int64)
        with self._changes:
            parts = self.parts
            encoder, classifier, all_rows = parts.encoder, parts.encoder.label_classifier, parts.classifier
            embedding, rows = encoder.encode_halves(texts, **encode_options(encoder, "document", encode))
            if classifier is not None and rows is not None and parts.classifier is not None:
                if classifier.residual:
                    free_row = classifier.rows.weight.detach().float().cpu().mean(0)
                    classifier.append(free_row.expand(len(texts), -1))
                    rows = rows + free_row.numpy()
                else:
                    classifier.append(torch.from_numpy(rows))
                all_rows = np.concatenate([parts.classifier, rows])
            index = copy.copy(parts.index)
            ids = index.add(encoder.join_labels(embedding, rows))
            self.parts = replace(
                parts,
                labels=[*parts.labels, *texts],
                embedding=np.concatenate([parts.embedding, embedding]),
                classifier=all_rows,
                index=index,
                memory=None if parts.memory is None else parts.memory.with_labels(index),
            )
        return ids

    def remove_labels(self, ids: Iterable[int]) -> None:
        """Never predict these labels again. All ids stay, theirs too: they are not given to new labels.

        Raises:
            ValueError: for an id that is no label or was removed before.
        """
        with self._changes:
            self.index.remove(ids)

    # -- prediction into files ----------------------------------------------------------------------------------------

    def predict_to_parquet(
        self,
        texts: Iterable[str],
        folder: str | Path,
        top_k: int | None = None,
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
            top_k: Labels of each text; None for 5, or all where there are fewer.
            rows_per_file: Texts of a file.
            show_progress_bar: Whether texts are counted as they are done.
            predict: Passed to :meth:`rank`: threshold, min_precision, candidates, memory, batch_size, ...

        Returns:
            The folder. Columns: ``row`` int64, the place of the text; ``label_ids``, ``labels`` and ``scores``, lists
            of one length, best first; once calibrated also ``probabilities``.

        Raises:
            ValueError: if the folder holds predictions of another model, of other labels, arguments or texts.
        """
        parts = self.parts
        asked = {name: predict.pop(name) for name in _OPTIONS if name in predict}
        request = checked_request(parts, top_k, **asked)
        prompt = encode_options(parts.encoder, "query", predict)["prompt"]
        return predict_to_parquet(
            lambda part: rank(parts, _queries(parts, part, **predict), request),
            texts,
            Path(folder).expanduser(),
            parts.labels,
            made_with=self._fingerprint() | request._asdict() | {"prompt": prompt},
            rows_per_file=rows_per_file,
            show_progress_bar=show_progress_bar,
        )

    def _fingerprint(self) -> dict[str, Any]:
        """What decides the answers, as digests."""
        parts = self.parts
        index = parts.index
        model: list[Any] = [index.vectors, index.alive, repr(parts.encoder.search_form), index.kind]
        if parts.memory is not None:
            rows = parts.memory.parts
            model += [rows.keys.stored, rows.indptr, rows.indices, rows.votes, repr(rows.form)]
        if parts.calibration is not None:
            model.append(repr(parts.calibration.calibration))
        return {"model": digest(*model), "labels": digest(*parts.labels)}

    # -- calibration --------------------------------------------------------------------------------------------------

    def calibrate(
        self,
        texts: Iterable[str],
        truth: Truth,
        *,
        memory: bool | None = None,
        filters: np.ndarray | None = None,
        **encode: Any,
    ) -> CalibrationReport:
        """Learn what scores are worth: later answers have a probability of being right, and the same ranking.

        The texts must be as hard as those to come, and none of them a training row: the ``test`` of
        ``data.hold_out(0.1, answerable_only=True)`` where labels without training rows are not to be expected.

        Args:
            texts: N held-out texts; some thousands.
            truth: Their labels: (N, at most L) scipy sparse, or N lists of label ids.
            memory: Whether training rows vote, as for :meth:`predict`; probabilities are given for this way alone.
            filters: (n, 2) int64, (row, label id) that are dropped from the rankings.
            encode: Passed to ``encode``.

        Returns:
            How well the probabilities fit texts that were not fitted on, by cross-fitting; prints as a table.

        Raises:
            ValueError: for a truth of other texts or labels, or one without right and wrong predictions.
        """
        parts = self.parts
        votes = checked_request(parts, memory=memory).memory
        texts = checked_texts(texts)
        if len(texts) < 2:
            raise ValueError(f"a calibration is fitted on some thousands of texts, at least 2, got {len(texts)}")
        queries = _queries(parts, texts, **encode)
        scores, right = judge_queries(parts, queries, truth, votes, filters)
        report = cross_fitted_report(scores, right)
        self.calibration = FittedCalibration(fit_calibration(scores, right, votes), base_rates(scores, right), report)
        return report

    def reliability(
        self, texts: Iterable[str], truth: Truth, *, filters: np.ndarray | None = None, **encode: Any
    ) -> CalibrationReport:
        """How well the probabilities fit other texts, for example a test split; arguments as for :meth:`calibrate`."""
        parts = self.parts
        if parts.calibration is None:
            raise ValueError("this retriever has no probabilities; make them: calibrate(texts, truth)")
        fit = parts.calibration.calibration
        queries = _queries(parts, checked_texts(texts), **encode)
        scores, right = judge_queries(parts, queries, truth, fit.memory, filters)
        return measure(fit.probabilities(scores, scores), scores, right, parts.calibration.base_rates)

    # -- saving and loading -------------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Write the repo: a sentence-transformers folder with labels, index and pipeline beside it.

        It is written in full under another name first, so that a failure leaves no half-written folder.

        Args:
            path: The folder; files in it that this repo has too are replaced.
        """
        save_parts(self.parts, path)

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
        return cls(read_parts(fetched(path, revision=revision), device))

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Publish the repo; the same files as :meth:`save_pretrained`. Returns the address of the commit."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            write_parts(self.parts, Path(folder))
            stale = [pattern for name in OPTIONAL for pattern in (name, f"{name}/*")]  # those not uploaded here
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message="Push retriever", delete_patterns=stale
            )
            return commit.commit_url


def _queries(parts: RetrieverParts, texts: list[str], **encode: Any) -> np.ndarray:
    """(N, D) float32."""
    if not texts:
        return np.zeros((0, parts.index.vectors.shape[1]), dtype=np.float32)
    try:
        return parts.encoder.query_vectors(texts, **encode)
    except RuntimeError as error:
        # A transformer whose tokenizer adds no special tokens cannot run a batch of nothing.
        blank = next((place for place, text in enumerate(texts) if not text.strip()), None)
        if blank is None:
            raise
        raise ValueError(f"the text at place {blank} is empty, and no token to this encoder; leave it out") from error
