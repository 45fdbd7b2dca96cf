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

from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.index.label_index import MISSING_ID, LabelIndex
from hf_xmc.memory.knowledge_memory import KnowledgeMemory, MemoryForm
from hf_xmc.metrics.functional import drop_pairs
from hf_xmc.metrics.reliability import CalibrationReport, base_rates, measure
from hf_xmc.retriever.answers import RetrieverAnswers
from hf_xmc.retriever.calibration import CONTEXT, FittedCalibration, cross_fitted_report, fit_calibration
from hf_xmc.retriever.files import OPTIONAL, read_parts, save_parts, write_parts
from hf_xmc.retriever.parquet import digest, predict_to_parquet
from hf_xmc.retriever.ranking import as_ids, checked_texts


class Retriever(RetrieverAnswers):
    """Answers texts with labels. :meth:`build` one from a trained encoder, or load a saved one.

    Its attributes are those of :class:`~hf_xmc.retriever.files.RetrieverParts`.
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
            form: How votes are weighed, None for the defaults; :func:`hf_xmc.memory.fit.fit_memory` fits one on a
                held-out part.
            dtype: float32, float16 or int8, how the rows are kept.
            encode: Passed to ``encode``.
        """
        texts = list(texts)
        keys = self.encoder.key_vectors(texts, **encode)
        self.memory = KnowledgeMemory(keys, truth, self.index, form or MemoryForm(), dtype=dtype)
        self.memory_texts = texts

    # -- labels that come and go --------------------------------------------------------------------------------------

    def add_labels(self, texts: Sequence[str], **encode: Any) -> np.ndarray:
        """Give new labels the next ids; they are predicted at once, by their texts.

        The dual-encoder half is the text's own vector. The classifier row is the classifier head's vector of the text
        plus, with residual rows, the mean of all labels' free rows: what training did to every label alike
        (benchmarks/new_labels.py). The encoder's classifier grows with them; train it with a new trainer. A memory
        stays; its rows do not vote for new labels until :meth:`remember` is called with them. A text that is a label
        already makes a second label.

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
        prompt = {"prompt": self.encoder.prompts.get("document")}
        embedding, rows = self.encoder.encode_halves(texts, **(prompt | encode))
        classifier = self.encoder.label_classifier
        if classifier is not None and rows is not None and self.classifier is not None:
            if classifier.residual:
                free_row = classifier.rows.weight.detach().float().cpu().mean(0)
                classifier.append(free_row.expand(len(texts), -1))
                rows = rows + free_row.numpy()
            else:
                classifier.append(torch.from_numpy(rows))
            self.classifier = np.concatenate([self.classifier, rows])
        ids = self.index.add(self.encoder.join_labels(embedding, rows))
        self.labels = self.labels + texts
        self.embedding = np.concatenate([self.embedding, embedding])
        return ids

    def remove_labels(self, ids: Iterable[int]) -> None:
        """Never predict these labels again. All ids stay, theirs too: they are not given to new labels.

        Raises:
            ValueError: for an id that is no label or was removed before.
        """
        self.index.remove(as_ids(ids))

    # -- prediction into files ----------------------------------------------------------------------------------------

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
        ``data.hold_out(0.1, answerable_only=True)`` where labels without training rows are not to be expected.

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
            stale = [pattern for name in OPTIONAL for pattern in (name, f"{name}/*")]  # those not uploaded here
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message="Push retriever", delete_patterns=stale
            )
            return commit.commit_url
