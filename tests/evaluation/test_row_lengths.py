from __future__ import annotations

from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from toys import WORDS, make_static_encoder, make_words_data

from hf_xmc import SearchForm, XMCEncoder, XMCEvaluator
from hf_xmc.evaluation.row_lengths import RowLengths, are_training_rows, fit_row_lengths, lengthen_rows


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
    lengthen_rows(encoder, data, RowLengths(0.5, own_power=0.5))
    after = encoder.label_halves(WORDS)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_allclose(after[1], np.sqrt((counts + 1) / 2)[:, None] * before[1], rtol=1e-4, atol=1e-5)


def evaluator_of(
    trained: tuple[list[str], list[list[int]]], asked: tuple[list[str], list[list[int]]], labels: list[str]
) -> XMCEvaluator:
    train, test = (datasets.Dataset.from_dict({"text": t, "label_ids": ids}) for t, ids in (trained, asked))
    none = {split: np.zeros((0, 2), dtype=np.int64) for split in ("train", "test")}
    texts = datasets.Dataset.from_dict({"text": labels})
    return XMCEvaluator(replace(make_words_data(), train=train, test=test, labels=texts, filters=none))


def with_two_rows(text: str, second: float) -> XMCEncoder:
    """Two labels with the row of ``text``, that of label 1 ``second`` times as long: it wins every query."""
    encoder = make_static_encoder()
    encoder.add_classifier(2, None, residual=False)
    (row,) = torch.from_numpy(encoder.encode([text]))
    encoder.label_classifier.initialize(torch.stack([row, second * row]))
    encoder.search_form = SearchForm(1.0, False)
    return encoder


def test_the_power_serves_both_metrics_and_leaves_the_encoder_alone() -> None:
    encoder = with_two_rows("war", 1.05)
    evaluator = evaluator_of(
        (["war"] * 40, [[0]] * 39 + [[1]]), (["war"] * 10, [[0]] * 9 + [[1]]), ["history", "peace"]
    )
    rows = encoder.label_classifier.rows.weight.clone()
    lengths, metrics = fit_row_lengths(encoder, evaluator)
    assert torch.equal(rows, encoder.label_classifier.rows.weight)
    # The frequent label's row is 20 ** power times as long; 1.05 is passed from .02 on.
    assert lengths == RowLengths(0.02, own_power=0.02) and metrics["precision@1"] == pytest.approx(0.9)
    assert str(lengths) == "power 0.02"
    lengthen_rows(encoder, evaluator.data, lengths)
    assert evaluator.metrics(evaluator.predict(encoder)[0]) == metrics


def test_labels_that_are_training_rows_are_shortened_where_that_is_right_for_enough_rows() -> None:
    labels = ["peace", "history"]  # label 1 is a training row too
    trained = (["war", "history"], [[0], [1]])
    for right, expected in ((60, 0.9), (2, 1.0)):  # two right of three are within chance
        encoder = with_two_rows("war", 1.06)
        truth = [[0]] * right + [[1]] * (right // 4 if right > 2 else 1)
        evaluator = evaluator_of(trained, (["war"] * len(truth), truth), labels)
        assert are_training_rows(evaluator.data).tolist() == [False, True]
        lengths, metrics = fit_row_lengths(encoder, evaluator)
        assert lengths.own_share == expected and lengths.power == 0
        lengthen_rows(encoder, evaluator.data, lengths)
        assert evaluator.metrics(evaluator.predict(encoder)[0]) == metrics
        assert (metrics["precision@1"] > 0.5) == (expected < 1)
    assert str(RowLengths(0.02, 0.9, 0.05)) == "power 0.02; labels that are training rows: power 0.05, times 0.9"


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dimension", [None, 8])
def test_what_is_fitted_by_ranking_anew_is_what_a_search_finds(weight: float, dimension: int | None) -> None:
    encoder = with_rows(True, dimension)
    encoder.search_form = SearchForm(weight, False)
    base = make_words_data()
    evaluator = XMCEvaluator(replace(base, test=base.train))
    lengths, metrics = fit_row_lengths(encoder, evaluator)
    before = evaluator.metrics(evaluator.predict(encoder)[0])
    lengthen_rows(encoder, base, lengths)
    after = evaluator.metrics(evaluator.predict(encoder)[0])
    assert after == pytest.approx(metrics)
    assert after["precision@1"] + after["psp@1"] >= before["precision@1"] + before["psp@1"]


def test_unit_rows_have_no_lengths_to_fit() -> None:
    encoder = with_rows(True, None)
    encoder.search_form = SearchForm(1.0, True)
    assert fit_row_lengths(encoder, XMCEvaluator(make_words_data()))[0] == RowLengths()


def test_what_cannot_be_lengthened_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows to lengthen: the encoder has no classifier"):
        lengthen_rows(make_static_encoder(), make_words_data(), RowLengths(0.1))
    with pytest.raises(ValueError, match="powers must be finite and own_share above 0, got .*nan"):
        RowLengths(np.nan)
    with pytest.raises(ValueError, match="powers must be finite and own_share above 0, got .*own_share=0"):
        RowLengths(own_share=0)
