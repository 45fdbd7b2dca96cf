from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from forks import Forks
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data

from hf_xmc import XMCDataCollator
from hf_xmc.distributed import gather_pool
from hf_xmc.losses import DecoupledSoftmaxLoss, SoftTopKLoss
from hf_xmc.losses.functional import soft_top_k
from hf_xmc.losses.pool.targets import PoolTargets, membership, text_keys

PAD = -1


def slow_pool_loss(
    queries: list,
    candidates: list,
    candidate_ids: list[int],
    positives: list[list[int]],
    filters: list[list[int]],
    scale: float,
) -> torch.Tensor:
    """Decoupled softmax by loops over unit vectors and global ids, in torch scalars for their gradient."""
    rows = []
    for query, row_positives, row_filters in zip(queries, positives, filters, strict=True):
        scores = {i: scale * torch.dot(query, z) for i, z in zip(candidate_ids, candidates, strict=True)}
        negatives = [s for i, s in scores.items() if i not in row_positives and i not in row_filters]
        terms = []
        for positive in row_positives:
            if positive in scores:
                total = sum(
                    (torch.exp(s - scores[positive]) for s in negatives), start=torch.zeros((), dtype=query.dtype)
                )
                terms.append(torch.log1p(total))
        if terms:
            rows.append(sum(terms) / len(terms))
    return sum(rows) / len(rows)


def padded(rows: list[list[int]]) -> torch.Tensor:
    width = max(1, max(map(len, rows)))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def test_pool_loss_equals_the_slow_loop_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    ids = [2, 3, 5, 8, 9]
    positives = [[3, 8, 40], [], [2, 3, 5, 8, 9], [9], [41]]
    filters = [[2], [3], [], [5, 8], [2]]
    queries = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    candidates = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    targets = PoolTargets(torch.tensor(ids), padded(positives), filter_ids=padded(filters))
    loss = DecoupledSoftmaxLoss(make_static_encoder(), scale=7.0).pool_loss(queries, candidates, targets)
    unit = torch.nn.functional.normalize
    expected = slow_pool_loss(
        list(unit(queries, dim=-1)), list(unit(candidates, dim=-1)), ids, positives, filters, 7.0
    )
    assert expected.item() > 0.1
    assert abs(loss.item() - expected.item()) < 1e-9
    for ours, theirs in zip(
        torch.autograd.grad(loss, [queries, candidates]),
        torch.autograd.grad(expected, [queries, candidates]),
        strict=True,
    ):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


def test_soft_top_k_of_no_more_candidates_than_places_is_0_and_of_more_is_the_function() -> None:
    torch.manual_seed(0)
    queries, candidates = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    # Row 0 sees 5 candidates, row 1 sees 2, row 2 sees 3.
    positives, filters = [[0], [1], [2, 4]], [[], [0, 2, 3], [0, 1]]
    targets = PoolTargets(torch.arange(5), padded(positives), filter_ids=padded(filters))
    loss = SoftTopKLoss(make_static_encoder(), k=3, scale=6.0).pool_loss(queries, candidates, targets)
    scores = 6 * F.normalize(queries, dim=1) @ F.normalize(candidates, dim=1).T
    first = soft_top_k(scores[:1], torch.tensor([[True, False, False, False, False]]), 3)
    torch.testing.assert_close(loss, first / 3)
    loss.backward()
    assert queries.grad[0].abs().max() > 1e-3 and queries.grad[1:].abs().max() == 0
    both = SoftTopKLoss(make_static_encoder(), k=[3, 9], scale=6.0).pool_loss(queries, candidates, targets)
    torch.testing.assert_close(both, first / 6)


def test_a_filtered_label_is_neither_positive_nor_negative() -> None:
    torch.manual_seed(0)
    queries, candidates = torch.randn(1, 4), torch.randn(3, 4)
    loss = DecoupledSoftmaxLoss(make_static_encoder())
    ids = torch.tensor([0, 1, 2])
    filtered = loss.pool_loss(
        queries, candidates, PoolTargets(ids, torch.tensor([[0]]), filter_ids=torch.tensor([[2]]))
    )
    absent = loss.pool_loss(queries, candidates[:2], PoolTargets(ids[:2], torch.tensor([[0]])))
    negative = loss.pool_loss(queries, candidates, PoolTargets(ids, torch.tensor([[0]])))
    torch.testing.assert_close(filtered, absent)
    assert float(negative) > float(filtered)


def test_membership_ignores_pads_and_unknown_ids_and_carries_weights() -> None:
    candidate_ids = torch.tensor([1, 4, 7])
    ids = torch.tensor([[7, 1, PAD], [PAD, PAD, PAD], [5, 4, PAD], [99, 0, PAD]])
    assert membership(ids, candidate_ids).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    weights = torch.tensor([[0.5, 0.25, 0], [0, 0, 0], [1, 0.75, 0], [1, 1, 0]])
    assert membership(ids, candidate_ids, weights).tolist() == [[0.25, 0, 0.5], [0, 0, 0], [0, 0.75, 0], [0, 0, 0]]


def test_a_pooled_label_that_comes_twice_is_kept_once() -> None:
    embeddings = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    kept, ids = gather_pool(embeddings, torch.tensor([7, 3, 7, PAD]))
    assert ids.tolist() == [3, 7] and kept.tolist() == [[2.0], [1.0]]


def test_an_anchor_that_a_batch_repeats_shares_its_positives() -> None:
    def tokens(*texts: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor(texts), "offsets": torch.arange(len(texts))}

    targets = PoolTargets.from_features([tokens(1, 2, 1), tokens(7, 8, 9)], None)
    keys = targets.candidate_ids.sort().values
    relevant = targets.relevance(keys)[:, torch.searchsorted(keys, targets.candidate_ids)]
    assert relevant.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_candidates_with_ids_need_the_label_ids_of_the_rows() -> None:
    with pytest.raises(ValueError, match="needs the label ids of its rows, got None"):
        PoolTargets.from_features([{}, {"ids": torch.tensor([1])}], None)


