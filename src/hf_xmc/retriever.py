"""Retriever: an encoder, the index of its labels and their texts. What a user predicts with, saves and publishes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from hf_xmc.encoder import CONFIG_FILE, XMCEncoder, check_format_version
from hf_xmc.hub import pipeline_xmc
from hf_xmc.index import LabelIndex, faiss
from hf_xmc.memory import Evidence, KnowledgeMemory, MemoryForm

LABELS_FILE, VECTORS_FILE, INDEX_FILE = "labels.json", "label_embeddings.safetensors", "index.faiss"
MEMORY_FOLDER, MEMORY_TEXTS_FILE = "memory", "texts.json"
_PIPELINES = {"xmc-retrieval": {"impl": "pipeline_xmc.XMCRetrievalPipeline", "pt": ["AutoModel"], "type": "text"}}


class Retriever:
    """Answers texts with labels. Build one from a trained encoder, or load a saved one.

    Args:
        encoder: The encoder, with or without a classifier.
        labels: L label texts in id order.
        embedding: (L, De) float32, the dual-encoder half of the labels.
        classifier: (L, Dc) float32, the classifier rows, or None.
        removed_ids: Ids of labels that are no longer predicted.

    Raises:
        ValueError: if texts and vectors differ in number.
    """

    def __init__(
        self,
        encoder: XMCEncoder,
        labels: Sequence[str],
        embedding: np.ndarray,
        classifier: np.ndarray | None = None,
        removed_ids: Sequence[int] = (),
    ) -> None:
        rows = {"label texts": len(labels), "label vectors": len(embedding)}
        if classifier is not None:
            rows["classifier rows"] = len(classifier)
        if len(set(rows.values())) > 1:
            raise ValueError(f"texts and vectors must agree in number, got {rows}")
        self.encoder = encoder
        self.labels = list(labels)
        self.embedding = embedding
        self.classifier = classifier
        self.index = LabelIndex(encoder.join_labels(embedding, classifier))
        self.memory: KnowledgeMemory | None = None
        self.memory_texts: list[str] = []
        if len(removed_ids):
            self.index.remove(np.asarray(removed_ids))

    @classmethod
    def build(cls, encoder: XMCEncoder, labels: Sequence[str], **encode: Any) -> Retriever:
        """Encode and index all labels.

        Args:
            encoder: A trained encoder.
            labels: L label texts in id order, for example ``data.labels["text"]``.
            encode: Passed to ``encode`` (batch_size, show_progress_bar, ...).
        """
        labels = list(labels)
        return cls(encoder, labels, *encoder.label_halves(labels, **encode))

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
        keys = self.encoder.join_labels(*self.encoder.encode_halves(texts, **encode))
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
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
            # Inside the scratch folder, which is private itself: copying takes the mode along.
            whole = Path(scratch) / "repo"
            whole.mkdir()
            self._write(whole)
            shutil.copytree(whole, path, dirs_exist_ok=True)

    def _write(self, folder: Path) -> None:
        backbone = self.encoder.transformers_model
        if backbone is not None:
            backbone.config.custom_pipelines = _PIPELINES
        self.encoder.save_pretrained(str(folder))
        if isinstance(self.encoder[0], StaticEmbedding):
            _write_static_door(folder, self.encoder[0])
        shutil.copy(pipeline_xmc.__file__, folder / "pipeline_xmc.py")
        (folder / LABELS_FILE).write_text(json.dumps(self.labels, ensure_ascii=False), encoding="utf8")
        vectors = {"embedding": self.embedding}
        if self.classifier is not None:
            vectors["classifier"] = self.classifier
        save_file({name: np.ascontiguousarray(half) for name, half in vectors.items()}, folder / VECTORS_FILE)
        if faiss is not None:
            self.index.save(folder / INDEX_FILE)
        if self.memory is not None:
            self.memory.save(folder / MEMORY_FOLDER)
            texts = json.dumps(self.memory_texts, ensure_ascii=False)
            (folder / MEMORY_FOLDER / MEMORY_TEXTS_FILE).write_text(texts, encoding="utf8")
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf8"))
        config["removed_ids"] = np.flatnonzero(~self.index.alive).tolist()
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf8")

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
        config = _read_json(folder, CONFIG_FILE)
        check_format_version(config, folder / CONFIG_FILE)
        labels = _read_json(folder, LABELS_FILE)
        vectors = _read_vectors(folder)
        for name, half in vectors.items():
            if len(half) != len(labels):
                raise ValueError(
                    f"{folder}: {LABELS_FILE} has {len(labels)} labels but {VECTORS_FILE} {len(half)} rows "
                    f"of {name!r}; the repo is damaged, fetch or save it again"
                )
        encoder = XMCEncoder(str(folder), device=device)
        halves = vectors["embedding"], vectors.get("classifier")
        retriever = cls(encoder, labels, *halves, config.get("removed_ids", ()))
        if (folder / MEMORY_FOLDER).is_dir():
            retriever.memory = KnowledgeMemory.load(folder / MEMORY_FOLDER, retriever.index)
            retriever.memory_texts = _read_json(folder, f"{MEMORY_FOLDER}/{MEMORY_TEXTS_FILE}")
            if len(retriever.memory_texts) != len(retriever.memory):
                raise ValueError(
                    f"{folder / MEMORY_FOLDER}: {MEMORY_TEXTS_FILE} has {len(retriever.memory_texts)} texts, the "
                    f"memory {len(retriever.memory)} rows; the repo is damaged, fetch or save it again"
                )
        return retriever

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Publish the repo; the same files as :meth:`save_pretrained`. Returns the address of the commit."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self._write(Path(folder))
            return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Push retriever").commit_url


def _read_json(folder: Path, name: str) -> Any:
    file = folder / name
    if not file.is_file():
        raise ValueError(f"{folder} has no {name}; save it with Retriever.save_pretrained, or fetch the whole repo")
    try:
        return json.loads(file.read_text(encoding="utf8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged ({error}); fetch or save the repo again") from error


def _read_vectors(folder: Path) -> dict[str, np.ndarray]:
    file = folder / VECTORS_FILE
    if not file.is_file():
        raise ValueError(f"{folder} has no {VECTORS_FILE}; rebuild it: Retriever.build(XMCEncoder(folder), labels)")
    try:
        return load_file(file)
    except Exception as error:  # safetensors raises a class of its own that is not exported everywhere
        raise ValueError(f"{file} is damaged ({error}); fetch or save the repo again") from error


def _write_static_door(folder: Path, module: StaticEmbedding) -> None:
    """Let AutoModel and AutoTokenizer open a static encoder, which has no transformers model of its own."""
    config = {
        "model_type": pipeline_xmc.XMCStaticConfig.model_type,
        "architectures": ["XMCStaticModel"],
        "auto_map": {"AutoConfig": "pipeline_xmc.XMCStaticConfig", "AutoModel": "pipeline_xmc.XMCStaticModel"},
        "vocab_size": module.num_embeddings,
        "hidden_size": module.embedding_dim,
        "dtype": str(torch.float32).removeprefix("torch."),
        "custom_pipelines": _PIPELINES,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf8")
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2), encoding="utf8")
