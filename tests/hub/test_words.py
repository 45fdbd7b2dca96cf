"""Texts found by the words that they share with a query, compared with scikit-learn and with loops."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from hf_xmc.hub import words_xmc
from hf_xmc.hub.words_xmc import Vocabulary, WordIndex

TEXTS = ["The cats of war", "war and peace", "dogs, cats and birds", "sea travel", "", "the sea", "cats cats cats"]
QUERIES = ["cats at war", "peace", "nothing known", "", "the SEA and the birds"]


def index_of(texts: list[str] = TEXTS, found: np.ndarray | None = None) -> WordIndex:
    vocabulary = Vocabulary.of(texts)
    return WordIndex(vocabulary, vocabulary.bags(texts), found)


def cosines(texts: list[str], queries: list[str]) -> np.ndarray:
    """(B, N) by scikit-learn, each word counted once."""
    vectorizer = TfidfVectorizer(binary=True, token_pattern=r"(?u)\w+").fit(texts)
    return (vectorizer.transform(queries) @ vectorizer.transform(texts).T).toarray()


def test_a_search_finds_the_largest_cosines_equal_ones_by_ascending_text() -> None:
    index, right = index_of(), cosines(TEXTS, QUERIES)
    ids, scores = index.search(index.vocabulary.bags(QUERIES), 4)
    for query, row in enumerate(right):
        order = [text for text in np.argsort(-row, kind="stable")[:4] if row[text] > 0]
        assert [place for place in ids[query] if place >= 0] == order
        np.testing.assert_allclose(scores[query, : len(order)], row[order], atol=1e-6)
        assert (scores[query, len(order) :] == -np.inf).all()
    assert (ids[1:4] >= 0).any(1).tolist() == [True, False, False]  # a query of unknown words finds nothing


def test_texts_that_are_not_to_be_found_are_not() -> None:
    index = index_of(found=np.arange(len(TEXTS)) != 0)
    assert index.search(index.vocabulary.bags(["cats of war"]), 7)[0][0, :3].tolist() == [6, 1, 2]


def test_overlap_is_the_cosine_and_the_share_of_the_texts_words() -> None:
    index, right = index_of(), cosines(TEXTS, QUERIES)
    query, text = (each.ravel() for each in np.mgrid[: len(QUERIES), : len(TEXTS)])
    cosine, share = index.overlap(index.vocabulary.bags(QUERIES), query, text)
    np.testing.assert_allclose(cosine, right.ravel(), atol=1e-6)
    assert share.reshape(right.shape)[0].tolist() == [0.5, pytest.approx(1 / 3), 0.25, 0, 0, 0, 1]
    nothing = index.overlap(index.vocabulary.bags(QUERIES), np.array([0]), np.array([-1]))
    assert [each.tolist() for each in nothing] == [[0], [0]]


def test_frequent_words_are_left_out_of_a_search_where_rarer_ones_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_xmc, "MOST_TEXTS", 3)
    index = index_of()
    ids, _ = index.search(index.vocabulary.bags(["peace cats"]), 7)  # "cats" stands in three texts, "peace" in one
    assert ids[0].tolist() == [1, -1, -1, -1, -1, -1, -1]
    assert set(index.search(index.vocabulary.bags(["cats"]), 7)[0][0, :3]) == {0, 2, 6}


def test_texts_that_come_later_bring_their_words() -> None:
    index = index_of(TEXTS[:3]).with_texts(["zebras at sea", "war"])
    ids, scores = index.search(index.vocabulary.bags(["zebras", "war"]), 3)
    assert ids[0].tolist() == [3, -1, -1] and ids[1, 0] == 4 and scores[1, 0] == pytest.approx(1)
    other = index_of(TEXTS[:3]).with_vocabulary(index.vocabulary)
    assert other.search(index.vocabulary.bags(["zebras", "peace"]), 1)[0].tolist() == [[-1], [1]]


def test_words_must_be_distinct_and_have_a_weight_each() -> None:
    with pytest.raises(ValueError, match="expected distinct words and a weight for each, got 2 and 1"):
        Vocabulary(["a", "b"], np.ones(1))