def test_equal_texts_have_equal_keys_however_they_are_padded() -> None:
    flat = {"input_ids": torch.tensor([5, 6, 7, 5, 6, 7, 6, 5]), "offsets": torch.tensor([0, 3, 6])}
    a, b, c = text_keys(flat).tolist()
    assert a == b != c
    right = {
        "input_ids": torch.tensor([[5, 6, 7, 0], [7, 6, 5, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0]] * 2),
    }
    left = {"input_ids": torch.tensor([[0, 5, 6, 7]]), "attention_mask": torch.tensor([[0, 1, 1, 1]])}
    assert text_keys(right)[0] == text_keys(left)[0] == a and text_keys(right)[1] != a
    many = text_keys({"input_ids": torch.arange(100_000), "offsets": torch.arange(100_000)})
    assert len(set(many.tolist())) == 100_000 and int(many.min()) >= 0


def plain(encoder: SentenceTransformer) -> SentenceTransformer:
    return SentenceTransformer(modules=list(encoder), device="cpu")


@pytest.mark.parametrize("columns", ["ours", "pairs"])
@pytest.mark.parametrize("kind", ["static", "bert"])
def test_trains_a_plain_model_in_the_stock_trainer(kind: str, columns: str, tmp_path: Path) -> None:
    data = make_words_data()
    encoder = make_static_encoder() if kind == "static" else make_bert_encoder(tmp_path / "bert")
    model = SentenceTransformer(modules=list(encoder), device="cpu")
    loss = DecoupledSoftmaxLoss(model)
    collator = XMCDataCollator(preprocess_fn=model.preprocess, label_texts=data.label_texts)
    dataset = data.training_rows()
    if columns == "pairs":
        pairs = [(row["text"], WORDS[i]) for row in data.train for i in row["label_ids"]]
        dataset = Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})

    def loss_of_all_rows() -> float:
        batch = collator(list(data.training_rows()))
        features = [
            {k.removeprefix(p): v for k, v in batch.items() if k.startswith(p)} for p in ("query_", "candidate_")
        ]
        with torch.no_grad():
            return loss.to("cpu")(features, batch["label"]).item()

    before = loss_of_all_rows()
    args = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"), num_train_epochs=3, learning_rate=1e-2, use_cpu=True,
        per_device_train_batch_size=16, report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    SentenceTransformerTrainer(
        model=model, args=args, train_dataset=dataset, data_collator=collator if columns == "ours" else None, loss=loss
    ).train()
    assert loss_of_all_rows() < 0.8 * before


def test_scores_beside_pairs_are_no_positives_without_a_word(tmp_path: Path) -> None:
    model = SentenceTransformer(modules=list(make_static_encoder()), device="cpu")
    pairs = Dataset.from_dict({"anchor": ["war", "sea"], "positive": ["war", "cats"], "score": [1.0, 0.0]})
    args = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no"
    )
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=pairs, loss=DecoupledSoftmaxLoss(model))
    with pytest.raises(
        ValueError, match=r"positives alone, got labels or scores \(2,\) .* leave pairs out that are none"
    ):
        trainer.train()


def run_ranks(forks: Forks, world_size: int, out: Path) -> list[dict]:
    """pool_worker.py, one process a rank."""
    make_bert_encoder(out / "bert").save_pretrained(str(out / "encoder"))
    worker = Path(__file__).with_name("pool_worker.py").read_text()
    forks.finish(*forks.start_ranks(world_size, worker, out))
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(world_size)]


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_global_batch(forks: Forks, tmp_path: Path) -> None:
    runs = {world_size: run_ranks(forks, world_size, tmp_path / str(world_size)) for world_size in (1, 2)}
    for world_size, ranks in runs.items():
        assert [rank["world_size"] for rank in ranks] == [world_size] * world_size
    (one,), two = runs[1], runs[2]
    assert two[0]["rows_with_a_positive"] != two[1]["rows_with_a_positive"]
    for kind, (dtype, tolerance) in itertools.product(
        ("pool", "cached", "all_labels", "rae", "unified", "label_terms"),
        (("torch.float64", 1e-9), ("torch.float32", 1e-5)),
    ):
        assert abs(one[f"{kind}-{dtype}"] - np.mean([rank[f"{kind}-{dtype}"] for rank in two])) < tolerance
        reference = np.load(tmp_path / "1" / f"{kind}-{dtype}-0.npz")
        assert sum(np.abs(reference[name]).max() > 1e-3 for name in reference.files) > 5
        for rank in range(2):
            gradients = np.load(tmp_path / "2" / f"{kind}-{dtype}-{rank}.npz")
            for name in reference.files:
                message = f"{kind} {dtype} {name}"
                np.testing.assert_allclose(gradients[name], reference[name], atol=tolerance, rtol=0, err_msg=message)
    # The trainer itself, three clipped steps of AdamW: equal weights on every rank and for both numbers of processes.
    for kind in ("pool", "unified"):
        reference = np.load(tmp_path / "1" / f"trained-{kind}-0.npz")
        assert ("classifier.rows.weight" in reference.files) == (kind == "unified") and len(reference.files) > 5
        for rank in range(2):
            trained = np.load(tmp_path / "2" / f"trained-{kind}-{rank}.npz")
            for name in reference.files:
                np.testing.assert_allclose(trained[name], reference[name], atol=1e-8, rtol=0, err_msg=f"{kind} {name}")
