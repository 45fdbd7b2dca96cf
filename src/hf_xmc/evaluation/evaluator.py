"""XMCEvaluator: encode, search, drop filtered pairs, metrics. The host's trainer calls it like any other evaluator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator

from hf_xmc.data.dataset import XMCDataset
from hf_xmc.encoders.encoder import XMCEncoder, dual_vectors
from hf_xmc.index.label_index import LabelIndex
from hf_xmc.metrics.bootstrap import Interval, bootstrap_differences, bootstrap_intervals
from hf_xmc.metrics.frequency import frequency_bins
from hf_xmc.metrics.functional import inverse_propensities, label_counts, xmc_metrics
from hf_xmc.metrics.plots import plot_head_to_tail

# ln N - 1, by which inverse propensities weigh rare labels above frequent ones, is above 0 from here on.
MIN_TRAIN_ROWS = 3
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

    Raises:
        ValueError: If there are no test rows, none of them has a label, or there are too few train rows for the
            inverse propensities of PSP.
    """

    def __init__(
        self, data: XMCDataset, name: str = "", *, batch_size: int = 128, show_progress_bar: bool = False
    ) -> None:
        super().__init__()
        if not len(data.test):
            raise ValueError(f"{data.name} has no test rows to evaluate on; hold some out: data.hold_out(0.1)")
        if len(data.train) < MIN_TRAIN_ROWS:
            raise ValueError(
                f"{data.name} has {len(data.train)} train rows; the inverse propensities of PSP are made of the "
                f"labels of at least {MIN_TRAIN_ROWS}. Give the train rows too, or take hf_xmc.metrics.xmc_metrics "
                "without inverse propensities"
            )
        self.data = data
        self.name = name
        self.batch_size = batch_size
        self.show_progress_bar = show_progress_bar
        self.primary_metric = "precision@1"
        self.truth: csr_matrix = data.to_csr("test")
        if not self.truth.nnz:
            raise ValueError(f"none of the {len(data.test)} test rows of {data.name} has a label to be found")
        train = data.to_csr("train")
        self.train_counts = label_counts(train)
        self.inverse_propensities = inverse_propensities(train, data.propensity.a, data.propensity.b)

    def __call__(  # type: ignore[override]
        self, model: SentenceTransformer, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Judge a model; with ``output_path`` a line is added to ``xmc_evaluation.jsonl`` there."""
        ids, _ = self.predict(model)
        metrics = self.prefix_name_to_metrics(self.metrics(ids), self.name)
        self.store_metrics_in_model_card_data(model, metrics, int(epoch), steps)
        if output_path is not None:
            record = {"epoch": epoch, "steps": steps} | metrics
            name = "_".join(filter(None, ["xmc_evaluation", self.name]))
            Path(output_path).mkdir(parents=True, exist_ok=True)
            with open(Path(output_path) / f"{name}.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
        return metrics

    def predict(self, model: SentenceTransformer, top_k: int = max(RECALL_CUTS)) -> tuple[np.ndarray, np.ndarray]:
        """Ranking of the ``test`` rows: ids (N, top_k) int64 and scores (N, top_k) float32, filtered pairs dropped."""
        encode = {"batch_size": self.batch_size, "show_progress_bar": self.show_progress_bar}
        texts, labels = self.data.test["text"][:], self.data.labels["text"][:]
        if isinstance(model, XMCEncoder):
            vectors = model.label_vectors(labels, **encode)
            queries = model.query_vectors(texts, **encode)
        else:
            vectors = dual_vectors(model, labels, "document", **encode)
            queries = dual_vectors(model, texts, "query", **encode)
        return self.search(queries, vectors, top_k)

    def search(
        self, queries: np.ndarray, labels: np.ndarray, top_k: int = max(RECALL_CUTS)
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ranking of :meth:`predict` from vectors: queries (N, D) of the ``test`` rows, labels (L, D), float32."""
        return LabelIndex.exact(labels).search(queries, top_k, filters=self.data.filters["test"])

    def metrics(self, ids: np.ndarray) -> dict[str, float]:
        """ids: (N, K) int64, a ranking of the ``test`` rows. Returns the metrics, values in [0, 1]."""
        wanted = xmc_metrics(ids, self.truth, CUTS, self.inverse_propensities)
        far = xmc_metrics(ids, self.truth, RECALL_CUTS)
        return wanted | {f"recall@{k}": far[f"recall@{k}"] for k in RECALL_CUTS}

    def intervals(self, ids: np.ndarray, baseline_ids: np.ndarray | None = None) -> dict[str, Interval]:
        """95 % bootstrap intervals over rows, of the metrics at 1, 3, 5 or of their gain over a baseline's.

        Args:
            ids: (N, K) int64, a ranking of the ``test`` rows.
            baseline_ids: (N, K) int64, another ranking of the same rows; both are judged on the same draws.
        """
        if baseline_ids is None:
            return bootstrap_intervals(ids, self.truth, CUTS, self.inverse_propensities)
        return bootstrap_differences(ids, baseline_ids, self.truth, CUTS, self.inverse_propensities)

    def plot_head_to_tail(self, rankings: Mapping[str, np.ndarray], path: str | Path, k: int = 5) -> Path:
        """Draw precision and recall at k from frequent to rare labels as a PNG, one line a ranking.

        Args:
            rankings: Name -> ids (N, K) int64, a ranking of the ``test`` rows.
            path: The file.
            k: Places that count.

        Raises:
            ImportError: if the extra ``plots`` is not installed.
        """
        bins = {name: frequency_bins(ids, self.truth, self.train_counts, k) for name, ids in rankings.items()}
        return plot_head_to_tail(bins, path, k=k)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of the metrics."""
        propensity = self.data.propensity
        return {
            "dataset": self.data.name,
            "propensity_a": propensity.a,
            "propensity_b": propensity.b,
            "propensity_assumed": propensity.assumed,
        }
