"""Texts found by the words that they share with a query: TF-IDF and cosine, with numpy alone.

This file travels inside every published repo.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from .filters_xmc import MISSING_ID, best_of_each, contains, missing, runs_of

_WORD = re.compile(r"\w+")
# Texts that are looked at for the words of a query, the rarest words first: frequent ones tell little, and their lists
# would be most of the work.
MOST_TEXTS = 800


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, each once, in the order of their first place."""
    return list(dict.fromkeys(_WORD.findall(text.lower())))


class Vocabulary:
    """Words and what each is worth.

    Args:
        words: V words.
        weights: (V,) float32, the inverse document frequency ``1 + log((1 + N) / (1 + n))`` of a word in n of N texts.
    """

    def __init__(self, words: Sequence[str], weights: np.ndarray) -> None:
        self.words, self.weights = words, np.asarray(weights, dtype=np.float32)
        self.ids = {word: place for place, word in enumerate(words)}
        if len(self.ids) != len(self.weights):
            raise ValueError(f"expected distinct words and a weight for each, got {len(words)} and {len(weights)}")

    @classmethod
    def of(cls, texts: Iterable[str]) -> Vocabulary:
        """That of some texts, the words by their first place."""
        counts: dict[str, int] = {}
        num_texts = 0
        for text in texts:
            num_texts += 1
            for word in words_of(text):
                counts[word] = counts.get(word, 0) + 1
        found = np.fromiter(counts.values(), dtype=np.int64, count=len(counts))
        return cls(list(counts), 1 + np.log((1 + num_texts) / (1 + found)))

    def with_words(self, words: Iterable[str]) -> Vocabulary:
        """With further words, worth as much as the rarest; itself where all are known."""
        new = [word for word in dict.fromkeys(words) if word not in self.ids]
        rarest = self.weights.max(initial=1)
        weights = np.concatenate([self.weights, np.full(len(new), rarest, dtype=np.float32)])
        return Vocabulary([*self.words, *new], weights) if new else self

    def bags(self, texts: Sequence[str]) -> Bags:
        """The known words of texts."""
        ids = self.ids
        rows = [[ids[word] for word in words_of(text) if word in ids] for text in texts]
        indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        flat = np.fromiter((word for row in rows for word in row), dtype=np.int32, count=int(indptr[-1]))
        return Bags(indptr.astype(np.int64), flat)


