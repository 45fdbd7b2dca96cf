"""The losses over all labels equal the dense ones, whatever the plan, the sharding and the type."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from forks import Forks
from reference import losses as reference
from torch import Tensor

from hf_xmc.losses import blockwise, functional
from hf_xmc.losses.streaming import chunks, statistics
from hf_xmc.losses.streaming import plan as planning
from hf_xmc.losses.streaming.top_scores import TopScores

NAMES = ["decoupled_softmax", "info_nce", "info_nce_sum", "binary_cross_entropy", "soft_top_k"]
SCALE = 5.0
PLANS = {"two-pass": 0, "row chunks": 3 * 613 * 8, "all kept": 2**26}


def csr(relevance: Tensor, weights: bool = False) -> tuple[Tensor, ...]:
    rows, columns = relevance.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(relevance))
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return (indptr, columns, relevance[rows, columns]) if weights else (indptr, columns)


def embeddings(num: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num, dim, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def mask(num_rows: int, num_columns: int, share: float, seed: int) -> Tensor:
    return torch.rand(num_rows, num_columns, generator=torch.Generator().manual_seed(seed)) < share


def options(name: str, k: float | list[float] = 1.5) -> dict[str, object]:
    return {"k": k, "alpha": 1.3} if name == "soft_top_k" else {}


def differentiate(loss: Callable[..., Tensor], queries: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value and the gradients of queries and labels."""
    queries, labels = (part.detach().clone().requires_grad_() for part in (queries, labels))
    value = loss(queries, labels)
    return value.detach(), *torch.autograd.grad(value, (queries, labels))


def dense(
    name: str, queries: Tensor, labels: Tensor, relevance: Tensor, excluded: Tensor | None = None, **kw: object
) -> tuple[Tensor, Tensor, Tensor]:
    loss = getattr(functional, name)
    return differentiate(lambda x, z: loss(SCALE * x @ z.T, relevance, excluded=excluded, **kw), queries, labels)


def streamed(
    name: str, queries: Tensor, labels: Tensor, relevance: Tensor, excluded: Tensor | None = None, **kw: object
) -> tuple[Tensor, Tensor, Tensor]:
    loss = getattr(blockwise, name)
    positives = csr(relevance, weights=relevance.dtype != torch.bool)
    pairs = None if excluded is None else csr(excluded)
    return differentiate(lambda x, z: loss(x, z, positives, scale=SCALE, excluded=pairs, **kw), queries, labels)


def assert_equal(found: tuple, expected: tuple, tolerance: float) -> None:
    for part, other in zip(found, expected, strict=True):
        torch.testing.assert_close(part.to(other.dtype), other, atol=tolerance, rtol=tolerance)


