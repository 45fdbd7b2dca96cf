from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data

from hf_xmc import XMCDataCollator, XMCEncoder, XMCTrainer, XMCTrainingArguments
from hf_xmc.losses import (
    AllLabelsLoss,
    CachedDecoupledSoftmaxLoss,
    CachedSoftTopKLoss,
    DecoupledSoftmaxLoss,
    SoftTopKLoss,
    blockwise,
    functional,
)


def batch_of(encoder: XMCEncoder, pool: bool, label_ids: list[list[int]]) -> tuple[list[dict], torch.Tensor]:
    filters = make_words_data().filter_csr("train")
    collator = XMCDataCollator(
        preprocess_fn=encoder.preprocess, label_texts=make_words_data().label_texts, filters=filters, pool=pool
    )
    texts = ["the history of war", "cats and dogs", "sea", "mathematics of birds and of the sea"]
    rows = [{"row": i, "text": t, "label_ids": ids} for i, (t, ids) in enumerate(zip(texts, label_ids, strict=True))]
    batch = collator(rows)
    prefixes = ("query_", "candidate_") if pool else ("query_",)
    return [{k.removeprefix(p): v for k, v in batch.items() if k.startswith(p)} for p in prefixes], batch["label"]


def gradient(encoder: XMCEncoder) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ["static", "bert"])
@pytest.mark.parametrize("name", ["decoupled_softmax", "info_nce", "soft_top_k", "binary_cross_entropy"])
def test_equals_the_dense_loss_over_the_whole_label_table(kind: str, name: str, tmp_path: Path) -> None:
    encoder = make_static_encoder() if kind == "static" else make_bert_encoder(tmp_path / "bert")
    encoder.double()
    label_ids = [[2, 4], [8, 9, 16], [], [0]]  # the first and the last label among them
    features, labels = batch_of(encoder, False, label_ids)
    extra = {"k": 3} if name == "soft_top_k" else {}

    queries = F.normalize(encoder(dict(features[0]))["sentence_embedding"], dim=-1)
    table = F.normalize(encoder(encoder.preprocess(WORDS))["sentence_embedding"], dim=-1)
    relevance = torch.zeros(4, len(WORDS), dtype=torch.bool)
    for row, ids in enumerate(label_ids):
        relevance[row, ids] = True
    excluded = torch.zeros_like(relevance)
    excluded[0, make_words_data().filter_csr("train")[1].tolist()] = True
    dense = getattr(functional, name)(20 * queries @ table.T, relevance, excluded=excluded & ~relevance, **extra)
    dense.backward()
    expected = gradient(encoder)
    assert expected.abs().max() > 1e-3

    encoder.zero_grad()
    loss = AllLabelsLoss(encoder, WORDS, partial(getattr(blockwise, name), **extra), mini_batch_size=5)
    value = loss(features, labels)
    value.backward()
    assert abs(value.item() - dense.item()) < 1e-9
    torch.testing.assert_close(gradient(encoder), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("plain", "cached"),
    [
        (DecoupledSoftmaxLoss, partial(CachedDecoupledSoftmaxLoss, mini_batch_size=2)),
        (partial(SoftTopKLoss, k=[1, 2]), partial(CachedSoftTopKLoss, k=[1, 2], mini_batch_size=2)),
    ],
    ids=["decoupled softmax", "soft top-k"],
)
def test_gradient_caching_changes_neither_value_nor_gradient_also_with_dropout_off(
    plain: Callable, cached: Callable, tmp_path: Path
) -> None:
    encoder = make_bert_encoder(tmp_path / "bert").double()
    runs = []
    for make in (plain, cached):
        features, labels = batch_of(encoder, True, [[2, 4], [8, 9, 16], [], [0]])
        encoder.zero_grad()
        value = make(encoder)(features, labels)
        value.backward()
        runs.append((value.detach(), gradient(encoder)))
    assert runs[0][1].abs().max() > 1e-3
    torch.testing.assert_close(runs[0], runs[1], atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match="a static encoder needs no gradient caching"):
        cached(make_static_encoder())


@pytest.mark.parametrize("kind", ["static", "bert"])
def test_the_trainer_draws_no_pool_for_it_and_the_loss_falls(kind: str, tmp_path: Path) -> None:
    encoder = make_static_encoder() if kind == "static" else make_bert_encoder(tmp_path / "bert")
    data = make_words_data()
    args = XMCTrainingArguments(
        output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
        num_train_epochs=4, per_device_train_batch_size=16, learning_rate=1e-2, logging_steps=4,
    )  # fmt: skip
    loss = AllLabelsLoss(encoder, data.labels["text"][:], mini_batch_size=5)
    trainer = XMCTrainer(model=encoder, args=args, train_dataset=data, loss=loss)
    assert set(trainer.data_collator(list(data.training_rows())[:2])) >= {"query_input_ids", "label"}
    assert "candidate_ids" not in trainer.data_collator(list(data.training_rows())[:2])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]


def test_more_ranks_than_labels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_xmc.losses.all_labels.is_distributed", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    with pytest.raises(ValueError, match="2 labels cannot be shared by 3 ranks"):
        AllLabelsLoss(make_static_encoder(), ["war", "peace"])
