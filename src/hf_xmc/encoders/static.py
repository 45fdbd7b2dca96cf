"""A static encoder made for a data set: vectors of its words, word pairs and pieces."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram

from hf_xmc.encoders.pretrained import wordllama_embedding
from hf_xmc.encoders.shared_static import SharedStaticEmbedding
from hf_xmc.encoders.word_counts import WordCounts, count_words

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
_WORDS_AT_ONCE = _TOKENS_AT_ONCE = 1 << 14


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
    vectors = _resized(vectors, dimension)
    normalizer = _normalizer()
    counts = count_words(texts, normalizer)
    kept = counts.frequent_pairs(min_pair_count)
    vocabulary, fallback = _vocabulary(counts, kept, tokenizer)
    pieces, num_pieces = _pieces(counts.words, tokenizer)
    parts, indptr = _shared_rows(pieces, num_pieces, kept, fallback)

    vectors = vectors * _rarity(counts.counts, pieces, num_pieces, len(vectors), smoothing)
    table = vectors.new_empty(len(vocabulary) + len(vectors), vectors.size(1))  # (U, D)
    _fill_own(table[: len(vocabulary)], vectors, parts, indptr)
    table[len(vocabulary) :] = vectors

    own = Tokenizer(Unigram(vocabulary, unk_id=0, byte_fallback=False))
    own.normalizer = normalizer
    own.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=not len(kept))
    return SharedStaticEmbedding(own, table, indptr, parts)


def _resized(vectors: torch.Tensor, dimension: int | None) -> torch.Tensor:
    """(P, D) of another width, rows of unit length on average."""
    if dimension is not None:
        if dimension < 1:
            raise ValueError(f"dimension must be at least 1, got {dimension}")
        vectors = F.pad(vectors[:, :dimension], (0, max(0, dimension - vectors.size(1))))
    # Adam's step is absolute, so the scale of the start decides how fast it is left.
    return vectors / vectors.norm(dim=1).mean()


def _vocabulary(
    counts: WordCounts, kept: np.ndarray, tokenizer: Tokenizer
) -> tuple[list[tuple[str, float]], np.ndarray]:
    """V tokens with their scores: unknown, words, pairs, pieces; and the rows of those pieces in the start."""
    words, numbers = counts.words, counts.counts.astype(np.float64)  # (W,)
    scores = np.log(numbers / numbers.sum())
    # Else "a b" + "c" and "a" + "b c" score alike and rounding chooses between them, which a saved file does not keep.
    bonus = _PAIR_BONUS * (1 + _TIE_SHARE * np.linspace(1, 0, len(kept)))  # the more frequent pair wins
    pair_scores = scores[kept[:, 0]] + scores[kept[:, 1]] + bonus
    vocabulary = [(UNKNOWN, 2 * _PIECE_SCORE)]
    vocabulary += [(SPACE + name, score) for name, score in zip(words, scores.tolist(), strict=True)]
    vocabulary += [
        (f"{SPACE}{words[a]}{SPACE}{words[b]}", score)
        for (a, b), score in zip(kept.tolist(), pair_scores.tolist(), strict=True)
    ]
    pieces = tokenizer.get_vocab()
    known = {token for token, _ in vocabulary if token in pieces}
    in_order = sorted(pieces.items(), key=lambda item: item[1])  # it comes in another at every call
    fallback = [(token, row) for token, row in in_order if token not in known and token.strip()]
    vocabulary += [(token, _PIECE_SCORE) for token, _ in fallback]
    return vocabulary, np.array([row for _, row in fallback], dtype=np.int64)


def _pieces(words: list[str], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the start that the words are made of, int64 one word after the other, and how many of each (W,)."""
    flat, lengths = [np.zeros(0, dtype=np.int64)], []
    for start in range(0, len(words), _WORDS_AT_ONCE):
        encoded = tokenizer.encode_batch(words[start : start + _WORDS_AT_ONCE], add_special_tokens=False)
        ids = [encoding.ids for encoding in encoded]
        lengths += [len(each) for each in ids]
        flat.append(np.fromiter(chain.from_iterable(ids), np.int64))
    return np.concatenate(flat), np.array(lengths)


def _shared_rows(
    pieces: np.ndarray, num_pieces: np.ndarray, kept: np.ndarray, fallback: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows (nnz,) that each of V tokens shares, and int64 (V + 1,) where they begin.

    The table has a vector of its own for each token, then the pieces. A word is its own and its pieces, a pair its own
    and those of its words.
    """
    num_words, first_piece = len(num_pieces), 1 + len(num_pieces) + len(kept) + len(fallback)
    words, word_lengths = _led_by(1 + np.arange(num_words), first_piece + pieces, num_pieces)
    starts = np.cumsum(word_lengths) - word_lengths
    of_pairs = _ranges(starts[kept.ravel()], word_lengths[kept.ravel()])
    pairs, pair_lengths = _led_by(
        1 + num_words + np.arange(len(kept)), words[of_pairs], word_lengths[kept].sum(axis=1)
    )
    rest, rest_lengths = _led_by(
        np.arange(first_piece - len(fallback), first_piece), first_piece + fallback, np.ones_like(fallback)
    )
    parts = np.concatenate([[0], words, pairs, rest])
    lengths = np.concatenate([[0, 1], word_lengths, pair_lengths, rest_lengths])
    return torch.from_numpy(parts), torch.from_numpy(np.cumsum(lengths))


def _led_by(leaders: np.ndarray, flat: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists, given one after the other with their lengths, each with its leader in front; and their new lengths."""
    starts = np.cumsum(lengths) - lengths
    return np.insert(flat, starts, leaders), lengths + 1


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``start, start + 1, ...`` of each range, one after the other."""
    return np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)


def _rarity(
    counts: np.ndarray, pieces: np.ndarray, num_pieces: np.ndarray, num_rows: int, smoothing: float
) -> torch.Tensor:
    """(P, 1), ``a / (a + p)`` of each piece."""
    totals = np.bincount(pieces, np.repeat(counts, num_pieces), minlength=num_rows)
    share = torch.from_numpy(totals / max(totals.sum(), 1)).float().unsqueeze(1)
    return smoothing / (smoothing + share)


def _fill_own(own: torch.Tensor, vectors: torch.Tensor, parts: torch.Tensor, indptr: torch.Tensor) -> None:
    """Set the own vectors (V, D): of random directions, a share of the length of the sum of a token's pieces.

    They are not zero: where token dropout leaves a text nothing else, their sum must have a direction.
    """
    generator = torch.Generator().manual_seed(0)
    start_rows = torch.cat([vectors.new_zeros(1, vectors.size(1)), vectors])  # all own vectors count as zero
    # The last block is the longest, as fewer than 16 random numbers would be drawn in another way.
    starts = [block * _TOKENS_AT_ONCE for block in range(max(1, len(own) // _TOKENS_AT_ONCE))]
    for start, stop in zip(starts, [*starts[1:], len(own)], strict=True):
        rows = (parts[indptr[start] : indptr[stop]] - len(own) + 1).clamp(min=0)
        bounds = indptr[start:stop] - indptr[start]
        lengths = F.embedding_bag(rows, start_rows, bounds, mode="sum").norm(dim=1, keepdim=True)  # (n, 1)
        directions = F.normalize(torch.randn(stop - start, own.size(1), generator=generator))
        own[start:stop] = _OWN_VECTOR_SHARE * lengths * directions


def _normalizer() -> normalizers.Normalizer:
    """Lower case, words of letters and digits, single spaces."""
    apart = normalizers.Replace(Regex(r"[^\p{L}\p{N}]+"), " ")
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), apart, normalizers.Strip()])
