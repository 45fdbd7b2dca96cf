from __future__ import annotations

import torch
import torch.nn.functional as F
from toys import make_static_encoder

from hf_xmc.losses import RetrievalAugmentedLoss
from hf_xmc.losses.pool.targets import PoolTargets


def test_equals_the_slow_loop_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    ids = [1, 4, 6, 9]
    positives = [[4], [4, 9], [], [6, 30], [30]]
    queries = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    candidates = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    width = max(map(len, positives))
    padded = torch.tensor([row + [-1] * (width - len(row)) for row in positives])
    loss = RetrievalAugmentedLoss(make_static_encoder(), scale=6.0)
    value = loss.pool_loss(queries, candidates, PoolTargets(torch.tensor(ids), padded))

    x, z = F.normalize(queries, dim=-1), F.normalize(candidates, dim=-1)
    rows = []
    for i, row in enumerate(positives):
        negatives = [6 * x[i] @ z[c] for c, label in enumerate(ids) if label not in row]
        negatives += [6 * x[i] @ x[j] for j in range(5) if j != i and not set(row) & set(positives[j])]
        total = torch.logsumexp(torch.stack(negatives), 0)
        terms = [F.softplus(total - 6 * x[i] @ z[c]) for c, label in enumerate(ids) if label in row]
        if terms:
            rows.append(sum(terms) / len(terms))
    expected = sum(rows) / len(rows)
    assert len(rows) == 3 and abs(value.item() - expected.item()) < 1e-9
    for ours, theirs in zip(
        torch.autograd.grad(value, [queries, candidates]),
        torch.autograd.grad(expected, [queries, candidates]),
        strict=True,
    ):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


def test_a_batch_without_labels_has_loss_zero() -> None:
    targets = PoolTargets(torch.tensor([3]), torch.full((2, 1), -1))
    queries = torch.randn(2, 3, requires_grad=True)
    loss = RetrievalAugmentedLoss(make_static_encoder()).pool_loss(queries, torch.randn(1, 3), targets)
    assert loss.item() == 0
    loss.backward()
    assert queries.grad.abs().max() == 0
