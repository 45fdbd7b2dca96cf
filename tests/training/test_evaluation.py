"""The loss of rows to evaluate on is that of these rows, the same at every evaluation, in every form they come in."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from reference import losses as reference
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import nn
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data, word_tokenizer
from transformers import EarlyStoppingCallback

import hf_xmc
from hf_xmc import XMCDataset, XMCEncoder, XMCEvaluator, XMCTrainer, XMCTrainingArguments, losses
from hf_xmc.encoders.static import static_embedding

DATA = make_words_data()


def make_args(out: Path, **settings: Any) -> XMCTrainingArguments:
    given = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "learning_rate": 1e-2, "save_strategy": "no"}
    given |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True} | settings
    return XMCTrainingArguments(output_dir=str(out), **given)


def make_trainer(encoder: XMCEncoder, out: Path, data: XMCDataset = DATA, **kwargs: Any) -> XMCTrainer:
    names = ("eval_dataset", "loss", "evaluator", "callbacks")
    own = {name: kwargs.pop(name) for name in names if name in kwargs}
    return XMCTrainer(encoder, make_args(out, **kwargs), data, **own)


def loss_by_hand(
    encoder: XMCEncoder, rows: datasets.Dataset, data: XMCDataset, size: int, filters: np.ndarray, scale: float = 20.0
) -> float:
    """The mean over batches in order, weighed by their rows, of decoupled softmax over all positives of a batch."""
    vectors, queries = encoder.label_vectors(data.labels["text"][:]), encoder.query_vectors(rows["text"][:])
    filtered = {tuple(pair) for pair in filters.tolist()}
    total = 0.0
    for start in range(0, len(rows), size):
        positives = rows["label_ids"][start : start + size]
        pool = sorted({label for row in positives for label in row})
        scores = scale * torch.from_numpy(queries[start : start + size] @ vectors[pool].T).double()
        relevance = torch.tensor([[label in row for label in pool] for row in positives])
        out = torch.tensor([[(start + i, label) in filtered for label in pool] for i in range(len(positives))])
        total += len(positives) * float(reference.slow_decoupled_softmax(scores, relevance, out & ~relevance))
    return total / len(rows)


def with_test_filters(data: XMCDataset) -> XMCDataset:
    """Each test row with a filtered label that it does not carry."""
    pairs = [[row, next(l for l in range(17) if l not in ids)] for row, ids in enumerate(data.test["label_ids"][:])]
    return replace(data, filters=data.filters | {"test": np.array(pairs)})


@pytest.mark.parametrize("size", [16, 5, 1])
@pytest.mark.parametrize("kind", ["static", "bert"])
def test_eval_loss_is_that_of_the_rows(kind: str, size: int, tmp_path: Path) -> None:
    encoder = make_static_encoder() if kind == "static" else make_bert_encoder(tmp_path / "bert", dropout=0.2)
    data = with_test_filters(DATA)
    trainer = make_trainer(
        encoder, tmp_path, eval_dataset=data, per_device_eval_batch_size=size, token_dropout=0.3,
        loss=losses.DecoupledSoftmaxLoss(encoder, scale=2.0),
    )  # fmt: skip
    plain = loss_by_hand(encoder, data.test, data, size, np.zeros((0, 2), dtype=np.int64), scale=2.0)
    expected = loss_by_hand(encoder, data.test, data, size, data.filters["test"], scale=2.0)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)
    assert size == 1 or abs(plain - expected) > 1e-3, "the filters say something"
    assert trainer.evaluate(data.test)["eval_loss"] == pytest.approx(plain, abs=1e-5)
    trainer.train()
    after = loss_by_hand(encoder, data.test, data, size, data.filters["test"], scale=2.0)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(after, abs=1e-5)
    assert size == 1 or after != pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_eval_loss_of_held_out_rows_falls_as_precision_rises(tmp_path: Path, tiny: XMCDataset) -> None:
    held = tiny.hold_out(0.1)
    encoder = XMCEncoder(modules=[StaticEmbedding(*hf_xmc.wordllama_embedding())], device="cpu")
    trainer = make_trainer(
        encoder, tmp_path, held, num_train_epochs=4, per_device_train_batch_size=256, per_device_eval_batch_size=256,
        eval_strategy="epoch", eval_dataset=held, evaluator=XMCEvaluator(held), random_negatives=0,
    )  # fmt: skip
    before = trainer.evaluate()
    trainer.train()
    expected = loss_by_hand(encoder, held.test, held, 256, held.filters["test"])
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    values = [before["eval_loss"], *(entry["eval_loss"] for entry in history)]
    assert len(values) == 5 and values[-1] == pytest.approx(expected, abs=1e-5)
    assert values == sorted(values, reverse=True) and values[-1] < 0.75 * values[0]
    assert history[-1]["eval_precision@1"] > before["eval_precision@1"] + 0.02


def test_every_form_of_the_rows_gives_the_same_loss(tmp_path: Path) -> None:
    encoder, data = make_static_encoder(), with_test_filters(DATA)
    trainer = make_trainer(encoder, tmp_path, data, eval_dataset={"all": data, "rows": data.test})
    both = trainer.evaluate()
    assert both["eval_all_loss"] != both["eval_rows_loss"]
    assert trainer.evaluate("rows")["eval_loss"] == both["eval_rows_loss"]
    assert trainer.evaluate(data)["eval_loss"] == both["eval_all_loss"] == trainer.predict(data).metrics["test_loss"]
    assert trainer.predict(data.test).metrics["test_loss"] == both["eval_rows_loss"]
    assert trainer.evaluate(datasets.DatasetDict(mine=data.test))["eval_mine_loss"] == both["eval_rows_loss"]
    # A number of a row is one of another data set, a further column is none of ours.
    marked = data.test.add_column("row", list(range(16))).add_column("note", ["x"] * 16)
    assert trainer.evaluate(marked)["eval_loss"] == both["eval_rows_loss"]
    turned = data.test.select(range(15, -1, -1))
    assert trainer.evaluate(turned)["eval_loss"] == pytest.approx(
        loss_by_hand(encoder, turned, data, 8, np.zeros((0, 2), dtype=np.int64)), abs=1e-5
    )


def test_the_loss_follows_the_texts_and_labels_of_the_rows(tmp_path: Path) -> None:
    trainer = make_trainer(make_static_encoder(), tmp_path)
    loss = trainer.evaluate(DATA.test)["eval_loss"]
    other_texts = DATA.test.map(lambda row: {"text": "stories " + row["text"]})
    other_labels = DATA.test.map(lambda row: {"label_ids": [(row["label_ids"][0] + 1) % 17]})
    for other in (other_texts, other_labels):
        assert abs(trainer.evaluate(other)["eval_loss"] - loss) > 1e-3


@pytest.mark.parametrize("settings", [{}, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}])
def test_an_evaluation_is_the_same_whenever_it_is_made(settings: dict[str, Any], tmp_path: Path) -> None:
    """The weights rest (no learning rate), while epochs, mined negatives and the order of train rows change."""
    trainer = make_trainer(
        make_bert_encoder(tmp_path / "bert", dropout=0.2), tmp_path, eval_dataset=DATA, eval_strategy="epoch",
        num_train_epochs=3, learning_rate=0.0, random_negatives=4, hard_negatives=2, mining_depth=5, refresh_epochs=1,
        cluster_batches=True, token_dropout=0.5, max_candidates=3, dataloader_drop_last=True,
        per_device_eval_batch_size=6, **settings,
    )  # fmt: skip
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    values = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(values) == 3 and np.ptp([before, *values, trainer.evaluate()["eval_loss"]]) < 1e-6


@pytest.mark.parametrize("make", [losses.AllLabelsLoss, losses.LabelTableLoss])
@pytest.mark.parametrize("kind", ["static", "bert"])
def test_losses_over_all_labels_are_evaluated_over_all_labels(make: Any, kind: str, tmp_path: Path) -> None:
    encoder = make_static_encoder() if kind == "static" else make_bert_encoder(tmp_path / "bert", dropout=0.2)
    trainer = make_trainer(encoder, tmp_path, eval_dataset=DATA, loss=make(encoder, WORDS, scale=20.0))
    trainer.train()
    vectors, queries = encoder.label_vectors(WORDS), encoder.query_vectors(DATA.test["text"][:])
    scores = 20 * torch.from_numpy(queries @ vectors.T).double()
    relevance = torch.from_numpy(DATA.to_csr("test").toarray() > 0)
    expected = [
        float(reference.slow_decoupled_softmax(scores[part], relevance[part], torch.zeros_like(relevance[part])))
        for part in (slice(0, 8), slice(8, 16))
    ]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(np.mean(expected), abs=1e-5)


def test_parts_of_a_loss_are_evaluated_and_add_up(tmp_path: Path) -> None:
    encoder = make_bert_encoder(tmp_path / "bert")
    encoder.add_classifier(17, 8)
    trainer = make_trainer(encoder, tmp_path, eval_dataset=DATA, loss=losses.UnifiedLoss.precision(encoder))
    loss = trainer.evaluate()["eval_loss"]
    logged = trainer.state.log_history[-1]
    assert {"eval_encoder", "eval_classifier", "eval_bce"} <= set(logged)
    assert sum(logged[f"eval_{part}"] for part in ("encoder", "classifier", "bce")) == pytest.approx(loss, abs=1e-3)


def shared_encoder() -> XMCEncoder:
    start = word_tokenizer(), torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    return XMCEncoder(modules=[static_embedding(DATA.train["text"][:], min_pair_count=2, start=start)], device="cpu")


def make_encoder(kind: str, folder: Path) -> XMCEncoder:
    if kind == "shared":
        return shared_encoder()
    encoder = make_static_encoder() if kind == "static" else make_bert_encoder(folder / "bert")
    if kind == "classifier":
        encoder.add_classifier(17, 8)
    return encoder


def loss_of(kind: str, encoder: XMCEncoder) -> nn.Module | None:
    return losses.UnifiedLoss(encoder) if kind == "classifier" else None


@pytest.mark.parametrize("metric", [None, "eval_loss", "precision@1", "eval_recall@3"])
@pytest.mark.parametrize("kind", ["static", "shared", "bert", "classifier"])
def test_the_best_epoch_is_kept_by_any_metric(kind: str, metric: str | None, tmp_path: Path) -> None:
    encoder = make_encoder(kind, tmp_path)
    trainer = make_trainer(
        encoder, tmp_path, eval_dataset=DATA, eval_strategy="epoch", save_strategy="epoch", num_train_epochs=4,
        load_best_model_at_end=True, metric_for_best_model=metric, learning_rate=0.3, evaluator=XMCEvaluator(DATA),
        loss=loss_of(kind, encoder),
    )  # fmt: skip
    trainer.train()
    key = f"eval_{(metric or 'eval_loss').removeprefix('eval_')}"
    history = [entry[key] for entry in trainer.state.log_history if key in entry]
    best = min(history) if key == "eval_loss" else max(history)
    assert len(history) == 4 and trainer.state.best_metric == best
    assert trainer.evaluate()[key] == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("metric", ["eval_loss", "eval_precision@1"])
def test_training_stops_where_the_metric_does_not_get_better(metric: str, tmp_path: Path) -> None:
    trainer = make_trainer(
        make_static_encoder(), tmp_path, eval_dataset=DATA, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model=metric, learning_rate=0.0, num_train_epochs=9,
        evaluator=XMCEvaluator(DATA), callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.epoch == 3 and math.isclose(trainer.state.best_metric, trainer.evaluate()[metric])


NO_FILTERS = {split: np.zeros((0, 2), dtype=np.int64) for split in ("train", "test")}
WRONG = {
    "a text": "held_out",
    "a path": Path("held_out"),
    "a list": [{"text": "war", "label_ids": [1]}],
    "a frame": pd.DataFrame({"text": ["war"], "label_ids": [[1]]}),
    "a number": 1,
    "a stream": DATA.test.to_iterable_dataset(),
    "no names": {},
    "names of texts": {"a": "war"},
    "other columns": datasets.Dataset.from_dict({"query": ["war"], "label_ids": [[1]]}),
    "labels as texts": datasets.Dataset.from_dict({"text": ["war"], "label_ids": [["war"]]}),
    "labels as floats": datasets.Dataset.from_dict({"text": ["war"], "label_ids": [[1.0]]}),
    "one label a row": datasets.Dataset.from_dict({"text": ["war"], "label_ids": [1]}),
    "marks": datasets.Dataset.from_dict({"text": ["war"], "label_ids": [[0, 1] + 15 * [0]]}),
    "masks": datasets.Dataset.from_dict({"text": ["war"], "label_ids": [[False, True]]}),
    "texts as numbers": datasets.Dataset.from_dict({"text": [3], "label_ids": [[1]]}),
    "no text": datasets.Dataset.from_dict({"text": ["war", None], "label_ids": [[1], [1]]}),
    "unknown labels": datasets.Dataset.from_dict({"text": ["war"], "label_ids": [[17]]}),
    "negative labels": datasets.Dataset.from_dict({"text": ["war"], "label_ids": [[-1]]}),
    "no labels": datasets.Dataset.from_dict({"text": ["war"], "label_ids": [[]]}).cast(DATA.test.features),
    "no rows": DATA.test.select([]),
    "no test rows": replace(DATA, test=DATA.test.select([])),
    "fewer labels": replace(
        DATA, labels=DATA.labels.select(range(16)), train=DATA.train.select([]), filters=NO_FILTERS
    ),
    "other labels": replace(DATA, labels=datasets.Dataset.from_dict({"text": WORDS[::-1]})),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_are_no_rows_is_named_before_training(name: str, tmp_path: Path) -> None:
    trainer = make_trainer(make_static_encoder(), tmp_path)
    for call in (
        lambda given: make_trainer(make_static_encoder(), tmp_path, eval_dataset=given),
        trainer.evaluate,
        trainer.predict,
    ):
        with pytest.raises(ValueError, match="eval_dataset|test_dataset|predict takes one"):
            call(WRONG[name])
