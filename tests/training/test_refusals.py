"""What cannot be trained is refused before training, with the reason; what a host's user hands in works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses as host
from sentence_transformers.sparse_encoder import losses as sparse
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data
from transformers import TrainingArguments

from hf_xmc import XMCEncoder, XMCEvaluator, XMCTrainer, XMCTrainingArguments, losses
from hf_xmc.data.gandalf import label_rows
from hf_xmc.losses import blockwise
from hf_xmc.training.checks import column_prompts

DATA = make_words_data()


def make_args(out: Path, **settings: Any) -> XMCTrainingArguments:
    given = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"} | settings
    return XMCTrainingArguments(output_dir=str(out), **given)


@pytest.mark.parametrize("kind", [SentenceTransformerTrainingArguments, TrainingArguments])
def test_the_hosts_arguments_train_with_our_defaults(kind: type, tmp_path: Path) -> None:
    args = kind(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, num_train_epochs=2, seed=3,
        learning_rate=1e-2, per_device_train_batch_size=16, lr_scheduler_type="cosine", save_strategy="no",
    )  # fmt: skip
    weights = []
    for given in (args, XMCTrainingArguments.of(args)):
        encoder = make_static_encoder()
        trainer = XMCTrainer(encoder, given, DATA)
        assert trainer.args.positives_per_row == 3 and trainer.args.seed == 3
        assert trainer.args.lr_scheduler_type == "cosine"
        assert trainer.train().global_step == 8
        weights.append(encoder[0].embedding.weight.detach())
    assert torch.equal(*weights) and type(args) is kind


@pytest.mark.parametrize("args", ["out", {"output_dir": "out"}, 3, XMCTrainingArguments])
def test_what_are_no_arguments_is_named(args: Any) -> None:
    with pytest.raises(ValueError, match=r"expected XMCTrainingArguments\(output_dir"):
        XMCTrainer(make_static_encoder(), args, DATA)


def pairing_losses() -> dict[str, Any]:
    """Those of the host's that a model alone makes, and some that take more."""
    made = {name: (lambda model, name=name: getattr(host, name)(model)) for name in host.__all__ if "Loss" in name}
    for name in ("Matryoshka2dLoss", "MatryoshkaLoss", "AdaptiveLayerLoss", "GlobalOrthogonalRegularizationLoss"):
        made.pop(name)
    for name in ("BatchHardTripletLossDistanceFunction", "ContrastiveTensionLoss", "DenoisingAutoEncoderLoss"):
        made.pop(name)
    ranking = host.MultipleNegativesRankingLoss
    return made | {
        "SoftmaxLoss": lambda model: host.SoftmaxLoss(model, 16, 2),
        "GISTEmbedLoss": lambda model: host.GISTEmbedLoss(model, model),
        "CachedGISTEmbedLoss": lambda model: host.CachedGISTEmbedLoss(model, model),
        "of a user": lambda model: type("Mine", (ranking,), {})(model),
        "wrapped": lambda model: host.MatryoshkaLoss(model, ranking(model), [16, 8]),
        "sparse": lambda model: sparse.SparseMultipleNegativesRankingLoss(model),
        "of torch": lambda model: torch.nn.CrossEntropyLoss(),
    }


@pytest.mark.parametrize("way", ["made", "to be made"])
@pytest.mark.parametrize("name", pairing_losses())
def test_losses_that_pair_queries_and_candidates_are_refused(name: str, way: str, tmp_path: Path) -> None:
    encoder, make = make_static_encoder(), pairing_losses()[name]
    try:
        loss = make(encoder)
    except (TypeError, ValueError, RuntimeError) as error:  # a loss of the host for other models
        pytest.skip(str(error)[:60])
    with pytest.raises(ValueError, match="take one of hf_xmc.losses, such as DecoupledSoftmaxLoss"):
        XMCTrainer(encoder, make_args(tmp_path), DATA, loss=loss if way == "made" else make)


