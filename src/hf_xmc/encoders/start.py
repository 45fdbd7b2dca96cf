"""The encoder a recipe begins with, by the name its config gives."""

from __future__ import annotations

from hf_xmc.data.dataset import XMCDataset
from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.encoders.pretrained import minilm_path
from hf_xmc.encoders.static import static_embedding


def start_encoder(
    name: str, data: XMCDataset, *, max_seq_length: int, table_dimension: int | None = None
) -> XMCEncoder:
    """An encoder before training.

    Args:
        name: "static" for a table made for ``data``, "minilm" for the one of the extra, else a folder or Hub name.
        data: Whose train and label texts the static table is made of; its ``test`` part is not looked at.
        max_seq_length: Tokens of a text that count; a static table reads all.
        table_dimension: Width of the static table, see :func:`~hf_xmc.encoders.static.static_embedding`.
    """
    if name == "static":
        texts = data.train["text"][:] + data.labels["text"][:]
        table = static_embedding(texts, dimension=table_dimension)
        return XMCEncoder(modules=[table])
    encoder = XMCEncoder(minilm_path() if name == "minilm" else name)
    encoder.max_seq_length = max_seq_length
    return encoder
