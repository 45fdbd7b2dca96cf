"""Words and pairs are those of a loop over Counters, in memory that the texts do not fill."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import word_tokenizer

from hf_xmc.encoders import static, word_counts
from hf_xmc.encoders.static import static_embedding
from hf_xmc.encoders.word_counts import count_words

TEXTS = st.lists(st.lists(st.sampled_from(["war", "Cats", "ß", "b", "!", "Ⅳ"]), max_size=6).map(" ".join), max_size=9)


def slow_counts(texts: list[str]) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    words, pairs = Counter(), Counter()
    for text in texts:
        split = static._normalizer().normalize_str(text).split()
        words.update(split)
        pairs.update(zip(split, split[1:], strict=False))
    return words, pairs


@settings(deadline=None)
@given(texts=TEXTS, at_once=st.sampled_from([(1, 1), (3, 2), (1 << 14, 1 << 22)]), least=st.integers(1, 3))
def test_counts_and_the_order_of_words_and_pairs_are_those_of_the_loop(texts, at_once, least):
    words, pairs = slow_counts(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_counts, "_TEXTS_AT_ONCE", at_once[0])
        patch.setattr(word_counts, "_PAIRS_AT_ONCE", at_once[1])
        if not words:
            with pytest.raises(ValueError, match="no word"):
                count_words(iter(texts), static._normalizer())
            return
        found = count_words(iter(texts), static._normalizer())
    assert list(zip(found.words, found.counts.tolist(), strict=True)) == list(words.items())
    named = [(found.words[a], found.words[b]) for a, b in found.pairs.tolist()]
    assert dict(zip(named, found.pair_counts.tolist(), strict=True)) == dict(pairs)
    frequent = sorted((pair for pair in pairs if pairs[pair] >= least), key=lambda pair: (-pairs[pair], pair))
    assert [(found.words[a], found.words[b]) for a, b in found.frequent_pairs(least).tolist()] == frequent


def test_counting_takes_no_more_memory_for_more_texts(monkeypatch):
    monkeypatch.setattr(word_counts, "_TEXTS_AT_ONCE", 500)
    monkeypatch.setattr(word_counts, "_PAIRS_AT_ONCE", 2000)
    peaks = []
    for num_texts in (2_000, 20_000):
        texts = (f"w{i % 30} v{i % 7} war {i % 11}" for i in range(num_texts))
        tracemalloc.start()
        found = count_words(texts, static._normalizer())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.counts.sum() == 4 * num_texts and found.pair_counts.sum() == 3 * num_texts
    assert peaks[1] < 1.1 * peaks[0]


def slow_table(texts: list[str], least: int, start: tuple) -> tuple[list[str], torch.Tensor, list[list[int]]]:
    """Tokens, table and the rows of each token, by lists of lists and all own vectors at once."""
    tokenizer, vectors = start
    words, pairs = slow_counts(texts)
    kept = sorted((pair for pair in pairs if pairs[pair] >= least), key=lambda pair: (-pairs[pair], pair))
    tokens = ["<unk>", *("▁" + w for w in words), *(f"▁{a}▁{b}" for a, b in kept)]
    fallback = [
        (t, row) for t, row in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]) if t not in tokens
    ]
    tokens += [token for token, _ in fallback]
    of_word = {w: [len(tokens) + row for row in tokenizer.encode(w, add_special_tokens=False).ids] for w in words}
    own = {w: 1 + i for i, w in enumerate(words)}
    rows = [[], *of_word.values(), *([own[a], *of_word[a], own[b], *of_word[b]] for a, b in kept)]
    parts = [[i, *shared] for i, shared in enumerate(rows + [[len(tokens) + row] for _, row in fallback])]
    vectors = vectors / vectors.norm(dim=1).mean()
    counts = np.zeros(len(vectors))
    for word, count in words.items():
        for row in of_word[word]:
            counts[row - len(tokens)] += count
    share = torch.from_numpy(counts / counts.sum()).float().unsqueeze(1)
    vectors = vectors * (1e-3 / (1e-3 + share))
    start_rows = torch.cat([torch.zeros(len(tokens), vectors.size(1)), vectors])
    lengths = torch.stack([start_rows[shared].sum(0).norm() for shared in parts]).unsqueeze(1)
    random = torch.randn(len(tokens), vectors.size(1), generator=torch.Generator().manual_seed(0))
    return tokens, torch.cat([0.1 * lengths * F.normalize(random), vectors]), parts


@pytest.mark.parametrize(("least", "at_once"), [(2, 1 << 14), (1, 16), (99, 5)])
def test_the_table_is_that_of_lists_whatever_is_made_at_once(tiny, monkeypatch, least, at_once):
    monkeypatch.setattr(static, "_TOKENS_AT_ONCE", at_once)
    monkeypatch.setattr(static, "_WORDS_AT_ONCE", at_once)
    tokenizer = word_tokenizer()
    start = tokenizer, torch.randn(tokenizer.get_vocab_size(), 16, generator=torch.Generator().manual_seed(1))
    texts = tiny.train["text"][:300]
    tokens, table, parts = slow_table(texts, least, start)
    made = static_embedding(texts, min_pair_count=least, start=start)
    assert [made.tokenizer.id_to_token(i) for i in range(made.tokenizer.get_vocab_size())] == tokens
    assert made.parts.tolist() == [row for shared in parts for row in shared]
    assert made.indptr.tolist() == np.cumsum([0, *map(len, parts)]).tolist()
    torch.testing.assert_close(made.embedding.weight.detach(), table, rtol=1e-5, atol=1e-7)
    assert table[: len(tokens)].abs().sum() > 0