@pytest.mark.parametrize(
    "loss", ["decoupled_softmax", "DecoupledSoftmaxLoss", 3, ["x"], {"a": losses.InfoNCELoss}, DATA]
)
def test_a_word_is_no_loss(loss: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loss is '\w+'; expected one of hf_xmc.losses"):
        XMCTrainer(make_static_encoder(), make_args(tmp_path), DATA, loss=loss)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (losses.AllLabelsLoss, r"AllLabelsLoss\(model\) makes no loss .*label_texts"),
        (blockwise.decoupled_softmax, r"decoupled_softmax\(model\) makes no loss"),
        (host.MultipleNegativesRankingLoss, "pairs query i with candidate i"),
        (lambda model: model.tokenizer, r"<lambda>\(model\) makes a Tokenizer"),
        (lambda model: losses.InfoNCELoss(make_static_encoder()), "InfoNCELoss was made with another model"),
    ],
)
def test_a_function_or_class_that_makes_no_loss_is_named(loss: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        XMCTrainer(make_static_encoder(), make_args(tmp_path), DATA, loss=loss)


def test_a_class_or_function_of_the_model_makes_the_loss(tmp_path: Path) -> None:
    encoder = make_static_encoder()
    assert XMCTrainer(encoder, make_args(tmp_path), DATA, losses.InfoNCELoss).loss.model is encoder
    trainer = XMCTrainer(encoder, make_args(tmp_path), DATA, lambda model: losses.AllLabelsLoss(model, WORDS))
    assert "candidate_ids" not in trainer.data_collator([trainer.train_dataset[0]])
    trainer.train()


def test_a_loss_of_another_model_is_refused(tmp_path: Path) -> None:
    for make in (
        losses.DecoupledSoftmaxLoss,
        lambda model: host.MatryoshkaLoss(model, losses.InfoNCELoss(model), [8]),
    ):
        with pytest.raises(ValueError, match="was made with another model"):
            XMCTrainer(make_static_encoder(), make_args(tmp_path), DATA, make(make_static_encoder(seed=1)))


@pytest.mark.parametrize("make", [host.AdaptiveLayerLoss, lambda *each: host.Matryoshka2dLoss(*each, [16, 8])])
def test_losses_of_hidden_states_are_refused(make: Any, tmp_path: Path) -> None:
    encoder = make_bert_encoder(tmp_path / "bert")
    with pytest.raises(ValueError, match="reads the hidden states of padded texts"):
        XMCTrainer(encoder, make_args(tmp_path), DATA, make(encoder, losses.InfoNCELoss(encoder)))


@pytest.mark.parametrize("kind", ["static", "bert"])
def test_matryoshka_works_around_a_loss_of_ours(kind: str, tmp_path: Path) -> None:
    encoder = make_static_encoder() if kind == "static" else make_bert_encoder(tmp_path / "bert")
    inner = losses.DecoupledSoftmaxLoss(encoder)
    loss = host.MatryoshkaLoss(encoder, inner, [16, 4])
    trainer = XMCTrainer(
        encoder, make_args(tmp_path, num_train_epochs=8, learning_rate=1e-2), DATA, loss, eval_dataset=DATA
    )

    def short_precision() -> float:
        encoder.truncate_dim = 4
        value = XMCEvaluator(DATA)(encoder)["precision@1"]
        encoder.truncate_dim = None
        return value

    before, first = short_precision(), trainer.evaluate()["eval_loss"]
    trainer.train()
    assert short_precision() >= before and trainer.evaluate()["eval_loss"] < first


def classifier_encoder(folder: Path, num_labels: int) -> XMCEncoder:
    encoder = make_bert_encoder(folder / "bert")
    encoder.add_classifier(num_labels, 8)
    return encoder


@pytest.mark.parametrize("make", [losses.UnifiedLoss, losses.DecoupledSoftmaxLoss])
def test_a_classifier_for_other_labels_is_refused_with_both_numbers(make: Any, tmp_path: Path) -> None:
    encoder = classifier_encoder(tmp_path, 5)
    with pytest.raises(ValueError, match="classifier for 5 labels, words has 17"):
        XMCTrainer(encoder, make_args(tmp_path), DATA, make(encoder))
    with pytest.raises(ValueError, match="classifier for 5 labels, words has 17"):
        XMCTrainer(None, make_args(tmp_path), DATA, make, model_init=lambda: classifier_encoder(tmp_path, 5))


@pytest.mark.parametrize("texts", [WORDS[:5], [*WORDS, "more"]])
@pytest.mark.parametrize("make", [losses.AllLabelsLoss, losses.LabelTableLoss])
def test_a_loss_over_other_labels_is_refused_with_both_numbers(make: Any, texts: list[str], tmp_path: Path) -> None:
    encoder = make_static_encoder()
    with pytest.raises(ValueError, match=f"{make.__name__} was made for {len(texts)} labels, words has 17"):
        XMCTrainer(encoder, make_args(tmp_path), DATA, make(encoder, texts))


def test_label_terms_of_other_labels_are_refused(tmp_path: Path) -> None:
    encoder = classifier_encoder(tmp_path, 17)
    targets = label_rows(DATA.to_csr("train"))[:5, :5]
    for terms in (
        losses.LabelTerms(targets),
        losses.LabelTerms(targets, neighbors=losses.LabelNeighbors(5)),
    ):
        with pytest.raises(ValueError, match=r"Label\w+ was made for 5 labels, words has 17"):
            XMCTrainer(encoder, make_args(tmp_path), DATA, losses.UnifiedLoss(encoder, label_terms=terms))


def test_a_classifier_that_is_weighed_must_be_there(tmp_path: Path) -> None:
    encoder = make_static_encoder()
    asked = (
        losses.UnifiedLoss.precision(encoder),
        losses.UnifiedLoss(encoder, encoder_weight=0.3),
        losses.UnifiedLoss(encoder, label_terms=losses.LabelTerms(label_rows(DATA.to_csr("train")), 1.0, 0.5)),
    )
    for loss in asked:
        with pytest.raises(ValueError, match="weighs a classifier .* which the encoder does not have"):
            XMCTrainer(encoder, make_args(tmp_path), DATA, loss)
    XMCTrainer(encoder, make_args(tmp_path), DATA, losses.UnifiedLoss(encoder, symmetric_weight=0.5)).train()


def test_a_classifier_that_a_loss_leaves_as_it_is_is_refused_unless_it_is_to_stay(tmp_path: Path) -> None:
    encoder = classifier_encoder(tmp_path, 17)
    for make in (
        losses.DecoupledSoftmaxLoss,
        losses.CachedSoftTopKLoss,
        lambda model: losses.AllLabelsLoss(model, WORDS),
        lambda model: losses.LabelTableLoss(model, WORDS),
        lambda model: losses.UnifiedLoss(model, encoder_weight=1.0),
        lambda model: host.MatryoshkaLoss(model, losses.InfoNCELoss(model), [8, 4]),
    ):
        for loss in (make, make(encoder)):
            with pytest.raises(ValueError, match="trains the dual encoder alone.*take UnifiedLoss"):
                XMCTrainer(encoder, make_args(tmp_path), DATA, loss)
    encoder.label_classifier.requires_grad_(False)
    before = encoder.label_classifier.rows.weight.clone()
    assert XMCTrainer(encoder, make_args(tmp_path, max_steps=2), DATA, losses.InfoNCELoss).train().global_step == 2
    assert torch.equal(encoder.label_classifier.rows.weight, before)


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"hard_negatives": 2}, "3"),
        ({"cluster_batches": True, "num_train_epochs": 5}, "5"),
        ({"hard_negatives": 2, "num_train_epochs": 2, "refresh_epochs": 2}, "2"),
        ({"hard_negatives": 2, "max_steps": 4, "refresh_epochs": 1}, "1"),
        ({"hard_negatives": 2, "max_steps": 2, "gradient_accumulation_steps": 2, "refresh_epochs": 1}, "1"),
    ],
)
def test_mining_that_the_training_never_comes_to_is_refused(
    settings: dict[str, Any], epochs: str, tmp_path: Path
) -> None:
    args = make_args(tmp_path, per_device_train_batch_size=16, mining_depth=5, **settings)
    with pytest.raises(ValueError, match=f"the training ends after {epochs}; lower refresh_epochs, or leave"):
        XMCTrainer(make_static_encoder(), args, DATA)
    longer = {"max_steps": args.max_steps + 1} if args.max_steps > 0 else {"num_train_epochs": args.refresh_epochs + 1}
    trainer = XMCTrainer(make_static_encoder(), replace(args, **longer), DATA)
    trainer.train()
    tensor = trainer.miner.mined if trainer.miner.mined is not None else trainer.miner.row_order
    assert (tensor >= 0).any()


