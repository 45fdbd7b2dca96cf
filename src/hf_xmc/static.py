"""A static encoder made for a data set: vectors of its words, word pairs and pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram
from torch import nn

from hf_xmc.data.tokens import places_within
from hf_xmc.pretrained import wordllama_embedding

SPACE = "▁"
UNKNOWN = "<unk>"
# Log-probability of a fallback piece: far below any word, so that pieces serve only where no word fits.
_PIECE_SCORE = -40.0
# A pair beats its two words by this much.
_PAIR_BONUS = 1.0
# The most frequent pair by this share more.
_TIE_SHARE = 1e-3
# Length at which a token's own vector starts, in units of the sum of its pieces.
_OWN_VECTOR_SHARE = 0.1


class SumOfRows(torch.autograd.Function):
    """Sums of rows of a table, whose gradient holds each row once.

    ``nn.EmbeddingBag(sparse=True)`` gives a gradient row for every use of a row, which are then sorted, added up and
    merged: half the time of a training step where texts share most of their rows.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """weight (U, D), ids (T,), offsets (n,) -> (n, D)."""
        ctx.save_for_backward(ids, offsets)
        ctx.shape = weight.shape
        return F.embedding_bag(ids, weight, offsets, mode="sum")

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
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

    def preprocess(self, inputs: list[str], prompt: str | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        tokens = super().preprocess(inputs, prompt, **kwargs)
        ids, indptr = tokens["input_ids"], self.indptr.cpu()
        counts = indptr[ids + 1] - indptr[ids]  # (T,)
        spread = self.parts.cpu()[torch.repeat_interleave(indptr[ids], counts) + places_within(counts)]
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])[tokens["offsets"]]
        return {"input_ids": spread, "offsets": starts}

    def forward(self, features: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
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
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> SharedStaticEmbedding:
        hub = {key: kwargs.get(key) for key in ("token", "cache_folder", "revision", "local_files_only")}
        file = cls.load_file_path(model_name_or_path, filename="tokenizer.json", subfolder=subfolder, **hub)
        weights = cls.load_torch_weights(model_name_or_path=model_name_or_path, subfolder=subfolder, **hub)
        return cls(Tokenizer.from_file(file), weights["embedding.weight"], weights["indptr"], weights["parts"])


def static_embedding(
    texts: Iterable[str],
    *,
    min_pair_count: int = 5,
    dimension: int | None = None,
    smoothing: float = 1e-3,
    start: tuple[Tokenizer, torch.Tensor] | None = None,
) -> SharedStaticEmbedding:
    """A table of vectors for the words of a data set and its frequent word pairs, ready to train.

    A word is the sum of its pieces in ``start`` and a vector of its own, a pair that of its words, their pieces and
    one of its own. Pieces start from ``start`` times ``a / (a + p(piece))`` (SIF, Arora et al., ICLR 2017), the own
    vectors next to zero, so that before training a text is what its pieces say. Unseen words fall back to pieces.
    Trained and folded it is the host's StaticEmbedding: one tokenizer and one table.

    Args:
        texts: Texts of train rows and labels; never of the test split.
        min_pair_count: Times two words must stand side by side to have a vector of their own.
        dimension: D of the table; None for that of ``start``. What it has more is next to zero at first; of fewer the
            leading numbers of ``start`` are taken, which is what Matryoshka vectors as WordLlama's are made for.
        smoothing: a, in units of piece probability.
        start: A tokenizer and its vectors (P, D); None for WordLlama's.

    Raises:
        ImportError: if ``start`` is None and the extra ``static`` is not installed.
        ValueError: if the texts hold no word, or ``dimension`` is below 1.
    """
    tokenizer, vectors = start or wordllama_embedding()
    if dimension is not None:
        if dimension < 1:
            raise ValueError(f"dimension must be at least 1, got {dimension}")
        vectors = F.pad(vectors[:, :dimension], (0, max(0, dimension - vectors.size(1))))
    # Rows of unit length on average: Adam's step is absolute, so the scale of the start decides how fast it is left.
    vectors = vectors / vectors.norm(dim=1).mean()
    normalizer = _normalizer()
    words, pairs = Counter[str](), Counter[tuple[str, str]]()
    for text in texts:
        split = normalizer.normalize_str(text).split()
        words.update(split)
        pairs.update(zip(split, split[1:], strict=False))
    if not words:
        raise ValueError("the texts hold no word to make a vocabulary of")
    names = list(words)
    pieces = [encoding.ids for encoding in tokenizer.encode_batch(names, add_special_tokens=False)]
    counts = np.array([words[name] for name in names], dtype=np.float64)  # (W,)
    scores = dict(zip(names, np.log(counts / counts.sum()).tolist(), strict=True))
    kept = sorted((pair for pair in pairs if pairs[pair] >= min_pair_count), key=lambda pair: (-pairs[pair], pair))
    # Else "a b" + "c" and "a" + "b c" score alike and rounding chooses between them, which a saved file does not keep.
    bonus = _PAIR_BONUS * (1 + _TIE_SHARE * np.linspace(1, 0, len(kept)))  # the more frequent pair wins

    vocabulary = [(UNKNOWN, 2 * _PIECE_SCORE)]
    vocabulary += [(SPACE + name, scores[name]) for name in names]
    vocabulary += [
        (f"{SPACE}{a}{SPACE}{b}", scores[a] + scores[b] + more) for (a, b), more in zip(kept, bonus, strict=True)
    ]
    known = {token for token, _ in vocabulary}
    in_order = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])  # it comes in another at every call
    fallback = [(token, row) for token, row in in_order if token not in known and token.strip()]
    vocabulary += [(token, _PIECE_SCORE) for token, _ in fallback]

    # Rows of the shared table: a vector of its own for each token, then the pieces.
    first_piece = len(vocabulary)
    of_word = {name: [first_piece + row for row in ids] for name, ids in zip(names, pieces, strict=True)}
    own_row = {name: 1 + row for row, name in enumerate(names)}
    shared = [[]] + [of_word[name] for name in names]
    shared += [[own_row[a], *of_word[a], own_row[b], *of_word[b]] for a, b in kept]
    shared += [[first_piece + row] for _, row in fallback]
    parts = [[token, *rows] for token, rows in enumerate(shared)]
    lengths = torch.tensor([len(rows) for rows in parts])
    indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])

    piece_counts = np.zeros(len(vectors))
    np.add.at(
        piece_counts,
        np.array([row for ids in pieces for row in ids], dtype=np.int64),
        np.repeat(counts, [len(ids) for ids in pieces]),
    )
    share = torch.from_numpy(piece_counts / max(piece_counts.sum(), 1)).float().unsqueeze(1)  # (P, 1)
    vectors = smoothing / (smoothing + share) * vectors
    start_rows = torch.cat([vectors.new_zeros(first_piece, vectors.size(1)), vectors])
    flat = torch.tensor([row for rows in parts for row in rows])
    # Own vectors are not zero: where token dropout leaves a text nothing else, their sum must have a direction.
    lengths = F.embedding_bag(flat, start_rows, indptr[:-1], mode="sum").norm(dim=1, keepdim=True)  # (V, 1)
    directions = F.normalize(torch.randn(len(lengths), vectors.size(1), generator=torch.Generator().manual_seed(0)))
    table = torch.cat([_OWN_VECTOR_SHARE * lengths * directions, vectors])  # (U, D)

    own = Tokenizer(Unigram(vocabulary, unk_id=0, byte_fallback=False))
    own.normalizer = normalizer
    own.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=not kept)
    return SharedStaticEmbedding(own, table, indptr, flat)


def _normalizer() -> normalizers.Normalizer:
    """Lower case, words of letters and digits, single spaces."""
    apart = normalizers.Replace(Regex(r"[^\p{L}\p{N}]+"), " ")
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), apart, normalizers.Strip()])
