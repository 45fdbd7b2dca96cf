"""What each part of a method is worth: one variant a row, each against the first by paired bootstrap.

    python -m benchmarks.quality.ablations TABLE --data_dir DIR [--epochs N] [--only NAME ...] [--output FILE]

Static encoder, one seed, one thread. Every variant trains on all but a held-out tenth of train (by title key); the
table shows the held-out part, on which choices are made, and the test split, looked at once for each row.

``gandalf`` is about learning from the labels' own texts, with an encoder whose labels are scored by their texts too;
``gandalf_blind`` the same where a label is nothing but a row of the classifier. ``start`` is about the static table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

import hf_xmc
from hf_xmc.data.gandalf import gandalf, label_rows, random_walk_label_rows, self_label_rows, symmetric_label_rows
from hf_xmc.encoders.static import static_embedding
from hf_xmc.losses import (
    AllLabelsLoss,
    BinaryCrossEntropyLoss,
    DecoupledSoftmaxLoss,
    InfoNCELoss,
    LabelNeighbors,
    LabelTableLoss,
    LabelTerms,
    SoftTopKLoss,
    UnifiedLoss,
    blockwise,
)
from hf_xmc.metrics.functional import xmc_metrics
from hf_xmc.runs.record import commit, cpu_seconds, hardware, metrics_table, peak_memory_gib

COLUMNS = ("precision@1", "precision@3", "precision@5", "psp@1", "psp@5", "recall@100")
SEED = 0
# Chosen on the held-out part of lf-gutenberg-titles, as the recipe's config.
SCALE, TOKEN_DROPOUT = 12.0, 0.1
# Of the cosine where a dual encoder is trained alone; the held-out part reads 41.7 P@1 at 20 and 36.9 at 10.
LOSS_SCALE = 20.0
ALPHA = 2.0  # soft top-k multiplies its scores by it once more
BIAS = -10.0  # what SigLIP starts with (Zhai et al., ICCV 2023)
MANY_LABELS = 5  # soft top-5 is about rows that have so many


@dataclass(frozen=True)
class Variant:
    """A loss, and what differs from the common settings."""

    loss: Callable[[hf_xmc.XMCEncoder, hf_xmc.XMCDataset], nn.Module]
    classifier: dict | None = None
    training: dict = field(default_factory=dict)
    forms: tuple[hf_xmc.SearchForm, ...] | None = None  # to choose from on the held-out part; None for the whole grid
    rows: Callable[[hf_xmc.XMCDataset], hf_xmc.XMCDataset] = lambda data: data  # what is trained on
    table: Callable[[], dict] = dict  # of static_embedding, what differs


def over_all(
    function: Callable[..., torch.Tensor], scale: float
) -> Callable[[hf_xmc.XMCEncoder, hf_xmc.XMCDataset], nn.Module]:
    return lambda encoder, data: AllLabelsLoss(encoder, data.labels["text"][:], function, scale)


def over_pool(loss: type[nn.Module], **kwargs: object) -> Callable[[hf_xmc.XMCEncoder, hf_xmc.XMCDataset], nn.Module]:
    return lambda encoder, data: loss(encoder, **kwargs)


def biased_bce(
    queries: torch.Tensor, labels: torch.Tensor, *args: object, scale: float, **kwargs: object
) -> torch.Tensor:
    """BCE of ``scale * q . z + BIAS``: the bias is one more coordinate."""
    queries = torch.cat([queries, torch.ones_like(queries[:, :1])], 1)
    labels = torch.cat([labels, torch.full_like(labels[:, :1], BIAS / scale)], 1)
    return blockwise.binary_cross_entropy(queries, labels, *args, scale=scale, **kwargs)


def over_table(**kwargs: int) -> Callable[[hf_xmc.XMCEncoder, hf_xmc.XMCDataset], nn.Module]:
    return lambda encoder, data: LabelTableLoss(
        encoder, data.labels["text"][:], scale=LOSS_SCALE, refresh_steps=20, **kwargs
    )


def losses_at(scale: float) -> dict[str, Variant]:
    """All losses over all labels, equally sharp: ``scale`` times the cosine, soft top-k's own factor included."""
    return {
        "decoupled softmax": Variant(over_all(blockwise.decoupled_softmax, scale)),
        "InfoNCE": Variant(over_all(blockwise.info_nce, scale)),
        "BCE": Variant(over_all(blockwise.binary_cross_entropy, scale)),
        # Is it where the scores lie that keeps BCE from training?
        "BCE with a bias": Variant(over_all(biased_bce, scale)),
        "soft top-5": Variant(over_all(partial(blockwise.soft_top_k, k=5, alpha=ALPHA), scale / ALPHA)),
        "soft top-100": Variant(over_all(partial(blockwise.soft_top_k, k=100, alpha=ALPHA), scale / ALPHA)),
    }


