"""Time and memory of the blockwise losses beside the naive dense form, printed as a table against the targets.

    python -m benchmarks.speed.losses                 one core: CPU seconds, best of --repeats, forms interleaved
    python -m benchmarks.speed.losses --device cuda   the GPU lines: medians in ms, peak of allocated memory
    python -m benchmarks.speed.losses --quick         small sizes, to see that everything runs

A CPU peak is the growth of the resident peak (VmHWM, reset before the step) of a fresh process for each form, with
the gradients of queries and labels in it; "work" is that without the gradients. Ratios are to the naive form of the
same sizes; only they carry over to another machine. The naive forms are DEXML's formulae, dense, differentiated by
autograd: decoupled softmax, and soft top-k with 32 bisections.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.table import Table, add_output, write
from hf_xmc.losses import blockwise

SCALE = 20.0
POSITIVES_PER_ROW = 5
STREAM = 0  # a memory budget that never keeps scores
KEEP = 2**26  # 64 MiB: 256 rows of 65,536 scores


@dataclass(frozen=True)
class Sizes:
    num_queries: int
    num_labels: int
    dim: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __str__(self) -> str:
        dtype = "" if self.dtype == torch.float32 else f" {str(self.dtype).removeprefix('torch.')}"
        return f"B={self.num_queries:,} L={self.num_labels:,} D={self.dim}{dtype}"

    @property
    def gradient_bytes(self) -> int:
        return (self.num_queries + self.num_labels) * self.dim * self.dtype.itemsize


@dataclass(frozen=True)
class Form:
    """One line of the table; targets are ratios to the naive form, or a bound in GB of the peak."""

    name: str
    loss: Callable[..., Tensor]
    sizes: Sizes
    naive: str | None = None
    max_time: float | None = None
    max_work: float | None = None
    max_peak: float | None = None
    max_gigabytes: float | None = None
    max_milliseconds: float | None = None


def make_inputs(sizes: Sizes) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Unit queries (B, D) near one of their labels, unit labels (L, D), five positives a row as CSR."""
    generator = torch.Generator(sizes.device).manual_seed(0)
    like = {"generator": generator, "device": sizes.device}
    labels = F.normalize(torch.randn(sizes.num_labels, sizes.dim, **like), dim=1)
    indices = torch.randint(sizes.num_labels, (sizes.num_queries, 1), **like)
    # A stride apart, so that a row's positives are distinct.
    indices = (indices + 7 * torch.arange(POSITIVES_PER_ROW, device=sizes.device)) % sizes.num_labels
    noise = torch.randn(sizes.num_queries, sizes.dim, **like) / sizes.dim**0.5
    queries = F.normalize(labels[indices[:, 0]] + noise, dim=1)
    indptr = torch.arange(sizes.num_queries + 1, device=sizes.device) * POSITIVES_PER_ROW
    queries, labels = (part.to(sizes.dtype).requires_grad_() for part in (queries, labels))
    return queries, labels, (indptr, indices.flatten())


