"""The one loop back: from the current model to the next epochs' hard negatives, neighboring rows and labels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_xmc.data.columns import chunks_of
from hf_xmc.data.dataset import XMCDataset
from hf_xmc.distributed import PAD, gather_shares, is_distributed, share_of
from hf_xmc.encoders.encoder import dual_vectors
from hf_xmc.index.label_index import LabelIndex
from hf_xmc.losses.label_terms import LabelNeighbors
from hf_xmc.training.clusters import cluster_order

STATE_FILE = "mining.safetensors"
_ROWS_AT_ONCE = 4096


def mine_hard_negatives(queries: np.ndarray, labels: np.ndarray, known: sp.csr_matrix, depth: int) -> np.ndarray:
    """The nearest labels of each row that are neither its positives nor filtered for it.

    Args:
        queries: (N, D) float32.
        labels: (L, D) float32.
        known: (N, L), an entry for each label to leave out of a row: positives and filter pairs.
        depth: Labels of a row.

    Returns:
        (N, depth) int32, nearest first, -1 where there are fewer.
    """
    index = LabelIndex(labels)
    mined = np.empty((len(queries), depth), dtype=np.int32)
    for part in _parts(len(queries)):
        pairs = np.stack(known[part].nonzero(), 1).astype(np.int64)
        mined[part], _ = index.search(queries[part], depth, filters=pairs)
    return mined


def nearest_labels(labels: np.ndarray, start: int, stop: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other labels of the labels ``start`` to ``stop``.

    Args:
        labels: (L, D) float32 of unit length.
        start: First of n labels.
        stop: One after the last.
        depth: K, labels of a label.

    Returns:
        ids (n, K) int32, nearest first, -1 where there are fewer, and cosines (n, K) float32.
    """
    index, own = LabelIndex(labels), np.arange(start, stop)
    ids, cosines = np.empty((len(own), depth), dtype=np.int32), np.empty((len(own), depth), dtype=np.float32)
    for part in _parts(len(own)):
        pairs = np.stack([np.arange(len(own[part])), own[part]], 1)
        ids[part], cosines[part] = index.search(labels[own[part]], depth, filters=pairs)
    return ids, cosines


def _parts(num_rows: int) -> Iterator[slice]:
    """Rows that are searched at once: a search holds their ids and scores, as deep as one has labels to leave out."""
    return (slice(start, start + _ROWS_AT_ONCE) for start in range(0, num_rows, _ROWS_AT_ONCE))


class MiningCallback(TrainerCallback):
    """Mine at the start of every ``refresh_epochs``-th epoch, the first excepted; the only writer of its tensors.

    Every rank encodes and searches its share of the rows. What was mined is saved in checkpoints, so that a run
    resumed in the middle of an epoch goes on with the same negatives and batches.

    Args:
        data: Its ``train`` rows are mined for.
        refresh_epochs: Epochs between two minings.
        mined: (N, M) int32 shared tensor for hard negatives, or None.
        row_order: (N,) int64 shared tensor for the order in which near neighbors stand together, or None.
        neighbors: The nearest labels of each label, read by a loss, or None.
        batch_size: Rows of one rank in a step, the size of a group of neighbors.
        seed: For the clusters.
    """

    def __init__(
        self,
        data: XMCDataset,
        refresh_epochs: int,
        *,
        mined: torch.Tensor | None = None,
        row_order: torch.Tensor | None = None,
        neighbors: LabelNeighbors | None = None,
        batch_size: int = 1,
        seed: int = 0,
    ) -> None:
        self.data = data
        self.refresh_epochs = refresh_epochs
        self.mined = mined
        self.row_order = row_order
        self.neighbors = neighbors
        self.batch_size = batch_size
        self.seed = seed

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mine where an epoch begins that is due for it."""
        epoch = state.epoch or 0.0
        at_the_start = abs(epoch - round(epoch)) < 1e-6  # false where a run resumes in mid-epoch
        if at_the_start and round(epoch) > 0 and round(epoch) % self.refresh_epochs == 0:
            self.refresh(kwargs["model"], round(epoch))

    def forget(self) -> None:
        """Be as before the first mining."""
        for name, tensor in self._tensors().items():
            tensor.fill_(0 if name == "neighbour_cosines" else PAD)

    def refresh(self, model: SentenceTransformer, epoch: int = 0) -> None:
        """Mine with the model as it is now; every rank must call it."""

        @cache
        def queries() -> np.ndarray:
            return _encode(model, chunks_of(self.data.train, "text"), "query")

        @cache
        def labels() -> np.ndarray:
            return _encode(model, chunks_of(self.data.labels, "text"), "document")

        if self.mined is not None:
            self.mined.copy_(torch.from_numpy(self._mine(queries(), labels(), self.mined.size(1))))
        if self.neighbors is not None:
            num_labels = len(labels())
            ids, cosines = nearest_labels(labels(), *share_of(num_labels), self.neighbors.num_neighbors)
            self.neighbors.write(gather_shares(ids, num_labels), gather_shares(cosines, num_labels))
        if self.row_order is not None:
            order = torch.from_numpy(cluster_order(queries(), self.batch_size, seed=self.seed + epoch))
            if is_distributed():  # k-means need not end alike on different machines
                dist.broadcast(order, src=0)
            self.row_order.copy_(order)

    def _mine(self, queries: np.ndarray, labels: np.ndarray, depth: int) -> np.ndarray:
        """The hard negatives (N, depth) int32 of all rows; each rank searches for its share."""
        known = self.data.to_csr("train")
        if len(self.data.filters["train"]):
            indptr, indices = self.data.filter_csr("train")
            known = known + sp.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=known.shape)
        start, stop = share_of(len(queries))
        return gather_shares(mine_hard_negatives(queries[start:stop], labels, known[start:stop], depth), len(queries))

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put what was mined beside the model's weights."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            save_file(self._tensors(), folder / STATE_FILE)

    def load(self, checkpoint: str | Path) -> None:
        """Take up what a checkpoint holds.

        Raises:
            ValueError: If it was written with other settings.
        """
        file = Path(checkpoint) / STATE_FILE
        if not file.is_file():
            return
        saved, own = load_file(file), self._tensors()
        shapes = {name: tuple(t.shape) for name, t in saved.items()}
        if shapes != {name: tuple(t.shape) for name, t in own.items()}:
            raise ValueError(
                f"{file} holds {shapes}; resume with the same data, hard_negatives, cluster_batches and neighbors "
                "of labels as before"
            )
        for name, tensor in own.items():
            tensor.copy_(saved[name])

    def _tensors(self) -> dict[str, torch.Tensor]:
        named = {"mined": self.mined, "row_order": self.row_order}
        if self.neighbors is not None:  # under the names that checkpoints hold
            named |= {"neighbour_ids": self.neighbors.ids, "neighbour_cosines": self.neighbors.cosines}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def _encode(model: SentenceTransformer, texts: pa.ChunkedArray, task: str) -> np.ndarray:
    """Dual-encoder vectors (n, D) float32 of unit length; each rank encodes its share."""
    start, stop = share_of(len(texts))
    vectors = dual_vectors(model, texts[start:stop], task, show_progress_bar=False)
    return gather_shares(vectors, len(texts))
