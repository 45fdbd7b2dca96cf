from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from forks import Forks
from torch import nn

from hf_xmc.training.optim import RowSparseAdamW, clip_grad_norm

NUM_ROWS = 1000
NUM_STEPS = 400


def warm_up_and_cosine(step: int) -> float:
    return min(1.0, (step + 1) / 60) * (0.5 + 0.5 * math.cos(math.pi * step / NUM_STEPS))


class Run:
    """Rows drawn to targets, some touched every third step and most some two hundred steps apart."""

    def __init__(self, optimizer_class: type, dtype: torch.dtype, gradient_scale: float = 1.0, **kwargs) -> None:
        generator = torch.Generator().manual_seed(0)
        sparse = optimizer_class is not torch.optim.AdamW
        self.model = nn.Sequential(nn.Embedding(NUM_ROWS, 6, sparse=sparse), nn.Linear(6, 6)).to(dtype)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.start = self.rows.clone()
        self.targets = torch.randn(NUM_ROWS, 6, generator=generator).to(dtype)
        self.gradient_scale = gradient_scale
        self.optimizer = optimizer_class(self.model.parameters(), **{"lr": 1e-2, "weight_decay": 0.05, **kwargs})
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, warm_up_and_cosine)
        if isinstance(self.optimizer, RowSparseAdamW):
            self.optimizer.follow(self.model[0])

    @property
    def rows(self) -> torch.Tensor:
        return self.model[0].weight.detach()

    def train(self, first: int, last: int) -> Run:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            rows = torch.randint(NUM_ROWS if step % 3 else 20, (8,), generator=generator)
            rows[0] = rows[1]  # always a repeated row
            self.optimizer.zero_grad()
            loss = (self.model(rows) - self.targets[rows]).square().sum()
            (self.gradient_scale * loss).backward()
            self.optimizer.step()
            self.scheduler.step()
        return self


def relative_error(ours: Run, dense: Run) -> float:
    """Of the displacement of the rows over the whole run, in 2-norm."""
    if hasattr(ours.optimizer, "flush"):
        ours.optimizer.flush()
    moved = (dense.rows - dense.start).norm()
    assert moved > 1
    return ((ours.rows - dense.rows).norm() / moved).item()


class SparseAdamWithDense(torch.optim.SparseAdam):
    """What a lazy Adam does to the rows; the dense layer stays."""

    def __init__(self, params, lr: float, weight_decay: float) -> None:
        super().__init__(list(params)[:1], lr=lr)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
def test_rows_follow_dense_adamw_under_a_learning_rate_schedule(dtype: torch.dtype, bound: float) -> None:
    dense = Run(torch.optim.AdamW, dtype).train(0, NUM_STEPS)
    ours = Run(RowSparseAdamW, dtype).train(0, NUM_STEPS)
    assert relative_error(ours, dense) < bound
    torch.testing.assert_close(ours.model[1].weight, dense.model[1].weight, rtol=0, atol=10 * bound)
    # The comparison can fail: a lazy Adam ends elsewhere.
    assert relative_error(Run(SparseAdamWithDense, dtype).train(0, NUM_STEPS), dense) > 0.1


@pytest.mark.parametrize("betas", [(0.9, 0.98), (0.0, 0.999), (0.99, 0.999)])
def test_rows_follow_dense_adamw_for_other_betas(betas: tuple[float, float]) -> None:
    dense = Run(torch.optim.AdamW, torch.float64, betas=betas).train(0, 200)
    ours = Run(RowSparseAdamW, torch.float64, betas=betas).train(0, 200)
    assert relative_error(ours, dense) < 1e-5


@pytest.mark.parametrize("gradient_scale", [1e-6, 1e-8, 1e-10])
def test_the_error_stays_small_where_eps_rules_the_denominator(gradient_scale: float) -> None:
    options = {"gradient_scale": gradient_scale, "lr": 1e-1}
    dense = Run(torch.optim.AdamW, torch.float64, **options).train(0, NUM_STEPS)
    ours = Run(RowSparseAdamW, torch.float64, **options).train(0, NUM_STEPS)
    assert relative_error(ours, dense) < 1e-2  # 400 steps from the start, where 1 - beta2^s is small


