"""Training the network of a ranker."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from hf_xmc.hub.ranker_xmc import Network

NUM_BINS, WIDTH = 8, 64
_SAMPLED = 50_000
# The width of a bin, as a share of the range of its feature.
_LEAST_WIDTH = 0.01
_QUERIES_A_STEP, _EPOCHS, _LEAST_STEPS, _MOST_STEPS = 64, 6, 300, 1500
_LEARNING_RATE, _WEIGHT_DECAY = 3e-2, 0.1


def fit_network(
    table: np.ndarray, right: np.ndarray, query: np.ndarray, bins: tuple[np.ndarray, np.ndarray], seed: int = 0
) -> Network:
    """The network of the least log loss, by AdamW over batches of queries.

    Args:
        table: (n, F) float32, the features of candidates.
        right: (n,) bool, whether a candidate is right.
        query: (n,) integers, ascending, whose candidate it is.
        bins: From :func:`bins_of`.
        seed: For the start and the order of the batches.
    """
    starts, widths = bins
    num_codes = starts.size
    network = Network(starts, widths, np.zeros((num_codes, 0)), np.zeros(0), np.zeros(0), 0.0)
    # Codes of rare values are small: each is trained on as if its spread were 1.
    sample = network.code(table[:: max(1, len(table) // _SAMPLED)])
    center, spread = sample.mean(0), sample.std(0) + 1e-3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden, out = torch.nn.Linear(num_codes, WIDTH), torch.nn.Linear(WIDTH, 1)
    weights = [*hidden.parameters(), *out.parameters()]
    first = np.flatnonzero(np.diff(query, prepend=-1))
    last = np.append(first[1:], len(query))
    num_steps = int(np.clip(_EPOCHS * len(first) / _QUERIES_A_STEP, _LEAST_STEPS, _MOST_STEPS))
    optimizer = torch.optim.AdamW(weights, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=num_steps)
    draw = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(num_steps):
        if len(order) < _QUERIES_A_STEP:
            order += draw.permutation(len(first)).tolist()
        batch, order = order[:_QUERIES_A_STEP], order[_QUERIES_A_STEP:]
        rows = np.concatenate([np.arange(first[each], last[each]) for each in batch])
        codes = torch.from_numpy((network.code(table[rows]) - center) / spread)
        truth = torch.from_numpy(right[rows].astype(np.float32))
        logits = out(F.silu(hidden(codes)))[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / len(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    inner, bias, outer, outer_bias = (weight.detach().numpy() for weight in weights)
    inner = inner / spread
    bias = bias - inner @ center
    return Network(starts, widths, np.ascontiguousarray(inner.T), bias, outer[0], float(outer_bias[0]))


def bins_of(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bins of equal mass of each column: where they start and their widths, (F, NUM_BINS) float32 each."""
    num_features = table.shape[1]
    starts = np.full((num_features, NUM_BINS), np.float32(3e38), dtype=np.float32)
    widths = np.ones((num_features, NUM_BINS), dtype=np.float32)
    for column in range(num_features):
        values = table[:, column].astype(np.float64)
        least = max(_LEAST_WIDTH * (values.max() - values.min()), 2 * _LEAST_WIDTH)
        edges: list[float] = []
        for edge in np.quantile(values, np.linspace(0, 1, NUM_BINS + 1)):
            # Values that only rounding tells apart share a bin: doors round differently, and must not answer so.
            if not edges or edge >= edges[-1] + least:
                edges.append(float(edge))
        count = len(edges) - 1
        starts[column, :count], widths[column, :count] = edges[:count], np.diff(edges)
    return starts, widths
