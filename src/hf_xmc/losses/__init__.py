"""Losses over huge label sets: functions of scores, functions of tables, and sentence-transformers losses."""

from __future__ import annotations

from hf_xmc.losses.all_labels import AllLabelsLoss
from hf_xmc.losses.label_table import LabelTableLoss
from hf_xmc.losses.label_terms import LabelNeighbors, LabelTerms
from hf_xmc.losses.pool.binary_cross_entropy import BinaryCrossEntropyLoss
from hf_xmc.losses.pool.cached import CachedDecoupledSoftmaxLoss, CachedSoftTopKLoss
from hf_xmc.losses.pool.decoupled_softmax import DecoupledSoftmaxLoss
from hf_xmc.losses.pool.info_nce import InfoNCELoss
from hf_xmc.losses.pool.retrieval_augmented import RetrievalAugmentedLoss
from hf_xmc.losses.pool.soft_top_k import SoftTopKLoss
from hf_xmc.losses.unified import UnifiedLoss

# The name that callers outside know.
LabelNeighbours = LabelNeighbors

__all__ = [
    "AllLabelsLoss",
    "BinaryCrossEntropyLoss",
    "CachedDecoupledSoftmaxLoss",
    "CachedSoftTopKLoss",
    "DecoupledSoftmaxLoss",
    "InfoNCELoss",
    "LabelNeighbors",
    "LabelNeighbours",
    "LabelTableLoss",
    "LabelTerms",
    "RetrievalAugmentedLoss",
    "SoftTopKLoss",
    "UnifiedLoss",
]