@pytest.mark.parametrize("eps", [1e-8, 1e3])
def test_an_idle_row_moves_as_the_closed_form_says(eps: float) -> None:
    """One touch at step 400, then 200 idle steps; eps = 1e3 is all of the denominator."""
    weights = {}
    for name, optimizer_class in (("dense", torch.optim.AdamW), ("ours", RowSparseAdamW)):
        weight = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
        optimizer = optimizer_class([weight], lr=1e-2, eps=eps, weight_decay=0.0)
        for step in range(1, 601):
            row = 0 if step == 400 else 1
            gradient = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
            weight.grad = torch.sparse_coo_tensor([[row]], gradient, (2, 3), check_invariants=True)
            if name == "dense":
                weight.grad = weight.grad.to_dense()
            optimizer.step()
        if name == "ours":
            optimizer.flush()
        weights[name] = 1 - weight.detach()[0]
    share = eps / (eps + 0.03)  # sqrt of the bias-corrected second moment is about .03 to .1
    bound = 1e-6 + share * (1 - 0.999) / (2 * (1 - 0.999**400)) * 9.05
    error = ((weights["ours"] - weights["dense"]) / weights["dense"]).abs().max().item()
    assert weights["dense"].abs().min() > 0
    assert error < bound
    if eps > 1:
        assert error > bound / 10  # the bound is of the right size


def test_catching_up_in_parts_and_flushing_change_nothing() -> None:
    plain = Run(RowSparseAdamW, torch.float64).train(0, 200)
    plain.optimizer.flush()
    parts = Run(RowSparseAdamW, torch.float64)
    for step in range(0, 200, 10):
        parts.train(step, step + 10)
        parts.optimizer.catch_up(parts.model[0].weight, torch.tensor([[3, 3], [700, step]]))
        if step % 50 == 0:
            parts.optimizer.flush()
    parts.optimizer.flush()
    torch.testing.assert_close(parts.rows, plain.rows, rtol=0, atol=1e-7)
    before = parts.rows.clone()
    parts.optimizer.flush()
    assert torch.equal(parts.rows, before)


def test_a_row_that_is_looked_up_many_times_is_caught_up_once() -> None:
    """However far apart in the batch: rows are caught up a few hundred at a time."""
    states = []
    for rows in (torch.tensor([3]), torch.cat([torch.tensor([3]), torch.arange(10, 900), torch.tensor([3])])):
        weight = nn.Parameter(torch.ones(1000, 256))
        optimizer = RowSparseAdamW([weight], lr=1e-2, weight_decay=0.1)
        for row in (3, 5, 5, 5):
            weight.grad = torch.sparse_coo_tensor([[row]], torch.ones(1, 256), (1000, 256), check_invariants=True)
            optimizer.step()
        before = weight[3].detach().clone()
        optimizer.catch_up(weight, rows)
        assert not torch.equal(weight[3], before)
        states.append((weight[3].detach(), optimizer.state[weight]["exp_avg"][3]))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_a_step_touches_the_rows_of_its_gradient_only() -> None:
    counts = {}
    for num_rows in (50, 5000):
        weight = nn.Parameter(torch.ones(num_rows, 2))
        optimizer = RowSparseAdamW([weight], lr=1e-2, weight_decay=0.1)
        gradient = torch.sparse_coo_tensor([[7, 3, 7]], torch.ones(3, 2), (num_rows, 2), check_invariants=True)
        for _ in range(5):
            weight.grad = gradient
            optimizer.step()
        state = optimizer.state[weight]
        moved = [(tensor != first).any(dim=1).nonzero()[:, 0].tolist() for tensor, first in (
            (weight.detach(), 1), (state["exp_avg"], 0), (state["exp_avg_sq"], 0), (state["row_position"][:, None], 0)
        )]  # fmt: skip
        assert moved == [[3, 7]] * 4
        sizes = {key: value.numel() for key, value in state.items() if isinstance(value, torch.Tensor)}
        assert sizes.pop("exp_avg") == sizes.pop("exp_avg_sq") == 2 * sizes.pop("row_position") == 2 * num_rows
        counts[num_rows] = sizes
    assert counts[50] == counts[5000]  # the rest of the state does not grow with the rows


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_resumed_from_a_state_dict_ends_the_same_to_the_bit(
    tmp_path: Path, dtype: torch.dtype, fused: bool | None
) -> None:
    whole = Run(RowSparseAdamW, dtype, fused=fused).train(0, 100)
    saved = {"model": whole.model, "optimizer": whole.optimizer, "scheduler": whole.scheduler}
    torch.save({name: part.state_dict() for name, part in saved.items()}, tmp_path / "state.pt")
    whole.train(100, 160)
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = Run(RowSparseAdamW, dtype, fused=fused)
    resumed.model.load_state_dict(loaded["model"])
    resumed.optimizer.load_state_dict(loaded["optimizer"])
    resumed.scheduler.load_state_dict(loaded["scheduler"])
    assert resumed.optimizer.state[resumed.model[0].weight]["exp_avg"].dtype == torch.float32
    resumed.train(100, 160)
    for run in (whole, resumed):
        run.optimizer.flush()
    assert not torch.equal(whole.rows, loaded["model"]["0.weight"])
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_strong_decay_over_many_steps_stays_finite() -> None:
    """The product of decays leaves float64 after 1,075 halvings."""
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = RowSparseAdamW([weight], lr=0.5, weight_decay=1.0)
    for _ in range(1500):
        weight.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (3, 2), check_invariants=True)
        optimizer.step()
    optimizer.flush()
    assert weight[0].tolist() == [0.0, 0.0]
    torch.testing.assert_close(weight[1], torch.full((2,), -1.0), rtol=0, atol=1e-4)  # w = w / 2 - 1 / 2


