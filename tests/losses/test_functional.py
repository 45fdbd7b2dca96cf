"""The losses from scores equal slow loops, published golden values and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import losses as reference
from torch import Tensor

from hf_xmc.losses import functional

LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "decoupled_softmax": (functional.decoupled_softmax, reference.slow_decoupled_softmax),
    "info_nce": (functional.info_nce, reference.slow_info_nce),
    "info_nce_sum": (functional.info_nce_sum, reference.slow_info_nce_sum),
    "binary_cross_entropy": (functional.binary_cross_entropy, reference.slow_binary_cross_entropy),
    "soft_top_k": (
        lambda s, y, excluded=None: functional.soft_top_k(s, y, 1.5, 1.3, excluded),
        lambda s, y, excluded=None: reference.slow_soft_top_k(s, y, 1.5, 1.3, excluded),
    ),
}
RANKING = [name for name in LOSSES if name != "binary_cross_entropy"]

SCORES = [[1.0, 2.0, 3.0, 0.0], [0.0, 1.0, -1.0, 0.5]]
RELEVANCE = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1]], dtype=torch.bool)
GOLDEN = {
    "decoupled_softmax": (
        functional.decoupled_softmax,
        1.132649,
        [[-0.221451, -0.185126, 0.387295, 0.019282], [0.144057, -0.083690, 0.052996, -0.113363]],
    ),
    "info_nce": (
        functional.info_nce,
        1.468378,
        [[-0.206428, -0.131559, 0.321957, 0.016029], [0.087186, -0.013005, 0.032074, -0.106255]],
    ),
    "info_nce_sum": (
        functional.info_nce_sum,
        2.936757,
        [[-0.412856, -0.263118, 0.643914, 0.032058], [0.174372, -0.026010, 0.064148, -0.212510]],
    ),
    "binary_cross_entropy": (
        functional.binary_cross_entropy,
        0.746959,
        [[-0.033618, -0.014900, 0.119072, 0.062500], [0.062500, -0.033618, 0.033618, -0.047193]],
    ),
    "soft top-2, alpha 1": (
        partial(functional.soft_top_k, k=2, alpha=1.0),
        0.582389,
        [[-0.079146, -0.017916, 0.048531, 0.048531], [0.049839, -0.032445, 0.036799, -0.054194]],
    ),
    "soft top-2, alpha 2": (
        partial(functional.soft_top_k, k=2),
        0.554890,
        [[-0.162240, 0.068818, 0.046711, 0.046711], [0.089336, -0.030630, 0.029385, -0.088091]],
    ),
    "soft top-1, alpha 1": (
        partial(functional.soft_top_k, k=1, alpha=1.0),
        1.342748,
        [[-0.144773, -0.045988, 0.159053, 0.031708], [0.075782, -0.034365, 0.036772, -0.078189]],
    ),
    "soft top-1, alpha 2": (
        partial(functional.soft_top_k, k=1),
        1.596016,
        [[-0.400094, -0.015925, 0.404531, 0.011489], [0.114591, 0.010587, 0.019962, -0.145140]],
    ),
}


def golden_scores() -> Tensor:
    return torch.tensor(SCORES, dtype=torch.float64, requires_grad=True)


def cases() -> list[tuple[str, Tensor, Tensor, Tensor | None]]:
    """Awkward sizes: name, scores, relevance, excluded."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    soft = torch.rand(3, 7, generator=generator, dtype=torch.float64).round(decimals=1)
    some = torch.rand(3, 7, generator=generator) < 0.4
    other = torch.rand(3, 7, generator=generator) < 0.2
    one = torch.eye(3, 7, dtype=torch.bool)
    none = torch.zeros(3, 7, dtype=torch.bool)
    empty_row = some.clone()
    empty_row[1] = False
    return [
        ("3 x 7", scores, some, None),
        ("excluded", scores, some, other),
        ("excluded positives", scores, some, some & other),
        ("soft targets", scores, soft, other),
        ("one positive", scores, one, None),
        ("no positives", scores, none, None),
        ("a row without positives", scores, empty_row, other),
        ("all positives", scores, ~none, None),
        ("ties", torch.ones_like(scores), some, None),
        ("label that no query has", scores, torch.cat([some[:, :6], none[:, :1]], dim=1), None),
        ("duplicate columns", scores[:, [0, 0, 1, 1, 2, 2, 2]], some, None),
    ]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", cases(), ids=lambda case: case[0])