SHARP = losses_at(ALPHA * LOSS_SCALE)  # soft top-k with the scale of the others, as published
LOSSES = {f"{name}, all labels": variant for name, variant in losses_at(LOSS_SCALE).items()}
LOSSES |= {f"{name}, all labels, scale {LOSS_SCALE:g}": SHARP[name] for name in ("soft top-5", "soft top-100")}
LOSSES |= {
    "decoupled softmax, label table": Variant(over_table()),
    "the same, no random remainder": Variant(over_table(num_random=0)),
    "decoupled softmax, pool": Variant(over_pool(DecoupledSoftmaxLoss, scale=LOSS_SCALE)),
    "InfoNCE, pool": Variant(over_pool(InfoNCELoss, scale=LOSS_SCALE)),
    "BCE, pool": Variant(over_pool(BinaryCrossEntropyLoss, scale=LOSS_SCALE)),
    "soft top-5, pool, scale 20": Variant(over_pool(SoftTopKLoss, scale=LOSS_SCALE)),
}
LOSSES_HALF_AS_SHARP = losses_at(LOSS_SCALE / 2)
ROWS = {"dimension": None, "residual": True, "dropout": 0.1}
UNIFIED = over_pool(UnifiedLoss, scale=SCALE)
UNIDEC = {
    "residual rows, both terms": Variant(UNIFIED, ROWS),
    "dual encoder only (DePSL)": Variant(UNIFIED),
    "rows without residual": Variant(UNIFIED, ROWS | {"residual": False}),
    "hard negatives": Variant(UNIFIED, ROWS, {"hard_negatives": 3, "refresh_epochs": 2}),
    "clusters": Variant(UNIFIED, ROWS, {"cluster_batches": True, "refresh_epochs": 2}),
    "symmetric term": Variant(over_pool(UnifiedLoss, scale=SCALE, symmetric_weight=0.5), ROWS),
    "BCE": Variant(over_pool(UnifiedLoss, scale=SCALE, bce_weight=1.0), ROWS),
    "two heads as published": Variant(UNIFIED, ROWS | {"dimension": 256, "encoder_dimension": 256, "residual": False}),
}
# Published with batches whose own labels are the whole pool: is that what hard negatives and clusters are for?
SMALL_POOL = {"per_device_train_batch_size": 128, "random_negatives": 0}
UNIDEC |= {
    "small pool: 128 rows, no random negatives": Variant(UNIFIED, ROWS, SMALL_POOL),
    "small pool, hard negatives": Variant(UNIFIED, ROWS, SMALL_POOL | {"hard_negatives": 3, "refresh_epochs": 2}),
    "small pool, clusters": Variant(UNIFIED, ROWS, SMALL_POOL | {"cluster_batches": True, "refresh_epochs": 2}),
}
AWARE = tuple(hf_xmc.SearchForm(u, False) for u in (0.4, 0.7, 1.0))
BLIND = (hf_xmc.SearchForm(1.0, False),)
FREE = ROWS | {"residual": False}
CLASSIFIER_ONLY = over_pool(UnifiedLoss, scale=SCALE, encoder_weight=0.0)


