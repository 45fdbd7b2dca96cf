"""Contestants of hf_xmc's own environment: TF-IDF kNN, MultipleNegativesRankingLoss with FAISS, our saved retriever.

    python -m benchmarks.peers.host CONTESTANT OUT.npz --data_dir FOLDER [--fields title content] [--rows N]
        [--retriever FOLDER]

CONTESTANT is ``tfidf-knn``, ``mnrl-static`` (starts from wordllama's token vectors), ``mnrl-minilm`` (starts from
all-MiniLM-L6-v2, on N rows drawn from train) or ``retriever``, which only loads a saved one and ranks. Writes ids,
scores and the CPU seconds of training and prediction.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

import hf_xmc
from benchmarks.peers.tasks import num_places
from hf_xmc.runs.baselines import tfidf_knn

SEED = 0


def train_mnrl(model: SentenceTransformer, data: hf_xmc.XMCDataset, rows: np.ndarray, **arguments: object) -> None:
    """The host's trainer on pairs of a text and one of its labels."""
    truth = data.to_csr("train")[rows]
    texts, labels = data.train.select(rows)["text"][:], data.labels["text"][:]
    owners = np.repeat(np.arange(len(rows)), np.diff(truth.indptr))
    pairs = Dataset.from_dict(
        {"anchor": [texts[row] for row in owners], "positive": [labels[label] for label in truth.indices]}
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = SentenceTransformerTrainingArguments(
            output_dir=folder,
            seed=SEED,
            warmup_steps=0.1,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **arguments,
        )
        loss = MultipleNegativesRankingLoss(model)
        SentenceTransformerTrainer(model=model, args=settings, train_dataset=pairs, loss=loss).train()


def rank_with_faiss(model: SentenceTransformer, data: hf_xmc.XMCDataset, k: int) -> tuple[np.ndarray, np.ndarray]:
    """ids and scores (N, k) of the test rows, by exact cosine."""
    labels = model.encode(data.labels["text"][:], normalize_embeddings=True, batch_size=128)
    queries = model.encode(data.test["text"][:], normalize_embeddings=True, batch_size=128)
    index = faiss.IndexFlatIP(labels.shape[1])
    index.add(labels)
    scores, ids = index.search(queries, k)
    return ids, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestant", choices=["tfidf-knn", "mnrl-static", "mnrl-minilm", "retriever"])
    parser.add_argument("output", type=Path)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--fields", nargs="+", default=["title"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--retriever", type=Path)
    options = parser.parse_args()
    data = hf_xmc.load_lf(options.data_dir, fields=options.fields, label_fields=options.fields)
    k = num_places(data)
    rows = np.random.default_rng(SEED).permutation(len(data.train))[: options.rows]
    start = trained = time.process_time()
    if options.contestant == "tfidf-knn":  # it drops filtered pairs itself
        ids = tfidf_knn(data)
        scores = np.where(ids >= 0, -np.arange(ids.shape[1], dtype=np.float32), -np.inf)
    elif options.contestant == "retriever":
        retriever = hf_xmc.Retriever.from_pretrained(str(options.retriever))
        queries = retriever.encoder.query_vectors(data.test["text"][:])
        ids, scores = (retriever.memory or retriever.index).search(queries, k)
    else:
        if options.contestant == "mnrl-static":
            model = SentenceTransformer(modules=[StaticEmbedding(*hf_xmc.wordllama_embedding())], device="cpu")
            size = {"per_device_train_batch_size": 1024, "num_train_epochs": 4, "learning_rate": 1e-2}
        else:
            model = SentenceTransformer(hf_xmc.minilm_path(), device="cpu")
            size = {"per_device_train_batch_size": 64, "num_train_epochs": 1, "learning_rate": 1e-4}
        train_mnrl(model, data, rows, **size)
        trained = time.process_time()
        ids, scores = rank_with_faiss(model, data, k)
    seconds = {"training": trained - start, "prediction": time.process_time() - trained}
    np.savez(options.output, ids=ids, scores=np.asarray(scores, dtype=np.float32), seconds=json.dumps(seconds))


if __name__ == "__main__":
    main()
