"""The losses of functional.py over all L labels, from embeddings: the B x L score matrix never exists.

Shapes used throughout: B queries, L labels, D dims, nnz pairs of a query and one of its labels.

    queries    (B, D) float32, float64 or bfloat16
    labels     (L, D) of the same type; with requires_grad=False its gradient is neither made nor stored
    positives  CSR (indptr (B+1,), indices (nnz,)[, weights (nnz,)]): all known positives of each query, no label twice
               in a row; the weights are soft targets in [0, 1]. A positive of weight 0 is one that is known but not
               sampled: as if it were excluded.
    scale      1/temperature; scores are S_ij = scale * (x_i . z_j), in nats
    excluded   CSR (indptr, indices) of pairs that are neither positive nor negative; it wins over positives
    group      ranks over which the labels are sharded. Every rank passes the same queries, the labels of its own
               contiguous shard (shards may differ in size), and its own positives and excluded pairs with label ids
               counted from the first label of the shard. Every rank returns the loss over all labels, the full
               gradient of the queries (already summed over ranks) and the gradient of its own labels. All ranks must
               make the call.
    num_rows   what to divide the sum over rows by; default the number of rows with a positive on any rank
    memory_budget   bytes for the scores: where a chunk of useful height fits they are made once, else twice, one tile
               at a time; default 64 MiB on a CPU, 256 MiB on a GPU. Changes time and memory, not the result. bfloat16
               gradients of labels that several chunks add up take a float32 copy besides.

Value and gradients equal those of functional.py on scale * queries @ labels.T. Products of bfloat16 are summed in
float32. The gradients are made together with the loss; a backward pass through one result is possible once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hf_xmc.distributed import all_reduce
from hf_xmc.losses.functional import NumTop, as_rows, as_sequence, check_k, or_one
from hf_xmc.losses.streaming.chunks import Batch, Chunk
from hf_xmc.losses.streaming.loss import Gradients, Statistic, StreamedLoss
from hf_xmc.losses.streaming.pairs import Csr, read_csr
from hf_xmc.losses.streaming.plan import make_plan
from hf_xmc.losses.streaming.statistics import LogSumExp, SoftplusSum, Threshold

__all__ = ["binary_cross_entropy", "decoupled_softmax", "info_nce", "info_nce_sum", "log_denominators", "soft_top_k"]


def decoupled_softmax(
    queries: Tensor,
    labels: Tensor,
    positives: Csr,
    scale: float = 1.0,
    excluded: Csr | None = None,
    group: dist.ProcessGroup | None = None,
    *,
    num_rows: float | Tensor | None = None,
    log_denominator: Tensor | None = None,
    label_norms: Tensor | None = None,
    memory_budget: int | None = None,
) -> Tensor:
    """:func:`hf_xmc.losses.functional.decoupled_softmax` over all labels; see also the head of this module.

    ``log_denominator`` (B,) in nats, differentiable, is the log-sum-exp of further negatives that are not among
    ``labels``, such as the rest of a label table (:func:`log_denominators`); -inf stands for none. ``label_norms``
    (L,) is filled with |dloss/dz_j| of every label, also where ``labels`` needs no gradient.

    Returns:
        () the loss.

    Raises:
        ValueError: If shapes, types or label ids do not fit.
    """
    task = _read(queries, labels, positives, scale, excluded, group, memory_budget, hide_positives=True)
    count = task.divisor(num_rows)

    def terms(chunk: Chunk, own: Tensor, scores: Tensor, *further: Tensor) -> Tensor:
        # A finite floor in place of -inf, for which the gradient of logsumexp is NaN.
        total = torch.stack([own, *further]).clamp_min(torch.finfo(own.dtype).min / 2).logsumexp(dim=0)  # (R,)
        margin = scores - total[chunk.positives.rows]  # (nnz,)
        return (chunk.positives.weights * -F.logsigmoid(margin)).sum() / count

    return task.run(LogSumExp(), terms, log_denominator, label_norms)


def info_nce(
    queries: Tensor,
    labels: Tensor,
    positives: Csr,
    scale: float = 1.0,
    excluded: Csr | None = None,
    group: dist.ProcessGroup | None = None,
    *,
    num_rows: float | Tensor | None = None,
    memory_budget: int | None = None,
) -> Tensor:
    """:func:`hf_xmc.losses.functional.info_nce` (mean form, = SupCon) over all labels."""
    return _info_nce(_read(queries, labels, positives, scale, excluded, group, memory_budget), num_rows)


def info_nce_sum(
    queries: Tensor,
    labels: Tensor,
    positives: Csr,
    scale: float = 1.0,
    excluded: Csr | None = None,
    group: dist.ProcessGroup | None = None,
    *,
    num_rows: float | Tensor | None = None,
    memory_budget: int | None = None,
) -> Tensor:
    """:func:`hf_xmc.losses.functional.info_nce_sum` over all labels."""
    task = _read(queries, labels, positives, scale, excluded, group, memory_budget, normalize=False)
    return _info_nce(task, num_rows)


def binary_cross_entropy(
    queries: Tensor,
    labels: Tensor,
    positives: Csr,
    scale: float = 1.0,
    excluded: Csr | None = None,
    group: dist.ProcessGroup | None = None,
    *,
    num_entries: float | Tensor | None = None,
    memory_budget: int | None = None,
) -> Tensor:
    """:func:`hf_xmc.losses.functional.binary_cross_entropy` over all labels.

    ``num_entries`` is what to divide the sum by; by default the number of pairs of a query and a label, on all ranks,
    that are not excluded.
    """
    task = _read(queries, labels, positives, scale, excluded, group, memory_budget, normalize=False, all_rows=True)
    count = or_one(task.num_labels.sum() if num_entries is None else num_entries, task.weights)

    def terms(chunk: Chunk, softplus: Tensor, scores: Tensor) -> Tensor:
        # Every rank holds the same softplus sums and the ranks' terms are added up.
        return (softplus.sum() / chunk.batch.num_ranks - (chunk.positives.weights * scores).sum()) / count

    return task.run(SoftplusSum(), terms)


def soft_top_k(
    queries: Tensor,
    labels: Tensor,
    positives: Csr,
    k: NumTop | Sequence[NumTop],
    alpha: float = 2.0,
    scale: float = 1.0,
    excluded: Csr | None = None,
    group: dist.ProcessGroup | None = None,
    *,
    num_rows: float | Tensor | None = None,
    label_norms: Tensor | None = None,
    memory_budget: int | None = None,
) -> Tensor:
    """:func:`hf_xmc.losses.functional.soft_top_k` over all labels.

    ``k`` is the number of labels to retrieve: a number, a (B,) tensor, or a sequence of either (mean of their losses);
    ``alpha``, above 0, the steepness of the membership probability. ``label_norms`` as in :func:`decoupled_softmax`.

    Returns:
        () the loss.

    Raises:
        ValueError: If shapes, types or label ids do not fit, or unless 0 < k < the row's number of labels, on all
            ranks, that are not excluded.
    """
    task = _read(queries, labels, positives, scale, excluded, group, memory_budget)
    count = task.divisor(num_rows)
    ks = torch.stack([as_rows(num_top, task.weights)[task.active] for num_top in as_sequence(k)], dim=1)  # (A, K)
    for num_top in ks.unbind(dim=1):
        check_k(num_top, task.num_labels[task.active])

    def terms(chunk: Chunk, threshold: Tensor, scores: Tensor) -> Tensor:
        logit = alpha * (scores[:, None] + threshold[chunk.positives.rows])  # (nnz, K)
        return (chunk.positives.weights * -F.logsigmoid(logit).mean(dim=1)).sum() / count

    return task.run(Threshold(ks, alpha), terms, label_norms=label_norms)


def log_denominators(
    queries: Tensor,
    labels: Tensor,
    scale: float = 1.0,
    excluded: Csr | None = None,
    group: dist.ProcessGroup | None = None,
    *,
    memory_budget: int | None = None,
) -> Tensor:
    """a_i = log sum_j exp(scale x_i . z_j) over the labels that are not excluded for row i; -inf where none is left.

    Differentiable in queries and, where they need a gradient, labels. With a group, every rank gets the sum over all
    labels and must send back the same gradient.

    Returns:
        (B,) in nats.
    """
    none = (torch.zeros(len(queries) + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    task = _read(queries, labels, none, scale, excluded, group, memory_budget, all_rows=True)
    return _LogDenominators.apply(queries, labels, task.batch)


class _LogDenominators(torch.autograd.Function):
    """a (B,) from queries (B, D) and labels (L, D)."""

    @staticmethod
    def forward(ctx, queries: Tensor, labels: Tensor, batch: Batch) -> Tensor:
        found = [LogSumExp().observe(chunk)[0] for chunk in batch.chunks()]
        result = torch.cat(found) if found else queries.new_zeros(0, dtype=batch.wide)
        ctx.batch = batch
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (result,) = ctx.saved_tensors
        gradients = Gradients.empty(ctx.batch, *ctx.needs_input_grad[:2])
        for chunk in ctx.batch.chunks():
            derivative = LogSumExp().derivative((result[chunk.rows],), grad[chunk.rows])
            gradients.add(chunk, derivative, chunk.new_full(0)[:0])
        return (*gradients.finish(ctx.batch), None)


@dataclass(frozen=True)
class _Task:
    """A batch of the rows that count, and what the losses divide by.

    queries (A, D) differentiable, active (A,) their row numbers, weights (B,) the sum of a row's soft targets and
    num_labels (B,) its number of labels that are not excluded, both over all ranks.
    """

    batch: Batch
    queries: Tensor
    labels: Tensor
    active: Tensor
    weights: Tensor
    num_labels: Tensor

    def divisor(self, num_rows: float | Tensor | None) -> Tensor:
        """What to divide a sum over rows by: ``num_rows``, by default the rows that have a positive."""
        return or_one(len(self.active) if num_rows is None else num_rows, self.weights)

    def run(
        self,
        statistic: Statistic,
        terms: Callable[..., Tensor],
        log_denominator: Tensor | None = None,
        label_norms: Tensor | None = None,
    ) -> Tensor:
        if log_denominator is not None:
            log_denominator = log_denominator.to(self.batch.wide)[self.active]
        batch = self.batch
        if label_norms is not None:
            # The norm of a sum over chunks is known after the last chunk only: take all rows at once.
            batch = replace(batch, plan=replace(batch.plan, rows=max(1, len(self.active)), keep_scores=False))
            label_norms.zero_()
        inputs = (self.queries, self.labels, log_denominator)
        wanted = tuple(torch.is_grad_enabled() and part is not None and part.requires_grad for part in inputs)
        return StreamedLoss.apply(*inputs, batch, statistic, terms, wanted, label_norms)


def _read(
    queries: Tensor,
    labels: Tensor,
    positives: Csr,
    scale: float,
    excluded: Csr | None,
    group: dist.ProcessGroup | None,
    memory_budget: int | None,
    hide_positives: bool = False,
    normalize: bool = True,
    all_rows: bool = False,
) -> _Task:
    """The checked arguments of a loss.

    ``hide_positives`` takes the positives out of what a sweep sees, ``normalize`` makes a row's weights sum to 1 and
    ``all_rows`` keeps the rows without a positive.
    """
    _check(queries, labels)
    num_rows, num_labels = len(queries), len(labels)
    wide = queries.detach().new_zeros(0, dtype=torch.promote_types(queries.dtype, torch.float32))
    pairs = read_csr(positives, num_rows, num_labels, wide, "positives")
    hidden = pairs[:0] if excluded is None else read_csr(excluded, num_rows, num_labels, wide, "excluded")
    pairs = pairs[~torch.isin(pairs.columns * num_rows + pairs.rows, hidden.columns * num_rows + hidden.rows)]
    hidden = hidden.join(pairs[pairs.weights == 0])
    pairs = pairs[pairs.weights > 0]

    weights = all_reduce(wide.new_zeros(num_rows).index_add_(0, pairs.rows, pairs.weights), group)  # (B,)
    visible = num_labels - hidden.rows.bincount(minlength=num_rows)  # (B,)
    active = torch.arange(num_rows, device=wide.device) if all_rows else weights.nonzero().squeeze(1)  # (A,)
    if normalize:
        pairs = replace(pairs, weights=pairs.weights / weights[pairs.rows])
    if hide_positives:
        hidden = hidden.join(pairs)
    if len(active) < num_rows:
        queries = queries[active]
        place = torch.full_like(visible, -1).index_copy_(0, active, torch.arange(len(active), device=wide.device))
        pairs, hidden = (replace(p, rows=place[p.rows])[place[p.rows] >= 0] for p in (pairs, hidden))
    # Ranks meet once a chunk, so shards of different size must not be cut into different numbers of them.
    plan = make_plan(
        len(active), num_labels, wide.element_size(), wide.device.type, memory_budget, may_keep=group is None
    )
    batch = Batch(queries.detach(), labels.detach(), scale, pairs, hidden, plan, group)
    return _Task(batch, queries, labels, active, weights, all_reduce(visible, group))


def _check(queries: Tensor, labels: Tensor) -> None:
    if queries.dim() != 2 or labels.dim() != 2 or queries.shape[1] != labels.shape[1]:
        raise ValueError(
            f"got queries {tuple(queries.shape)} and labels {tuple(labels.shape)}, expected (B, D) and (L, D)"
        )
    if queries.dtype != labels.dtype or not queries.is_floating_point() or queries.device != labels.device:
        raise ValueError(
            f"queries ({queries.dtype} on {queries.device}) and labels ({labels.dtype} on {labels.device}) must share "
            "one floating type and one device; convert one of them"
        )


def _info_nce(task: _Task, num_rows: float | Tensor | None) -> Tensor:
    count = task.divisor(num_rows)

    def terms(chunk: Chunk, total: Tensor, scores: Tensor) -> Tensor:
        return (chunk.positives.weights * (total[chunk.positives.rows] - scores)).sum() / count

    return task.run(LogSumExp(), terms)
