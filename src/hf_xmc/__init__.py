"""Extreme multi-label classification for the Hugging Face ecosystem."""

from __future__ import annotations

__version__ = "0.2.0"

import sys

from hf_xmc import losses, metrics, ranker
from hf_xmc.data.dataset import XMCDataset
from hf_xmc.data.lf.load import load_lf
from hf_xmc.encoders import lora, static
from hf_xmc.encoders.classifier import LabelClassifier
from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.encoders.pretrained import minilm_path, wordllama_embedding
from hf_xmc.evaluation.evaluator import XMCEvaluator
from hf_xmc.hub.repo_xmc import SearchForm
from hf_xmc.index.label_index import LabelIndex
from hf_xmc.retriever.retriever import Retriever
from hf_xmc.serving.pipeline import pipeline, register
from hf_xmc.training import collator
from hf_xmc.training.arguments import XMCTrainingArguments
from hf_xmc.training.collator import XMCDataCollator
from hf_xmc.training.trainer import XMCTrainer

register()
# Modules under the names they had before 0.2, as scripts of that time import them.
for _old, _module in {"data.collator": collator, "lora": lora, "static": static}.items():
    sys.modules[f"{__name__}.{_old}"] = _module

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
    "ranker",
    "wordllama_embedding",
]
