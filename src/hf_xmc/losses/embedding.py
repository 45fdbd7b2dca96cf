"""Texts of a batch -> vectors, without padding where the encoder allows it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hf_xmc.packing import can_pack, pack

VECTORS = ("sentence_embedding", "classifier_embedding", "label_weight")


def embed(model: nn.Module, feature: dict[str, Any]) -> dict[str, Tensor]:
    """All vectors the model gives for n texts, in their order: a dict of (n, D) tensors with the keys of ``VECTORS``.

    Padded texts are run as one flat row of tokens where :func:`~hf_xmc.packing.can_pack` holds: the same vectors as
    with padding, at about half the work for titles, in one forward on every rank, and the batch keeps its random
    composition.

    Args:
        model: A ``SentenceTransformer``, wrapped or not.
        feature: One column of a batch; every tensor in it has n rows, or the tokens are flat (``offsets``).
    """
    inner = getattr(model, "module", model)
    back = None
    if can_pack(inner, feature):
        feature, back = pack(inner, feature)
    out = model(feature)
    return {key: out[key] if back is None else out[key][back] for key in VECTORS if key in out}
