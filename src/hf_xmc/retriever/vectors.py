"""Vectors of what a retriever is given: queries, and labels that training has not seen."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.encoders.prompts import encode_options
from hf_xmc.retriever.files import RetrieverParts


def query_vectors(parts: RetrieverParts, texts: list[str], **encode: Any) -> np.ndarray:
    """(N, D) float32, what the index is searched with.

    Raises:
        ValueError: Naming an empty text that the encoder has no token for.
    """
    if not texts:
        return np.zeros((0, parts.index.vectors.shape[1]), dtype=np.float32)
    try:
        return parts.encoder.query_vectors(texts, **encode)
    except RuntimeError as error:
        # A transformer whose tokenizer adds no special tokens cannot run a batch of nothing.
        blank = next((place for place, text in enumerate(texts) if not text.strip()), None)
        if blank is None:
            raise
        raise ValueError(f"the text at place {blank} is empty, and no token to this encoder; leave it out") from error


def unseen_rows(encoder: XMCEncoder, texts: list[str], **encode: Any) -> tuple[np.ndarray, np.ndarray | None, Any]:
    """The halves of labels that no training row has: (n, De), (n, Dc) or None, and the free part of the rows.

    The free part is the mean of all labels' free rows, (Dc,) tensor, what training did to every label alike; None
    where rows are not residual (benchmarks/quality/new_labels.py).
    """
    embedding, rows = encoder.encode_halves(texts, **encode_options(encoder, "document", encode))
    classifier = encoder.label_classifier
    if classifier is None or rows is None or not classifier.residual:
        return embedding, rows, None
    free = classifier.rows.weight.detach().float().cpu().mean(0)
    return embedding, rows + free.numpy(), free
