"""Time of a row-sparse step beside dense and lazy forms, as L grows with the same touched rows, printed as a table.

    python -m benchmarks.speed.optim            one thread, CPU seconds, best of --repeats, forms interleaved
    python -m benchmarks.speed.optim --device cuda
    python -m benchmarks.speed.optim --quick    small sizes, to see that everything runs

A step is the optimizer's alone: the gradient, of unique ascending rows, is there. "caught up in the step" pays for
idle rows too, as every row has been idle; "caught up before" is the same work in two parts, as with ``follow``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.table import Table, add_output, write
from hf_xmc.training.optim import RowSparseAdamW

NUM_TOUCHED = 8192
Step = Callable[[], None]


def make_gradients(num_rows: int, dim: int, num_touched: int, device: str) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    gradients = []
    for _ in range(4):
        rows = torch.randperm(num_rows, generator=generator, device=device)[:num_touched].sort().values
        values = torch.randn(num_touched, dim, generator=generator, device=device)
        gradients.append(
            torch.sparse_coo_tensor(rows[None], values, (num_rows, dim), is_coalesced=True, check_invariants=False)
        )
    return gradients


def sparse_form(optimizer_class: type, gradients: list[Tensor], before: bool = False) -> Step:
    weight = nn.Parameter(torch.zeros(gradients[0].shape, device=gradients[0].device))
    optimizer = optimizer_class([weight], lr=1e-3)
    turn = 0

    def step() -> None:
        nonlocal turn
        weight.grad = gradients[turn % len(gradients)]
        turn += 1
        if before:
            optimizer.catch_up(weight, weight.grad._indices()[0])
        optimizer.step()

    return step


def dense_form(gradients: list[Tensor]) -> Step:
    weight = nn.Parameter(torch.zeros(gradients[0].shape, device=gradients[0].device))
    weight.grad = gradients[0].to_dense()
    return torch.optim.AdamW([weight], lr=1e-3, fused=True).step


def forms(gradients: list[Tensor], with_dense: bool) -> dict[str, Step]:
    found = {
        "RowSparseAdamW, caught up in the step": sparse_form(RowSparseAdamW, gradients),
        "RowSparseAdamW, caught up before": sparse_form(RowSparseAdamW, gradients, before=True),
        "torch SparseAdam (lazy, no decay)": sparse_form(torch.optim.SparseAdam, gradients),
    }
    if with_dense:
        found["torch AdamW, fused, dense"] = dense_form(gradients)
    return found


def measure(steps: dict[str, Step], repeats: int, device: str) -> dict[str, float]:
    """Milliseconds of each form: the least CPU time, or on CUDA the median wall time."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 4):
        for name, step in steps.items():
            if device == "cuda":
                torch.cuda.synchronize()
            clock = time.perf_counter if device == "cuda" else time.process_time
            start = clock()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat >= 4:  # every row of the four gradients has been touched before
                seconds[name].append(clock() - start)
    best = statistics.median if device == "cuda" else min
    return {name: 1e3 * best(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--quick", action="store_true")
    add_output(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    shrink = 64 if args.quick else 1
    touched = NUM_TOUCHED // shrink
    table = Table(
        f"Row-sparse AdamW, {touched:,} rows touched", {"L x D": "", "form": "", "ms a step": ".2f", "x dense": ".2f"}
    )
    for num_rows, dim in ((131_072, 384), (30_000, 64), (300_000, 64), (3_000_000, 64)):
        gradients = make_gradients(num_rows // shrink, dim, touched, args.device)
        with_dense = num_rows < 1_000_000 or args.device == "cuda"  # its gradient, weight and moments are all dense
        times = measure(forms(gradients, with_dense), args.repeats, args.device)
        dense = times.get("torch AdamW, fused, dense")
        for name, milliseconds in times.items():
            ratio = None if dense is None else milliseconds / dense
            table.add(f"{num_rows // shrink:,} x {dim}", name, milliseconds, ratio)
    write(args.output, table)


if __name__ == "__main__":
    main()
