"""Classifier rows made longer or shorter by what the training rows say about their labels, at no cost in search.

A label that is often right should win where two match a query alike. A pool holds frequent labels as negatives more
often than rare ones, which takes a part of that prior away; a power of the label's frequency, fitted on held-out rows,
gives it back (logit adjustment: Menon et al., ICLR 2021, https://arxiv.org/abs/2007.07314).

Where queries and labels are the same kind of thing (related products, articles to see also), a label may be a
training row itself. Relations mostly go both ways, and pairs whose reverse is known are not asked for: such a label's
own row lists what it is related to, and the query is not there. Its row of the classifier is made shorter, by less for
frequent labels, whose own lists leave things out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from hf_xmc.data.dataset import XMCDataset
from hf_xmc.encoders.classifier import LabelClassifier
from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.evaluation.evaluator import XMCEvaluator
from hf_xmc.metrics.functional import label_counts, xmc_metrics

POWERS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12)
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
# Labels of a held-out row that are ranked anew with other lengths, and rows whose vectors are held at once.
_DEPTH, _ROWS_AT_ONCE = 500, 256


@dataclass(frozen=True)
class RowLengths:
    """What classifier rows are multiplied by: ``((n + 1) / 2) ** power`` for a label of n training rows.

    Args:
        power: Of labels that are no training rows; 1 training row leaves a row as it is.
        own_share: What rows of labels that are training rows too are multiplied by, and
        own_power: their power.
    """

    power: float = 0.0
    own_share: float = 1.0
    own_power: float = 0.0

    def __post_init__(self) -> None:
        if not np.isfinite([self.power, self.own_power, self.own_share]).all() or self.own_share <= 0:
            raise ValueError(f"powers must be finite and own_share above 0, got {self!r}")

    def factors(self, counts: np.ndarray, own: np.ndarray) -> np.ndarray:
        """(L,) float32 of labels with ``counts`` (L,) training rows, ``own`` (L,) bool being training rows too."""
        frequency = (np.asarray(counts) + 1) / 2
        return np.where(own, self.own_share * frequency**self.own_power, frequency**self.power).astype(np.float32)

    def __str__(self) -> str:
        if (self.own_share, self.own_power) == (1.0, self.power):
            return f"power {self.power}"
        return f"power {self.power}; labels that are training rows: power {self.own_power}, times {self.own_share}"


def are_training_rows(data: XMCDataset) -> np.ndarray:
    """(L,) bool: labels whose text is the text of a training row."""
    texts = set(data.train["text"][:])
    return np.fromiter((text in texts for text in data.labels["text"][:]), dtype=bool, count=data.num_labels)


def lengthen_rows(encoder: XMCEncoder, data: XMCDataset, lengths: RowLengths) -> None:
    """Multiply the rows by the factors of ``lengths``, once, when the encoder is trained.

    Args:
        encoder: With a classifier for ``data``'s labels; of a residual row the whole is multiplied, text included.
        data: The labels, and in ``train`` how frequent they are and which of them are rows there.
        lengths: From :func:`fit_row_lengths`; the default changes nothing.
    """
    if lengths == RowLengths():
        return
    _, rows, classifier = _halves(encoder, data)
    free = classifier.rows.weight.detach().float().cpu().numpy()
    factors = lengths.factors(label_counts(data.to_csr("train")), are_training_rows(data))[:, None]
    classifier.initialize(torch.from_numpy(free + (factors - 1) * rows))


def fit_row_lengths(encoder: XMCEncoder, evaluator: XMCEvaluator) -> tuple[RowLengths, dict[str, float]]:
    """The lengths of the largest precision@1 + psp@1, so that neither pays more than the other wins.

    First one power for all labels. Labels that are training rows get a share and a power of their own where that is
    right for more held-out rows, by two standard errors of the difference. The best 500 labels of each row are ranked
    anew for every choice. Where the search form cuts rows to unit length there is nothing to fit.

    Args:
        encoder: Trained on ``evaluator.data.train``, its search form chosen; not changed.
        evaluator: Of a held-out split, never of the test split.

    Returns:
        The lengths, and the metrics with them.

    Raises:
        ValueError: if the encoder has no classifier, or one for other labels.
    """
    data, counts = evaluator.data, evaluator.train_counts
    text, rows, _ = _halves(encoder, data)
    queries = encoder.query_vectors(data.test["text"][:])
    own = are_training_rows(data)
    lengths = RowLengths()
    if not encoder.search_form.normalize_classifier:
        ids, scores = evaluator.search(queries, encoder.join_labels(text, rows), min(_DEPTH, data.num_labels))
        by_text = _products(queries, encoder.join_labels(text, 0 * rows), ids)  # what no length changes

        def judge(tried: RowLengths) -> tuple[float, np.ndarray]:
            """precision@1 + psp@1, and the rows (N,) whose first label is right."""
            ranked = np.where(ids >= 0, by_text + tried.factors(counts, own)[ids] * (scores - by_text), -np.inf)
            first = ids[np.arange(len(ids)), ranked.argmax(1)]
            metrics = xmc_metrics(first[:, None], evaluator.truth, (1,), evaluator.inverse_propensities)
            right = np.asarray(evaluator.truth[np.arange(len(ids)), first]).ravel() > 0
            return metrics["precision@1"] + metrics["psp@1"], right & (first >= 0)

        judged = {tried: judge(tried) for tried in (RowLengths(power, 1.0, power) for power in POWERS)}
        lengths = max(judged, key=lambda tried: judged[tried][0])
        if own.any():
            grid = [RowLengths(*values) for values in product(POWERS, SHARES, POWERS)]
            judged |= {tried: judge(tried) for tried in grid if tried not in judged}
            best = max(judged, key=lambda tried: judged[tried][0])
            gain = judged[best][1].astype(float) - judged[lengths][1]
            if gain.mean() > 2 * gain.std() / np.sqrt(len(gain)):
                lengths = best
    factors = lengths.factors(counts, own)[:, None]
    ids, _ = evaluator.search(queries, encoder.join_labels(text, factors * rows))
    return lengths, evaluator.metrics(ids)


def _products(queries: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(N, K) float32: each query's products with its own labels ``ids`` (N, K)."""
    found = np.empty(ids.shape, dtype=np.float32)
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        found[part] = np.matmul(labels[ids[part]], queries[part, :, None])[..., 0]
    return found


def _halves(encoder: XMCEncoder, data: XMCDataset) -> tuple[np.ndarray, np.ndarray, LabelClassifier]:
    """Label vectors (L, De), whole rows (L, Dc) and what holds their free part."""
    text, rows = encoder.label_halves(data.labels["text"][:])
    if encoder.label_classifier is None or rows is None:
        raise ValueError("there are no rows to lengthen: the encoder has no classifier")
    return text, rows, encoder.label_classifier
