"""The slow twin of hf_xmc.memory.knowledge_memory: dense vectors and loops, one key at a time."""

from __future__ import annotations

import math

import numpy as np


def slow_lambda(row_weight: float, frequency_power: float, count: int) -> float:
    """lambda of a label with `count` training rows."""
    if row_weight in (0, 1):
        return row_weight
    odds = row_weight / (1 - row_weight) * ((count + 1) / 2) ** frequency_power
    return odds / (1 + odds)


def slow_votes(
    query: np.ndarray,
    rows: np.ndarray,
    truth: np.ndarray,
    labels: np.ndarray,
    *,
    row_weight: float,
    scale: float,
    num_keys: int,
    frequency_power: float = 0.0,
    own_row: int = -1,
    filtered: frozenset[int] = frozenset(),
) -> dict[int, dict[tuple[str, int], float]]:
    """What each key gives to each label: {label: {("row", n) or ("label", l): vote}}, zero-valued keys left out.

    query (D,), rows (N, D), truth (N, L) dense votes, labels (L, D).
    """
    counts = (truth > 0).sum(0)
    lambdas = [slow_lambda(row_weight, frequency_power, int(count)) for count in counts]
    keys = []
    for n, row in enumerate(rows):
        if n != own_row and truth[n].any() and row_weight > 0:
            keys.append((float(np.dot(row, query)), ("row", n)))
    for l, label in enumerate(labels):
        if l not in filtered and row_weight < 1:
            keys.append((float(np.dot(label, query)), ("label", l)))
    nearest = sorted(keys, key=lambda key: -key[0])[:num_keys]  # stable: rows before labels, ascending
    total = math.fsum(math.exp(scale * (score - nearest[0][0])) for score, _ in nearest) if nearest else 1.0
    votes: dict[int, dict[tuple[str, int], float]] = {}
    for score, (kind, number) in nearest:
        weight = math.exp(scale * (score - nearest[0][0])) / total
        if kind == "label":
            votes.setdefault(number, {})[kind, number] = (1 - lambdas[number]) * weight
            continue
        for l in np.flatnonzero(truth[number]).tolist():
            if l not in filtered:
                votes.setdefault(l, {})[kind, number] = lambdas[l] * weight * float(truth[number, l])
    return votes


def slow_search(
    votes: dict[int, dict[tuple[str, int], float]], label_scores: dict[int, float], scale: float, top_k: int
) -> tuple[list[int], list[float]]:
    """The best labels by summed votes, equal ones (up to rounding) by ascending id, then those without a vote by their
    label score; `label_scores` has the labels that the query may get. Padded."""
    sums = {label: math.fsum(parts.values()) for label, parts in votes.items()}
    ranked = sorted(sums, key=lambda label: (-round(sums[label], 12), label))
    scores = [sums[label] for label in ranked]
    rest = sorted((label for label in label_scores if label not in sums), key=lambda l: (-label_scores[l], l))
    least = scores[-1] if scores else 1.0
    for label in rest:
        ranked.append(label)
        scores.append(least / 2 * math.exp(scale * (label_scores[label] - label_scores[rest[0]])))
    missing = max(top_k - len(ranked), 0)
    return ranked[:top_k] + [-1] * missing, scores[:top_k] + [-math.inf] * missing