def cases() -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Awkward sizes: queries, labels, relevance, excluded."""
    queries, labels = embeddings(3, 4, 0), embeddings(7, 4, 1)
    some, other, none = mask(3, 7, 0.4, 2), mask(3, 7, 0.2, 3), torch.zeros(3, 7, dtype=torch.bool)
    soft = torch.rand(3, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64).round(decimals=1)
    empty_row = some.clone()
    empty_row[1] = False
    return {
        "3 x 7": (queries, labels, some, None),
        "excluded": (queries, labels, some, other),
        "excluded positives": (queries, labels, some, some & other),
        "soft targets": (queries, labels, soft, other),
        "one positive": (queries, labels, torch.eye(3, 7, dtype=torch.bool), None),
        "no positives": (queries, labels, none, None),
        "a row without positives": (queries, labels, empty_row, other),
        "all positives": (queries, labels, ~none, None),
        "ties": (queries, torch.ones_like(labels) / 2, some, None),
        "label that no query has": (queries, labels, torch.cat([some[:, :6], none[:, :1]], dim=1), None),
        "duplicate texts": (queries[[0, 0, 1]], labels[[0, 0, 1, 1, 2, 2, 2]], some, None),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", cases())
def test_blockwise_equals_dense_and_the_slow_twin(name: str, case: str) -> None:
    queries, labels, relevance, excluded = cases()[case]
    expected = dense(name, queries, labels, relevance, excluded, **options(name))
    if case != "no positives" and (name, case) != ("decoupled_softmax", "all positives"):
        assert max(part.abs().max() for part in expected[1:]) > 1e-3
    assert_equal(streamed(name, queries, labels, relevance, excluded, **options(name)), expected, 1e-9)
    slow = partial(getattr(reference, f"slow_{name}"), **options(name))
    twin = differentiate(lambda x, z: slow(SCALE * x @ z.T, relevance, excluded=excluded), queries, labels)
    assert_equal(expected, twin, 1e-9)


@pytest.mark.parametrize("name", NAMES[:-1])
def test_one_query_and_one_label(name: str) -> None:
    relevance = torch.ones(1, 1, dtype=torch.bool)
    queries, labels = embeddings(1, 1, 0), embeddings(1, 1, 1)
    assert_equal(streamed(name, queries, labels, relevance), dense(name, queries, labels, relevance), 1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_gives_the_dense_result(name: str, plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "CPU_TILE_ENTRIES", 4096)
    monkeypatch.setattr(planning, "MIN_KEPT_ROWS", {"cpu": 1})
    monkeypatch.setattr(planning, "MAX_STREAMED_ROWS", {"cpu": 16})
    queries, labels = embeddings(37, 8, 0), embeddings(613, 8, 1)
    relevance, excluded = mask(37, 613, 0.02, 2), mask(37, 613, 0.01, 3)
    keywords = options(name, k=[3, 7.5])
    found = streamed(name, queries, labels, relevance, excluded, memory_budget=PLANS[plan], **keywords)
    assert_equal(found, dense(name, queries, labels, relevance, excluded, **keywords), 1e-9)


def test_the_plan_keeps_scores_only_where_a_useful_chunk_fits() -> None:
    kept = planning.make_plan(512, 65_536, 4, "cpu", memory_budget=2**26)
    assert kept.keep_scores and kept.rows == 256
    assert not planning.make_plan(512, 65_536, 4, "cpu", memory_budget=2**20).keep_scores
    assert not planning.make_plan(512, 65_536, 4, "cpu", may_keep=False).keep_scores
    for num_labels in (65_536, 10**8):
        streamed_plan = planning.make_plan(8192, num_labels, 4, "cpu", memory_budget=0)
        assert (streamed_plan.rows, streamed_plan.columns) == (1024, 256)
    huge = planning.make_plan(8192, 1_305_265, 4, "cuda")
    assert huge.rows * huge.columns * 4 <= 2**28


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("native", [False, True])
def test_lower_precision_stays_near_float64(
    name: str, dtype: torch.dtype, tolerance: float, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "cpu_prefers_bfloat16", lambda: native)
    monkeypatch.setattr(planning, "MAX_STREAMED_ROWS", {"cpu": 32})
    queries, labels = embeddings(60, 32, 0, dtype), embeddings(2000, 32, 1, dtype)
    relevance = mask(60, 2000, 0.002, 2)
    keywords = options(name, k=5)
    found = streamed(name, queries, labels, relevance, memory_budget=0, **keywords)
    expected = dense(name, queries.double(), labels.double(), relevance, **keywords)
    assert found[1].dtype == found[2].dtype == dtype
    for part, other in zip(found, expected, strict=True):
        assert (part.double() - other).norm() <= tolerance * other.norm()


def test_large_scores_do_not_overflow_float32() -> None:
    queries, labels = 30 * embeddings(5, 8, 0), 30 * embeddings(400, 8, 1)
    relevance = mask(5, 400, 0.01, 2)
    for name in ("decoupled_softmax", "info_nce"):
        found = streamed(name, queries.float(), labels.float(), relevance)
        for part, other in zip(found, dense(name, queries, labels, relevance), strict=True):
            assert (part.double() - other).norm() <= 1e-4 * other.norm()


def test_a_positive_of_weight_zero_is_known_but_not_sampled() -> None:
    queries, labels, relevance, _ = cases()["3 x 7"]
    sampled = relevance & mask(3, 7, 0.6, 9)
    assert sampled.sum() not in (0, relevance.sum())
    indptr, indices = csr(relevance)
    rows = torch.arange(3).repeat_interleave(indptr.diff())
    positives = (indptr, indices, sampled[rows, indices].double())
    loss = partial(blockwise.decoupled_softmax, positives=positives, scale=SCALE)
    found = differentiate(loss, queries, labels)
    assert_equal(found, dense("decoupled_softmax", queries, labels, sampled, relevance & ~sampled), 1e-12)


def test_indptr_and_indices_may_be_numpy_int32() -> None:
    queries, labels, relevance, _ = cases()["3 x 7"]
    positives = tuple(part.int().numpy() for part in csr(relevance))
    found = differentiate(lambda x, z: blockwise.decoupled_softmax(x, z, positives, SCALE), queries, labels)
    assert_equal(found, dense("decoupled_softmax", queries, labels, relevance), 1e-12)


def test_labels_without_gradient_and_their_gradient_norms() -> None:
    queries, labels = embeddings(6, 5, 0), embeddings(50, 5, 1)
    relevance = mask(6, 50, 0.1, 2)
    for name in ("decoupled_softmax", "soft_top_k"):
        _, of_queries, of_labels = dense(name, queries, labels, relevance, **options(name))
        norms, leaf = torch.full((50,), torch.nan, dtype=torch.float64), queries.clone().requires_grad_()
        loss = getattr(blockwise, name)
        loss(leaf, labels, csr(relevance), scale=SCALE, label_norms=norms, **options(name)).backward()
        assert_equal((leaf.grad, norms), (of_queries, of_labels.norm(dim=1)), 1e-9)


def test_a_label_table_enters_through_its_log_denominator() -> None:
    queries, labels = embeddings(6, 5, 0), embeddings(50, 5, 1)
    relevance = mask(6, 50, 0.1, 2)
    fresh = 20  # labels with gradient; the rest stands in the table

    def loss(x: Tensor, z: Tensor) -> Tensor:
        table = blockwise.log_denominators(x, z[fresh:], SCALE, csr(relevance[:, fresh:]))
        return blockwise.decoupled_softmax(x, z[:fresh], csr(relevance[:, :fresh]), SCALE, log_denominator=table)

    found = differentiate(loss, queries, labels)
    ignored = torch.zeros_like(relevance)
    ignored[:, fresh:] = relevance[:, fresh:]  # positives in the table are masked there and not trained
    assert_equal(found, dense("decoupled_softmax", queries, labels, relevance, ignored), 1e-9)


def test_log_denominators_of_rows_with_everything_excluded() -> None:
    excluded = torch.zeros(3, 7, dtype=torch.bool)
    excluded[1] = True
    queries, labels = cases()["3 x 7"][:2]
    found = blockwise.log_denominators(queries, labels, SCALE, csr(excluded))
    expected = (SCALE * queries @ labels.T).masked_fill(excluded, -torch.inf).logsumexp(dim=1)
    assert found[1] == -torch.inf
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_the_loss_scales_the_gradients_once(name: str) -> None:
    queries, labels, relevance, _ = cases()["3 x 7"]
    leaf = queries.clone().requires_grad_()
    loss = getattr(blockwise, name)(leaf, labels, csr(relevance), scale=SCALE, **options(name))
    (3 * loss).backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad, 3 * dense(name, queries, labels, relevance, **options(name))[1])
    with pytest.raises(RuntimeError, match="handed over once"):
        loss.backward()


@pytest.mark.parametrize("name", NAMES)
def test_num_rows_replaces_the_divisor(name: str) -> None:
    queries, labels, relevance, _ = cases()["3 x 7"]
    word = "num_entries" if name == "binary_cross_entropy" else "num_rows"
    loss = partial(getattr(blockwise, name), queries, labels, csr(relevance), scale=SCALE, **options(name))
    count = 21 if name == "binary_cross_entropy" else int(relevance.any(dim=1).sum())
    torch.testing.assert_close(loss(**{word: torch.tensor(10)}), loss() * count / 10)


@pytest.mark.parametrize("shape", ["constant", "normal", "one far ahead", "rising", "two levels"])
@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_streamed_threshold_sums_to_k(shape: str, k: int, dtype: torch.dtype) -> None:
    num_labels, generator = 20_000, torch.Generator().manual_seed(0)
    values = {
        "constant": torch.zeros(num_labels),
        "normal": 3 * torch.randn(num_labels, generator=generator),
        "one far ahead": torch.nn.functional.one_hot(torch.tensor(777), num_labels) * 15.0,
        "rising": torch.linspace(-20, 20, num_labels),
        "two levels": (torch.arange(num_labels) % 1000 == 0) * 4.0,
    }[shape]
    labels = values.to(dtype)[:, None]  # (L, 1): the query 1 scores label j with values[j]
    queries = torch.ones(1, 1, dtype=dtype)
    thresholds = []

    def keep(chunk: chunks.Chunk, threshold: Tensor, scores: Tensor) -> Tensor:
        thresholds.append(threshold.detach().double())
        return scores.sum() * 0 + threshold.sum()

    task = blockwise._read(queries, labels, csr(torch.eye(1, num_labels)), 1.0, None, None, 0)
    task.run(statistics.Threshold(torch.tensor([[k]], dtype=dtype), 2.0), keep)
    total = torch.sigmoid(2 * (values.to(dtype).double() + thresholds[0][0])).sum().item()
    assert total == pytest.approx(k, rel=1e-5 if dtype == torch.float32 else 1e-9)


def test_top_scores_keeps_the_best_and_the_power_sums_of_the_rest() -> None:
    scores = torch.randn(6, 640, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[:, 100] = scores[:, 200]  # ties
    scores[2, :600] = -torch.inf
    seen = TopScores(6, 16, 2.0, scores)
    for tile in scores.split(64, dim=1):
        seen.add(tile.contiguous())
    seen.finish()
    ordered = scores.sort(dim=1, descending=True).values
    torch.testing.assert_close(seen.top, ordered[:, :16])
    rest = (2.0 * (ordered[:, 16:] - ordered[:, 15:16])).exp()
    torch.testing.assert_close(seen.powers, torch.stack([(rest**p).sum(dim=1) for p in (1, 2, 3)], dim=1))
    threshold = -ordered[:, 3]
    expected = torch.sigmoid(2 * (scores + threshold[:, None])).sum(dim=1)
    assert ((seen.sums(threshold)[0] - expected).abs() <= seen.error(threshold) + 1e-9).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positives": (torch.tensor([0, 1]), torch.tensor([1]))}, r"indptr \(4,\)"),
        ({"positives": (torch.tensor([0, 1, 1, 2]), torch.tensor([1, 7]))}, r"ids in \[0, 7\)"),
        ({"positives": (torch.tensor([0, 2, 2, 2]), torch.tensor([1, 1]))}, "label 1 twice in row 0"),
        ({"positives": (torch.tensor([0, 1, 1, 1]), torch.tensor([1]), torch.tensor([2.0]))}, r"soft targets in \[0"),
        ({"labels": torch.zeros(7, 5, dtype=torch.float64)}, "expected \\(B, D\\) and \\(L, D\\)"),
        ({"labels": torch.zeros(7, 4)}, "share one floating type"),
    ],
)
def test_wrong_arguments_say_what_came_and_what_was_expected(change: dict[str, object], message: str) -> None:
    queries, labels, relevance, _ = cases()["3 x 7"]
    arguments = {"queries": queries, "labels": labels, "positives": csr(relevance)} | change
    with pytest.raises(ValueError, match=message):
        blockwise.decoupled_softmax(**arguments)


def test_k_must_be_below_the_number_of_labels() -> None:
    queries, labels, relevance, _ = cases()["3 x 7"]
    with pytest.raises(ValueError, match="0 < k < that number"):
        blockwise.soft_top_k(queries, labels, csr(relevance), k=7)


SHARDS = [0, 38, 61]  # uneven: 38 and 23 labels


def sharded_inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    relevance, excluded = mask(9, 61, 0.05, 2), mask(9, 61, 0.05, 3)
    relevance[:, [37, 60]] = False
    excluded[:, [37, 60]] = False
    relevance[0, 37] = relevance[1, 60] = True  # the last label of each shard, a positive of one row
    relevance[4] = False
    relevance[5], relevance[5, 60] = False, True  # all positives on one rank
    return embeddings(9, 6, 0, dtype), embeddings(61, 6, 1, dtype), relevance, excluded


RANK = """
import runpy, sys
runpy.run_path(sys.argv[1])["one_rank"](sys.argv[2])
"""


def one_rank(folder: str) -> None:
    dist.init_process_group("gloo")
    rank, results = dist.get_rank(), {}
    for dtype in (torch.float64, torch.float32):
        queries, labels, relevance, excluded = sharded_inputs(dtype)
        own = slice(SHARDS[rank], SHARDS[rank + 1])
        shard = (queries, labels[own], relevance[:, own], excluded[:, own])
        for name in NAMES:
            results[name, dtype] = streamed(name, *shard, group=dist.group.WORLD, **options(name, k=[2, 5]))
        prior = differentiate(
            lambda x, z: blockwise.log_denominators(x, z, SCALE, csr(shard[3]), dist.group.WORLD).sum(),  # noqa: B023
            queries,
            labels[own],
        )
        results["log_denominators", dtype] = prior
    results["world_size"] = dist.get_world_size()
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    forks.finish(*forks.start_ranks(2, RANK, __file__, folder))
    results = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    assert [result["world_size"] for result in results] == [2, 2]
    return results


@pytest.mark.parametrize("name", [*NAMES, "log_denominators"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_two_ranks_with_sharded_labels_equal_one(
    two_ranks: list[dict], name: str, dtype: torch.dtype, tolerance: float
) -> None:
    queries, labels, relevance, excluded = sharded_inputs(torch.float64)
    if name == "log_denominators":
        masked = excluded
        expected = differentiate(
            lambda x, z: (SCALE * x @ z.T).masked_fill(masked, -torch.inf).logsumexp(dim=1).sum(), queries, labels
        )
    else:
        expected = dense(name, queries, labels, relevance, excluded, **options(name, k=[2, 5]))
    assert expected[2].abs().max() > 1e-3
    for rank, result in enumerate(two_ranks):
        value, of_queries, of_labels = result[name, dtype]
        own = expected[2][SHARDS[rank] : SHARDS[rank + 1]]
        assert_equal((value.double(), of_queries.double(), of_labels.double()), (*expected[:2], own), tolerance)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "binary_cross_entropy"])
def test_the_last_label_of_every_shard_is_trained_as_a_positive(two_ranks: list[dict], name: str) -> None:
    queries, _, relevance, _ = sharded_inputs(torch.float64)
    for rank, last in enumerate([37, 60]):
        towards = queries[relevance[:, last]].sum(dim=0)  # a step down the gradient moves the label to its queries
        of_labels = two_ranks[rank][name, torch.float64][2]
        assert of_labels.shape == (SHARDS[rank + 1] - SHARDS[rank], 6)
        assert -of_labels[-1] @ towards > 1e-3
