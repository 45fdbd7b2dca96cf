"""Folding training rows into the label vectors: a memory without a larger index."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from hf_xmc.index.label_index import LabelIndex
from hf_xmc.memory.fit import Scored, sure_gain, target_of

_FOLD_WEIGHTS = (0, 0.2, 0.4, 0.5, 0.6, 0.8)


def fold_rows(
    label_vectors: np.ndarray, row_vectors: np.ndarray, truth: sp.csr_matrix, row_weight: float = 0.5
) -> np.ndarray:
    """Label vectors that remember their training rows: a memory without a larger index (PEFA-XS).

        z'_l = (1 - row_weight) z_l + row_weight |z_l| m_l / |m_l|,   m_l = sum of the vectors of l's training rows

    The sum is not cut to unit length again: a label whose text and rows disagree becomes shorter and so less ready to
    be predicted, which measured several points better. Labels without training rows stay as they are.

    Args:
        label_vectors: (L, D) float32.
        row_vectors: (N, D) float32, in the space of the label vectors (see :class:`KnowledgeMemory`).
        truth: scipy sparse (N, L).
        row_weight: In [0, 1]; 0 changes nothing.

    Returns:
        (L, D) float32, for a :class:`~hf_xmc.LabelIndex`.
    """
    if not 0 <= row_weight <= 1:
        raise ValueError(f"row_weight must lie in [0, 1], got {row_weight}")
    if truth.shape != (len(row_vectors), len(label_vectors)):
        raise ValueError(f"truth must have shape {(len(row_vectors), len(label_vectors))}, got {truth.shape}")
    labels = np.asarray(label_vectors, dtype=np.float32)
    sums = np.asarray(sp.csr_matrix(truth).T @ np.asarray(row_vectors, dtype=np.float32))  # (L, D)
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    towards = np.linalg.norm(labels, axis=1, keepdims=True) * sums / np.maximum(length, 1e-12)
    folded = (1 - row_weight) * labels + row_weight * towards
    return np.where(length > 0, folded, labels).astype(np.float32)


def fit_fold(
    label_vectors: np.ndarray,
    row_vectors: np.ndarray,
    row_truth: sp.csr_matrix,
    queries: np.ndarray,
    truth: sp.csr_matrix,
    inverse_propensities: np.ndarray,
    *,
    psp_weight: float = 0.2,
    filters: np.ndarray | None = None,
) -> float:
    """The row_weight of :func:`fold_rows` of the surest gain, as :func:`fit_memory` defines it; 0 where none is sure.

    The queries must be held-out rows: a training row is part of its own labels' vectors.

    Args:
        label_vectors: (L, D) float32, what :func:`fold_rows` folds, with
        row_vectors: (N, D) float32 and
        row_truth: scipy sparse (N, L).
        queries: (M, D) float32.
        truth: scipy sparse (M, L), the labels of the queries.
        inverse_propensities: (L,), of the training rows.
        psp_weight: As in :func:`~hf_xmc.memory.fit_memory`.
        filters: (n, 2) int64, (query, label id) never predicted.
    """
    score = target_of(truth, inverse_propensities, psp_weight)

    def scored(weight: float) -> Scored:
        folded = LabelIndex.exact(fold_rows(label_vectors, row_vectors, row_truth, weight))
        return score(folded.search(queries, 1, filters=filters)[0])

    plain = scored(0)
    return max(_FOLD_WEIGHTS, key=lambda weight: sure_gain(scored(weight), plain) if weight else 0.0)
