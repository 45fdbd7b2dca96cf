"""How often words occur in texts, and each two side by side, in memory that the texts do not fill."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import normalizers

from hf_xmc.hub.checks_xmc import checked_source, checked_texts

_TEXTS_AT_ONCE = 1 << 14
# Pairs are merged when so many more have come, or as many as there are.
_PAIRS_AT_ONCE = 1 << 22
_HALF = 32  # bits of a word's id in the key of a pair


@dataclass(frozen=True, eq=False)
class WordCounts:
    """W words and P pairs of them.

    Attributes:
        words: The W words, in the order in which they first occur.
        counts: (W,) int64.
        pairs: (P, 2) int64 word ids, ascending.
        pair_counts: (P,) int64 times that the second follows the first.
    """

    words: list[str]
    counts: np.ndarray
    pairs: np.ndarray
    pair_counts: np.ndarray

    def frequent_pairs(self, least: int) -> np.ndarray:
        """(K, 2) ids of the pairs that occur ``least`` times or more, the most frequent first, equal ones by words."""
        kept = np.flatnonzero(self.pair_counts >= least)
        place = np.empty(len(self.words), dtype=np.int64)  # of each word in the order of the alphabet
        place[sorted(range(len(self.words)), key=self.words.__getitem__)] = np.arange(len(self.words))
        first, second = place[self.pairs[kept]].T
        return self.pairs[kept[np.lexsort((second, first, -self.pair_counts[kept]))]]


def count_words(texts: Iterable[str], normalizer: normalizers.Normalizer) -> WordCounts:
    """Words are what the normalizer leaves between single spaces.

    Raises:
        ValueError: if the texts hold no word, or are none.
    """
    ids: dict[str, int] = {}
    counts = np.zeros(0, dtype=np.int64)
    keys, key_counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    pending: list[np.ndarray] = []
    for words, texts_of in _blocks(texts, normalizer):
        encoded = words.dictionary_encode()  # which numbers words as they come
        known = np.fromiter((ids.setdefault(word, len(ids)) for word in encoded.dictionary.to_pylist()), np.int64)
        of_words = known[encoded.indices.to_numpy(zero_copy_only=False)]  # (T,)
        counts = np.bincount(of_words, minlength=len(ids)) + np.pad(counts, (0, len(ids) - len(counts)))
        adjacent = texts_of[1:] == texts_of[:-1]
        pending.append((of_words[:-1] << _HALF | of_words[1:])[adjacent])
        if sum(map(len, pending)) > max(_PAIRS_AT_ONCE, len(keys)):
            keys, key_counts = _merged(keys, key_counts, pending)
            pending = []
    if not ids:
        raise ValueError("the texts hold no word to make a vocabulary of")
    keys, key_counts = _merged(keys, key_counts, pending)
    pairs = np.stack([keys >> _HALF, keys & ((1 << _HALF) - 1)], axis=1)
    return WordCounts(list(ids), counts, pairs, key_counts)


def _blocks(texts: Iterable[str], normalizer: normalizers.Normalizer) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """The words (T,) of some texts and the places (T,) of the texts they stand in."""
    source, first = iter(checked_source(texts)), 0
    while block := checked_texts(list(islice(source, _TEXTS_AT_ONCE)), first):
        normalized = pa.array([normalizer.normalize_str(text) for text in block], pa.large_string())
        split = pc.split_pattern(normalized, " ")
        words, texts_of = split.flatten(), pc.list_parent_indices(split).to_numpy()
        some = pc.not_equal(words, "")  # an empty text is split into one empty word
        yield words.filter(some), texts_of[some.to_numpy(zero_copy_only=False)]
        first += len(block)


def _merged(keys: np.ndarray, counts: np.ndarray, pending: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Keys, ascending, and their counts, with one more for each of the pending."""
    new = np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *pending]))
    firsts = np.flatnonzero(np.diff(new, prepend=-1))
    new_counts = np.diff(firsts, append=len(new))
    keys = np.concatenate([keys, new[firsts]])
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], np.concatenate([counts, new_counts])[order]
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[firsts], np.add.reduceat(counts, firsts) if len(firsts) else counts
