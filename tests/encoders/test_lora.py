from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data

import hf_xmc
from hf_xmc import Retriever, XMCEncoder, XMCTrainer, XMCTrainingArguments
from hf_xmc.encoders.lora import add_lora, has_lora, merge_lora
from hf_xmc.losses import UnifiedLoss

TEXTS = ["cats and dogs", "the history of war", "", "mathematics of the sea"]


def make_encoder(folder: Path, seed: int = 0) -> XMCEncoder:
    encoder = make_bert_encoder(folder, dropout=0.1, seed=seed)
    encoder.add_classifier(len(WORDS), 8)
    add_lora(encoder, 4)
    return encoder


def train(encoder: XMCEncoder, out: Path, resume: Path | None = None) -> XMCTrainer:
    args = XMCTrainingArguments(
        output_dir=str(out), use_cpu=True, report_to="none", disable_tqdm=True, num_train_epochs=2, logging_steps=1,
        per_device_train_batch_size=16, learning_rate=1e-2, save_strategy="steps", save_steps=3,
    )  # fmt: skip
    trainer = XMCTrainer(model=encoder, args=args, train_dataset=make_words_data(), loss=UnifiedLoss(encoder))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def test_adapters_heads_and_rows_train_and_the_backbone_stays(tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path / "bert")
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    train(encoder, tmp_path / "run")
    moved = {name for name, p in encoder.named_parameters() if not torch.equal(p, before[name])}
    assert all("base_layer" not in name and "embeddings" not in name for name in moved)
    assert sum("lora_B" in name for name in moved) == sum("lora_B" in name for name in before) >= 6
    assert {"classifier.rows.weight", "classifier_head.linear.weight"} <= moved
    files = {file.name for file in (tmp_path / "run" / "checkpoint-8").iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files


def test_a_run_resumed_from_saved_adapters_ends_with_the_same_numbers(tmp_path: Path) -> None:
    whole = make_encoder(tmp_path / "bert")
    expected = train(whole, tmp_path / "whole")
    resumed = make_encoder(tmp_path / "bert2", seed=7)
    # The frozen backbone is not in a checkpoint: it is the one under its own name.
    trainer = train(resumed, tmp_path / "resumed", tmp_path / "whole" / "checkpoint-6")
    assert trainer.state.global_step == expected.state.global_step == 8
    for (name, p), q in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        if "pooler" in name:  # not saved with this backbone, and read by nobody
            continue
        torch.testing.assert_close(p, q, atol=0, rtol=0, msg=name)


def test_merged_and_published_it_answers_the_same(tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path / "bert")
    train(encoder, tmp_path / "run")
    expected = encoder.query_vectors(TEXTS)
    untrained = make_encoder(tmp_path / "bert2")
    assert np.abs(expected - untrained.query_vectors(TEXTS)).max() > 1e-2
    with pytest.raises(ValueError, match="merge_lora"):
        Retriever.build(encoder, WORDS).save_pretrained(tmp_path / "repo")
    answers = Retriever.build(encoder, WORDS).predict(TEXTS)
    merge_lora(encoder)
    assert not has_lora(encoder) and all("lora" not in name for name in encoder.state_dict())
    np.testing.assert_allclose(encoder.query_vectors(TEXTS), expected, atol=1e-5)
    Retriever.build(encoder, WORDS).save_pretrained(tmp_path / "repo")
    assert not list((tmp_path / "repo").glob("adapter*"))
    pipe = hf_xmc.pipeline(model=str(tmp_path / "repo"), device="cpu")
    for door in (Retriever.from_pretrained(tmp_path / "repo").predict, pipe):
        for ours, theirs in zip(answers, door(TEXTS), strict=True):
            assert [a["label_id"] for a in ours] == [a["label_id"] for a in theirs]
            assert [a["score"] for a in ours] == pytest.approx([a["score"] for a in theirs], abs=1e-5)


def test_what_cannot_carry_adapters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a static encoder has none"):
        add_lora(make_static_encoder(), 4)
    encoder = make_bert_encoder(tmp_path / "bert")
    with pytest.raises(ValueError, match="no adapters to merge"):
        merge_lora(encoder)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        add_lora(encoder, 0)
    add_lora(encoder, 4)
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(encoder, 4)
