"""A table of token vectors in training, each a sum of vectors that tokens share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from torch import nn

from hf_xmc.encoders.classifier import hub_options
from hf_xmc.encoders.tokens import places_within


class SumOfRows(torch.autograd.Function):
    """Sums of rows of a table, whose gradient holds each row once.

    ``nn.EmbeddingBag(sparse=True)`` gives a gradient row for every use of a row, which are then sorted, added up and
    merged: half the time of a training step where texts share most of their rows.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Weight (U, D), ids (T,), offsets (n,) -> (n, D)."""
        ctx.save_for_backward(ids, offsets)
        ctx.shape = weight.shape
        return F.embedding_bag(ids, weight, offsets, mode="sum")

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Of (n, D) the sparse gradient of the weight, each row once."""
        ids, offsets = ctx.saved_tensors
        lengths = torch.cat([offsets[1:], offsets.new_tensor([len(ids)])]) - offsets
        bag = torch.repeat_interleave(torch.arange(len(offsets), device=ids.device), lengths)  # (T,)
        order = torch.argsort(ids, stable=True)
        rows, counts = torch.unique_consecutive(ids[order], return_counts=True)  # (R,)
        starts = counts.cumsum(0) - counts
        values = F.embedding_bag(bag[order], gradient, starts, mode="sum")  # (R, D): of each row the bags that use it
        whole = torch.sparse_coo_tensor(
            rows.unsqueeze(0), values, ctx.shape, is_coalesced=True, check_invariants=False
        )
        return whole, None, None


class TableOfRows(nn.EmbeddingBag):
    """An EmbeddingBag of sums that is updated row by row where ``sparse`` is set."""

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Sums (n, D) of the rows ``ids`` (T,) of each text, which begin at ``offsets`` (n,)."""
        if self.sparse:
            return SumOfRows.apply(self.weight, ids, offsets)
        return super().forward(ids, offsets)


class SharedStaticEmbedding(StaticEmbedding):
    """A StaticEmbedding in training, in which a token's vector is a sum of vectors that tokens share.

    What a pair of words learns so reaches the two words and their pieces, and with it every text they stand in. The
    vector of a text is the mean over its tokens of those sums; :meth:`fold` adds them up into a plain table that gives
    the same vectors. :class:`~hf_xmc.XMCTrainer` folds when it has trained.

    Args:
        tokenizer: With V tokens.
        embedding_weights: (U, D), U >= V; row t < V is token t's own vector.
        indptr: (V + 1,) int64 and
        parts: (nnz,) int64, the rows that token t is the sum of: ``parts[indptr[t] : indptr[t + 1]]``, row t first.
            The others are rows from V on, or own rows of tokens that have no others below V.
    """

    def __init__(
        self, tokenizer: Tokenizer, embedding_weights: torch.Tensor, indptr: torch.Tensor, parts: torch.Tensor
    ) -> None:
        super().__init__(tokenizer, embedding_weights=embedding_weights)
        self.embedding = TableOfRows.from_pretrained(embedding_weights, freeze=False, mode="sum")
        self.register_buffer("indptr", indptr)
        self.register_buffer("parts", parts)
        # (U,) what a row adds to the number of tokens, so that the rows of each token add up to 1: own rows of tokens
        # are worth 1, but for those of a token that is made of others.
        own_rows = torch.cat([indptr.new_zeros(1), (parts < len(indptr) - 1).cumsum(0)])[indptr].diff()  # (V,)
        worth = torch.cat([2 - own_rows, indptr.new_zeros(len(embedding_weights) - len(own_rows))])
        self.register_buffer("worth", worth, persistent=False)

    def preprocess(  # type: ignore[override]
        self, inputs: list[str], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Texts -> the rows that their tokens are made of, flat."""
        tokens = super().preprocess(inputs, prompt, **kwargs)
        ids, indptr = tokens["input_ids"], self.indptr.cpu()
        counts = indptr[ids + 1] - indptr[ids]  # (T,)
        spread = self.parts.cpu()[torch.repeat_interleave(indptr[ids], counts) + places_within(counts)]
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])[tokens["offsets"]]
        return {"input_ids": spread, "offsets": starts}

    def forward(self, features: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
        """Add ``sentence_embedding`` (n, D), the mean over the tokens of a text."""
        ids, offsets = features["input_ids"], features["offsets"]
        worth_before = torch.cat([offsets.new_zeros(1), self.worth[ids].cumsum(0)])
        stops = torch.cat([offsets[1:], offsets.new_tensor([len(ids)])])
        num_tokens = (worth_before[stops] - worth_before[offsets]).clamp(min=1)  # (n,)
        features["sentence_embedding"] = self.embedding(ids, offsets) / num_tokens.unsqueeze(1)
        return features

    def fold(self) -> StaticEmbedding:
        """The plain module with one vector a token, equal on every text."""
        with torch.no_grad():
            table = F.embedding_bag(self.parts, self.embedding.weight, self.indptr[:-1], mode="sum")
        return StaticEmbedding(self.tokenizer, embedding_weights=table)

    @classmethod
    def load(  # type: ignore[override]
        cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any
    ) -> SharedStaticEmbedding:
        """Read what the trainer's checkpoint wrote."""
        hub = hub_options(kwargs)
        file = cls.load_file_path(model_name_or_path, filename="tokenizer.json", subfolder=subfolder, **hub)
        weights = cls.load_torch_weights(model_name_or_path=model_name_or_path, subfolder=subfolder, **hub)
        if file is None:
            raise ValueError(f"{model_name_or_path} has no tokenizer.json; save the checkpoint again")
        return cls(Tokenizer.from_file(file), weights["embedding.weight"], weights["indptr"], weights["parts"])
