from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data

from hf_xmc import XMCDataCollator, XMCEncoder, XMCTrainer, XMCTrainingArguments
from hf_xmc.losses import AllLabelsLoss, LabelTableLoss


@pytest.fixture(params=["static", "bert"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> XMCEncoder:
    encoder = make_static_encoder() if request.param == "static" else make_bert_encoder(tmp_path / "bert")
    return encoder.double()


def make_batch(encoder: XMCEncoder) -> tuple[list[dict], torch.Tensor]:
    data = make_words_data()
    collator = XMCDataCollator(
        preprocess_fn=encoder.preprocess, label_texts=data.label_texts, filters=data.filter_csr("train"), pool=False
    )
    texts = ["the history of war", "cats and dogs", "sea", "mathematics of birds and of the sea"]
    ids = [[2, 4], [8, 9, 16], [], [0]]
    batch = collator([{"row": i, "text": t, "label_ids": l} for i, (t, l) in enumerate(zip(texts, ids, strict=True))])
    return [{k.removeprefix("query_"): v for k, v in batch.items() if k.startswith("query_")}], batch["label"]


def run(
    encoder: XMCEncoder, loss: torch.nn.Module, batch: tuple[list[dict], torch.Tensor] | None = None
) -> tuple[float, torch.Tensor]:
    encoder.zero_grad()
    (queries,), labels = batch or make_batch(encoder)
    value = loss([dict(queries)], labels)
    value.backward()
    return value.item(), torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])


def test_with_every_label_encoded_it_is_the_loss_over_all_labels(encoder: XMCEncoder) -> None:
    expected, gradient = run(encoder, AllLabelsLoss(encoder, WORDS))
    value, ours = run(encoder, LabelTableLoss(encoder, WORDS, num_top=len(WORDS), num_random=0, refresh_steps=1))
    assert abs(value - expected) < 1e-9 and gradient.abs().max() > 1e-3
    torch.testing.assert_close(ours, gradient, atol=1e-9, rtol=0)


def test_with_a_fresh_table_the_value_is_exact_however_few_labels_are_encoded(encoder: XMCEncoder) -> None:
    expected, _ = run(encoder, AllLabelsLoss(encoder, WORDS))
    for num_top, num_random in ((0, 0), (2, 0), (2, 3)):
        value, _ = run(encoder, LabelTableLoss(encoder, WORDS, num_top=num_top, num_random=num_random))
        assert abs(value - expected) < 1e-9


def test_the_gradient_is_unbiased_and_without_draws_it_is_not() -> None:
    torch.manual_seed(0)
    encoder = make_static_encoder().double()
    _, exact = run(encoder, AllLabelsLoss(encoder, WORDS))
    loss = LabelTableLoss(encoder, WORDS, num_top=2, num_random=3)
    batch = make_batch(encoder)
    mean = torch.stack([run(encoder, loss, batch)[1] for _ in range(1500)]).mean(0)
    _, dropped = run(encoder, LabelTableLoss(encoder, WORDS, num_top=2, num_random=0))
    assert (mean - exact).norm() < 0.03 * exact.norm()
    assert (dropped - exact).norm() > 0.08 * exact.norm()


def test_expected_counts_are_one() -> None:
    torch.manual_seed(0)
    loss = LabelTableLoss(make_static_encoder(), WORDS, num_top=3, num_random=4)
    norms = torch.rand(len(WORDS), dtype=torch.float64)
    norms[5] = 0  # a label without gradient is not encoded for it
    total = torch.zeros(len(WORDS), dtype=torch.float64)
    for _ in range(4000):
        ids, counts = loss.choose(norms, torch.tensor([7]))
        assert {7, *torch.topk(norms, 3).indices.tolist()} <= set(ids.tolist()) and len(ids) <= 1 + 3 + 4
        total[ids] += counts
    expected = torch.ones(len(WORDS), dtype=torch.float64)
    expected[5] = 0
    torch.testing.assert_close(total / 4000, expected, atol=0.15, rtol=0)


def test_it_trains_in_the_trainer(encoder: XMCEncoder, tmp_path: Path) -> None:
    data = make_words_data()
    args = XMCTrainingArguments(
        output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
        num_train_epochs=4, per_device_train_batch_size=16, learning_rate=1e-2, logging_steps=4,
    )  # fmt: skip
    loss = LabelTableLoss(encoder, data.labels["text"][:], num_top=4, num_random=2, refresh_steps=3)
    trainer = XMCTrainer(model=encoder, args=args, train_dataset=data, loss=loss)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.85 * losses[0] and loss.num_steps == 16


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="refresh_steps at least 1, got 1024, 256 and 0"):
        LabelTableLoss(make_static_encoder(), WORDS, refresh_steps=0)
