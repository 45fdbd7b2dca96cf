"""Retriever: an encoder, the index of its labels and their texts. What a user predicts with, saves and publishes."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.encoders.prompts import encode_options
from hf_xmc.hub.answers_xmc import Ranking, answer, rank
from hf_xmc.hub.checks_xmc import checked_request, checked_texts
from hf_xmc.hub.filters_xmc import checked_filters
from hf_xmc.hub.ranker_xmc import Ranker
from hf_xmc.hub.votes_xmc import MemoryForm
from hf_xmc.index.label_index import LabelIndex
from hf_xmc.memory.knowledge_memory import KnowledgeMemory
from hf_xmc.metrics.inputs import Truth
from hf_xmc.metrics.reliability import CalibrationReport
from hf_xmc.ranker.fit import RankerReport
from hf_xmc.retriever.calibration import FittedCalibration, calibrate, reliability
from hf_xmc.retriever.files import RetrieverParts, fetched, push_parts, read_parts, save_parts
from hf_xmc.retriever.parquet import fingerprint, predict_to_parquet
from hf_xmc.retriever.ranking import fit_ranker, renewed
from hf_xmc.retriever.vectors import query_vectors, unseen_rows

# Of rank, what is no option of the encoder.
_OPTIONS = ("threshold", "min_precision", "tail", "candidates", "memory")


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
    ranker: Ranker | None = _part("ranker")

    def __init__(self, parts: RetrieverParts) -> None:
        self.parts = parts
        self._changes = threading.Lock()

    def __reduce__(self) -> tuple[type[Retriever], tuple[RetrieverParts]]:
        return Retriever, (self.parts,)

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
        tail: float = 0.0,
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
            min_precision: In (0, 1], the share of all kept labels that is to be right. With a ranker this is promised
                (:meth:`fit_ranker`), for at most five labels a text, and none is kept, with a warning, where nothing
                can be promised. With :meth:`calibrate` a text keeps the longest list whose mean probability reaches
                it; a memory does not keep wishes near 1 (benchmarks/README.md).
            tail: With a ranker, in [0, 1]: from the likeliest labels first (0) towards rare ones. Scores are of logits
                with this share of the logarithm of the inverse propensity added; probabilities stay as they are.
            candidates: Ids of the only labels to choose from, for all texts alike; None for all. A text has fewer
                than top_k labels where there are fewer candidates.
            memory: True for the votes of training rows, whose scores are shares of the vote, with labels that got none
                after them in the order of their label score; False for the label search alone; None for the ranker,
                whose scores are probabilities, without one the votes, and without a memory the search.
            return_evidence: Whether each label comes with the training rows and the label text behind it.
            num_evidence: Training rows shown for a label, those of the largest share.
            encode: Passed to ``encode``.

        Returns:
            N lists of at most top_k ``{"label": str, "score": float, "label_id": int}``, best first, ties by ascending
            id; with a ranker or calibrated also ``"probability"``; with evidence also ``"evidence": {"label":
            {"score", "share"}, "rows": [{"text", "row", "score", "share"}]}``, of a ranker also ``"features"``.

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
            tail=tail,
            candidates=candidates,
            memory=memory,
            return_evidence=return_evidence,
            num_evidence=num_evidence,
        )
        texts = checked_texts(texts)
        return answer(parts, query_vectors(parts, texts, **encode), texts, request)

    def rank(
        self,
        texts: str | Iterable[str],
        top_k: int | None = None,
        *,
        filters: np.ndarray | None = None,
        **options: Any,
    ) -> Ranking:
        """What :meth:`predict` answers, as arrays of ids and scores; options and errors are the same.

        With ``filters`` (n, 2) int64, (row, label id) that are passed over, for example ``data.filters["test"]``.
        """
        parts = self.parts
        asked = {name: options.pop(name) for name in _OPTIONS if name in options}
        request = checked_request(parts, top_k, **asked)
        texts = checked_texts(texts)
        pairs = checked_filters(filters, len(texts), len(parts.labels))
        return rank(parts, query_vectors(parts, texts, **options), texts, request, pairs)

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
            form: How votes are weighed, None for the defaults. A ranker weighs them itself.
            dtype: float32, float16 or int8, how the rows are kept.
            encode: Passed to ``encode``.
        """
        texts = checked_texts(texts)
        if not texts:
            raise ValueError("there are no texts to remember; to forget all, set retriever.memory = None")
        with self._changes:
            keys = self.encoder.key_vectors(texts, **encode)
            memory = KnowledgeMemory(keys, truth, self.index, form or MemoryForm(), dtype=dtype)
            self.parts = renewed(replace(self.parts, memory=memory, memory_texts=texts))

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
            embedding, rows, free = unseen_rows(encoder, texts, **encode)
            if classifier is not None and rows is not None and parts.classifier is not None:
                classifier.append(torch.from_numpy(rows) if free is None else free.expand(len(texts), -1))
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
                ranker=None if parts.ranker is None else parts.ranker.with_labels(texts),
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
            lambda part: rank(parts, query_vectors(parts, part, **predict), part, request),
            texts,
            Path(folder).expanduser(),
            parts.labels,
            made_with=fingerprint(parts) | request._asdict() | {"prompt": prompt},
            rows_per_file=rows_per_file,
            show_progress_bar=show_progress_bar,
        )

    # -- what held-out texts teach ------------------------------------------------------------------------------------

    def fit_ranker(
        self,
        texts: Iterable[str],
        truth: Truth,
        *,
        train_truth: Truth | None = None,
        propensity: tuple[float, float] = (0.55, 1.5),
        filters: np.ndarray | None = None,
        hidden: float = 0.1,
        **encode: Any,
    ) -> RankerReport:
        """Learn from held-out texts how everything known about a label makes the probability that it is right.

        Later answers are ranked so. What is known: :data:`hf_xmc.ranker.FEATURES`. The texts must be as hard as those
        to come, and none of them a training row: the ``test`` of ``data.hold_out(0.1, answerable_only=True)``.

        Args:
            texts: N held-out texts; some thousands, of which 10,000 are used.
            truth: Their labels: (N, at most L) scipy sparse, or N lists of label ids.
            train_truth: Labels of the training rows, for how frequent each is; None: those of the memory.
            propensity: A and B of the data set, for ``tail``.
            filters: (n, 2) int64, (row, label id) that are never predicted.
            hidden: Share of the labels that half of the fit knows by their texts alone, as new ones are known.
            encode: Passed to ``encode``.

        Returns:
            What it gains on texts not fitted on, by cross-fitting, and what precision it promises; prints.
        """
        learned = (truth, train_truth, propensity, filters, hidden)
        self.ranker, report = fit_ranker(self.parts, checked_texts(texts), *learned, **encode)
        return report

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
        queries = query_vectors(self.parts, checked_texts(texts), **encode)
        self.calibration, report = calibrate(self.parts, queries, truth, memory, filters)
        return report

    def reliability(
        self, texts: Iterable[str], truth: Truth, *, filters: np.ndarray | None = None, **encode: Any
    ) -> CalibrationReport:
        """How well the probabilities fit other texts, for example a test split; arguments as for :meth:`calibrate`."""
        parts, texts = self.parts, checked_texts(texts)
        return reliability(parts, query_vectors(parts, texts, **encode), texts, truth, filters)

    # -- saving and loading -------------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Write the repo, a sentence-transformers folder with labels, index and pipeline beside it, whole or not.

        Files of the folder ``path`` that this repo has too are replaced.
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
        return push_parts(self.parts, repo_id, private, token)
