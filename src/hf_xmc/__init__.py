"""Extreme multi-label classification for the Hugging Face ecosystem."""

from __future__ import annotations

__version__ = "0.1.0"

from hf_xmc import losses, metrics
from hf_xmc.classifier import LabelClassifier
from hf_xmc.data.collator import XMCDataCollator
from hf_xmc.data.dataset import XMCDataset
from hf_xmc.data.lf import load_lf
from hf_xmc.encoder import SearchForm, XMCEncoder
from hf_xmc.evaluation import XMCEvaluator
from hf_xmc.index import LabelIndex
from hf_xmc.pipeline import pipeline, register
from hf_xmc.pretrained import minilm_path, wordllama_embedding
from hf_xmc.retriever import Retriever
from hf_xmc.trainer import XMCTrainer
from hf_xmc.training_args import XMCTrainingArguments

register()

__all__ = [
    "LabelClassifier",
    "LabelIndex",
    "Retriever",
    "SearchForm",
    "XMCDataCollator",
    "XMCDataset",
    "XMCEncoder",
    "XMCEvaluator",
    "XMCTrainer",
    "XMCTrainingArguments",
    "load_lf",
    "losses",
    "metrics",
    "minilm_path",
    "pipeline",
    "wordllama_embedding",
]
