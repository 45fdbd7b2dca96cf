from __future__ import annotations

import numpy as np
import pytest

from hf_xmc import XMCDataset, XMCEvaluator
from hf_xmc.runs import baselines
from hf_xmc.runs.baselines import tfidf_knn, tfidf_zero_shot


def test_baselines_reach_what_the_data_set_states(tiny: XMCDataset) -> None:
    evaluator = XMCEvaluator(tiny)
    zero_shot, knn = evaluator.metrics(tfidf_zero_shot(tiny)), evaluator.metrics(tfidf_knn(tiny))
    # Its README: 32.24 / 37.66 zero-shot and 30.46 / 38.84 kNN, by another tokenization.
    assert abs(zero_shot["precision@1"] - 0.3224) < 0.03 and abs(zero_shot["psp@5"] - 0.3766) < 0.05
    assert abs(knn["precision@1"] - 0.3046) < 0.03 and abs(knn["psp@5"] - 0.3884) < 0.05


def test_the_nearest_rows_vote_with_their_cosine(tiny: XMCDataset) -> None:
    ids = tfidf_knn(tiny, k=3, num_neighbors=1)
    train = [set(row) for row in tiny.train["label_ids"][:]]
    found = [set(row[row >= 0].tolist()) for row in ids]
    voted = [row for row in found if row]
    assert len(voted) > 900 and all(any(row <= labels for labels in train) for row in voted[:50])
    assert ids.dtype == np.int64


@pytest.mark.parametrize("share", [0.0, 0.001, 0.03, 1.0])
def test_the_search_that_leaves_frequent_words_to_the_end_finds_the_nearest(
    tiny: XMCDataset, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(baselines, "_FREQUENT", share)
    vectorizer = baselines._vectorizer()
    keys, queries = vectorizer.fit_transform(tiny.train["text"][:]), vectorizer.transform(tiny.test["text"][:200])
    found = baselines._nearest(keys, 7)(queries).toarray()
    product = (queries @ keys.T).toarray()
    assert np.count_nonzero(product, axis=1).max() > 100
    np.testing.assert_allclose(-np.sort(-found)[:, :7], -np.sort(-product)[:, :7], atol=1e-6)
    assert np.count_nonzero(found, axis=1).max() == 7
    np.testing.assert_allclose(found[found > 0], product[found > 0], atol=1e-6)
