"""Encoders of texts, with or without a classifier row for each label."""

from __future__ import annotations

from hf_xmc.encoders.classifier import LabelClassifier
from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.encoders.lora import add_lora, merge_lora
from hf_xmc.encoders.pretrained import minilm_path, wordllama_embedding
from hf_xmc.encoders.static import static_embedding

__all__ = [
    "LabelClassifier",
    "XMCEncoder",
    "add_lora",
    "merge_lora",
    "minilm_path",
    "static_embedding",
    "wordllama_embedding",
]
