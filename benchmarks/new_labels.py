"""
What labels are worth that a retriever gets after training: recall of the new ones, and what the old ones lose.

    OMP_NUM_THREADS=1 python benchmarks/new_labels.py [--data_dir FOLDER] [--num_new 1000] [--save | --load FOLDER]

Random labels that occur in the test split are withheld: their texts leave the label table, their ids leave the train
rows, and rows left without a label are dropped, so that neither the vocabulary nor the loss sees them. Then
`add_labels` gives their texts to the trained retriever. New labels are judged on the test rows that need one, among
all labels; old labels on all test rows that have one, a new label in their way counting as a miss. "before training"
is the same encoder, with the same vocabulary, whose labels are ranked by text alone. The discount is that of
`add_labels`.

`--save` keeps the trained retriever, `--load` takes it in place of training (minutes).
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import torch
from scipy.sparse import csr_matrix, diags
from table import Table, add_output, write

import hf_xmc
from hf_xmc.metrics.functional import xmc_metrics
from hf_xmc.static import static_embedding

TITLES = Path(__file__).parent.parent / "recipes" / "data" / "lf-gutenberg-titles"
# Weights of the classifier half that recipes/unidec.py fits on held-out parts of lf-gutenberg-titles, and a discount
# of 0, with which a new row is the label's own vector; the default was set on these very rows.
WEIGHTS, DISCOUNTS = (0.2, 0.4), (0.0, 0.04, 0.08)
COLUMNS = ("R@10 of new", "P@1 of old", "P@3 of old", "P@5 of old", "R@10 of old", "P@1 of all")


def withhold(data: hf_xmc.XMCDataset, ids: np.ndarray) -> hf_xmc.XMCDataset:
    """The data set without the labels `ids` (n,): the remaining ones are renumbered in their old order."""
    kept = np.setdiff1d(np.arange(data.num_labels), ids)
    new_id = np.full(data.num_labels, -1)
    new_id[kept] = np.arange(len(kept))
    rows = [[new_id[i] for i in row if new_id[i] >= 0] for row in data.train["label_ids"][:]]
    full = [place for place, row in enumerate(rows) if row]
    train = datasets.Dataset.from_dict(
        {"text": data.train.select(full)["text"][:], "label_ids": [rows[place] for place in full]}
    )
    labels = datasets.Dataset.from_dict({"text": data.labels.select(kept)["text"][:]})
    none = {split: np.zeros((0, 2), dtype=np.int64) for split in ("train", "test")}
    return replace(data, train=train, test=train.select([]), labels=labels, filters=none)


def start(data: hf_xmc.XMCDataset) -> hf_xmc.XMCEncoder:
    return hf_xmc.XMCEncoder(modules=[static_embedding(data.train["text"][:] + data.labels["text"][:])], device="cpu")


def train(data: hf_xmc.XMCDataset, epochs: int) -> hf_xmc.XMCEncoder:
    """As recipes/configs/lf-gutenberg-titles/unidec.yaml does."""
    encoder = start(data)
    encoder.add_classifier(data.num_labels, None, residual=True, dropout=0.1)
    loss = hf_xmc.losses.UnifiedLoss(encoder, scale=20)
    with tempfile.TemporaryDirectory() as folder:
        arguments = hf_xmc.XMCTrainingArguments(
            positives_per_row=3,
            random_negatives=1000,
            num_train_epochs=epochs,
            per_device_train_batch_size=1024,
            learning_rate=1e-2,
            classifier_learning_rate=2e-3,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            output_dir=folder,
        )
        hf_xmc.XMCTrainer(model=encoder, args=arguments, train_dataset=data, loss=loss).train()
    return encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=str(TITLES))
    parser.add_argument("--num_new", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="folder to keep the trained retriever in")
    parser.add_argument("--load", help="folder of a retriever that --save wrote, in place of training")
    add_output(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = hf_xmc.load_lf(given.data_dir)
    truth = data.to_csr("test")
    new = np.sort(np.random.default_rng(given.seed).choice(np.unique(truth.indices), given.num_new, replace=False))
    old = np.setdiff1d(np.arange(data.num_labels), new)
    known, new_texts, texts = withhold(data, new), data.labels.select(new)["text"][:], data.test["text"][:]
    truth = truth[:, np.concatenate([old, new])].tocsr()  # the ids of a retriever that appends the new ones
    of_new = (truth @ diags((np.arange(truth.shape[1]) >= len(old)).astype(np.float32))).tocsr()
    of_new.eliminate_zeros()
    of_old = (truth - of_new).tocsr()
    of_old.eliminate_zeros()
    wants_new, wants_old = np.flatnonzero(np.diff(of_new.indptr)), np.flatnonzero(np.diff(of_old.indptr))
    table = Table(
        f"{given.num_new:,} labels that {data.name} never trained on",
        dict.fromkeys(("", "classifier weight"), "") | dict.fromkeys(COLUMNS, ".2f"),
        about=(
            f"{len(data.train) - len(known.train):,} train rows dropped; {len(wants_new):,} test rows need a new "
            f"label and {len(wants_old):,} an old one. Percent; P, R of the old labels without new rows in the index, "
            "then the change with them, a right new label in their way a miss."
        ),
    )

    def judge(
        name: str, labels: np.ndarray, queries: np.ndarray, without: dict[str, float] | None
    ) -> dict[str, float]:
        ids = hf_xmc.LabelIndex(labels, kind="exact").search(queries, 10)[0]
        found = percent(ids[wants_old], of_old[wants_old])
        weight = encoder.search_form.classifier_weight
        recall = percent(ids[wants_new], of_new[wants_new])["recall@10"] if len(labels) > len(old) else None
        changes = [value - without[key] if without else value for key, value in found.items()]
        both = percent(ids, truth)["precision@1"] if len(labels) > len(old) else None
        table.add(name, str(weight), recall, *changes, both)
        return found

    encoder = start(known)
    encoder.search_form = hf_xmc.SearchForm(0.0)
    names = known.labels["text"][:]
    queries = encoder.query_vectors(texts)
    without = judge("before training, old alone", encoder.label_vectors(names), queries, None)
    judge("before training", encoder.label_vectors(names + new_texts), queries, without)
    if given.load:
        trained = hf_xmc.Retriever.from_pretrained(given.load, device="cpu")
    else:
        trained = hf_xmc.Retriever.build(train(known, given.epochs), names)
        if given.save:
            trained.save_pretrained(given.save)
    encoder = trained.encoder
    queries = encoder.query_vectors(texts)
    for weight in WEIGHTS:
        encoder.search_form = hf_xmc.SearchForm(weight, False)
        labels = encoder.join_labels(trained.embedding, trained.classifier)
        without = judge("trained, old alone", labels, queries, None)
        for discount in DISCOUNTS:
            retriever = hf_xmc.Retriever(
                copy.deepcopy(encoder), names, trained.embedding, trained.classifier, hf_xmc.LabelIndex(labels)
            )
            retriever.add_labels(new_texts, discount=discount)
            judge(f"added, discount {discount}", retriever.index.vectors, queries, without)
    write(given.output, table)


def percent(ids: np.ndarray, truth: csr_matrix) -> dict[str, float]:
    """precision@1, @3, @5 and recall@10 of a ranking (N, 10)."""
    found = xmc_metrics(ids, truth, (1, 3, 5)) | xmc_metrics(ids, truth, (10,))
    return {key: 100 * found[key] for key in ("precision@1", "precision@3", "precision@5", "recall@10")}


if __name__ == "__main__":
    main()