def in_batch(weights: tuple[float, float], similarity: float | None = None, **kwargs: float) -> Callable:
    """Label terms of these weights; with a similarity weight also of the encoder's own neighbors."""

    def loss(encoder: hf_xmc.XMCEncoder, data: hf_xmc.XMCDataset) -> nn.Module:
        neighbors = None if similarity is None else LabelNeighbors(data.num_labels)
        terms = LabelTerms(label_rows(data.to_csr("train")), *weights, neighbors, similarity or 0.0)
        return UnifiedLoss(encoder, scale=SCALE, label_terms=terms, **kwargs)

    return loss


SHRUNK = partial(label_rows, prior=2.0)
REFRESH = {"refresh_epochs": 2}
GANDALF = {
    "off": Variant(UNIFIED, ROWS, forms=AWARE),
    "off, 8 epochs": Variant(UNIFIED, ROWS, {"num_train_epochs": 8}, AWARE),  # as many steps as 5 with label rows
    "label rows": Variant(UNIFIED, ROWS, forms=AWARE, rows=gandalf),
    "in the batch": Variant(in_batch((0.5, 0.5)), ROWS, forms=AWARE),
    "in the batch, similarity": Variant(in_batch((0.5, 0.5), 0.5), ROWS, REFRESH, AWARE),
    "in the batch, labels against labels": Variant(in_batch((0.5, 0.0)), ROWS, forms=AWARE),
    "in the batch, labels against rows": Variant(in_batch((0.0, 0.5)), ROWS, forms=AWARE),
    "in the batch, weight 0.2": Variant(in_batch((0.2, 0.2)), ROWS, forms=AWARE),
    "in the batch, weight 1": Variant(in_batch((1.0, 1.0)), ROWS, forms=AWARE),
    "label rows, prior 2": Variant(UNIFIED, ROWS, forms=AWARE, rows=partial(gandalf, make_targets=SHRUNK)),
    "label rows, symmetric (GLaS)": Variant(
        UNIFIED, ROWS, forms=AWARE, rows=partial(gandalf, make_targets=symmetric_label_rows)
    ),
    "label rows, random walk": Variant(
        UNIFIED, ROWS, forms=AWARE, rows=partial(gandalf, make_targets=random_walk_label_rows)
    ),
    "label rows, 15,000, tail first": Variant(
        UNIFIED, ROWS, forms=AWARE, rows=partial(gandalf, num_label_rows=15_000)
    ),
    "label rows, self alone": Variant(UNIFIED, ROWS, forms=AWARE, rows=partial(gandalf, make_targets=self_label_rows)),
    "nothing but label rows": Variant(UNIFIED, ROWS, forms=AWARE, rows=partial(gandalf, with_train_rows=False)),
}
GANDALF_BLIND = {
    "off": Variant(CLASSIFIER_ONLY, FREE, forms=BLIND),
    "off, 8 epochs": Variant(CLASSIFIER_ONLY, FREE, {"num_train_epochs": 8}, BLIND),
    "label rows": Variant(CLASSIFIER_ONLY, FREE, forms=BLIND, rows=gandalf),
    "in the batch": Variant(in_batch((0.0, 0.5), encoder_weight=0.0), FREE, forms=BLIND),
    "label rows, self alone": Variant(
        CLASSIFIER_ONLY, FREE, forms=BLIND, rows=partial(gandalf, make_targets=self_label_rows)
    ),
    "label rows, prior 2": Variant(CLASSIFIER_ONLY, FREE, forms=BLIND, rows=partial(gandalf, make_targets=SHRUNK)),
    "nothing but label rows": Variant(
        CLASSIFIER_ONLY, FREE, forms=BLIND, rows=partial(gandalf, with_train_rows=False)
    ),
}


