"""Which rows form a batch: at random, or near neighbors together; the same for a seed and an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.sampler import DefaultBatchSampler


class XMCBatchSampler(DefaultBatchSampler):
    """Batches of row numbers, drawn anew each epoch from the seed and the epoch alone.

    Args:
        dataset: Anything with a length N.
        batch_size: Rows in a batch.
        drop_last: Whether a last, smaller batch is dropped.
        seed: Together with the epoch it settles the order.
        row_order: (N,) int64 shared tensor in which every run of ``batch_size`` rows is a group of neighbors; all -1
            while there is none yet. None for batches at random.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        drop_last: bool = False,
        *,
        seed: int = 0,
        row_order: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(range(len(dataset)), batch_size=batch_size, drop_last=drop_last, seed=seed)
        self.num_rows = len(dataset)
        self.row_order = row_order

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        starts = np.arange(0, len(self) * self.batch_size, self.batch_size)
        if self.row_order is not None and int(self.row_order[0]) >= 0:
            # The groups stay whole, only their order is drawn.
            order, starts = self.row_order.numpy(), rng.permutation(starts)
        else:
            order = rng.permutation(self.num_rows)
        for start in starts:
            yield order[start : start + self.batch_size].tolist()

    def __len__(self) -> int:
        full, rest = divmod(self.num_rows, self.batch_size)
        return full if self.drop_last or not rest else full + 1
