"""Chunks whose tiles stay on the GPU's chip: the same sums and derivatives by the Triton kernels."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from hf_xmc.losses.streaming import triton_kernels as kernels
from hf_xmc.losses.streaming.chunks import Batch, Chunk, Derivative
from hf_xmc.losses.streaming.top_scores import TopScores


class KernelChunk(Chunk):
    """A :class:`Chunk` that sweeps in registers; what has no kernel it sweeps tile by tile like any other."""

    def __init__(self, batch: Batch, rows: slice, scratch: Tensor, kept: Tensor | None) -> None:
        super().__init__(batch, rows, scratch, kept)
        # On a GPU the operands' type is the labels' own, so this copies nothing.
        self._labels = self.labels_of(slice(None))
        self._hidden_buckets, self._positive_buckets = (
            kernels.Buckets.of(pairs.rows, pairs.columns, len(self), len(batch.labels))
            for pairs in (self.hidden, self.positives)
        )

    def log_sum_exp(self, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
        """As :meth:`Chunk.log_sum_exp`."""
        return kernels.log_sum_exp(self.queries, self._labels, alpha * self.batch.scale, self._hidden_buckets)

    def sigmoid_sums(self, threshold: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """As :meth:`Chunk.sigmoid_sums`."""
        total, slope = kernels.sigmoid_sums(
            self.queries, self._labels, self.batch.scale, self._hidden_buckets, alpha * threshold, alpha
        )
        return total, alpha * slope

    def top_scores(self, num_top: int, alpha: float) -> TopScores | None:
        """None: the kernels sweep faster than one could select."""
        return None

    def derivative_tiles(self, derivative: Derivative, grad_positives: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """As :meth:`Chunk.derivative_tiles`."""
        inputs = (self.queries, self._labels, self.batch.scale, self._hidden_buckets, self._positive_buckets)
        for tile in self.tiles:
            yield (
                tile,
                kernels.derivative_tile(
                    *inputs,
                    grad_positives,
                    int(derivative.shape),
                    derivative.alpha,
                    derivative.offset,
                    derivative.factor,
                    tile,
                ),
            )
