"""Tokens of many texts, made once; any selection of the texts as a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_xmc.encoders.prompts import prompt_of

_TEXTS_AT_ONCE = 4096
# Tokenising this many texts takes a few seconds: show how far it is.
_SHOW_PROGRESS_FROM = 200_000
_KNOWN_COLUMNS = {"input_ids", "attention_mask", "token_type_ids", "offsets"}


class TokenizedTexts:
    """The token ids of N texts, kept flat in int32.

    Args:
        preprocess: Of the encoder's first module: texts -> padded ``input_ids`` and ``attention_mask``, or flat
            ``input_ids`` and ``offsets``.
        texts: N texts, or an Arrow array of them.
        prompt: Put before each text.
        task: "query" or "document", for encoders that tell them apart.
        pad_id: Token id of the padding.
        special_ids: Token ids that ``features`` never drops.

    Raises:
        ValueError: if ``preprocess`` makes other tensors than those, which a selection could not rebuild.
    """

    def __init__(
        self,
        preprocess: Callable[..., dict[str, Any]],
        texts: Sequence[str] | pa.Array | pa.ChunkedArray,
        *,
        prompt: str | None = None,
        task: str = "document",
        pad_id: int = 0,
        special_ids: Sequence[int] = (),
    ) -> None:
        self.pad_id = pad_id
        self.special_ids = torch.tensor(sorted(special_ids), dtype=torch.int32)
        self.is_flat = False
        self.constants: dict[str, Any] = {}  # what the encoder's modules read beside tensors
        tokens, lengths = [torch.zeros(0, dtype=torch.int32)], [torch.zeros(0, dtype=torch.int64)]
        show = {"desc": "Tokenising", "unit": "text", "disable": len(texts) < _SHOW_PROGRESS_FROM}
        with tqdm(total=len(texts), **show) as progress:
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                part = texts[start : start + _TEXTS_AT_ONCE]
                part = part.to_pylist() if isinstance(part, pa.Array | pa.ChunkedArray) else list(part)
                found = preprocess(part, prompt=prompt or None, task=task)
                unknown = {key for key, value in found.items() if isinstance(value, Tensor)} - _KNOWN_COLUMNS
                if unknown:
                    raise ValueError(f"cannot keep the tokens of an encoder that also wants {sorted(unknown)}")
                self.constants = {key: value for key, value in found.items() if not isinstance(value, Tensor)}
                ids = found["input_ids"]
                self.is_flat = "offsets" in found
                if self.is_flat:
                    offsets = found["offsets"]
                    lengths.append(torch.diff(offsets, append=offsets.new_tensor([ids.numel()])))
                else:
                    mask = found["attention_mask"].bool()
                    ids = ids[mask]
                    lengths.append(mask.sum(1))
                tokens.append(ids.to(torch.int32))
                progress.update(len(part))
        self.tokens = torch.cat(tokens)  # (T,)
        self.lengths = torch.cat(lengths)  # (N,)
        self.starts = self.lengths.cumsum(0) - self.lengths  # (N,)

    @classmethod
    def of_model(
        cls, model: Any, texts: Sequence[str] | pa.Array | pa.ChunkedArray, task: str = "document"
    ) -> TokenizedTexts:
        """Those of a ``SentenceTransformer``, with its prompt for the task before each text."""
        return cls(model[0].preprocess, texts, prompt=prompt_of(model, task), task=task, **special_tokens(model))

    def __len__(self) -> int:
        return len(self.lengths)

    def features(self, rows: Tensor, dropout: float = 0.0, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """The texts ``rows`` (n,) int64 as one column of a batch, flat or padded, on the device of ``rows``.

        With a ``dropout`` each token but the special ones is left out with this probability, as ``rng`` draws; a text
        that would lose all keeps all.
        """
        device, rows = rows.device, rows.cpu()
        lengths = self.lengths[rows]
        row = torch.repeat_interleave(torch.arange(len(rows)), lengths)
        place = places_within(lengths)
        flat = self.tokens[self.starts[rows][row] + place]
        if dropout and rng is not None:
            kept = torch.from_numpy(rng.random(len(flat), dtype=np.float32) >= dropout)
            kept |= torch.isin(flat, self.special_ids)
            some_left = torch.zeros(len(rows), dtype=torch.bool).index_put_((row[kept],), torch.tensor(True))
            kept |= ~some_left[row]
            flat, row = flat[kept], row[kept]
            lengths = torch.bincount(row, minlength=len(rows))
            place = places_within(lengths)
        flat = flat.long()
        if self.is_flat:
            found = {"input_ids": flat.to(device), "offsets": (lengths.cumsum(0) - lengths).to(device)}
            return found | self.constants
        shape = (len(rows), max([1, *lengths.tolist()]))
        padded = torch.full(shape, self.pad_id)
        mask = torch.zeros(shape, dtype=torch.int64)
        padded[row, place], mask[row, place] = flat, 1
        return {"input_ids": padded.to(device), "attention_mask": mask.to(device)} | self.constants


def special_tokens(model: Any) -> dict[str, Any]:
    """``pad_id`` and ``special_ids`` of a ``SentenceTransformer``'s tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    pad_id = getattr(tokenizer, "pad_token_id", None)
    return {"pad_id": int(pad_id or 0), "special_ids": list(getattr(tokenizer, "all_special_ids", ()))}


def places_within(lengths: Tensor) -> Tensor:
    """(n,) lengths -> (sum,) place of each token in its text."""
    ends = lengths.cumsum(0)
    return torch.arange(int(lengths.sum())) - torch.repeat_interleave(ends - lengths, lengths)