class Bags:
    """The words of N texts, each once.

    Args:
        indptr: (N + 1,) int64; the words of text n are ``words[indptr[n]:indptr[n + 1]]``.
        words: (nnz,) int32.
    """

    def __init__(self, indptr: np.ndarray, words: np.ndarray) -> None:
        self.indptr, self.words = indptr, words

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.indptr) - 1

    def sizes(self, texts: np.ndarray | None = None) -> np.ndarray:
        """Words of each text: (N,), or (n,) of some texts (n,)."""
        return np.diff(self.indptr) if texts is None else self.indptr[texts + 1] - self.indptr[texts]

    def rows(self) -> np.ndarray:
        """(nnz,) the text of each word."""
        return np.repeat(np.arange(len(self)), self.sizes())

    def lengths(self, weights: np.ndarray) -> np.ndarray:
        """(N,) float32, Euclidean, of each text; 1 for one without words."""
        squares = np.bincount(self.rows(), weights=weights[self.words].astype(np.float64) ** 2, minlength=len(self))
        return np.sqrt(np.where(squares > 0, squares, 1)).astype(np.float32)

    def of(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The words of some texts (n,): places in ``texts`` and words, both (m,)."""
        starts, sizes = self.indptr[texts], self.sizes(texts)
        return np.repeat(np.arange(len(texts)), sizes), self.words[runs_of(starts, sizes)]

    def part(self, texts: np.ndarray) -> Bags:
        """Those of some texts (n,)."""
        return Bags(np.concatenate([[0], np.cumsum(self.sizes(texts))]).astype(np.int64), self.of(texts)[1])

    def joined(self, more: Bags) -> Bags:
        """Those of further texts after these."""
        return Bags(
            np.concatenate([self.indptr, more.indptr[1:] + self.indptr[-1]]), np.concatenate([self.words, more.words])
        )


class WordIndex:
    """Texts as bags of weighted words.

    Args:
        vocabulary: The words that are known.
        bags: Of N texts.
        found: (N,) bool, the texts that a search finds; None for all.
    """

    def __init__(self, vocabulary: Vocabulary, bags: Bags, found: np.ndarray | None = None) -> None:
        self.vocabulary, self.bags, self.found = vocabulary, bags, found
        self.lengths = bags.lengths(vocabulary.weights)

    @cached_property
    def _postings(self) -> tuple[np.ndarray, np.ndarray]:
        """Texts (nnz,) int32 by word, and where those of a word begin; none of a word of too many texts."""
        rows = self.bags.rows()
        kept = np.ones(len(rows), dtype=bool) if self.found is None else self.found[rows]
        words = self.bags.words[kept]
        counts = np.bincount(words, minlength=len(self.vocabulary.words))
        counts[counts > MOST_TEXTS] = 0
        listed = counts[words] > 0
        order = np.argsort(words[listed], kind="stable")
        return rows[kept][listed][order].astype(np.int32), np.concatenate([[0], np.cumsum(counts)])

    def search(self, queries: Bags, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The texts of the largest cosine over the query's rarest words, which may be none.

        Args:
            queries: Of B texts.
            count: At least 1.

        Returns:
            ids (B, count) int64 padded with -1 and scores (B, count) float32 padded with -inf, scores descending,
            equal ones by ascending id.
        """
        ids, scores = missing(len(queries), count)
        texts, starts = self._postings
        words, rows = queries.words, queries.rows()
        sizes = starts[words + 1] - starts[words]
        order = np.lexsort((sizes, rows))
        words, sizes = words[order], sizes[order]
        total = np.cumsum(sizes)
        before = np.concatenate([[0], total])[queries.indptr[:-1]]  # of the queries before
        sizes = np.where(total - before[rows] <= MOST_TEXTS, sizes, 0)
        if not sizes.any():
            return ids, scores
        at = runs_of(starts[words], sizes)
        weights = self.vocabulary.weights[words] ** 2
        key = np.repeat(rows, sizes) * len(self.bags) + texts[at]
        order = np.argsort(key, kind="stable")
        key = key[order]
        first = np.flatnonzero(np.diff(key, prepend=-1))
        cosine = np.add.reduceat(np.repeat(weights, sizes)[order], first)
        key = key[first]
        query, text = np.divmod(key, len(self.bags))
        cosine = cosine / self.lengths[text] / queries.lengths(self.vocabulary.weights)[query]
        kept, query, column = best_of_each(query, cosine, count)  # equal ones keep the ascending texts
        ids[query, column], scores[query, column] = text[kept], cosine[kept]
        return ids, scores

    def overlap(self, queries: Bags, query: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosine, and the share of the text's words that the query has, of pairs of a query and a text.

        Args:
            queries: Of B texts.
            query: (n,) integers below B.
            text: (n,) integers below N; -1 for none.

        Returns:
            Two (n,) float32 in [0, 1], 0 where there is no text.
        """
        pair, word = self.bags.of(np.maximum(text, 0))
        width = max(len(self.vocabulary.words), 1)
        known = np.sort(queries.rows() * width + queries.words)
        hit = contains(known, query[pair] * width + word) & (text[pair] != MISSING_ID)
        pair, word = pair[hit], word[hit]
        squares = self.vocabulary.weights[word].astype(np.float64) ** 2
        product = np.bincount(pair, weights=squares, minlength=len(text))
        lengths = queries.lengths(self.vocabulary.weights)[query] * self.lengths[np.maximum(text, 0)]
        share = np.bincount(pair, minlength=len(text)) / np.maximum(self.bags.sizes(np.maximum(text, 0)), 1)
        return (product / lengths).astype(np.float32), share.astype(np.float32)

    def with_texts(self, texts: Sequence[str]) -> WordIndex:
        """With further texts after these; words that only they have are new to the vocabulary."""
        vocabulary = self.vocabulary.with_words(word for text in texts for word in words_of(text))
        found = None if self.found is None else np.concatenate([self.found, np.ones(len(texts), dtype=bool)])
        return WordIndex(vocabulary, self.bags.joined(vocabulary.bags(texts)), found)

    def with_vocabulary(self, vocabulary: Vocabulary) -> WordIndex:
        """The same texts beside words that came to the vocabulary since."""
        return WordIndex(vocabulary, self.bags, self.found)