@pytest.mark.parametrize("settings", [{"hard_negatives": 2}, {"random_negatives": 3}, {"max_candidates": 9}])
def test_settings_of_a_pool_beside_a_loss_without_one_are_refused(settings: dict[str, int], tmp_path: Path) -> None:
    encoder = make_static_encoder()
    for loss in (losses.AllLabelsLoss(encoder, WORDS), lambda model: losses.LabelTableLoss(model, WORDS)):
        with pytest.raises(ValueError, match=f"{next(iter(settings))}=.* has no pool"):
            XMCTrainer(encoder, make_args(tmp_path, **settings), DATA, loss)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fp16": True}, "fp16=True needs a GPU"),
        ({"batch_sampler": "no_duplicates"}, "XMCTrainer draws its batches itself"),
        ({"neftune_noise_alpha": 5}, "neftune_noise_alpha is for"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
            "'loss' is the loss of an eval_dataset",
        ),
    ],
)
def test_settings_that_end_a_training_later_are_refused_first(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        XMCTrainer(make_static_encoder(), make_args(tmp_path, **settings), DATA, evaluator=XMCEvaluator(DATA))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positives_per_row": 0}, "positives_per_row must be at least 1, got 0"),
        ({"positives_per_row": "3"}, "positives_per_row must be an integer, got '3'"),
        ({"random_negatives": 1.5}, "random_negatives must be an integer, got 1.5"),
        ({"hard_negatives": True}, "hard_negatives must be an integer, got True"),
        ({"hard_negatives": 6, "mining_depth": 5}, "hard_negatives=6 are drawn among mining_depth=5"),
        ({"token_dropout": 1.0}, r"token_dropout must lie in \[0, 1\), got 1.0"),
        ({"prompts": {"text": "a", "labels": "b"}}, r"key\(s\) \['text', 'labels'\]; expected 'query' and 'document'"),
        ({"prompts": {"words": {"query": "a"}}}, r"key\(s\) \['words'\]"),
        ({"prompts": {"query": 3}}, "prompts must be strings"),
        ({"prompts": ["a"]}, "prompts are a list"),
        ({"prompts": {"document": "a", "candidate": "b"}}, "are one thing"),
    ],
)
def test_arguments_are_named_with_what_came(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_args(tmp_path, **settings)


@pytest.mark.parametrize("model", ["minilm", None, 3, SentenceTransformer, torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_named(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model is .*; expected an XMCEncoder or a SentenceTransformer"):
        XMCTrainer(model, make_args(tmp_path), DATA)


@pytest.mark.parametrize(
    "data", ["words", None, DATA.train, {"train": DATA.train}, [("war", [1])], pd.DataFrame({"text": ["war"]}), 3]
)
def test_what_is_no_data_set_is_named(data: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"trains on an XMCDataset, got {type(data).__name__}"):
        XMCTrainer(make_static_encoder(), make_args(tmp_path), data)


def test_a_data_set_that_cannot_be_trained_on_is_named(tmp_path: Path) -> None:
    none = {split: np.zeros((0, 2), dtype=np.int64) for split in ("train", "test")}
    holes = datasets.Dataset.from_dict({"text": [*WORDS[:-1], None]})
    numbers = datasets.Dataset.from_dict({"text": list(range(17))})
    for data, message in (
        (replace(DATA, train=DATA.train.select([]), filters=none), "words has no train rows"),
        (replace(DATA, labels=holes), "text 16 of labels is None"),
        (replace(DATA, labels=numbers), "'text' of labels is int64"),
    ):
        with pytest.raises(ValueError, match=message):
            XMCTrainer(make_static_encoder(), make_args(tmp_path), data)


def test_one_row_is_trained_on(tmp_path: Path) -> None:
    data = replace(DATA, train=DATA.train.select([0]), filters=DATA.filters | {"train": np.zeros((0, 2), np.int64)})
    assert XMCTrainer(make_static_encoder(), make_args(tmp_path), data).train().global_step == 3


PROMPTS = {"query": "war ", "document": "sea "}


@pytest.mark.parametrize("kind", ["static", "bert"])
@pytest.mark.parametrize(
    ("given", "own", "expected"),
    [
        (PROMPTS, {}, PROMPTS),
        ({"query": "war ", "candidate": "sea "}, {}, PROMPTS),
        ("war ", {}, {"query": "war ", "document": "war "}),
        (None, PROMPTS, PROMPTS),
        (None, {"query": "war ", "passage": "sea "}, PROMPTS),
        ({"query": "war "}, {"query": "cats ", "document": "sea "}, PROMPTS),
        ({"document": "sea "}, {"query": "war "}, PROMPTS),
        (None, {}, {}),
    ],
)
def test_training_mining_evaluation_and_serving_have_one_prompt(
    kind: str, given: Any, own: dict[str, str], expected: dict[str, str], tmp_path: Path
) -> None:
    encoder = make_static_encoder() if kind == "static" else make_bert_encoder(tmp_path / "bert")
    encoder.prompts = dict(own)
    trainer = XMCTrainer(encoder, make_args(tmp_path, prompts=given, positives_per_row=1), DATA)
    row, word = DATA.train[0], WORDS[DATA.train[0]["label_ids"][0]]
    query, label = expected.get("query", "") + row["text"], expected.get("document", "") + word
    for with_tokens in (False, True):
        if with_tokens:
            trainer.get_train_dataloader()
        batch = trainer.data_collator([trainer.train_dataset[0] | {"label_ids": row["label_ids"][:1]}])
        for column, text in (("query", query), ("candidate", label)):
            tokens = encoder[0].preprocess([text])["input_ids"]
            assert batch[f"{column}_input_ids"].reshape(-1).tolist() == tokens.reshape(-1).tolist(), column
    plain = make_static_encoder() if kind == "static" else make_bert_encoder(tmp_path / "bert")
    plain.prompts = {}
    np.testing.assert_allclose(encoder.query_vectors([row["text"]]), plain.query_vectors([query]), atol=1e-6)
    np.testing.assert_allclose(encoder.label_vectors([word]), plain.label_vectors([label]), atol=1e-6)


def test_prompts_by_task() -> None:
    assert column_prompts(None) == column_prompts({}) == column_prompts({"query": None}) == {}
    assert column_prompts({"query": ""}) == {"query": ""}
