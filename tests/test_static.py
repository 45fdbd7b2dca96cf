from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import word_tokenizer
from sentence_transformers import SentenceTransformer

from hf_xmc import XMCDataset, XMCEncoder, XMCEvaluator
from hf_xmc.static import static_embedding

TEXTS = ["War and Peace", "war and peace", "The history of War!", "history of cats", "history of dogs"]


def base(dimension: int = 4) -> tuple[object, torch.Tensor]:
    tokenizer = word_tokenizer()
    return tokenizer, torch.randn(tokenizer.get_vocab_size(), dimension, generator=torch.Generator().manual_seed(0))


def tokens(text: str, **kwargs: object) -> list[str]:
    return static_embedding(TEXTS, start=base(), **kwargs).tokenizer.encode(text).tokens


def test_words_are_lower_case_letters_and_digits_and_frequent_pairs_are_one_token() -> None:
    assert tokens("WAR, and: peace", min_pair_count=9) == ["▁war", "▁and", "▁peace"]
    assert tokens("war and peace", min_pair_count=2) in (["▁war▁and", "▁peace"], ["▁war", "▁and▁peace"])
    assert tokens("history of war", min_pair_count=3) == ["▁history▁of", "▁war"]


def test_a_pair_starts_as_the_sum_of_its_words_so_that_the_start_is_the_same_with_and_without_pairs() -> None:
    vectors = []
    for count in (2, 100):
        module = static_embedding(TEXTS, start=base(), min_pair_count=count)
        encoder = XMCEncoder(modules=[module], device="cpu")
        vectors.append(encoder.encode(["war and peace", "the history of cats"]))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


def test_rare_words_weigh_more_than_frequent_ones() -> None:
    texts = ["war"] * 99 + ["cats"]
    module = static_embedding(texts, start=base(), smoothing=1e-2)
    ids = module.tokenizer.encode("war cats").ids
    tokenizer, vectors = base()
    vectors = vectors / vectors.norm(dim=1).mean()
    for token, word, share in zip(ids, ("war", "cats"), (0.99, 0.01), strict=True):
        expected = vectors[tokenizer.token_to_id(word)] * 1e-2 / (1e-2 + share)
        torch.testing.assert_close(module.embedding.weight[token].detach(), expected)


def test_plain_sentence_transformers_loads_it_and_unseen_words_fall_back_to_pieces(
    tmp_path: Path, tiny: XMCDataset
) -> None:
    module = static_embedding(tiny.train["text"][:] + tiny.labels["text"][:])
    assert module.tokenizer.encode("xyzzyq").tokens != ["<unk>"]
    encoder = XMCEncoder(modules=[module], device="cpu")
    assert 0.2 < XMCEvaluator(tiny)(encoder)["precision@1"] < 0.4
    encoder.save_pretrained(str(tmp_path))
    texts = tiny.test["text"][:20] + ["", "xyzzyq"]
    plain = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(plain.encode(texts), encoder.encode(texts), atol=1e-7)


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(ValueError, match="the texts hold no word"):
        static_embedding(["", "!!"], start=base())
