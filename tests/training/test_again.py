"""train() twice, evaluate() after it, a second trainer in one process, and what is left when a trainer is gone."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import nn
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data, word_tokenizer
from transformers import TrainerCallback

from hf_xmc import XMCDataset, XMCEncoder, XMCEvaluator, XMCTrainer, XMCTrainingArguments, losses
from hf_xmc.encoders.shared_static import SharedStaticEmbedding
from hf_xmc.encoders.static import static_embedding
from hf_xmc.encoders.tokens import TokenizedTexts
from hf_xmc.training.optim import RowSparseAdamW

DATA = make_words_data()
KINDS = ("static", "shared", "bert", "classifier", "static, all labels", "shared, all labels", "shared, label table")


def make_encoder(kind: str, folder: Path) -> XMCEncoder:
    if kind.startswith("shared"):
        start = word_tokenizer(), torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        texts = DATA.train["text"][:]
        return XMCEncoder(modules=[static_embedding(texts, min_pair_count=2, start=start)], device="cpu")
    if kind.startswith("static"):
        return make_static_encoder()
    encoder = make_bert_encoder(folder / "bert")
    if kind == "classifier":
        encoder.add_classifier(17, 8)
    return encoder


def make_loss(kind: str, encoder: XMCEncoder) -> nn.Module | None:
    if kind.endswith("all labels"):
        return losses.AllLabelsLoss(encoder, WORDS)
    if kind.endswith("label table"):
        return losses.LabelTableLoss(encoder, WORDS, num_top=4, num_random=2)
    return losses.UnifiedLoss(encoder) if kind == "classifier" else None


def make_trainer(encoder: XMCEncoder, out: Path, data: XMCDataset = DATA, **kwargs: Any) -> XMCTrainer:
    own = {name: kwargs.pop(name) for name in ("loss", "callbacks", "optimizers", "model_init") if name in kwargs}
    given = {"num_train_epochs": 3, "per_device_train_batch_size": 16, "learning_rate": 1e-2, "save_strategy": "no"}
    given |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True} | kwargs
    args = XMCTrainingArguments(output_dir=str(out), **given)
    return XMCTrainer(encoder, args, data, eval_dataset=data, **own)


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_where_it_ended(kind: str, tmp_path: Path) -> None:
    encoder = make_encoder(kind, tmp_path)
    rate = 1e-3 if kind in ("bert", "classifier") else 1e-2
    trainer = make_trainer(encoder, tmp_path, loss=make_loss(kind, encoder), token_dropout=0.1, learning_rate=rate)
    trained = []
    for _ in range(3):
        trained.append(trainer.train().training_loss)
        assert trainer.state.global_step == 12
        fresh = make_trainer(encoder, tmp_path, loss=make_loss(kind, encoder)).evaluate()["eval_loss"]
        assert trainer.evaluate()["eval_loss"] == pytest.approx(fresh, abs=1e-6)
    assert max(trained[1:]) < 0.9 * trained[0], "it begins where it ended"
    assert not any(isinstance(module, SharedStaticEmbedding) for module in encoder)
    assert encoder.query_vectors(["war"]).shape[0] == 1 and XMCEvaluator(DATA)(encoder)["precision@1"] > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_trainer_of_the_same_encoder_does_what_a_second_run_does(kind: str, tmp_path: Path) -> None:
    ends = []
    for again in (True, False):
        encoder = make_encoder(kind, tmp_path)
        trainer = make_trainer(encoder, tmp_path, loss=make_loss(kind, encoder))
        trainer.train()
        if not again:
            trainer = make_trainer(encoder, tmp_path, loss=make_loss(kind, encoder))
        torch.manual_seed(0)
        trainer.train()
        ends.append(trainer.evaluate()["eval_loss"])
    assert ends[0] == pytest.approx(ends[1], abs=0.02)


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["static", "shared", "classifier"])
def test_a_training_that_was_broken_off_leaves_the_encoder_as_any_trainer_takes_it(kind: str, tmp_path: Path) -> None:
    encoder = make_encoder(kind, tmp_path)
    trainer = make_trainer(encoder, tmp_path, loss=make_loss(kind, encoder), callbacks=[Stop])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    static = [module for module in encoder if isinstance(module, StaticEmbedding)]
    assert not any(module.embedding.sparse for module in static)
    assert not any(module._forward_pre_hooks for module in encoder.modules())
    trainer.pop_callback(Stop)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


def alive(kind: type) -> int:
    gc.collect()
    return sum(isinstance(each, kind) for each in gc.get_objects())


@pytest.mark.parametrize("broken_off", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_big_outlives_a_trainer(kind: str, broken_off: bool, tmp_path: Path) -> None:
    before = alive(RowSparseAdamW), alive(TokenizedTexts), alive(SharedStaticEmbedding)
    encoder = make_encoder(kind, tmp_path)
    loss = make_loss(kind, encoder)
    trainer = make_trainer(encoder, tmp_path, loss=loss, callbacks=[Stop] if broken_off else [])
    try:
        trainer.train()
    except KeyboardInterrupt:
        pass
    assert trainer.data_collator.row_tokens is None, "tokens serve the training alone"
    gone = weakref.ref(trainer)
    del trainer, loss
    assert alive(RowSparseAdamW) == before[0] and alive(TokenizedTexts) == before[1]
    assert gone() is None
    if not broken_off:
        assert alive(SharedStaticEmbedding) == before[2], "the table of shared vectors is folded and gone"
    assert len(encoder.query_vectors(["war"])) == 1


@pytest.mark.parametrize("keep_trainer", [False, True])
def test_moments_and_unfolded_table_go_when_the_table_is_folded(keep_trainer: bool, tmp_path: Path) -> None:
    big: dict[str, weakref.ref[Any]] = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            weight = kwargs["model"][0].embedding.weight
            optimizer = kwargs["optimizer"].optimizer
            moments = optimizer.state[weight]
            kept = {
                "optimizer": optimizer,
                "table": weight,
                "first": moments["exp_avg"],
                "second": moments["exp_avg_sq"],
            }
            big.update({name: weakref.ref(each) for name, each in kept.items()})

    encoder = make_encoder("shared", tmp_path)
    trainer = make_trainer(encoder, tmp_path, callbacks=[Watch])
    trainer.train()
    assert len(big) == 4
    if not keep_trainer:
        del trainer
    gc.collect()
    assert [name for name, reference in big.items() if reference() is not None] == []
    assert keep_trainer is False or trainer.evaluate()["eval_loss"] > 0


def test_the_optimizer_of_a_user_is_kept(tmp_path: Path) -> None:
    encoder = make_bert_encoder(tmp_path / "bert")
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    trainer = make_trainer(encoder, tmp_path, optimizers=(optimizer, None))
    for _ in range(2):
        trainer.train()
        assert trainer.optimizer.optimizer is optimizer


@pytest.mark.parametrize("kind", ["static", "shared", "classifier"])
def test_models_made_anew_begin_anew(kind: str, tmp_path: Path) -> None:
    """Each training of a model_init is the first one again, with what it mines and with its own tokens."""
    settings = {"hard_negatives": 2, "mining_depth": 5, "refresh_epochs": 1, "cluster_batches": True}
    trainer = make_trainer(
        None, tmp_path, model_init=lambda: make_encoder(kind, tmp_path),
        loss=lambda encoder: losses.UnifiedLoss(encoder), prompts={"query": "war "}, **settings,
    )  # fmt: skip
    ends = []
    for _ in range(2):
        trainer.train()
        assert trainer.model.prompts["query"] == "war "
        ends.append(trainer.evaluate()["eval_loss"])
    assert ends[0] == ends[1]


def test_a_loss_follows_the_document_prompt_of_the_arguments(tmp_path: Path) -> None:
    values = []
    for way in ("arguments", "model"):
        encoder = make_static_encoder()
        if way == "model":
            encoder.prompts["document"] = "history "
        loss = losses.AllLabelsLoss(encoder, WORDS)
        settings = {"prompts": {"document": "history "}} if way == "arguments" else {}
        values.append(make_trainer(encoder, tmp_path, loss=loss, **settings).evaluate()["eval_loss"])
    plain = make_static_encoder()
    assert values[0] == values[1]
    assert values[0] != make_trainer(plain, tmp_path, loss=losses.AllLabelsLoss(plain, WORDS)).evaluate()["eval_loss"]