def random_pieces() -> dict:
    """WordLlama's tokenizer, and vectors that say nothing."""
    tokenizer, vectors = hf_xmc.wordllama_embedding()
    return {"start": (tokenizer, torch.randn(vectors.shape, generator=torch.Generator().manual_seed(SEED)))}


CLASSIFIER_HALF = (hf_xmc.SearchForm(1.0, False),)
START = {
    "preset": Variant(UNIFIED, ROWS, forms=CLASSIFIER_HALF),
    "vectors of pieces at random": Variant(UNIFIED, ROWS, forms=CLASSIFIER_HALF, table=random_pieces),
    "pieces not weighed by frequency": Variant(UNIFIED, ROWS, forms=CLASSIFIER_HALF, table=lambda: {"smoothing": 1e9}),
    "no vectors of pairs": Variant(UNIFIED, ROWS, forms=CLASSIFIER_HALF, table=lambda: {"min_pair_count": 10**9}),
    "pairs from 2 on": Variant(UNIFIED, ROWS, forms=CLASSIFIER_HALF, table=lambda: {"min_pair_count": 2}),
    "no token dropout": Variant(UNIFIED, ROWS, {"token_dropout": 0.0}, CLASSIFIER_HALF),
    "128 numbers": Variant(UNIFIED, ROWS, forms=CLASSIFIER_HALF, table=lambda: {"dimension": 128}),
    "512 numbers": Variant(UNIFIED, ROWS, forms=CLASSIFIER_HALF, table=lambda: {"dimension": 512}),
}
TABLES = {
    "losses": LOSSES,
    "losses_half": LOSSES_HALF_AS_SHARP,
    "unidec": UNIDEC,
    "gandalf": GANDALF,
    "gandalf_blind": GANDALF_BLIND,
    "start": START,
}
HALVES = {
    "dual-encoder half": hf_xmc.SearchForm(0.0),
    "classifier half, cosine": hf_xmc.SearchForm(1.0, True),
    "classifier half, dot product": hf_xmc.SearchForm(1.0, False),
    "published sum": hf_xmc.SearchForm(0.5, True),
}


def train(variant: Variant, data: hf_xmc.XMCDataset, epochs: int) -> hf_xmc.XMCEncoder:
    torch.manual_seed(SEED)
    encoder = hf_xmc.XMCEncoder(
        modules=[static_embedding(data.train["text"][:] + data.labels["text"][:], **variant.table())], device="cpu"
    )
    if variant.classifier is not None:
        encoder.add_classifier(data.num_labels, **variant.classifier)
    with TemporaryDirectory() as folder:
        common = {
            "num_train_epochs": epochs,
            "per_device_train_batch_size": 1024,
            "learning_rate": 1e-2,
            "random_negatives": 1000,
            "token_dropout": TOKEN_DROPOUT,
        }
        if variant.classifier is not None:
            common["classifier_learning_rate"] = 2e-3
        args = hf_xmc.XMCTrainingArguments(
            output_dir=folder, use_cpu=True, seed=SEED, report_to="none", save_strategy="no", logging_strategy="no",
            **(common | variant.training),
        )  # fmt: skip
        hf_xmc.XMCTrainer(encoder, args, variant.rows(data), variant.loss(encoder, data)).train()
    return encoder


def held_out_metrics(
    encoder: hf_xmc.XMCEncoder, held_out: hf_xmc.XMCEvaluator, form: hf_xmc.SearchForm
) -> dict[str, float]:
    encoder.search_form = form
    return held_out.metrics(held_out.predict(encoder)[0])


