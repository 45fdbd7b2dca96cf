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
from hf_xmc.losses.functional import NumTop, as_rows, as_sequence, check_k, or_one, solve_threshold
from hf_xmc.losses.streaming.chunks import (
    Batch,
    Chunk,
    Csr,
    Derivative,
    Gradients,
    Pairs,
    Shape,
    Statistic,
    StreamedLoss,
    make_plan,
    read_csr,
)
from hf_xmc.losses.streaming.top_scores import TopScores

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
    """`functional.decoupled_softmax` over all labels. Arguments as at the head of this module, and:

    Args:
        log_denominator: (B,) in nats, differentiable: log-sum-exp of further negatives that are not among `labels`,
            such as the rest of a label table (`log_denominators`). -inf stands for none.
        label_norms: (L,) is filled with |dloss/dz_j| of every label, also where `labels` needs no gradient.

    Returns:
        () the loss.

    Raises:
        ValueError: if shapes, types or label ids do not fit.
    """
    task = _read(queries, labels, positives, scale, excluded, group, memory_budget, hide_positives=True)
    count = or_one(len(task.active) if num_rows is None else num_rows, task.weights)

    def terms(chunk: Chunk, own: Tensor, scores: Tensor, *further: Tensor) -> Tensor:
        # A finite floor in place of -inf, for which the gradient of logsumexp is NaN.
        total = torch.stack([own, *further]).clamp_min(torch.finfo(own.dtype).min / 2).logsumexp(dim=0)  # (R,)
        margin = scores - total[chunk.positives.rows]  # (nnz,)
        return (chunk.positives.weights * -F.logsigmoid(margin)).sum() / count

    return task.run(_LogSumExp(), terms, log_denominator, label_norms)


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
    """`functional.info_nce` (mean form, = SupCon) over all labels. Arguments as at the head of this module."""
    task = _read(queries, labels, positives, scale, excluded, group, memory_budget)
    return task.run(_LogSumExp(), _info_nce_terms(task, num_rows))


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
    """`functional.info_nce_sum` over all labels. Arguments as at the head of this module."""
    task = _read(queries, labels, positives, scale, excluded, group, memory_budget, normalise=False)
    return task.run(_LogSumExp(), _info_nce_terms(task, num_rows))


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
    """`functional.binary_cross_entropy` over all labels. Arguments as at the head of this module, and:

    Args:
        num_entries: what to divide the sum by; default the number of pairs of a query and a label, on all ranks,
            that are not excluded.
    """
    task = _read(queries, labels, positives, scale, excluded, group, memory_budget, normalise=False, all_rows=True)
    count = or_one(task.num_labels.sum() if num_entries is None else num_entries, task.weights)

    def terms(chunk: Chunk, softplus: Tensor, scores: Tensor) -> Tensor:
        # Every rank holds the same softplus sums and the ranks' terms are added up.
        return (softplus.sum() / chunk.batch.num_ranks - (chunk.positives.weights * scores).sum()) / count

    return task.run(_SoftplusSum(), terms)


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
    """`functional.soft_top_k` over all labels. Arguments as at the head of this module, and:

    Args:
        k: the number of labels to retrieve: a number, a (B,) tensor, or a sequence of either (mean of their losses).
        alpha: steepness of the membership probability, above 0.
        label_norms: (L,) is filled with |dloss/dz_j| of every label, also where `labels` needs no gradient.

    Returns:
        () the loss.

    Raises:
        ValueError: if shapes, types or label ids do not fit, or unless 0 < k < the row's number of labels, on all
            ranks, that are not excluded.
    """
    task = _read(queries, labels, positives, scale, excluded, group, memory_budget)
    count = or_one(len(task.active) if num_rows is None else num_rows, task.weights)
    ks = torch.stack([as_rows(num_top, task.weights)[task.active] for num_top in as_sequence(k)], dim=1)  # (A, K)
    for num_top in ks.unbind(dim=1):
        check_k(num_top, task.num_labels[task.active])

    def terms(chunk: Chunk, threshold: Tensor, scores: Tensor) -> Tensor:
        logit = alpha * (scores[:, None] + threshold[chunk.positives.rows])  # (nnz, K)
        return (chunk.positives.weights * -F.logsigmoid(logit).mean(dim=1)).sum() / count

    return task.run(_Threshold(ks, alpha), terms, label_norms=label_norms)


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

    Differentiable in queries and, where they need a gradient, labels. Arguments as at the head of this module; with a
    group, every rank gets the sum over all labels and must send back the same gradient.

    Returns:
        (B,) in nats.
    """
    none = (torch.zeros(len(queries) + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    task = _read(queries, labels, none, scale, excluded, group, memory_budget, all_rows=True)
    return _LogDenominators.apply(queries, labels, task.batch)


class _LogSumExp:
    """a_i = lse_j S_ij over all ranks, and da_i/dS_ij = exp(S_ij - a_i)."""

    def observe(self, chunk: Chunk) -> tuple[Tensor]:
        return (_over_ranks(chunk, *chunk.log_sum_exp()),)

    def derivative(self, observed: tuple[Tensor, ...], grad: Tensor) -> Derivative:
        (own,) = observed
        # A row without visible labels has S = a = -inf; with a = 0 its derivative is exp(-inf) = 0.
        return Derivative(Shape.EXP, 1.0, -own.masked_fill(own == -torch.inf, 0)[:, None], grad[:, None])


class _SoftplusSum:
    """b_i = sum_j softplus(S_ij) over all ranks, and db_i/dS_ij = sigma(S_ij)."""

    def observe(self, chunk: Chunk) -> tuple[Tensor]:
        total = chunk.new_full(0)  # (R,)
        for scores, _ in chunk.sweep():
            total -= F.logsigmoid(-scores).sum(dim=1)
        return (chunk.batch.sum(total),)

    def derivative(self, observed: tuple[Tensor, ...], grad: Tensor) -> Derivative:
        return Derivative(Shape.SIGMOID, 1.0, torch.zeros_like(grad)[:, None], grad[:, None])


@dataclass(frozen=True)
class _Threshold:
    """t_i with sum_j sigma(alpha (S_ij + t_i)) = k_i for every column of k (A, K), the sum over all ranks.

    dt_i/dS_ij = -v_ij / sum_j v_ij, v = sigma (1 - sigma). Observed are t and sum_j v_ij, each (R, K).
    """

    k: Tensor
    alpha: float

    def observe(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        k = self.k[chunk.rows]  # (R, K)
        # Below the m-th best score sigma <= k/m: with m = 12 k the three power sums are good to (1/11)^3.
        summary = chunk.top_scores(max(32, int(12 * k.max())), self.alpha)
        log_sum = _over_ranks(chunk, *(chunk.log_sum_exp(self.alpha) if summary is None else summary.log_sum()))
        found = [self._solve(chunk, summary, log_sum, num_top) for num_top in k.unbind(dim=1)]
        thresholds, slopes = zip(*found, strict=True)
        return torch.stack(thresholds, dim=1), torch.stack(slopes, dim=1) / self.alpha

    def derivative(self, observed: tuple[Tensor, ...], grad: Tensor) -> Derivative:
        threshold, slope = observed
        # On a plateau v and its sum underflow together: 0 / 0 becomes 0.
        factor = -grad / slope.clamp_min(torch.finfo(slope.dtype).tiny)  # (R, K)
        return Derivative(Shape.BELL, self.alpha, self.alpha * threshold, factor)

    def _solve(self, chunk: Chunk, summary: TopScores | None, log_sum: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        def over_ranks(total: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
            both = chunk.batch.sum(torch.stack([total, slope]))
            return both[0], both[1]

        def by_sweep(threshold: Tensor) -> tuple[Tensor, Tensor]:
            return over_ranks(*chunk.sigmoid_sums(threshold, self.alpha))

        lower = (k.log() - log_sum) / self.alpha  # below the root, as sigma(u) < exp(u)
        upper = torch.full_like(lower, torch.inf)
        if summary is None:
            return solve_threshold(by_sweep, lower, lower, upper, k)
        threshold, slope = solve_threshold(lambda t: over_ranks(*summary.sums(t)), lower, lower, upper, k)
        tolerance = 2e-6 if k.dtype == torch.float32 else 1e-12
        if bool((chunk.batch.sum(summary.error(threshold)) > tolerance * k).any()):
            threshold, slope = solve_threshold(by_sweep, threshold, lower, upper, k)
        return threshold, slope


class _LogDenominators(torch.autograd.Function):
    """a (B,) from queries (B, D) and labels (L, D)."""

    @staticmethod
    def forward(ctx, queries: Tensor, labels: Tensor, batch: Batch) -> Tensor:
        found = [_LogSumExp().observe(chunk)[0] for chunk in batch.chunks()]
        result = torch.cat(found) if found else queries.new_zeros(0, dtype=batch.wide)
        ctx.batch = batch
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (result,) = ctx.saved_tensors
        gradients = Gradients.empty(ctx.batch, *ctx.needs_input_grad[:2])
        for chunk in ctx.batch.chunks():
            derivative = _LogSumExp().derivative((result[chunk.rows],), grad[chunk.rows])
            chunk.accumulate(derivative, chunk.new_full(0)[:0], gradients)
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
    normalise: bool = True,
    all_rows: bool = False,
) -> _Task:
    if queries.dim() != 2 or labels.dim() != 2 or queries.shape[1] != labels.shape[1]:
        raise ValueError(
            f"got queries {tuple(queries.shape)} and labels {tuple(labels.shape)}, expected (B, D) and (L, D)"
        )
    if queries.dtype != labels.dtype or not queries.is_floating_point() or queries.device != labels.device:
        raise ValueError(
            f"queries ({queries.dtype} on {queries.device}) and labels ({labels.dtype} on {labels.device}) must share "
            "one floating type and one device; convert one of them"
        )
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
    if normalise:
        pairs = Pairs(pairs.rows, pairs.columns, pairs.weights / weights[pairs.rows])
    if hide_positives:
        hidden = hidden.join(pairs)
    if len(active) < num_rows:
        queries = queries[active]
        place = torch.full_like(visible, -1).index_copy_(0, active, torch.arange(len(active), device=wide.device))
        pairs, hidden = (Pairs(place[p.rows], p.columns, p.weights)[place[p.rows] >= 0] for p in (pairs, hidden))
    plan = make_plan(
        len(active), num_labels, wide.element_size(), wide.device.type, memory_budget, may_keep=group is None
    )
    batch = Batch(queries.detach(), labels.detach(), scale, pairs, hidden, plan, group)
    return _Task(batch, queries, labels, active, weights, all_reduce(visible, group))


def _over_ranks(chunk: Chunk, largest: Tensor, total: Tensor) -> Tensor:
    """The log-sum-exp (R,) of all ranks from the largest value and the scaled sum of each."""
    overall = chunk.batch.max(largest)  # (R,)
    return overall + chunk.batch.sum(total * (largest - overall).exp()).log()


def _info_nce_terms(task: _Task, num_rows: float | Tensor | None) -> Callable[..., Tensor]:
    count = or_one(len(task.active) if num_rows is None else num_rows, task.weights)

    def terms(chunk: Chunk, total: Tensor, scores: Tensor) -> Tensor:
        return (chunk.positives.weights * (total[chunk.positives.rows] - scores)).sum() / count

    return terms