@pytest.mark.parametrize("max_norm", [0.3, 1e6, math.inf])
def test_clipping_equals_torch_on_the_dense_gradients(max_norm: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Embedding(9, 4, sparse=True), nn.Linear(4, 2))
    unused = nn.Parameter(torch.ones(2))
    (model[2](model[0](torch.tensor([5, 1, 5, 8]))) + model[2](model[1](torch.tensor([0, 3])))[:1]).sum().backward()
    dense = copy.deepcopy(model)
    for parameter, original in zip(dense.parameters(), model.parameters(), strict=True):
        parameter.grad = original.grad.to_dense().clone()
    expected = torch.nn.utils.clip_grad_norm_(dense.parameters(), max_norm)
    norm = clip_grad_norm([*model.parameters(), unused], max_norm)
    assert expected > 0.3
    torch.testing.assert_close(norm, expected)
    assert model[0].weight.grad.is_sparse
    assert unused.grad is None
    for ours, theirs in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.to_dense(), theirs.grad)


def test_wrong_uses_are_named() -> None:
    weight = nn.Parameter(torch.ones(4, 2))
    for wrong in ({"betas": (0.99, 0.9)}, {"eps": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RowSparseAdamW([weight], **wrong)
    with pytest.raises(ValueError, match="positive, got 0"):
        clip_grad_norm([weight], 0)
    sparse = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (4, 2), check_invariants=True)
    for first, second in ((sparse, sparse.to_dense()), (sparse.to_dense(), sparse)):
        optimizer = RowSparseAdamW([weight])
        weight.grad = first
        optimizer.step()
        weight.grad = second
        with pytest.raises(ValueError, match="gradient of a \\(4, 2\\) parameter was"):
            optimizer.step()
    weight.grad = sparse
    with pytest.raises(ValueError, match="below 1"):
        RowSparseAdamW([weight], lr=1.0, weight_decay=1.0).step()
    weight.grad = torch.ones(4, 2).to_sparse()
    with pytest.raises(ValueError, match="got 2 sparse dimensions"):
        RowSparseAdamW([weight]).step()


@pytest.mark.slow
def test_two_ranks_that_touch_different_rows_stay_equal_to_the_bit(forks: Forks, tmp_path: Path) -> None:
    worker = Path(__file__).with_name("optim_worker.py").read_text()
    forks.finish(*forks.start_ranks(2, worker, tmp_path))
    for rank in range(2):
        record = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert record["world_size"] == 2
        assert record["moved"] > 0.05
        assert record["difference"] == 0
