"""Thresholds that keep a promise: learn, then test (Angelopoulos et al., arXiv 2110.01052)."""

from __future__ import annotations

import numpy as np

from hf_xmc.hub.ranker_xmc import PROMISED, Promise

PRECISIONS = np.round(np.append(np.arange(0.30, 0.981, 0.02), 0.99), 2)
CONFIDENCE = 0.95
_NUM_THRESHOLDS, _NUM_STARTS = 80, 4
# Share of the largest loss that may be staked at once.
_STAKE = 0.9


def fit_promise(logits: np.ndarray, right: np.ndarray, confidence: float = CONFIDENCE) -> Promise:
    """For each wish the lowest threshold of which held-out rows say that it keeps the wish.

    A threshold t keeps the labels of the first places whose logit is at least t. It keeps a wish w if the mean of
    ``sum of (right - w) over a query's kept labels`` is above 0 over all queries. Thresholds are tested from the
    strictest down until one fails, and anew from three places further down, for the few strictest may fail where more
    labels prove a wish. The levels of the four sequences sum to ``1 - confidence``, and the lowest threshold that
    passed keeps the promise (fixed-sequence testing with several starts). The test is a bet on the mean of bounded
    numbers (Waudby-Smith and Ramdas, JRSS B 2024): valid for any number of queries, and nearly as sharp as the normal
    approximation.

    Args:
        logits: (N, at least K) float, of the K best labels of held-out queries, -inf in missing places.
        right: The same shape, bool.
        confidence: Probability that a promise holds for queries like these.
    """
    logits, right = np.asarray(logits, dtype=np.float64)[:, :PROMISED], np.asarray(right, dtype=bool)[:, :PROMISED]
    shown = np.sort(logits[np.isfinite(logits)])[::-1]
    found = np.full(len(PRECISIONS), np.inf)
    if not len(shown):
        return Promise(PRECISIONS, found, confidence)
    order = np.random.default_rng(0).permutation(len(logits))  # the bet must not follow an order of the rows
    logits, right = logits[order], right[order]
    for place, wish in enumerate(PRECISIONS):
        # Of fewer labels than this not even a flawless record would prove the wish.
        least = 1.5 * np.log(_NUM_STARTS / (1 - confidence)) / ((1 - wish) * _STAKE / (wish * logits.shape[1]))
        if least > len(shown):
            break
        counts = np.unique(np.geomspace(least, len(shown), _NUM_THRESHOLDS).astype(int))
        for start in np.linspace(0, len(counts), _NUM_STARTS, endpoint=False).astype(int):
            for count in counts[start:]:
                sums = np.where(logits >= shown[count - 1], right - wish, 0.0).sum(1)
                if not _is_above_zero(sums, wish * logits.shape[1], (1 - confidence) / _NUM_STARTS):
                    break
                found[place] = min(found[place], shown[count - 1])
    return Promise(PRECISIONS, found, confidence)


def _is_above_zero(values: np.ndarray, most: float, level: float) -> bool:
    """Whether the mean of values of at least ``-most`` is above 0, wrong with at most probability ``level``.

    The capital of a gambler who stakes a share of it on each value, chosen by those before, is a martingale if the
    mean is 0: it reaches 1 / level with probability at most ``level`` (Ville).
    """
    number = np.arange(1, len(values) + 1)
    mean = np.cumsum(values) / (number + 1)
    square = (0.25 + np.cumsum(values**2)) / (number + 1)
    share = np.append(0, np.clip(mean[:-1] / square[:-1], 0, _STAKE / most))
    return bool(np.cumsum(np.log1p(share * values)).max() >= np.log(1 / level))
