"""AdamW that touches only the rows a step used, for weights too tall to be updated in full."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# Rows of the history (5, steps) in a parameter's state; column h is the moment h steps after the last flush.
DRIFT, DECAY, FLOOR, BETA1_POWER, BETA2_POWER = range(5)
# A term of the idle displacement smaller than this share of the first one is left out.
SMALLEST_TERM = 1e-12
# Below this the running product of weight decays is started anew, long before it leaves float64.
SMALLEST_DECAY = 1e-200


class RowSparseAdamW(torch.optim.AdamW):
    r"""AdamW in which a parameter with a row-sparse gradient costs what its touched rows cost.

    Dense parameters are updated by ``torch.optim.AdamW`` itself; sparse ones (``nn.Embedding(..., sparse=True)``)
    row by row, with the numbers dense AdamW would have given, not those of a lazy Adam: a row that is not touched
    keeps moving in dense AdamW, by its momentum and its weight decay. Here it is caught up when it is next needed. For
    a row last touched at step s, with moments m and v, and needed after step t,

        w <- w P_t/P_s - (sum_{i=s+1..t} lr_i c_i r^{i-s} P_t/P_i) m / (sqrt(v) + eps_s)
        m <- beta1^{t-s} m,   v <- beta2^{t-s} v

    where P_i = prod_{k<=i} (1 - lr_k weight_decay), r = beta1 / sqrt(beta2), c_i = sqrt(1 - beta2^i) / (1 - beta1^i)
    and i counts the steps of the parameter, as dense AdamW does. The sum is kept for every s as steps go by, so
    that it holds for any learning-rate schedule and costs the same for any gap.

    It equals dense AdamW up to rounding, but for eps: eps_s = eps sqrt((1 - beta2^{s+1}) / beta2) is exact for the
    first idle step and held for the others. The error of an idle row's displacement is at most the share of eps in
    the denominator times (1 - beta2) / (2 - 2 beta2^s) for each later idle step that counts, of which there are about
    r / (1 - r): .5 % of that share with the default betas late in training.

    Two things are the caller's: a row must be up to date before it is *read*, else its gradient is taken at an old
    place: :meth:`follow` the embedding. And all rows must be before the weight is evaluated, saved or reset from
    outside: :meth:`flush`. Under DDP call both on every rank.

    Memory: two moments and one int32 per row, and 40 bytes for each step since the last flush.

    Args:
        params: Parameters or groups of them, as for ``torch.optim.AdamW``. Whether one is sparse is seen from its
            gradient.
        lr: Learning rate.
        betas: Decay rates of the two moments; ``beta1**2 < beta2``.
        eps: Positive term of the denominator.
        weight_decay: Decoupled weight decay; ``lr * weight_decay < 1``.
        foreach: Passed on for the dense parameters.
        fused: Passed on for the dense parameters.

    Raises:
        ValueError: For betas, eps or decay outside their range, a sparse gradient that is not one of whole rows of a
            matrix, or a parameter whose gradient is sparse in one step and dense in another.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, foreach=foreach, fused=fused)
        # The fused kernel unscales fp16 gradients itself; rows need them unscaled before the step.
        self._step_supports_amp_scaling = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As the host's, with betas and eps checked."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        beta1, beta2 = group["betas"]
        if not beta1**2 < beta2:
            raise ValueError(f"betas must satisfy beta1**2 < beta2, got {(beta1, beta2)}")
        if not group["eps"] > 0:
            raise ValueError(f"eps must be positive, got {group['eps']}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sparse: list[tuple[nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if gradient.is_sparse:
                    self._step_rows(parameter, gradient, group)
                    sparse.append((parameter, gradient))
                elif "history" in self.state[parameter]:
                    raise ValueError(
                        f"the gradient of a {tuple(parameter.shape)} parameter was sparse, now it is dense"
                    )
        # AdamW passes over parameters without a gradient.
        for parameter, _ in sparse:
            parameter.grad = None
        try:
            super().step()
        finally:
            for parameter, gradient in sparse:
                parameter.grad = gradient
        return loss

    @torch.no_grad()
    def catch_up(self, parameter: Tensor, rows: Tensor) -> None:
        """Bring rows of a sparse parameter to where dense AdamW has them after the last step.

        Nothing happens to a parameter that has not been updated yet.

        Args:
            parameter: (L, D).
            rows: Any shape, int64 in [0, L), may repeat.
        """
        state = self.state.get(parameter, {})
        if "history" in state:
            self._catch_up(parameter, state, rows.reshape(-1))

    def follow(self, embedding: nn.Embedding | nn.EmbeddingBag) -> RemovableHandle:
        """Catch rows up whenever the embedding is about to look them up in training, until the handle is removed."""
        own = weakref.ref(self)  # the embedding must not keep the moments alive

        def before_forward(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            optimizer = own()
            if module.training and optimizer is not None:
                optimizer.catch_up(embedding.weight, args[0])

        return embedding.register_forward_pre_hook(before_forward)

    @torch.no_grad()
    def flush(self) -> None:
        """Catch up all rows of all sparse parameters, and forget the history of steps. Work grows with L."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state.get(parameter, {})
                if "history" in state:
                    self._flush(parameter, state, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the host's, with the rows' positions and history in their own types."""
        super().load_state_dict(state_dict)
        # The host class casts all state to the dtype of the parameter; here positions and history must stay exact.
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for saved_id, parameter in zip(saved_ids, parameters, strict=True):
            saved = state_dict["state"].get(saved_id, {})
            if "history" in saved:
                self.state[parameter] = {
                    key: value.to(parameter.device) if isinstance(value, Tensor) and key != "step" else value
                    for key, value in saved.items()
                }
                self.state[parameter]["step"] = saved["step"].detach().clone().cpu()

    def _step_rows(self, parameter: nn.Parameter, sparse: Tensor, group: dict[str, Any]) -> None:
        state = self._row_state(parameter, sparse, group)
        rows, gradient = unique_rows(sparse)  # (R,), (R, D)
        self._catch_up(parameter, state, rows)
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        keep = 1 - lr * group["weight_decay"]
        if not keep > 0:
            raise ValueError(f"lr * weight_decay must be below 1, got {lr} * {group['weight_decay']}")
        step = int(state["step"]) + 1
        step_size = lr / (1 - beta1**step)
        root = math.sqrt(1 - beta2**step)
        first, second = state["exp_avg"], state["exp_avg_sq"]
        for part in _slices(len(rows), parameter):
            chunk, g = rows[part], gradient[part].to(first.dtype)
            m = first.index_select(0, chunk).lerp_(g, 1 - beta1)  # (R', D)
            v = second.index_select(0, chunk).mul_(beta2).addcmul_(g, g, value=1 - beta2)
            first.index_copy_(0, chunk, m)
            second.index_copy_(0, chunk, v)
            w = parameter.index_select(0, chunk).to(first.dtype).mul_(keep)
            w.addcdiv_(m, v.sqrt_().div_(root).add_(group["eps"]), value=-step_size)
            parameter.index_copy_(0, chunk, w.to(parameter.dtype))
        _remember(state, step_size * root, keep, group)
        state["row_position"].index_fill_(0, rows, state["now"])
        if state["decay"] < SMALLEST_DECAY:
            self._flush(parameter, state, group)

    def _row_state(self, parameter: nn.Parameter, sparse: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = self.state[parameter]
        if "history" not in state:
            if state:
                raise ValueError(f"the gradient of a {tuple(parameter.shape)} parameter was dense, now it is sparse")
            if parameter.dim() != 2 or sparse.sparse_dim() != 1:
                raise ValueError(
                    "a sparse gradient must hold rows of a matrix (L, D), as nn.Embedding(sparse=True) makes it; "
                    f"got {sparse.sparse_dim()} sparse dimensions of {tuple(parameter.shape)}"
                )
            state["step"] = torch.tensor(0.0)  # on the CPU, as AdamW keeps it
            state["exp_avg"] = parameter.new_zeros(parameter.shape, dtype=_moment_dtype(parameter))
            state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
            state["row_position"] = torch.zeros(len(parameter), dtype=torch.int32, device=parameter.device)
            _forget(state, group)
        return state

    def _catch_up(self, parameter: Tensor, state: dict[str, Any], rows: Tensor) -> None:
        now, history = state["now"], state["history"]
        rows = rows[state["row_position"][rows] != now].unique()  # a row that stands twice is caught up once
        first, second = state["exp_avg"], state["exp_avg_sq"]
        for part in _slices(len(rows), parameter):
            chunk = rows[part]
            position = state["row_position"][chunk].long()  # (R',)
            idle = now - position
            decay = history[DECAY, now] / history[DECAY, position]
            decay, drift, floor, power1, power2 = (
                column.to(first.dtype).unsqueeze(1)  # (R', 1)
                for column in (
                    decay,
                    history[DRIFT, position] * decay,
                    history[FLOOR, position],
                    history[BETA1_POWER, idle],
                    history[BETA2_POWER, idle],
                )
            )
            # One rounding an operation and none of them fused: a row's bits must not depend on its place in the
            # chunk, as ranks catch up different rows together and have to agree.
            m, v = first.index_select(0, chunk), second.index_select(0, chunk)  # (R', D)
            w = parameter.index_select(0, chunk).to(first.dtype).mul_(decay)
            w.sub_((m * drift).div_(v.sqrt().add_(floor)))
            parameter.index_copy_(0, chunk, w.to(parameter.dtype))
            first.index_copy_(0, chunk, m.mul_(power1))
            second.index_copy_(0, chunk, v.mul_(power2))
        state["row_position"].index_fill_(0, rows, now)

    def _flush(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        self._catch_up(parameter, state, torch.arange(len(parameter), device=parameter.device))
        state["row_position"].zero_()
        _forget(state, group)


def unique_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (R,) int64, ascending, and their summed values (R, D) of a sparse gradient.

    The values are not copied where the rows are ascending already.
    """
    rows = gradient._indices()[0]
    if not bool((rows[1:] > rows[:-1]).all()):
        gradient = gradient.coalesce()
        rows = gradient._indices()[0]
    return rows, gradient._values()


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients in place so that their joint 2-norm is at most ``max_norm``; returns the norm before.

    Equals ``torch.nn.utils.clip_grad_norm_`` on the dense forms of the gradients. Row-sparse gradients count with
    repeated rows summed, and are replaced by that form. With ``max_norm=math.inf`` it only measures.

    Raises:
        ValueError: If ``max_norm`` is not positive.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}; math.inf measures without clipping")
    values = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            before = gradient._values()
            rows, gradient = unique_rows(gradient)
            if gradient.data_ptr() != before.data_ptr():
                parameter.grad = torch.sparse_coo_tensor(
                    rows.unsqueeze(0), gradient, parameter.shape, is_coalesced=True, check_invariants=False
                )
        values.append(gradient)
    norm = torch.nn.utils.get_total_norm(values)
    if max_norm < math.inf:
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in values:
            gradient.mul_(scale.to(gradient.device))
    return norm


def _remember(state: dict[str, Any], rate: float, keep: float, group: dict[str, Any]) -> None:
    """Add a step of size ``rate`` (lr_i c_i) and weight decay ``keep`` to the history."""
    now = state["now"] + 1
    if now == state["history"].shape[1]:
        state["history"] = _longer(state["history"], 2 * now, group["betas"])
    history = state["history"]
    decay = state["decay"] * keep
    # The newest term reaches back as far as r^k counts.
    reach = min(now, _reach(*group["betas"]))
    ratio = history[BETA1_POWER, 1 : reach + 1] / history[BETA2_POWER, 1 : reach + 1].sqrt()  # r^1 .. r^reach
    history[DRIFT, now - reach : now] += ratio.flip(0) * history[DECAY, now - reach : now] * (rate / decay)
    state["step"] += 1
    state["now"], state["decay"] = now, decay
    _open_column(state, group)


def _forget(state: dict[str, Any], group: dict[str, Any]) -> None:
    """Start the history anew; all rows must be at its first column."""
    state["history"] = _longer(state["exp_avg"].new_zeros((5, 0), dtype=torch.float64), 1024, group["betas"])
    state["now"], state["decay"] = 0, 1.0
    _open_column(state, group)


def _open_column(state: dict[str, Any], group: dict[str, Any]) -> None:
    beta2 = group["betas"][1]
    state["history"][DECAY, state["now"]] = state["decay"]
    state["history"][FLOOR, state["now"]] = group["eps"] * math.sqrt((1 - beta2 ** (int(state["step"]) + 1)) / beta2)


def _longer(history: Tensor, num_steps: int, betas: tuple[float, float]) -> Tensor:
    """The history with room for ``num_steps`` columns, powers of the betas filled in."""
    longer = history.new_zeros((5, num_steps))
    longer[:, : history.shape[1]] = history
    exponents = torch.arange(num_steps, dtype=torch.float64, device=history.device)
    longer[BETA1_POWER] = betas[0] ** exponents
    longer[BETA2_POWER] = betas[1] ** exponents
    return longer


def _reach(beta1: float, beta2: float) -> int:
    ratio = beta1 / math.sqrt(beta2)
    return 1 if ratio == 0 else max(1, math.ceil(math.log(SMALLEST_TERM) / math.log(ratio)))


def _moment_dtype(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)


def _slices(num_rows: int, parameter: Tensor) -> Iterator[slice]:
    """Slices of rows: small enough for a core's cache on the CPU, few on a GPU."""
    elements = 2**16 if parameter.device.type == "cpu" else 2**26
    size = max(1, elements // max(1, parameter.shape[1]))
    return (slice(start, start + size) for start in range(0, num_rows, size))
