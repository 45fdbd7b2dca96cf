"""A static encoder made for a data set: vectors of its words, word pairs and pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram

from hf_xmc.encoders.pretrained import wordllama_embedding
from hf_xmc.encoders.shared_static import SharedStaticEmbedding
from hf_xmc.hub.checks_xmc import checked_texts

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
    words, pairs = _counted(checked_texts(texts), normalizer)
    names = list(words)
    kept = sorted((pair for pair in pairs if pairs[pair] >= min_pair_count), key=lambda pair: (-pairs[pair], pair))
    vocabulary, fallback = _vocabulary(words, kept, tokenizer)

    pieces = [encoding.ids for encoding in tokenizer.encode_batch(names, add_special_tokens=False)]
    shared = _shared_rows(names, kept, pieces, fallback, first_piece=len(vocabulary))
    parts = [[token, *rows] for token, rows in enumerate(shared)]
    lengths = torch.tensor([len(rows) for rows in parts])
    indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    flat = torch.tensor([row for rows in parts for row in rows])

    vectors = vectors * _rarity(words, pieces, len(vectors), smoothing)
    start_rows = torch.cat([vectors.new_zeros(len(vocabulary), vectors.size(1)), vectors])
    # Own vectors are not zero: where token dropout leaves a text nothing else, their sum must have a direction.
    lengths = F.embedding_bag(flat, start_rows, indptr[:-1], mode="sum").norm(dim=1, keepdim=True)  # (V, 1)
    directions = F.normalize(torch.randn(len(lengths), vectors.size(1), generator=torch.Generator().manual_seed(0)))
    table = torch.cat([_OWN_VECTOR_SHARE * lengths * directions, vectors])  # (U, D)

    own = Tokenizer(Unigram(vocabulary, unk_id=0, byte_fallback=False))
    own.normalizer = normalizer
    own.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=not kept)
    return SharedStaticEmbedding(own, table, indptr, flat)


def _resized(vectors: torch.Tensor, dimension: int | None) -> torch.Tensor:
    """(P, D) of another width, rows of unit length on average."""
    if dimension is not None:
        if dimension < 1:
            raise ValueError(f"dimension must be at least 1, got {dimension}")
        vectors = F.pad(vectors[:, :dimension], (0, max(0, dimension - vectors.size(1))))
    # Adam's step is absolute, so the scale of the start decides how fast it is left.
    return vectors / vectors.norm(dim=1).mean()


def _counted(texts: list[str], normalizer: normalizers.Normalizer) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """How often each word occurs, and each two side by side."""
    words, pairs = Counter[str](), Counter[tuple[str, str]]()
    for text in texts:
        split = normalizer.normalize_str(text).split()
        words.update(split)
        pairs.update(zip(split, split[1:], strict=False))
    if not words:
        raise ValueError("the texts hold no word to make a vocabulary of")
    return words, pairs


def _vocabulary(
    words: Counter[str], kept: list[tuple[str, str]], tokenizer: Tokenizer
) -> tuple[list[tuple[str, float]], list[int]]:
    """V tokens with their scores: unknown, words, pairs, pieces; and the rows of those pieces in the start."""
    counts = np.array(list(words.values()), dtype=np.float64)  # (W,)
    scores = dict(zip(words, np.log(counts / counts.sum()).tolist(), strict=True))
    # Else "a b" + "c" and "a" + "b c" score alike and rounding chooses between them, which a saved file does not keep.
    bonus = _PAIR_BONUS * (1 + _TIE_SHARE * np.linspace(1, 0, len(kept)))  # the more frequent pair wins
    vocabulary = [(UNKNOWN, 2 * _PIECE_SCORE)]
    vocabulary += [(SPACE + name, score) for name, score in scores.items()]
    vocabulary += [
        (f"{SPACE}{a}{SPACE}{b}", scores[a] + scores[b] + more) for (a, b), more in zip(kept, bonus, strict=True)
    ]
    known = {token for token, _ in vocabulary}
    in_order = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])  # it comes in another at every call
    fallback = [(token, row) for token, row in in_order if token not in known and token.strip()]
    vocabulary += [(token, _PIECE_SCORE) for token, _ in fallback]
    return vocabulary, [row for _, row in fallback]


def _shared_rows(
    names: list[str], kept: list[tuple[str, str]], pieces: list[list[int]], fallback: list[int], first_piece: int
) -> list[list[int]]:
    """Of each of V tokens the rows it shares; the table has a vector of its own for each token, then the pieces."""
    of_word = {name: [first_piece + row for row in ids] for name, ids in zip(names, pieces, strict=True)}
    own_row = {name: 1 + row for row, name in enumerate(names)}
    shared: list[list[int]] = [[]] + [of_word[name] for name in names]
    shared += [[own_row[a], *of_word[a], own_row[b], *of_word[b]] for a, b in kept]
    return shared + [[first_piece + row] for row in fallback]


def _rarity(words: Counter[str], pieces: list[list[int]], num_pieces: int, smoothing: float) -> torch.Tensor:
    """(P, 1), ``a / (a + p)`` of each piece."""
    counts = np.zeros(num_pieces)
    np.add.at(
        counts,
        np.array([row for ids in pieces for row in ids], dtype=np.int64),
        np.repeat(np.array(list(words.values()), dtype=np.float64), [len(ids) for ids in pieces]),
    )
    share = torch.from_numpy(counts / max(counts.sum(), 1)).float().unsqueeze(1)
    return smoothing / (smoothing + share)


def _normalizer() -> normalizers.Normalizer:
    """Lower case, words of letters and digits, single spaces."""
    apart = normalizers.Replace(Regex(r"[^\p{L}\p{N}]+"), " ")
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), apart, normalizers.Strip()])
