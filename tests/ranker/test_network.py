"""The network of a ranker learns probabilities, and what runs in numpy is what was trained."""

from __future__ import annotations

import numpy as np
import torch

from hf_xmc.hub.ranker_xmc import Network, probability
from hf_xmc.metrics.reliability import expected_calibration_error
from hf_xmc.ranker.network import NUM_BINS, bins_of, fit_network


def candidates(num_queries: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features, truth, query and the probability that the truth was drawn with: a step and a product of features."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(20 * num_queries, 4)).astype(np.float32)
    chance = 0.05 + 0.6 * ((table[:, 0] > 0.5) & (table[:, 1] * table[:, 2] > 0))
    return table, rng.random(len(table)) < chance, np.repeat(np.arange(num_queries), 20), chance


def test_probabilities_are_those_that_the_truth_was_drawn_with() -> None:
    table, right, query, _ = candidates(4000, 0)
    network = fit_network(table, right, query, bins_of(table))
    unseen, hits, _, chance = candidates(1500, 1)
    found = probability(network.logits(unseen))
    assert expected_calibration_error(found, hits) < 0.03
    constant = np.mean((chance - chance.mean()) ** 2)
    assert np.mean((found - chance) ** 2) < 0.2 * constant  # a linear model explains little of it


def test_the_same_rows_give_the_same_network_and_leave_torch_as_it_was() -> None:
    table, right, query, _ = candidates(50, 2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = (fit_network(table, right, query, bins_of(table)) for _ in range(2))
    assert torch.rand(1) == expected
    np.testing.assert_array_equal(one.logits(table), two.logits(table))


def test_logits_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(3)
    table = rng.normal(size=(7, 3)).astype(np.float32)
    table[:, 2] = 1.0  # a feature that is always the same
    starts, widths = bins_of(table)
    hidden = rng.normal(size=(3 * NUM_BINS, 5)).astype(np.float32)
    bias, out = rng.normal(size=(2, 5)).astype(np.float32)
    found = Network(starts, widths, hidden, bias, out, 0.25).logits(table)
    for row, logit in zip(table, found, strict=True):
        code = [min(max((row[f] - starts[f, j]) / widths[f, j], 0), 1) for f in range(3) for j in range(NUM_BINS)]
        x = code @ hidden.astype(np.float64) + bias
        np.testing.assert_allclose(logit, (x / (1 + np.exp(-x))) @ out + 0.25, rtol=1e-5, atol=1e-5)


def test_bins_hold_equal_shares_and_a_constant_has_none() -> None:
    column = np.random.default_rng(4).exponential(size=8000).astype(np.float32)
    starts, widths = bins_of(np.stack([column, np.ones_like(column)], axis=1))
    counts = [((column >= a) & (column < a + b)).sum() for a, b in zip(starts[0], widths[0], strict=True)]
    np.testing.assert_allclose(counts, 8000 / NUM_BINS, atol=2)
    assert (starts[1] > 1e38).all()


def test_rounding_of_a_feature_moves_no_logit_by_more() -> None:
    rng = np.random.default_rng(6)
    table, right, query, _ = candidates(200, 6)
    table[:, 3] = 1 + 1e-7 * rng.integers(0, 9, len(table))  # such as the cosines of equal texts
    table[:50, 3] = -1.0
    network = fit_network(table, right, query, bins_of(table))
    rounded = table + 1e-7 * rng.normal(size=table.shape).astype(np.float32)
    np.testing.assert_allclose(network.logits(rounded), network.logits(table), atol=2e-5)
