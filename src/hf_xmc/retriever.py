"""Retriever: an encoder, the index of its labels and their texts. What a user predicts with, saves and publishes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from scipy.sparse import csr_matrix

from hf_xmc.encoder import XMCEncoder
from hf_xmc.index import LabelIndex
from hf_xmc.memory import Evidence, KnowledgeMemory, MemoryForm
from hf_xmc.retriever_files import RetrieverParts, read_parts, save_parts, write_parts


class Retriever(RetrieverParts):
    """Answers texts with labels. :meth:`build` one from a trained encoder, or load a saved one.

    Its attributes are those of :class:`~hf_xmc.retriever_files.RetrieverParts`.
    """

    @classmethod
    def build(cls, encoder: XMCEncoder, labels: Sequence[str], **encode: Any) -> Retriever:
        """Encode and index all labels.

        Args:
            encoder: A trained encoder.
            labels: L label texts in id order, for example ``data.labels["text"]``.
            encode: Passed to ``encode`` (batch_size, show_progress_bar, ...).
        """
        labels = list(labels)
        halves = encoder.label_halves(labels, **encode)
        return cls(encoder, labels, *halves, LabelIndex(encoder.join_labels(*halves)))

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

    def predict(
        self,
        texts: str | Sequence[str],
        top_k: int = 5,
        *,
        memory: bool | None = None,
        return_evidence: bool = False,
        num_evidence: int = 3,
        **encode: Any,
    ) -> list[list[dict[str, Any]]]:
        """The best labels of each text.

        Args:
            texts: N texts (one text counts as a list of one).
            top_k: Labels for each text, at most the number of labels.
            memory: Whether training rows vote; None: if there is a memory. A text then has fewer than top_k labels
                where its nearest keys vote for fewer, and scores are shares of the vote.
            return_evidence: Whether each label comes with the training rows and the label text behind it.
            num_evidence: Training rows shown for a label, those of the largest share.
            encode: Passed to ``encode`` (batch_size, show_progress_bar, ...).

        Returns:
            N lists of top_k ``{"label": str, "score": float, "label_id": int}``, best first, ties by ascending id;
            with evidence also ``"evidence": {"label": {"score", "share"}, "rows": [{"text", "row", "score",
            "share"}]}``.

        Raises:
            ValueError: for a top_k below 1 or above the number of labels, a text that is no str, or a memory that is
                asked for but was never made.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise ValueError(f"texts must be str, got {type(texts[wrong]).__name__} at place {wrong}")
        if not 1 <= top_k <= self.index.num_alive:
            raise ValueError(f"top_k must lie between 1 and the {self.index.num_alive} labels, got {top_k}")
        if not texts:
            return []
        if memory is None:
            memory = self.memory is not None
        if self.memory is None and (memory or return_evidence):
            raise ValueError("this retriever has no memory; make one: remember(texts, truth)")
        queries = self.encoder.query_vectors(texts, **encode)
        search = self.memory.search if memory and self.memory is not None else self.index.search
        ids, scores = search(queries, top_k)
        answers: list[list[dict[str, Any]]] = [
            [
                {"label": self.labels[i], "score": s, "label_id": i}
                for i, s in zip(row_ids, row_scores, strict=True)
                if i >= 0
            ]
            for row_ids, row_scores in zip(ids.tolist(), scores.tolist(), strict=True)
        ]
        if return_evidence and self.memory is not None:
            evidence = self.memory.explain(queries, ids)
            for query, answer in enumerate(answers):
                for place, label in enumerate(answer):
                    label["evidence"] = self._shown(evidence, query, place, num_evidence)
        return answers

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
