from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from toys import word_tokenizer

from hf_xmc import XMCDataset, XMCEncoder, XMCEvaluator
from hf_xmc.encoders.shared_static import TableOfRows
from hf_xmc.encoders.static import static_embedding

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


def test_a_pair_starts_near_its_words_so_that_the_start_is_the_same_with_and_without_pairs() -> None:
    vectors = []
    for count in (2, 100):
        module = static_embedding(TEXTS, start=base(), min_pair_count=count)
        encoder = XMCEncoder(modules=[module], device="cpu")
        vectors.append(encoder.encode(["war and peace", "the history of cats"]))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=0.1)


def test_rare_pieces_weigh_more_than_frequent_ones() -> None:
    texts = ["war"] * 99 + ["cats"]
    module = static_embedding(texts, start=base(), smoothing=1e-2).fold()
    ids = module.tokenizer.encode("war cats").ids
    tokenizer, vectors = base()
    vectors = vectors / vectors.norm(dim=1).mean()
    for token, word, share in zip(ids, ("war", "cats"), (0.99, 0.01), strict=True):
        expected = vectors[tokenizer.token_to_id(word)] * 1e-2 / (1e-2 + share)
        assert (module.embedding.weight[token] - expected).norm() < 0.11 * expected.norm()


@pytest.mark.parametrize("classifier", [None, 8])
def test_the_folded_table_gives_the_vectors_of_the_sums(tiny: XMCDataset, classifier: int | None) -> None:
    module = static_embedding(tiny.train["text"][:] + tiny.labels["text"][:], min_pair_count=2)
    encoder = XMCEncoder(modules=[module], device="cpu")
    if classifier:
        encoder.add_classifier(tiny.num_labels, classifier)  # its head reads the vector before it has unit length
    with torch.no_grad():
        module.embedding.weight += 0.1 * torch.randn(module.embedding.weight.shape)
    texts = tiny.test["text"][:50] + ["", "xyzzyq", "very very good", "of the of the"]
    assert max(len(module.tokenizer.encode(t)) for t in texts) < max(len(t.split()) for t in texts), "pairs occur"
    before = encoder.encode_halves(texts)
    assert encoder.fold() and type(encoder[0]) is StaticEmbedding and not encoder.fold()
    assert encoder[0].num_embeddings == module.tokenizer.get_vocab_size()
    for old, new in zip(before, encoder.encode_halves(texts), strict=True):
        if new is not None:
            np.testing.assert_allclose(old, new, atol=1e-5)


def test_what_a_pair_learns_reaches_its_words() -> None:
    module = static_embedding(TEXTS, start=base(), min_pair_count=2)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    before = module.fold().embedding.weight.detach().clone()
    module(module.preprocess(["war and"]))["sentence_embedding"].sum().backward()
    optimizer.step()
    moved = (module.fold().embedding.weight - before).abs().sum(1)
    vocabulary = module.tokenizer.get_vocab()
    assert "▁war▁and" in vocabulary and moved[vocabulary["▁war"]] > 0 and moved[vocabulary["▁and"]] > 0
    assert moved[vocabulary["▁war▁and"]] > moved[vocabulary["▁war"]] and moved[vocabulary["▁dogs"]] == 0


def test_sums_of_rows_have_the_values_and_the_gradient_of_an_embedding_bag() -> None:
    generator = torch.Generator().manual_seed(0)
    table = TableOfRows(30, 5, mode="sum", dtype=torch.float64)
    ids, offsets = torch.randint(20, (64,), generator=generator), torch.tensor([0, 0, 7, 30, 30, 31, 64])
    weights = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    results = []
    for sparse in (False, True):
        table.sparse, table.weight.grad = sparse, None
        sums = table(ids, offsets)
        for _ in range(2):  # gradients of queries and labels add up
            (sums * weights).sum().backward(retain_graph=True)
        results.append((sums.detach(), table.weight.grad.to_dense()))
        assert table.weight.grad.is_sparse == sparse
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)
    assert len(table.weight.grad._indices()[0]) <= 2 * len(ids.unique())


def test_plain_sentence_transformers_loads_it_and_unseen_words_fall_back_to_pieces(
    tmp_path: Path, tiny: XMCDataset
) -> None:
    module = static_embedding(tiny.train["text"][:] + tiny.labels["text"][:])
    assert module.tokenizer.encode("xyzzyq").tokens != ["<unk>"]
    encoder = XMCEncoder(modules=[module], device="cpu")
    assert 0.2 < XMCEvaluator(tiny)(encoder)["precision@1"] < 0.4
    encoder.fold()
    encoder.save_pretrained(str(tmp_path))
    texts = tiny.test["text"][:20] + ["", "xyzzyq"]
    plain = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(plain.encode(texts), encoder.encode(texts), atol=1e-7)


def test_a_saved_tokenizer_splits_as_the_one_that_was_trained_with(tiny: XMCDataset) -> None:
    texts = tiny.train["text"][:] + tiny.labels["text"][:]
    tokenizer = static_embedding(texts, min_pair_count=2).tokenizer
    saved = Tokenizer.from_str(tokenizer.to_str())
    ours, theirs = (
        [encoding.ids for encoding in t.encode_batch(texts, add_special_tokens=False)] for t in (tokenizer, saved)
    )
    assert ours == theirs


def test_a_wider_table_says_what_start_says_and_a_narrower_one_takes_its_leading_numbers() -> None:
    given = base()
    num_pieces, width = given[1].shape
    start, same, wide, narrow = (
        static_embedding(TEXTS, start=given, dimension=dimension).embedding.weight.detach()
        for dimension in (None, width, 2 * width, 2)
    )
    torch.testing.assert_close(same, start, rtol=0, atol=0)
    pieces = wide[-num_pieces:]
    assert wide.shape == (len(start), 2 * width) and narrow.shape == (len(start), 2)
    torch.testing.assert_close(pieces[:, :width], start[-num_pieces:])
    assert not pieces[:, width:].any()
    assert wide[1:-num_pieces, width:].abs().sum(1).all()  # own vectors can learn them
    cosines = torch.nn.functional.cosine_similarity(narrow[-num_pieces:], start[-num_pieces:, :2])
    torch.testing.assert_close(cosines, torch.ones(num_pieces))
    with pytest.raises(ValueError, match="dimension must be at least 1, got 0"):
        static_embedding(TEXTS, start=base(), dimension=0)


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(ValueError, match="the texts hold no word"):
        static_embedding(["", "!!"], start=base())
