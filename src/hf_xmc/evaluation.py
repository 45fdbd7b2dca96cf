"""XMCEvaluator: encode, search, drop filtered pairs, metrics. The host's trainer calls it like any other evaluator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator

from hf_xmc.data.dataset import XMCDataset
from hf_xmc.encoder import XMCEncoder
from hf_xmc.index import LabelIndex
from hf_xmc.metrics.functional import drop_pairs, inverse_propensities, xmc_metrics

CUTS = (1, 3, 5)
RECALL_CUTS = (10, 100)


class XMCEvaluator(BaseEvaluator):
    """Precision, nDCG, PSP at 1, 3, 5 and recall at 10, 100 of an encoder over all labels; the values lie in [0, 1].

    Works with an :class:`~hf_xmc.XMCEncoder` and with any plain ``SentenceTransformer`` (scored by cosine). Filtered
    pairs leave the ranking before it is cut, so that a filtered prediction is neither rewarded nor punished.

    Args:
        data: The data set whose ``test`` part is evaluated; ``data.hold_out(...)`` for selection.
        name: Prefix of the metric keys, ``<name>_precision@1``; the primary metric is precision@1.
        batch_size: Texts encoded at once.
        show_progress_bar: Whether encoding shows its progress.
    """

    def __init__(
        self, data: XMCDataset, name: str = "", *, batch_size: int = 128, show_progress_bar: bool = False
    ) -> None:
        super().__init__()
        self.data = data
        self.name = name
        self.batch_size = batch_size
        self.show_progress_bar = show_progress_bar
        self.primary_metric = "precision@1"
        self.truth: csr_matrix = data.to_csr("test")
        self.inverse_propensities = inverse_propensities(data.to_csr("train"), data.propensity.a, data.propensity.b)

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        ids, _ = self.predict(model)
        metrics = self.prefix_name_to_metrics(self.metrics(ids), self.name)
        self.store_metrics_in_model_card_data(model, metrics, int(epoch), steps)
        if output_path is not None:
            record = {"epoch": epoch, "steps": steps} | metrics
            with open(Path(output_path) / f"xmc_evaluation{'_' * bool(self.name)}{self.name}.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
        return metrics

    def predict(self, model: SentenceTransformer, top_k: int = max(RECALL_CUTS)) -> tuple[np.ndarray, np.ndarray]:
        """Ranking of the ``test`` rows: ids (N, top_k) int64 and scores (N, top_k) float32, filtered pairs dropped."""
        encode = {"batch_size": self.batch_size, "show_progress_bar": self.show_progress_bar}
        texts, labels = self.data.test["text"][:], self.data.labels["text"][:]
        if isinstance(model, XMCEncoder):
            index = LabelIndex(model.label_vectors(labels, **encode))
            queries = model.query_vectors(texts, **encode)
        else:
            index = LabelIndex(model.encode(labels, normalize_embeddings=True, **encode))
            queries = model.encode(texts, normalize_embeddings=True, **encode)
        return search_filtered(index, queries, top_k, self.data.filters["test"])

    def metrics(self, ids: np.ndarray) -> dict[str, float]:
        """ids: (N, K) int64, a ranking of the ``test`` rows. Returns the metrics, values in [0, 1]."""
        wanted = xmc_metrics(ids, self.truth, CUTS, self.inverse_propensities)
        far = xmc_metrics(ids, self.truth, RECALL_CUTS)
        return wanted | {f"recall@{k}": far[f"recall@{k}"] for k in RECALL_CUTS}

    def get_config_dict(self) -> dict[str, Any]:
        propensity = self.data.propensity
        return {"dataset": self.data.name, "propensity_a": propensity.a, "propensity_b": propensity.b}


def search_filtered(
    index: LabelIndex, queries: np.ndarray, top_k: int, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Search deep enough that ``top_k`` places remain after dropping.

    Args:
        index: The labels.
        queries: (N, D) float32.
        top_k: Places of a row.
        pairs: (n, 2) int64, (row, label id) to drop.

    Returns:
        ids (N, top_k) int64 and scores (N, top_k) float32.
    """
    most = int(np.bincount(pairs[:, 0]).max()) if len(pairs) else 0
    ids, scores = index.search(queries, top_k + most)
    if most:
        ids, scores = drop_pairs(ids, scores, pairs)
    return ids[:, :top_k], scores[:, :top_k]
