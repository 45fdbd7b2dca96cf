"""A promise of precision is kept in nearly all draws of held-out rows, and not made where it cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from hf_xmc.hub.ranker_xmc import PROMISED, Promise
from hf_xmc.ranker.promise import CONFIDENCE, PRECISIONS, fit_promise


def draw(num_queries: int, rng: np.random.Generator, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the best places and whether they are right, with the probability that the logit says, or more."""
    logits = np.sort(rng.normal(-1, 2, (num_queries, 7)), axis=1)[:, ::-1]
    luck = rng.random((num_queries, 1))  # labels of one query are right together
    return logits, luck < 1 / (1 + np.exp(-(logits + shift)))


def kept_precision(promise: Promise, wish: float, logits: np.ndarray, right: np.ndarray) -> float:
    kept = logits[:, :PROMISED] >= promise.threshold(wish)
    return float(right[:, :PROMISED][kept].mean())


@pytest.mark.parametrize("shift", [0.0, -1.0])  # of probabilities as they are, and of ones that are too high
def test_a_promise_is_kept_in_nearly_all_draws(shift: float) -> None:
    rng = np.random.default_rng(0)
    truth = draw(100_000, rng, shift)
    kept = {wish: [] for wish in (0.6, 0.7, 0.8)}
    for _ in range(40):
        promise = fit_promise(*draw(800, rng, shift))
        for wish, outcomes in kept.items():
            if np.isfinite(promise.threshold(wish)):
                outcomes.append(kept_precision(promise, wish, *truth) >= wish)
    for wish, outcomes in kept.items():
        assert len(outcomes) > 5 and np.mean(outcomes) >= CONFIDENCE - 0.03, wish


def test_more_rows_allow_more_labels_and_stricter_wishes_fewer() -> None:
    rng = np.random.default_rng(1)
    few, many = (fit_promise(*draw(count, rng)) for count in (300, 6000))
    assert many.threshold(0.7) < few.threshold(0.7)
    assert many.most >= few.most
    assert many.threshold(0.5) <= many.threshold(0.7) <= many.threshold(0.9)
    assert many.threshold(0.705) == many.threshold(0.72)  # a wish between two is that of the stricter


def test_nothing_is_promised_where_nothing_can_be() -> None:
    logits = np.random.default_rng(2).normal(size=(500, 5))
    assert fit_promise(logits, np.zeros((500, 5), bool)).most == 0
    assert fit_promise(np.full((3, 5), -np.inf), np.zeros((3, 5), bool)).threshold(0.3) == np.inf
    handful = fit_promise(logits[:8], np.ones((8, 5), bool))
    assert handful.threshold(0.99) == np.inf  # flawless, but few
    assert fit_promise(logits, np.ones((500, 5), bool)).most >= 0.95 and len(PRECISIONS) > 20
