"""A static encoder made for a data set: vectors of its words and word pairs, started from general token vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram

from hf_xmc.pretrained import wordllama_embedding

SPACE = "▁"
UNKNOWN = "<unk>"
# Log-probability of a fallback piece: far below any word, so that pieces serve only where no word fits.
_PIECE_SCORE = -40.0
# A pair beats its two words by this much.
_PAIR_BONUS = 1.0


def static_embedding(
    texts: Iterable[str],
    *,
    min_pair_count: int = 5,
    smoothing: float = 1e-3,
    start: tuple[Tokenizer, torch.Tensor] | None = None,
) -> StaticEmbedding:
    """The host's StaticEmbedding over the words of a data set and its frequent word pairs.

    A word starts as the sum of its token vectors times ``a / (a + p(word))`` (SIF, Arora et al., ICLR 2017), a pair as
    the sum of its words, so that before training the mean over a text is what the words alone would give. Unseen words
    fall back to the pieces of ``start``. Plain sentence-transformers loads the result: it is one tokenizer and one
    table.

    Args:
        texts: Texts of train rows and labels; never of the test split.
        min_pair_count: Times two words must stand side by side to have a vector of their own.
        smoothing: a, in units of word probability.
        start: A tokenizer and its vectors (V, D); None for WordLlama's.

    Raises:
        ImportError: if ``start`` is None and the extra ``static`` is not installed.
        ValueError: if the texts hold no word.
    """
    tokenizer, vectors = start or wordllama_embedding()
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
    total = sum(words.values())
    names = list(words)
    share = np.array([words[name] for name in names]) / total  # (W,)
    weights = torch.from_numpy(smoothing / (smoothing + share)).float()  # (W,)
    word_vectors = weights.unsqueeze(1) * _sums_of_pieces(names, tokenizer, vectors)  # (W, D)

    scores = dict(zip(names, np.log(share).tolist(), strict=True))
    place = {name: row for row, name in enumerate(names)}
    kept = [pair for pair, count in pairs.items() if count >= min_pair_count]
    first = torch.tensor([place[a] for a, _ in kept], dtype=torch.int64)
    second = torch.tensor([place[b] for _, b in kept], dtype=torch.int64)
    pair_vectors = word_vectors[first] + word_vectors[second]  # (P, D)

    vocabulary = [(UNKNOWN, 2 * _PIECE_SCORE)]
    vocabulary += [(SPACE + name, scores[name]) for name in names]
    vocabulary += [(f"{SPACE}{a}{SPACE}{b}", scores[a] + scores[b] + _PAIR_BONUS) for a, b in kept]
    known = {token for token, _ in vocabulary}
    pieces = [(token, row) for token, row in tokenizer.get_vocab().items() if token not in known and token.strip()]
    vocabulary += [(token, _PIECE_SCORE) for token, _ in pieces]
    rows = torch.tensor([row for _, row in pieces], dtype=torch.int64)
    table = torch.cat([torch.zeros(1, vectors.size(1)), word_vectors, pair_vectors, vectors[rows]])  # (V, D)

    own = Tokenizer(Unigram(vocabulary, unk_id=0, byte_fallback=False))
    own.normalizer = normalizer
    own.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=not kept)
    return StaticEmbedding(own, embedding_weights=table)


def _normalizer() -> normalizers.Normalizer:
    """Lower case, words of letters and digits, single spaces."""
    apart = normalizers.Replace(Regex(r"[^\p{L}\p{N}]+"), " ")
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), apart, normalizers.Strip()])


def _sums_of_pieces(words: Sequence[str], tokenizer: Tokenizer, vectors: torch.Tensor) -> torch.Tensor:
    """(W, D): the sum of each word's token vectors."""
    pieces = [encoding.ids for encoding in tokenizer.encode_batch(list(words), add_special_tokens=False)]
    lengths = torch.tensor([len(ids) for ids in pieces])
    flat = torch.tensor([i for ids in pieces for i in ids], dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(len(words)), lengths)
    return torch.zeros(len(words), vectors.size(1)).index_add_(0, owner, vectors[flat])
