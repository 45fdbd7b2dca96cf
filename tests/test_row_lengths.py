from __future__ import annotations

from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from conftest import WORDS, make_static_encoder, make_words_data

from hf_xmc import SearchForm, XMCEncoder, XMCEvaluator
from hf_xmc.row_lengths import POWERS, fit_frequency_power, frequency_factors, lengthen_rows


def with_rows(residual: bool, dimension: int | None) -> XMCEncoder:
    encoder = make_static_encoder()
    encoder.add_classifier(len(WORDS), dimension, residual=residual, dropout=0.0)
    torch.manual_seed(1)
    with torch.no_grad():
        encoder.label_classifier.rows.weight += torch.randn(encoder.label_classifier.rows.weight.shape)
    return encoder


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dimension", [None, 8])
def test_whole_rows_are_multiplied_by_the_power_of_the_frequency(residual: bool, dimension: int | None) -> None:
    data, encoder = make_words_data(), with_rows(residual, dimension)
    counts = np.zeros(len(WORDS))
    for ids in data.train["label_ids"]:
        counts[ids] += 1
    assert len(set(counts)) > 3
    before = encoder.label_halves(WORDS)
    lengthen_rows(encoder, data, 0.5)
    after = encoder.label_halves(WORDS)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_allclose(after[1], np.sqrt((counts + 1) / 2)[:, None] * before[1], rtol=1e-4, atol=1e-5)


def test_the_power_serves_both_metrics_and_leaves_the_encoder_alone() -> None:
    encoder = make_static_encoder()
    encoder.add_classifier(2, None, residual=False)
    (row,) = torch.from_numpy(encoder.encode(["war"]))
    encoder.label_classifier.initialize(torch.stack([row, 1.05 * row]))  # label 1 wins every query
    encoder.search_form = SearchForm(1.0, False)
    base = make_words_data()
    trained = datasets.Dataset.from_dict({"text": ["war"] * 40, "label_ids": [[0]] * 39 + [[1]]})
    asked = datasets.Dataset.from_dict({"text": ["war"] * 10, "label_ids": [[0]] * 9 + [[1]]})
    labels = datasets.Dataset.from_dict({"text": ["war", "peace"]})
    none = {split: np.zeros((0, 2), dtype=np.int64) for split in ("train", "test")}
    evaluator = XMCEvaluator(replace(base, train=trained, test=asked, labels=labels, filters=none))
    rows = encoder.label_classifier.rows.weight.clone()
    power, tried = fit_frequency_power(encoder, evaluator)
    assert torch.equal(rows, encoder.label_classifier.rows.weight) and list(tried) == list(POWERS)
    # The frequent label's row is 20 ** power times as long; 1.05 is passed from .02 on.
    assert power == 0.02 and tried[0.01]["precision@1"] == pytest.approx(0.1)
    assert tried[power]["precision@1"] == pytest.approx(0.9)
    lengthen_rows(encoder, evaluator.data, power)
    assert evaluator.metrics(evaluator.predict(encoder)[0]) == tried[power]


def test_what_cannot_be_lengthened_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows to lengthen: the encoder has no classifier"):
        lengthen_rows(make_static_encoder(), make_words_data(), 0.1)
    with pytest.raises(ValueError, match="power must be a finite number, got nan"):
        frequency_factors(np.ones(3), np.nan)
