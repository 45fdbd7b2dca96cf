"""Classifier rows made longer for frequent labels: a prior that training over a pool of labels leaves out in part.

A label that is often right should win where two match a query alike. A pool holds frequent labels as negatives more
often than rare ones, which takes a part of that prior away; a power of the label's frequency, fitted on held-out rows,
gives it back at no cost in search (logit adjustment: Menon et al., ICLR 2021, https://arxiv.org/abs/2007.07314).
"""

from __future__ import annotations

import numpy as np
import torch

from hf_xmc.data.dataset import XMCDataset
from hf_xmc.encoder import XMCEncoder
from hf_xmc.evaluation import XMCEvaluator
from hf_xmc.metrics.functional import label_counts

POWERS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08)


def frequency_factors(counts: np.ndarray, power: float) -> np.ndarray:
    """(L,) float32: ``((n + 1) / 2) ** power`` of labels with ``counts`` (L,) training rows; 1 for one row."""
    if not np.isfinite(power):
        raise ValueError(f"power must be a finite number, got {power}")
    return (((np.asarray(counts) + 1) / 2) ** power).astype(np.float32)


def lengthen_rows(encoder: XMCEncoder, data: XMCDataset, power: float) -> None:
    """Multiply the rows by :func:`frequency_factors`, once, when the encoder is trained.

    Args:
        encoder: With a classifier for ``data``'s labels; of a residual row the whole is multiplied, text included.
        data: The labels, and in ``train`` how frequent they are.
        power: From :func:`fit_frequency_power`; 0 changes nothing.
    """
    if power == 0:
        return
    _, rows = _halves(encoder, data)
    classifier = encoder.label_classifier
    free = classifier.rows.weight.detach().float().cpu().numpy()
    factors = frequency_factors(label_counts(data.to_csr("train")), power)[:, None]
    classifier.initialize(torch.from_numpy(free + (factors - 1) * rows))


def fit_frequency_power(encoder: XMCEncoder, evaluator: XMCEvaluator) -> tuple[float, dict[float, dict[str, float]]]:
    """The power among ``POWERS`` with the largest precision@1 + psp@1, so that neither pays more than the other wins.

    Args:
        encoder: Trained on ``evaluator.data.train``, its search form chosen; not changed.
        evaluator: Of a held-out split, never of the test split.

    Returns:
        The power and the metrics of every power tried.

    Raises:
        ValueError: if the encoder has no classifier, or one for other labels.
    """
    data = evaluator.data
    text, rows = _halves(encoder, data)
    queries = encoder.query_vectors(data.test["text"][:])
    tried: dict[float, dict[str, float]] = {}
    for power in POWERS:
        factors = frequency_factors(evaluator.train_counts, power)[:, None]
        ids, _ = evaluator.search(queries, encoder.join_labels(text, factors * rows))
        tried[power] = evaluator.metrics(ids)
    return max(tried, key=lambda power: tried[power]["precision@1"] + tried[power]["psp@1"]), tried


def _halves(encoder: XMCEncoder, data: XMCDataset) -> tuple[np.ndarray, np.ndarray]:
    """Label vectors (L, De) and whole rows (L, Dc)."""
    if encoder.label_classifier is None:
        raise ValueError("there are no rows to lengthen: the encoder has no classifier")
    return encoder.label_halves(data.labels["text"][:])