def naive_decoupled_softmax(queries: Tensor, labels: Tensor, positives: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """The dense formula: all scores, positives out of the denominator, mean over positives and rows."""
    scores = scale * queries @ labels.T  # (B, L)
    columns = positives[1].view(len(queries), -1)  # (B, P)
    negatives = scores.scatter(1, columns, -torch.inf).logsumexp(dim=1, keepdim=True)  # (B, 1)
    return F.softplus(negatives - scores.gather(1, columns)).mean()


class _BisectedThreshold(torch.autograd.Function):
    """DEXML's form: the log-probability of every label, its threshold by 32 bisections of the dense scores."""

    @staticmethod
    def forward(ctx, scores: Tensor, k: int, alpha: float) -> Tensor:
        lower = -scores.amax(dim=1, keepdim=True) - 10 / alpha  # (B, 1)
        upper = -scores.amin(dim=1, keepdim=True) + 10 / alpha
        for _ in range(32):
            middle = (lower + upper) / 2
            above = torch.sigmoid(alpha * (scores + middle)).sum(dim=1, keepdim=True) > k
            lower, upper = torch.where(above, lower, middle), torch.where(above, middle, upper)
        probability = torch.sigmoid(alpha * (scores + (lower + upper) / 2))  # (B, L)
        ctx.save_for_backward(probability)
        ctx.alpha = alpha
        return probability.log()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (probability,) = ctx.saved_tensors
        own = ctx.alpha * grad * (1 - probability)  # (B, L)
        slope = probability * (1 - probability)
        return own - slope * (own.sum(dim=1, keepdim=True) / slope.sum(dim=1, keepdim=True)), None, None


def naive_soft_top_k(
    queries: Tensor, labels: Tensor, positives: tuple[Tensor, Tensor], scale: float, k: int, alpha: float = 2.0
) -> Tensor:
    """The dense formula: threshold and log-probabilities of all labels."""
    scores = scale * queries @ labels.T  # (B, L)
    logs = _BisectedThreshold.apply(scores, k, alpha)  # (B, L)
    return -logs.gather(1, positives[1].view(len(queries), -1)).mean()


def forms(device: str, quick: bool) -> list[Form]:
    decoupled, top_k = blockwise.decoupled_softmax, blockwise.soft_top_k
    if device == "cuda":
        lines = []
        for num_labels, dim, limit in ((131_073, 768, 17), (1_305_265, 768, 165), (1_305_265, 384, 90)):
            sizes = Sizes(8192, num_labels // 64 if quick else num_labels, dim, torch.bfloat16, device)
            lines += [
                Form("decoupled two-pass", decoupled, sizes, max_milliseconds=limit, max_gigabytes=0.5),
                Form("decoupled one-pass", partial(decoupled, memory_budget=5 * 2**30), sizes, max_gigabytes=6),
                Form("soft top-5", partial(top_k, k=5), sizes, "decoupled two-pass", max_time=1.4, max_gigabytes=0.5),
            ]
        return lines
    small = Sizes(512, 8_192 if quick else 65_536, 384)
    half = Sizes(512, small.num_labels, 384, torch.bfloat16)
    doubled = Sizes(512, 2 * small.num_labels, 384)
    many = Sizes(512, 65_536 if quick else 1_305_265, 64)
    naive, naive_5, naive_100 = "naive decoupled", "naive soft top-5", "naive soft top-100"
    stream, keep = {"memory_budget": STREAM}, {"memory_budget": KEEP}
    return [
        Form(naive, naive_decoupled_softmax, small),
        Form("decoupled two-pass", partial(decoupled, **stream), small, naive, max_time=0.90, max_work=0.05),
        Form("decoupled row-chunk", partial(decoupled, **keep), small, naive, max_time=0.80, max_work=0.25),
        Form("decoupled two-pass", partial(decoupled, **stream), half, naive, max_time=0.55),
        Form(naive_5, partial(naive_soft_top_k, k=5), small),
        Form("soft top-5", partial(top_k, k=5, **stream), small, naive_5, max_time=0.20, max_peak=0.17),
        Form(naive_100, partial(naive_soft_top_k, k=100), small),
        Form("soft top-100", partial(top_k, k=100, **stream), small, naive_100),
        Form("decoupled two-pass", partial(decoupled, **stream), doubled),
        Form("decoupled two-pass", decoupled, many, max_gigabytes=0.5),
        Form("soft top-5", partial(top_k, k=5), many, max_gigabytes=0.5),
    ]


def step(loss: Callable[..., Tensor], queries: Tensor, labels: Tensor, positives: tuple[Tensor, Tensor]) -> None:
    queries.grad = labels.grad = None
    loss(queries, labels, positives, scale=SCALE).backward()


def cpu_seconds(lines: list[Form], repeats: int) -> list[float]:
    """The best of ``repeats`` for every form, in rounds over all forms of one size, so that load hits all alike."""
    best = [float("inf")] * len(lines)
    inputs = {line.sizes: make_inputs(line.sizes) for line in lines}
    for _ in range(repeats):
        for number, line in enumerate(lines):
            start = time.process_time()
            step(line.loss, *inputs[line.sizes])
            best[number] = min(best[number], time.process_time() - start)
            for part in inputs[line.sizes][:2]:
                part.grad = None
    return best


def _resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _peak_in_child(line: Form, results: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    inputs = make_inputs(line.sizes)
    # A tiny step first: what the libraries load on first use is not the loss's memory.
    step(line.loss, *make_inputs(Sizes(64, 4096, 8, line.sizes.dtype)))
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    step(line.loss, *inputs)
    results.put(_resident("VmHWM") - before)


def cpu_peak(line: Form) -> int:
    """Bytes by which the resident peak of a fresh process grows during one step."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=_peak_in_child, args=(line, results))
    child.start()
    peak = results.get()
    child.join()
    return peak


def cuda_seconds_and_peak(line: Form, repeats: int) -> tuple[float, int]:
    """Median seconds of a step, and peak bytes above inputs and gradients."""
    inputs = make_inputs(line.sizes)
    step(line.loss, *inputs)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    times = []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(max(repeats, 5)):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step(line.loss, *inputs)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times), torch.cuda.max_memory_allocated() - held


def tabulate(lines: list[Form], seconds: list[float], peaks: list[int], device: str) -> Table:
    """The table; a value in brackets is the target, an exclamation mark a target that was missed."""

    def cell(value: float | None, target: float | None, pattern: str) -> str:
        if value is None:
            return ""
        text = pattern.format(value)
        if target is not None:
            text += f" (<= {target:g}){'' if value <= target else ' !'}"
        return text

    columns = ("form", "sizes", "seconds", "x naive", "peak MB", "work MB", "work x naive", "peak x naive", "bound")
    where = torch.cuda.get_device_name() if device == "cuda" else "one CPU thread"
    table = Table(
        f"Losses over all labels ({where})",
        dict.fromkeys(columns, "") | {"seconds": ".4g", "peak MB": ".0f", "work MB": ".0f"},
        about=f"torch {torch.__version__}. Peak has the gradients, work has not. In brackets the target; ! missed.",
    )
    for number, line in enumerate(lines):
        peak = peaks[number]
        work = peak if device == "cuda" else peak - line.sizes.gradient_bytes
        time_ratio = work_ratio = peak_ratio = None
        if line.naive is not None:
            other = max(i for i, form in enumerate(lines[:number]) if form.name == line.naive)
            time_ratio, peak_ratio = seconds[number] / seconds[other], peak / peaks[other]
            work_ratio = work / (peaks[other] - (0 if device == "cuda" else lines[other].sizes.gradient_bytes))
        bounds = [cell(peak / 1e9, line.max_gigabytes, "{:.2f} GB") if line.max_gigabytes else ""]
        bounds.append(cell(1e3 * seconds[number], line.max_milliseconds, "{:.0f} ms") if line.max_milliseconds else "")
        table.add(
            line.name,
            str(line.sizes),
            seconds[number],
            cell(time_ratio, line.max_time, "{:.2f}"),
            peak / 1e6,
            work / 1e6,
            cell(work_ratio, line.max_work, "{:.3f}"),
            cell(peak_ratio, line.max_peak, "{:.3f}"),
            " ".join(filter(None, bounds)),
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    add_output(parser)
    args = parser.parse_args()
    lines = forms(args.device, args.quick)
    if args.device == "cuda":
        measured = [cuda_seconds_and_peak(line, args.repeats) for line in lines]
        seconds, peaks = [time for time, _ in measured], [peak for _, peak in measured]
    else:
        torch.set_num_threads(1)
        peaks = [cpu_peak(line) for line in lines]
        seconds = cpu_seconds(lines, args.repeats)
    write(args.output, tabulate(lines, seconds, peaks, args.device))


if __name__ == "__main__":
    main()
