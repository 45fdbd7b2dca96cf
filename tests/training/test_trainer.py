from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from toys import make_bert_encoder, make_static_encoder, make_words_data, word_tokenizer

from hf_xmc import XMCEncoder, XMCEvaluator, XMCTrainer, XMCTrainingArguments
from hf_xmc.encoders.static import static_embedding
from hf_xmc.training.optim import RowSparseAdamW


def make_trainer(encoder: XMCEncoder, out: Path, **kwargs: object) -> XMCTrainer:
    settings = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-3,
        "positives_per_row": 1,
        "random_negatives": 3,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 1,
    } | kwargs
    args = XMCTrainingArguments(output_dir=str(out), use_cpu=True, report_to="none", disable_tqdm=True, **settings)
    data = make_words_data()
    return XMCTrainer(model=encoder, args=args, train_dataset=data, evaluator=XMCEvaluator(data, name="test"))


def weights_of(encoder: XMCEncoder) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in encoder.parameters()])


@pytest.mark.parametrize("checkpoint", ["checkpoint-3", "checkpoint-6"], ids=["mid-epoch", "later"])
def test_a_resumed_run_ends_with_the_numbers_of_an_uninterrupted_one(checkpoint: str, tmp_path: Path) -> None:
    whole = make_bert_encoder(tmp_path / "bert", dropout=0.1)
    whole_trainer = make_trainer(whole, tmp_path / "whole")
    whole_trainer.train()
    assert whole_trainer.state.global_step == 8

    resumed = make_bert_encoder(tmp_path / "bert2", dropout=0.1, seed=7)
    shutil.copytree(tmp_path / "whole" / checkpoint, tmp_path / "resumed" / checkpoint)
    trainer = make_trainer(resumed, tmp_path / "resumed")
    trainer.train(resume_from_checkpoint=str(tmp_path / "resumed" / checkpoint))
    assert trainer.state.global_step == 8
    np.testing.assert_array_equal(weights_of(resumed), weights_of(whole))
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole_trainer, trainer)]
    assert len(losses[0]) == 8 and losses[0] == losses[1]


def test_the_best_epoch_is_kept_by_the_evaluators_metric(tmp_path: Path) -> None:
    encoder = make_bert_encoder(tmp_path / "bert")
    trainer = make_trainer(
        encoder, tmp_path / "run", eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="eval_test_precision@1", num_train_epochs=3,
    )  # fmt: skip
    trainer.train()
    scores = [e["eval_test_precision@1"] for e in trainer.state.log_history if "eval_test_precision@1" in e]
    assert len(scores) == 3 and trainer.state.best_metric == max(scores)
    assert trainer.evaluator(encoder)["test_precision@1"] == max(scores)


def test_training_moves_the_metric_on_the_tiny_data_set(tmp_path: Path, tiny: object) -> None:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    import hf_xmc

    encoder = XMCEncoder(modules=[StaticEmbedding(*hf_xmc.wordllama_embedding())], device="cpu")
    evaluator = XMCEvaluator(tiny)
    before = evaluator(encoder)
    args = XMCTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
        num_train_epochs=2, per_device_train_batch_size=256, learning_rate=1e-2,
    )  # fmt: skip
    XMCTrainer(model=encoder, args=args, train_dataset=tiny).train()
    after = evaluator(encoder)
    assert 0.2 < before["precision@1"] < 0.3  # 26.9 % zero-shot in the data set's own baselines
    assert after["precision@1"] > before["precision@1"] + 0.02
    assert after["psp@5"] > before["psp@5"] + 0.02
    assert after["recall@100"] > before["recall@100"]


def test_only_an_xmc_data_set_is_trained_on(static_encoder: XMCEncoder) -> None:
    with pytest.raises(ValueError, match="XMCTrainer trains on an XMCDataset, got NoneType"):
        XMCTrainer(model=static_encoder)
    with pytest.raises(ValueError, match="positives_per_row must be at least 1, got 0"):
        XMCTrainingArguments(positives_per_row=0)


def test_a_static_encoders_token_table_is_trained_row_by_row_with_the_numbers_of_dense_adamw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {}
    for way in ("rows", "dense"):
        encoder = make_static_encoder()
        if way == "dense":
            monkeypatch.setattr(XMCTrainer, "_tables", lambda self: [])
        trainer = make_trainer(encoder, tmp_path / way, num_train_epochs=6, save_strategy="no")
        trainer.train()
        embedding = encoder[0].embedding
        assert not embedding.sparse, "any other trainer may go on with it"
        assert isinstance(trainer.optimizer.optimizer, RowSparseAdamW) == (way == "rows")
        weights[way] = embedding.weight.detach().clone()
    torch.testing.assert_close(weights["rows"], weights["dense"], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(weights["rows"], make_static_encoder()[0].embedding.weight, atol=1e-3)


def test_a_table_of_shared_vectors_resumes_and_is_folded_when_trained(tmp_path: Path) -> None:
    texts = make_words_data().train["text"][:]
    start = word_tokenizer(), torch.randn(64, 8, generator=torch.Generator().manual_seed(0))

    def train(out: Path, checkpoint: str | None = None) -> torch.Tensor:
        encoder = XMCEncoder(modules=[static_embedding(texts, min_pair_count=2, start=start)], device="cpu")
        trainer = make_trainer(encoder, out)
        trainer.train(resume_from_checkpoint=checkpoint)
        assert type(encoder[0]) is StaticEmbedding
        return encoder[0].embedding.weight.detach()

    whole = train(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
    resumed = train(tmp_path / "resumed", str(tmp_path / "resumed" / "checkpoint-3"))
    assert torch.equal(whole, resumed)
