"""Texts of a batch -> vectors, with little padding."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

VECTORS = ("sentence_embedding", "classifier_embedding", "label_weight")
_TOKEN_KEYS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
# Small groups waste least; a GPU needs larger ones to be busy.
_TEXTS_AT_ONCE = {"cpu": 16, "cuda": 256}


def embed(model: nn.Module, feature: dict[str, Any]) -> dict[str, Tensor]:
    """All vectors the model gives for n texts, in their order: a dict of (n, D) tensors with the keys of ``VECTORS``.

    Padded texts are run in groups of like length, each cut to its longest text: the same vectors as in one run, at
    about half the work for titles, and the batch keeps its random composition.

    Args:
        model: A ``SentenceTransformer``, wrapped or not.
        feature: One column of a batch; every tensor in it has n rows, or the tokens are flat (``offsets``).
    """
    groups = _groups_of_like_length(feature)
    if groups is None:
        out = model(feature)
        return {key: out[key] for key in VECTORS if key in out}
    outs = []
    for rows, width in groups:
        part = {key: value[rows] if isinstance(value, Tensor) else value for key, value in feature.items()}
        part |= {key: part[key][:, :width] for key in _TOKEN_KEYS if key in part}
        outs.append(model(part))
    back = torch.cat([rows for rows, _ in groups]).argsort()
    return {key: torch.cat([out[key] for out in outs])[back] for key in VECTORS if key in outs[0]}


def _groups_of_like_length(feature: dict[str, Any]) -> list[tuple[Tensor, int]] | None:
    """(rows, tokens of the longest) of each group, or None where the texts had better run at once."""
    mask = feature.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or "cu_seq_lens_q" in feature:
        return None
    size = _TEXTS_AT_ONCE.get(mask.device.type, 256)
    if mask.size(0) <= size or not bool(mask[:, 0].all()):  # left-padded tokens cannot be cut at the right
        return None
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return None  # DDP broadcasts buffers in each forward, so every rank must run equally many
    lengths = mask.sum(1)
    return [(rows, int(lengths[rows].max())) for rows in lengths.argsort().split(size)]
