"""The losses of extreme classification as pure functions of (scores, relevance, excluded).

Shapes used throughout: B queries, C candidate labels.

    scores     (B, C) floating, already multiplied by the scale (= 1/temperature). Half precision becomes float32.
    relevance  (B, C) bool, or soft targets y in [0, 1]. Every entry above 0 is a positive of its row.
    excluded   (B, C) bool or None: neither positive nor negative, whatever ``relevance`` says. Filter pairs go here,
               and so do known positives that a step did not sample.

The ranking losses are the mean, over the rows that have a positive, of the weighted mean over the row's positives,
with weights w_ip = y_ip / sum_p y_ip (all equal for a bool relevance). A row without a positive contributes nothing
and is not counted; a batch without positives gives 0 with a zero gradient. ``num_rows`` replaces the count of rows, so
that ranks which hold different rows can divide by their common total.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["binary_cross_entropy", "decoupled_softmax", "info_nce", "info_nce_sum", "soft_top_k"]

NumTop = int | float | Tensor


def decoupled_softmax(
    scores: Tensor, relevance: Tensor, excluded: Tensor | None = None, *, num_rows: float | Tensor | None = None
) -> Tensor:
    """Decoupled softmax: each positive competes with the negatives only, never with another positive.

        mean_i sum_{p in P_i} w_ip softplus(a_i - S_ip),    a_i = log sum_{j in N_i} exp S_ij

    P_i are the positives of row i and N_i everything that is neither positive nor excluded. With one positive per row
    this is cross-entropy. A row without negatives has loss 0 and gradient 0. Adding a constant to a row changes
    nothing.

    Args:
        scores: (B, C) floating, in nats.
        relevance: (B, C) bool, or soft targets in [0, 1].
        excluded: (B, C) bool; an unsampled positive belongs here, so that it is no negative either.
        num_rows: What to divide the sum over rows by; by default the number of rows with a positive.

    Returns:
        () the loss, at least 0.

    Raises:
        ValueError: If shapes or types do not fit.

    From "Dual-Encoders for Extreme Multi-label Classification" (Gupta et al., ICLR 2024).
    """
    scores, excluded, positives = _read(scores, relevance, excluded)
    negative = scores.masked_fill(excluded | positives.mask, -torch.inf)  # (B, C)
    margin = positives.take(scores) - negative.logsumexp(dim=1)[positives.rows]  # (nnz,)
    return positives.mean(-F.logsigmoid(margin), num_rows)


def info_nce(
    scores: Tensor, relevance: Tensor, excluded: Tensor | None = None, *, num_rows: float | Tensor | None = None
) -> Tensor:
    """InfoNCE, mean over the positives of a row (= SupCon): every positive is also a negative of the others.

        mean_i sum_{p in P_i} w_ip (lse_j S_ij - S_ip)

    With one positive per row this is cross-entropy. Arguments, result and errors as in :func:`decoupled_softmax`.

    From "Supervised Contrastive Learning" (Khosla et al., NeurIPS 2020).
    """
    scores, excluded, positives = _read(scores, relevance, excluded)
    return positives.mean(_info_nce_terms(scores, excluded, positives), num_rows)


def info_nce_sum(
    scores: Tensor, relevance: Tensor, excluded: Tensor | None = None, *, num_rows: float | Tensor | None = None
) -> Tensor:
    """InfoNCE summed over the positives of a row: :func:`info_nce` with w_ip = y_ip, so label-rich rows weigh more.

    This is the "softmax" baseline of DEXML's code. Arguments, result and errors as in :func:`decoupled_softmax`.
    """
    scores, excluded, positives = _read(scores, relevance, excluded)
    terms = _info_nce_terms(scores, excluded, positives)
    return positives.mean(terms * positives.row_weight[positives.rows], num_rows)


def binary_cross_entropy(
    scores: Tensor, relevance: Tensor, excluded: Tensor | None = None, *, num_entries: float | Tensor | None = None
) -> Tensor:
    """Binary cross-entropy: the mean over all entries that are not excluded of softplus(S_ij) - y_ij S_ij.

    Rows without positives count like any other row here. If everything is excluded the loss is 0.

    Args:
        scores: (B, C) floating, in nats.
        relevance: (B, C) bool, or soft targets in [0, 1].
        excluded: (B, C) bool.
        num_entries: What to divide the sum by; by default the number of entries that are not excluded.

    Returns:
        () the loss, at least 0.

    Raises:
        ValueError: If shapes or types do not fit.
    """
    scores, excluded, _ = _read(scores, relevance, excluded)
    terms = F.binary_cross_entropy_with_logits(
        scores.masked_fill(excluded, 0), relevance.to(scores.dtype), reduction="none"
    )  # (B, C)
    count = (~excluded).sum() if num_entries is None else num_entries
    return terms.masked_fill(excluded, 0).sum() / or_one(count, terms)


def soft_top_k(
    scores: Tensor,
    relevance: Tensor,
    k: NumTop | Sequence[NumTop],
    alpha: float = 2.0,
    excluded: Tensor | None = None,
    *,
    num_rows: float | Tensor | None = None,
) -> Tensor:
    """SoftTop-k: the log-probability of every positive to be among the k best of its row.

        mean_i sum_{p in P_i} w_ip (-log sigma(alpha (S_ip + t_i))),    t_i from    sum_j sigma(alpha (S_ij + t_i)) = k

    The sum runs over all labels that are not excluded. The threshold t_i is solved in the row's exact bracket and
    differentiated implicitly. Adding a constant to a row changes nothing. Where the row has a wide gap after its k-th
    score, many t_i satisfy the equation to rounding; one of them is taken.

    Args:
        scores: (B, C) floating, in nats.
        relevance: (B, C) bool, or soft targets in [0, 1].
        k: The number of labels to retrieve: a number, a (B,) tensor with one per row, or a sequence of either, which
            gives the mean of their losses. Rows without a positive ignore it.
        alpha: Steepness of the membership probability, above 0.
        excluded: (B, C) bool.
        num_rows: What to divide the sum over rows by; by default the number of rows with a positive.

    Returns:
        () the loss, at least 0.

    Raises:
        ValueError: If shapes or types do not fit, or unless 0 < k < the row's number of labels that are not excluded.

    From "Dual-Encoders for Extreme Multi-label Classification" (Gupta et al., ICLR 2024).
    """
    scores, excluded, positives = _read(scores, relevance, excluded)
    active = positives.row_weight > 0  # (B,)
    place = active.cumsum(0) - 1  # (B,) row of scores -> row of visible
    visible = scores.masked_fill(excluded, -torch.inf)[active]  # (A, C)
    if visible.numel():
        visible = visible - visible.detach().amax(dim=1, keepdim=True)
    num_labels = (visible > -torch.inf).sum(dim=1)  # (A,)
    losses = []
    for num_top in as_sequence(k):
        num_top = as_rows(num_top, scores)[active]  # (A,)
        check_k(num_top, num_labels)
        threshold = _Threshold.apply(visible, num_top, alpha)  # (A,)
        rows = place[positives.rows]  # (nnz,)
        terms = -F.logsigmoid(alpha * (visible[rows, positives.columns] + threshold[rows]))  # (nnz,)
        losses.append(positives.mean(terms, num_rows))
    return torch.stack(losses).mean()


def solve_threshold(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, lower: Tensor, upper: Tensor, k: Tensor
) -> tuple[Tensor, Tensor]:
    """The t with f(t) = k for many increasing functions f at once: Newton on log f, kept inside a shrinking bracket.

    Args:
        evaluate: (B,) t -> (f(t), f'(t)), each (B,).
        start: (B,) first guess, in the bracket.
        lower: (B,) with f(lower) <= k.
        upper: (B,) with f(upper) >= k; may be infinite.
        k: (B,) above 0.

    Returns:
        (B,) the t, and (B,) f' there. |f(t) - k| <= 1e-6 k in float32 and 1e-12 k in float64, or as near as the
        spacing of floating numbers around t allows.
    """
    info = torch.finfo(start.dtype)
    tolerance = 1e-6 if start.dtype == torch.float32 else 1e-12
    threshold, lower, upper = start, lower.minimum(start), upper.maximum(start)
    for step in range(128):
        total, slope = evaluate(threshold)
        lower = torch.where(total <= k, threshold, lower)
        upper = torch.where(total >= k, threshold, upper)
        newton = threshold - (total / k).log() * total / slope
        resolution = 2 * info.eps * threshold.abs()
        done = (total - k).abs() <= tolerance * k
        done |= ((newton - threshold).abs() <= resolution) | (upper - lower <= resolution)
        if done.all():
            break
        ahead = threshold + 2.0**step  # how far to go while nothing bounds the root from above
        inside = (newton > lower) & (newton < torch.where(upper.isinf(), ahead, upper))  # False where newton is NaN
        between = torch.where(upper.isinf(), ahead, (lower + upper) / 2)
        threshold = torch.where(done, threshold, torch.where(inside, newton, between))
    return threshold, slope


def or_one(count: float | Tensor, like: Tensor) -> Tensor:
    """A divisor with the type and device of ``like``: the count, or 1 where it is 0 and so is what it divides."""
    count = torch.as_tensor(count, dtype=like.dtype, device=like.device)
    return count.masked_fill(count == 0, 1)


def as_sequence(k: NumTop | Sequence[NumTop]) -> Sequence[NumTop]:
    """One k, or several, as a sequence that is not empty."""
    ks = k if isinstance(k, Sequence) else [k]
    if not ks:
        raise ValueError("soft_top_k got an empty sequence of k; give at least one number, such as k=5")
    return ks


def as_rows(k: NumTop, scores: Tensor) -> Tensor:
    """A number or tensor k as a (B,) tensor with the type and device of scores (B, ...)."""
    k = torch.as_tensor(k, dtype=scores.dtype, device=scores.device)
    if k.shape not in (torch.Size([]), scores.shape[:1]):
        raise ValueError(
            f"k has shape {tuple(k.shape)}, expected a number or one entry per row ({len(scores)},); "
            "for several numbers of labels pass a list"
        )
    return k.expand(len(scores))


def check_k(k: Tensor, num_labels: Tensor) -> None:
    """Raise unless 0 < k (B,) < num_labels (B,), the labels of each row that are not excluded."""
    wrong = ((k <= 0) | (k >= num_labels)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"got k = {float(k[row]):g} for a row with {int(num_labels[row])} labels that are not excluded, expected "
            f"0 < k < that number; {len(wrong)} rows are wrong. Choose a smaller positive k or offer more candidates."
        )


class _Threshold(torch.autograd.Function):
    """t (A,) with sum_j sigma(alpha (S_ij + t_i)) = k_i for scores S (A, C), where -inf marks an excluded entry.

    dt_i/dS_ij = -v_ij / sum_j v_ij with v = sigma (1 - sigma).
    """

    @staticmethod
    def forward(ctx, scores: Tensor, k: Tensor, alpha: float) -> Tensor:
        def evaluate(threshold: Tensor) -> tuple[Tensor, Tensor]:
            probability = torch.sigmoid(alpha * (scores + threshold[:, None]))  # (A, C)
            return probability.sum(dim=1), alpha * (probability * (1 - probability)).sum(dim=1)

        if scores.numel():
            num_labels = (scores > -torch.inf).sum(dim=1)  # (A,)
            shift = torch.logit(k / num_labels) / alpha
            lower = shift - scores.amax(dim=1)
            upper = shift - scores.masked_fill(scores == -torch.inf, torch.inf).amin(dim=1)
            start = (k.log() - (alpha * scores).logsumexp(dim=1)) / alpha  # below the root, as sigma(u) < exp(u)
            threshold, _ = solve_threshold(evaluate, start.maximum(lower), lower, upper, k)
        else:
            threshold = scores.new_zeros(len(scores))
        ctx.save_for_backward(scores, threshold)
        ctx.alpha = alpha
        return threshold

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        scores, threshold = ctx.saved_tensors
        logit = ctx.alpha * (scores + threshold[:, None])  # (A, C)
        # A softmax of log v: on a plateau every v underflows and v / sum v would be 0 / 0.
        share = (F.logsigmoid(logit) + F.logsigmoid(-logit)).softmax(dim=1)  # (A, C)
        return -grad[:, None] * share, None, None


@dataclass(frozen=True)
class _Positives:
    """The positives of a batch: mask (B, C) bool, rows/columns/weights (nnz,), row_weight (B,) = sum_p y_ip.

    The weights of a row sum to 1.
    """

    mask: Tensor
    rows: Tensor
    columns: Tensor
    weights: Tensor
    row_weight: Tensor

    def take(self, scores: Tensor) -> Tensor:
        return scores[self.rows, self.columns]  # (nnz,)

    def mean(self, terms: Tensor, num_rows: float | Tensor | None) -> Tensor:
        count = (self.row_weight > 0).sum() if num_rows is None else num_rows
        return (self.weights * terms).sum() / or_one(count, terms)


def _read(scores: Tensor, relevance: Tensor, excluded: Tensor | None) -> tuple[Tensor, Tensor, _Positives]:
    if scores.dim() != 2 or not scores.is_floating_point():
        raise ValueError(f"scores must be floating (B, C), got {tuple(scores.shape)} of {scores.dtype}")
    if relevance.shape != scores.shape:
        raise ValueError(
            f"relevance has shape {tuple(relevance.shape)}, expected that of scores {tuple(scores.shape)}: "
            "one entry per query and candidate"
        )
    if excluded is None:
        excluded = torch.zeros_like(relevance, dtype=torch.bool)
    if excluded.shape != scores.shape or excluded.dtype != torch.bool:
        raise ValueError(
            f"excluded must be bool {tuple(scores.shape)} like scores, got {tuple(excluded.shape)} of {excluded.dtype}"
        )
    if relevance.dtype != torch.bool and bool(((relevance < 0) | (relevance > 1)).any()):
        raise ValueError(
            f"relevance must lie in [0, 1], got values from {float(relevance.min()):g} to {float(relevance.max()):g}; "
            "scale the soft targets, or mark entries that must not count with excluded"
        )
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    mask = (relevance > 0) & ~excluded  # (B, C)
    rows, columns = mask.nonzero(as_tuple=True)
    weights = relevance[rows, columns].to(scores.dtype)  # (nnz,)
    row_weight = weights.new_zeros(len(scores)).index_add_(0, rows, weights)  # (B,)
    return scores, excluded, _Positives(mask, rows, columns, weights / row_weight[rows], row_weight)


def _info_nce_terms(scores: Tensor, excluded: Tensor, positives: _Positives) -> Tensor:
    log_denominator = scores.masked_fill(excluded, -torch.inf).logsumexp(dim=1)  # (B,)
    return log_denominator[positives.rows] - positives.take(scores)  # (nnz,)
