"""One rank of test_optim.py: an embedding with sparse gradients and a dense layer under DDP, other rows on each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_xmc.distributed import mean_rows
from hf_xmc.training.optim import RowSparseAdamW, clip_grad_norm

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(60, 5, sparse=True), nn.Linear(5, 3))
start = model[0].weight.detach().clone()
optimizer = RowSparseAdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
optimizer.follow(model[0])
wrapped = DistributedDataParallel(model)
generator = torch.Generator().manual_seed(1)
for _ in range(30):
    rows = torch.randint(60, (world_size, 4), generator=generator)[rank]
    optimizer.zero_grad()
    (wrapped(rows) - rank).square().mean().backward()
    assert model[0].weight.grad.is_sparse
    clip_grad_norm(model.parameters(), 0.5)
    optimizer.step()
optimizer.flush()
flat = torch.cat([p.detach().flatten() for p in model.parameters()])
flats = [torch.empty_like(flat) for _ in range(world_size)]
dist.all_gather(flats, flat)
# Rows 2, 5 of the first rank, 5, 7 and 9 of the second, none of a third.
own = [[2, 5], [5, 7, 9], []][rank]
ids, values = mean_rows(torch.tensor(own, dtype=torch.int64), torch.tensor(own).reshape(-1, 1) + torch.zeros(1, 3))
assert ids.tolist() == [2, 5, 7, 9] and values.tolist() == [[row / world_size] * 3 for row in (2.0, 10.0, 7.0, 9.0)]
nothing = mean_rows(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3))
assert nothing[0].tolist() == [] and nothing[1].shape == (0, 3)
record = {
    "world_size": world_size,
    "difference": max((flat - other).abs().max().item() for other in flats),
    "moved": (model[0].weight - start).abs().max().item(),
}
Path(sys.argv[1], f"rank{rank}.json").write_text(json.dumps(record))
dist.barrier()  # who leaves first must not cut the other off
dist.destroy_process_group()