def test_values_and_gradients_equal_the_slow_twin(loss: str, case: tuple[str, Tensor, Tensor, Tensor | None]) -> None:
    fast, slow = LOSSES[loss]
    name, scores, relevance, excluded = case
    scores = scores.clone().requires_grad_()
    value, expected = fast(scores, relevance, excluded=excluded), slow(scores, relevance, excluded=excluded)
    (gradient,), (expected_gradient,) = (torch.autograd.grad(part, scores) for part in (value, expected))
    if name != "no positives" and not (loss == "decoupled_softmax" and name == "all positives"):
        assert expected_gradient.abs().max() > 1e-3
    torch.testing.assert_close(value, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_equal_finite_differences(loss: str) -> None:
    _, scores, relevance, excluded = cases()[3]
    scores = scores.clone().requires_grad_()
    function = partial(LOSSES[loss][0], relevance=relevance, excluded=excluded) if loss != "soft_top_k" else None
    function = function or (lambda s: functional.soft_top_k(s, relevance, 1.5, 1.3, excluded))
    (gradient,) = torch.autograd.grad(function(scores), scores)
    assert gradient.abs().max() > 1e-3
    expected = reference.finite_differences(function, scores.detach())
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values_and_gradients(name: str) -> None:
    loss, value, gradient = GOLDEN[name]
    scores = golden_scores()
    found = loss(scores, RELEVANCE)
    found.backward()
    assert found.item() == pytest.approx(value, abs=1e-6)
    torch.testing.assert_close(scores.grad, torch.tensor(gradient, dtype=torch.float64), atol=2e-6, rtol=0)


def test_an_unsampled_positive_is_excluded_and_no_negative() -> None:
    unsampled = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
    loss = functional.decoupled_softmax(golden_scores(), RELEVANCE, unsampled)
    assert loss.item() == pytest.approx(1.288726, abs=1e-6)


def test_label_to_query_direction_has_a_label_without_negative_queries() -> None:
    scores = golden_scores()
    assert functional.info_nce(scores.T, RELEVANCE.T).item() == pytest.approx(0.533533, abs=1e-6)
    value = functional.decoupled_softmax(scores.T, RELEVANCE.T)
    assert value.item() == pytest.approx(0.262446, abs=1e-6)
    value.backward()
    assert scores.grad[:, 0].abs().min() > 0
    assert (scores.grad[:, 1] == 0).all()


@pytest.mark.parametrize("loss", ["decoupled_softmax", "info_nce", "info_nce_sum"])
def test_one_positive_is_cross_entropy(loss: str) -> None:
    scores = torch.randn(5, 9, dtype=torch.float64)
    target = torch.tensor([3, 0, 8, 3, 1])
    relevance = torch.nn.functional.one_hot(target, 9).bool()
    expected = torch.nn.functional.cross_entropy(scores, target)
    torch.testing.assert_close(LOSSES[loss][0](scores, relevance), expected)


@pytest.mark.parametrize("loss", RANKING)
def test_a_row_without_positives_changes_nothing(loss: str) -> None:
    scores = torch.randn(4, 6, dtype=torch.float64)
    relevance = torch.rand(4, 6) < 0.5
    relevance[2] = False
    relevance[0, 0] = True
    kept = torch.tensor([0, 1, 3])
    torch.testing.assert_close(LOSSES[loss][0](scores, relevance), LOSSES[loss][0](scores[kept], relevance[kept]))


@pytest.mark.parametrize("loss", RANKING)
@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_a_constant_added_to_a_row_changes_nothing(loss: str, shift: float) -> None:
    scores = torch.randn(3, 50, dtype=torch.float64)
    relevance = torch.rand(3, 50) < 0.1
    relevance[:, 0] = True
    function = LOSSES[loss][0]
    torch.testing.assert_close(function(scores + shift, relevance), function(scores, relevance), rtol=1e-9, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_num_rows_replaces_the_divisor(loss: str) -> None:
    scores, relevance = golden_scores(), RELEVANCE
    name = "num_entries" if loss == "binary_cross_entropy" else "num_rows"
    count = 8 if loss == "binary_cross_entropy" else 2
    function = partial(functional.soft_top_k, k=2) if loss == "soft_top_k" else getattr(functional, loss)
    own = function(scores, RELEVANCE)
    for divisor in (10.0, torch.tensor(10)):
        torch.testing.assert_close(function(scores, relevance, **{name: divisor}), own * count / 10)
    nothing = torch.zeros_like(RELEVANCE)
    if loss != "binary_cross_entropy":
        assert function(scores, nothing, num_rows=torch.tensor(0)).item() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32(loss: str) -> None:
    scores = torch.randn(4, 20).bfloat16()
    relevance = torch.rand(4, 20) < 0.3
    value = LOSSES[loss][0](scores, relevance)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, LOSSES[loss][0](scores.float(), relevance))


def test_several_k_give_the_mean_and_a_tensor_gives_one_k_per_row() -> None:
    scores = golden_scores()
    one, two = (functional.soft_top_k(scores, RELEVANCE, k) for k in (1, 2))
    torch.testing.assert_close(functional.soft_top_k(scores, RELEVANCE, [1, 2]), (one + two) / 2)
    per_row = functional.soft_top_k(scores, RELEVANCE, torch.tensor([1, 2]))
    rows = [functional.soft_top_k(scores[i : i + 1], RELEVANCE[i : i + 1], k) for i, k in enumerate((1, 2))]
    torch.testing.assert_close(per_row, torch.stack(rows).mean())


@pytest.mark.parametrize(
    ("num_labels", "k"), [(10, 5), (1_000, 5), (1_000, 100), (131_072, 5), (1_305_265, 5), (1_305_265, 100)]
)
@pytest.mark.parametrize("spread", [0.0, 0.1, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threshold_probabilities_sum_to_k(num_labels: int, spread: float, k: int, dtype: torch.dtype) -> None:
    scores = spread * torch.randn(1, num_labels, dtype=dtype)
    threshold = functional._Threshold.apply(scores, torch.tensor([k], dtype=dtype), 2.0)
    total = torch.sigmoid(2 * (scores.double() + threshold.double())).sum()
    assert abs(total.item() - k) <= (1e-4 if dtype == torch.float32 else 1e-9) * k


@settings(max_examples=100, deadline=None)
@given(
    scores=st.lists(st.floats(-200, 200), min_size=2, max_size=40),
    fraction=st.floats(0.01, 0.99),
    alpha=st.sampled_from([0.5, 1.0, 2.0, 10.0]),
)
def test_threshold_is_found_for_any_scores(scores: list[float], fraction: float, alpha: float) -> None:
    row = torch.tensor([scores], dtype=torch.float64)
    k = fraction * len(scores)
    threshold = functional._Threshold.apply(row, torch.tensor([k], dtype=torch.float64), alpha)
    # 1e-4 for plateaus, where the sum does not move with the threshold until rounding is felt.
    assert torch.sigmoid(alpha * (row + threshold)).sum().item() == pytest.approx(k, rel=1e-4)


def test_a_plateau_has_a_finite_gradient() -> None:
    scores = torch.tensor([[300.0, 299.0, -300.0, -301.0]], requires_grad=True)
    functional.soft_top_k(scores, torch.tensor([[True, False, True, False]]), 2).backward()
    assert scores.grad.isfinite().all()
    assert scores.grad.abs().max() > 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, y: functional.decoupled_softmax(s[0], y), "scores must be floating"),
        (lambda s, y: functional.decoupled_softmax(s, y[:, :3]), "relevance has shape"),
        (lambda s, y: functional.decoupled_softmax(s, y, y.float()), "excluded must be bool"),
        (lambda s, y: functional.info_nce(s, 2.0 * y), r"relevance must lie in \[0, 1\]"),
        (lambda s, y: functional.soft_top_k(s, y, 4), "0 < k < that number"),
        (lambda s, y: functional.soft_top_k(s, y, 0), "0 < k < that number"),
        (lambda s, y: functional.soft_top_k(s, y, 3, 2.0, ~y), "row with 2 labels"),
        (lambda s, y: functional.soft_top_k(s, y, []), "empty sequence"),
        (lambda s, y: functional.soft_top_k(s, y, torch.tensor([1, 1, 1])), "one entry per row"),
    ],
)
def test_wrong_arguments_say_what_came_and_what_was_expected(call: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(golden_scores(), RELEVANCE)
