"""Where the gradient of a loss over all labels lies, and what a step costs that encodes only those labels.

    python -m benchmarks.speed.label_table [--data_dir DIR] [--encoder static|minilm] [--epochs N] [--steps N]

Prints the share of the summed norms of dL/dz_j that the labels of the largest norms hold, at the start and after
training with decoupled softmax over all labels, then CPU seconds of a step (forward and backward, one thread) with
every label encoded and with the label table, interleaved.
"""

from __future__ import annotations

import argparse
import time
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F

import hf_xmc
from benchmarks import TINY
from benchmarks.table import Table, add_output, write
from hf_xmc.encoders.static import static_embedding
from hf_xmc.losses import AllLabelsLoss, LabelTableLoss, blockwise
from hf_xmc.losses.pool.targets import to_csr

SHARES = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25)
BATCH = 64


def make_encoder(kind: str, data: hf_xmc.XMCDataset) -> hf_xmc.XMCEncoder:
    if kind == "minilm":
        return hf_xmc.XMCEncoder(hf_xmc.minilm_path(), device="cpu")
    texts = data.train["text"][:] + data.labels["text"][:]
    return hf_xmc.XMCEncoder(modules=[static_embedding(texts, min_pair_count=10**9)], device="cpu")


def gradient_mass(encoder: hf_xmc.XMCEncoder, data: hf_xmc.XMCDataset, scale: float) -> list[float]:
    """Share of the summed gradient norms in the top ``SHARES`` of the labels, positives aside, mean over 8 batches."""
    table = torch.from_numpy(encoder.label_vectors(data.labels["text"][:]))
    shares = []
    for seed in range(8):
        rows = np.random.default_rng(seed).choice(len(data.train), BATCH, replace=False)
        part = data.train.select(rows)
        queries = torch.from_numpy(encoder.query_vectors(part["text"][:])).requires_grad_()
        ids = part["label_ids"][:]
        width = max(map(len, ids))
        padded = torch.tensor([list(row) + [-1] * (width - len(row)) for row in ids])
        positives = to_csr(padded, torch.arange(len(table)))
        norms = torch.zeros(len(table))
        blockwise.decoupled_softmax(queries, F.normalize(table), positives, scale=scale, label_norms=norms)
        norms[positives[1]] = 0
        held = norms.sort(descending=True).values.cumsum(0) / norms.sum()
        shares.append([held[max(1, round(share * len(table))) - 1].item() for share in SHARES])
    return np.mean(shares, axis=0).tolist()


def step_seconds(losses: dict[str, torch.nn.Module], collator: object, data: hf_xmc.XMCDataset, steps: int) -> dict:
    best = dict.fromkeys(losses, np.inf)
    rows = data.training_rows()
    for step in range(steps):
        picked = np.random.default_rng(step).choice(len(rows), BATCH, replace=False)
        batch = collator([rows[int(i)] for i in picked])
        query = {k.removeprefix("query_"): v for k, v in batch.items() if k.startswith("query_")}
        for name, loss in losses.items():
            loss.num_steps = 1  # the making of the table is counted apart
            start = time.process_time()
            loss([dict(query)], batch["label"]).backward()
            best[name] = min(best[name], time.process_time() - start)
            loss.model.zero_grad()
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=str(TINY))
    parser.add_argument("--encoder", choices=["static", "minilm"], default="static")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    add_output(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = hf_xmc.load_lf(given.data_dir)
    labels = data.labels["text"][:]
    encoder = make_encoder(given.encoder, data)
    shares = Table(
        f"Share of the gradient in the labels of largest norm ({data.name}, {len(labels):,} labels, {given.encoder})",
        {"labels": ""} | {f"{share:.2%}": ".3f" for share in SHARES},
    )
    for scale in (10.0, 20.0, 50.0):
        mass = gradient_mass(encoder, data, scale)
        shares.add(f"start, scale {scale:.0f}", *mass)
    if given.encoder == "static":
        with TemporaryDirectory() as folder:
            args = hf_xmc.XMCTrainingArguments(
                output_dir=folder, use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no",
                num_train_epochs=given.epochs, per_device_train_batch_size=512, learning_rate=1e-2,
            )  # fmt: skip
            hf_xmc.XMCTrainer(encoder, args, data, AllLabelsLoss(encoder, labels)).train()
        mass = gradient_mass(encoder, data, 20.0)
        shares.add("trained, scale 20", *mass)

    table = LabelTableLoss(encoder, labels, num_top=256, num_random=64, refresh_steps=10**9)
    start = time.process_time()
    table.refresh(torch.device("cpu"))
    refresh = time.process_time() - start
    collator = hf_xmc.XMCDataCollator(preprocess_fn=encoder[0].preprocess, label_texts=data.label_texts, pool=False)
    losses = {"every label encoded": AllLabelsLoss(encoder, labels), "label table, 256 + 64": table}
    best = step_seconds(losses, collator, data, given.steps)
    exact = best["every label encoded"]
    steps = Table(
        f"A step of {BATCH} rows over all labels",
        {"form": "", "CPU s": ".3f", "x every label": ".3f"},
        about=f"{data.name}, {given.encoder}; best of {given.steps}.",
    )
    for name, seconds in (best | {"making the table, once": refresh}).items():
        steps.add(name, seconds, seconds / exact)
    write(given.output, shares, steps)


if __name__ == "__main__":
    main()
