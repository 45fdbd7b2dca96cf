"""What ranks exchange: gathered rows, shares of work, sums."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sentence_transformers.util import all_gather
from torch import Tensor

# Fills the missing places of rows of ids.
PAD = -1


def is_distributed() -> bool:
    """Whether there is more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def pad_gather(rows: Tensor, fill: float, with_grad: bool = False) -> Tensor:
    """The rows of all ranks, one rank after the other.

    Args:
        rows: (n_rank, P) or (n_rank,); both sizes may differ between ranks and are padded to the largest.
        fill: The value of pads.
        with_grad: Whether a gradient flows back to the rank a row came from, summed over ranks.

    Returns:
        (W * n, P) or (W * n,), n and P the largest of all ranks; rows itself where there is one rank.
    """
    if not is_distributed():
        return rows
    shape = torch.tensor(rows.shape, device=rows.device)
    dist.all_reduce(shape, op=dist.ReduceOp.MAX)
    missing = [size - own for size, own in zip(shape.tolist(), rows.shape, strict=True)]
    padding = [amount for size in reversed(missing) for amount in (0, size)]
    return all_gather(F.pad(rows, padding, value=fill), with_grad=with_grad)


def gather_pool(embeddings: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The candidates of all ranks, each once, in ascending order of their ids.

    Args:
        embeddings: (C_rank, D), this rank's candidates.
        ids: (C_rank,) int64, their global ids.

    Returns:
        (C, D) embeddings, whose gradient flows back to the rank each came from, and (C,) ids.
    """
    embeddings, ids = pad_gather(embeddings, 0.0, with_grad=True), pad_gather(ids, PAD)
    order = torch.argsort(ids, stable=True)
    ordered = ids[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    order = order[first & (ordered != PAD)]
    return embeddings[order], ids[order]


def mean_rows(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a matrix (L, D), of which each rank has some, averaged over the ranks; a row that a rank lacks is 0.

    Args:
        ids: (n_rank,) int64, ascending, each once.
        values: (n_rank, D).

    Returns:
        ids (R,) of all ranks, ascending, and values (R, D), to the bit the same on every rank.
    """
    counts = [ids.new_zeros(1) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, ids.new_tensor([len(ids)]))
    # From each rank to all others, without pads: the values are most of what ranks send.
    sent = [ids.new_empty(int(count)) for count in counts]
    sent[dist.get_rank()] = ids
    for rank, each in enumerate(sent):
        dist.broadcast(each, src=rank)
    rows, places = torch.unique(torch.cat(sent), return_inverse=True)  # (R,)
    total = values.new_zeros(len(rows), values.size(1))
    for rank, place in enumerate(places.split([len(each) for each in sent])):
        own = rank == dist.get_rank()
        part = values.contiguous() if own else values.new_empty(len(place), values.size(1))
        dist.broadcast(part, src=rank)
        total.index_add_(0, place, part)
    return rows, total.div_(len(sent))


def rows_per_rank(count: Tensor) -> Tensor:
    """The number of counted rows of all ranks divided by the number of ranks.

    DDP averages the ranks' gradients: a rank that divides its sum by this value adds its share of the global mean.
    """
    count = count.detach().to(torch.float64)
    if is_distributed():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count


def all_reduce(
    tensor: Tensor, group: dist.ProcessGroup | None, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
) -> Tensor:
    """A new tensor, reduced over the ranks of a group; without a group the tensor itself."""
    if group is not None:
        tensor = tensor.clone()
        dist.all_reduce(tensor, op=operation, group=group)
    return tensor


def share_of(count: int, rank: int | None = None) -> tuple[int, int]:
    """The half-open range of ``count`` things that a rank, this one by default, answers for."""
    world_size, own = (dist.get_world_size(), dist.get_rank()) if is_distributed() else (1, 0)
    rank = own if rank is None else rank
    return count * rank // world_size, count * (rank + 1) // world_size


def gather_shares(rows: np.ndarray, count: int) -> np.ndarray:
    """The shares of all ranks, in order: (n_rank, D) -> (count, D)."""
    if not is_distributed():
        return rows
    gathered = pad_gather(torch.from_numpy(np.ascontiguousarray(rows)), 0).numpy()
    each = len(gathered) // dist.get_world_size()
    sizes = [stop - start for start, stop in (share_of(count, rank) for rank in range(dist.get_world_size()))]
    return np.concatenate([gathered[r * each : r * each + size] for r, size in enumerate(sizes)])
