"""Tokens of all labels, made once; any selection of labels as a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.base.losses.gradcache import has_static_embedding_input
from torch import Tensor

_TEXTS_AT_ONCE = 4096


class LabelTokens:
    """The token ids of L label texts, kept flat in int32.

    Args:
        model: A ``SentenceTransformer`` over text; its prompt for documents is put before each label.
        texts: L texts in id order.
    """

    def __init__(self, model: Any, texts: Sequence[str]) -> None:
        self.is_static = has_static_embedding_input(model)
        self.pad_id = 0 if self.is_static else int(getattr(model.tokenizer, "pad_token_id", 0) or 0)
        prompt = model.prompts.get("document") or None
        tokens, lengths = [], []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            part = model[0].preprocess(list(texts[start : start + _TEXTS_AT_ONCE]), prompt=prompt, task="document")
            ids = part["input_ids"]
            if self.is_static:
                offsets = part["offsets"]
                lengths.append(torch.diff(offsets, append=offsets.new_tensor([ids.numel()])))
            else:
                mask = part["attention_mask"].bool()
                ids = ids[mask]
                lengths.append(mask.sum(1))
            tokens.append(ids.to(torch.int32))
        self.tokens = torch.cat(tokens)  # (T,)
        self.lengths = torch.cat(lengths)  # (L,)
        self.starts = self.lengths.cumsum(0) - self.lengths  # (L,)

    def __len__(self) -> int:
        return len(self.lengths)

    def features(self, ids: Tensor) -> dict[str, Tensor]:
        """The labels ``ids`` (n,) as one column of a batch, flat or padded, on the device of ``ids``."""
        device, ids = ids.device, ids.cpu()
        lengths = self.lengths[ids]
        ends = lengths.cumsum(0)
        row = torch.repeat_interleave(torch.arange(len(ids)), lengths)
        place = torch.arange(int(ends[-1]) if len(ids) else 0) - (ends - lengths)[row]
        flat = self.tokens[self.starts[ids][row] + place].long()
        if self.is_static:
            return {"input_ids": flat.to(device), "offsets": (ends - lengths).to(device)}
        shape = (len(ids), max(1, int(lengths.max())))
        padded = torch.full(shape, self.pad_id)
        mask = torch.zeros(shape, dtype=torch.int64)
        padded[row, place], mask[row, place] = flat, 1
        return {"input_ids": padded.to(device), "attention_mask": mask.to(device)}
