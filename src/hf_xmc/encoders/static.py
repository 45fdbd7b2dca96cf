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
    if dimension is not None:
        if dimension < 1:
            raise ValueError(f"dimension must be at least 1, got {dimension}")
        vectors = F.pad(vectors[:, :dimension], (0, max(0, dimension - vectors.size(1))))
    # Rows of unit length on average: Adam's step is absolute, so the scale of the start decides how fast it is left.
    vectors = vectors / vectors.norm(dim=1).mean()
    normalizer = _normalizer()
    words, pairs = Counter[str](), Counter[tuple[str, str]]()
    for text in checked_texts(texts):
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
    shared: list[list[int]] = [[]] + [of_word[name] for name in names]
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