def forms_of(
    variant: Variant, encoder: hf_xmc.XMCEncoder, held_out: hf_xmc.XMCEvaluator, first: bool
) -> dict[str, hf_xmc.SearchForm]:
    """End of a row's name -> search form; the best on the held-out part, and for the first variant every half."""
    if variant.forms is not None:
        held = {form: held_out_metrics(encoder, held_out, form) for form in variant.forms}
        best = max(variant.forms, key=lambda form: held[form]["precision@1"])
        return {f": u={best.classifier_weight}" if len(held) > 1 else "": best}
    if variant.classifier is None:
        return {"": encoder.search_form}
    tried = [hf_xmc.SearchForm(step / 10, unit) for unit in (True, False) for step in range(11)]
    held = {form: held_out_metrics(encoder, held_out, form) for form in tried}
    best = max(tried, key=lambda form: held[form]["precision@1"])
    rows = ", unit rows" if best.normalize_classifier else ""
    halves = {f": {half}": form for half, form in HALVES.items()} if first else {}
    return {f": fitted, u={best.classifier_weight}{rows}": best} | halves


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def gains_of(test: hf_xmc.XMCEvaluator, ids: np.ndarray, baseline: np.ndarray) -> dict[str, list[float]]:
    """Metric -> gain over the baseline with the ends of its interval."""
    gains = test.intervals(ids, baseline)
    shown = [key for key in (*COLUMNS, "coverage@1", "coverage@5") if key in gains]
    return {key: [round(v, 4) for v in (gains[key].value, gains[key].low, gains[key].high)] for key in shown}


def with_many_labels(test: hf_xmc.XMCEvaluator, ids: np.ndarray) -> dict[str, float]:
    """How many rows have so many labels, and their precision."""
    many = np.diff(test.truth.indptr) >= MANY_LABELS
    judged = xmc_metrics(ids[many], test.truth[many], (1, MANY_LABELS))
    return {"rows": int(many.sum())} | rounded({key: judged[key] for key in ("precision@1", "precision@5")})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of variants; the first is the one compared with")
    parser.add_argument("--output", help="YAML file for the rows")
    return parser.parse_args()


def main() -> None:
    given = parse()
    torch.set_num_threads(1)
    data = hf_xmc.load_lf(given.data_dir)
    development = data.hold_out(0.1, seed=SEED, answerable_only=True)
    held_out, test = hf_xmc.XMCEvaluator(development), hf_xmc.XMCEvaluator(data)
    command = f"python -m benchmarks.quality.ablations {given.table} --data_dir {data.name} --epochs {given.epochs}"
    rows: list[dict[str, Any]] = []
    baseline = None
    for name in given.only or TABLES[given.table]:
        variant = TABLES[given.table][name]
        start = cpu_seconds()
        encoder = train(variant, development, given.epochs)
        spent = cpu_seconds() - start
        for ending, form in forms_of(variant, encoder, held_out, first=baseline is None).items():
            encoder.search_form = form
            ids = test.predict(encoder)[0]
            baseline = ids if baseline is None else baseline
            row = {"name": name + ending, "command": command, "commit": commit()["commit"]}
            row |= {"data": data.name, "seed": SEED, "hardware": hardware(), "epochs": given.epochs}
            row |= {"cpu_seconds": round(spent, 1), "peak_memory_gib": round(peak_memory_gib() or 0.0, 2)}
            row["held_out"] = rounded(held_out.metrics(held_out.predict(encoder)[0]))
            row["test"] = rounded(test.metrics(ids))
            row["gain_over_first"] = gains_of(test, ids, baseline)
            if given.table.startswith("losses"):
                row["test_rows_of_5_labels"] = with_many_labels(test, ids)
            rows.append(row)
            print(f"{row['name']}: {spent:.0f} CPU s, P@1 gain {row['gain_over_first']['precision@1']}", flush=True)
        if given.output:
            Path(given.output).write_text(yaml.safe_dump(rows, sort_keys=False, allow_unicode=True), encoding="utf8")
    for title, part in (("held-out part", "held_out"), ("test split", "test")):
        table = {row["name"]: row[part] for row in rows}
        print(f"\n{data.name}, {title}, percent\n{metrics_table(table, COLUMNS)}")


if __name__ == "__main__":
    main()
