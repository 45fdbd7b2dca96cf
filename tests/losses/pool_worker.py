"""One rank of test_pool.py: the loss and gradients of a shared batch under DDP, then three steps of the trainer."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch.nn.parallel import DistributedDataParallel
from toys import WORDS, make_words_data

from hf_xmc import XMCDataCollator, XMCEncoder, XMCTrainer, XMCTrainingArguments
from hf_xmc.data.gandalf import label_rows
from hf_xmc.losses import (
    AllLabelsLoss,
    CachedDecoupledSoftmaxLoss,
    DecoupledSoftmaxLoss,
    LabelTerms,
    RetrievalAugmentedLoss,
    UnifiedLoss,
)

out = Path(sys.argv[1])
state = PartialState(cpu=True)
rank, world_size = state.process_index, state.num_processes
assert world_size == int(os.environ["WORLD_SIZE"])
data = make_words_data()


def new_model(dtype: torch.dtype) -> XMCEncoder:
    return XMCEncoder(str(out / "encoder"), device="cpu").to(dtype)


# One batch, split over the ranks; the first half has a row without labels, so that the counts differ.
rows = [data.training_rows()[i] for i in range(10)]
rows[1]["label_ids"] = []
share = np.array_split(np.arange(10), world_size)[rank]
record = {
    "world_size": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
    "rows_with_a_positive": sum(bool(rows[i]["label_ids"]) for i in share),
}
targets = label_rows(data.to_csr("train"))
MAKERS = {
    "pool": lambda model: DecoupledSoftmaxLoss(model),
    "cached": lambda model: CachedDecoupledSoftmaxLoss(model, mini_batch_size=3),
    "all_labels": lambda model: AllLabelsLoss(model, WORDS, mini_batch_size=4),
    "rae": lambda model: RetrievalAugmentedLoss(model),
    "unified": lambda model: UnifiedLoss(model, symmetric_weight=0.5, bce_weight=1.0),
    "label_terms": lambda model: UnifiedLoss(model, scale=2.0, label_terms=LabelTerms(targets, 0.7, 1.3)),
}
for dtype in (torch.float64, torch.float32):
    for kind, make in MAKERS.items():
        model = new_model(dtype)
        if kind in ("unified", "label_terms"):
            torch.manual_seed(0)
            residual = kind == "label_terms"
            model.add_classifier(len(WORDS), 8, encoder_dimension=12, residual=residual, dropout=0)
            model.to(dtype)
            model.label_classifier.double() if dtype is torch.float64 else None
        collator = XMCDataCollator(
            preprocess_fn=model.preprocess,
            label_texts=data.label_texts,
            filters=data.filter_csr("train"),
            pool=kind != "all_labels",
        )
        batch = collator([rows[i] for i in share])
        features = [
            {k.removeprefix(p): v for k, v in batch.items() if k.startswith(p)}
            for p in ("query_", "candidate_")
            if f"{p}input_ids" in batch
        ]
        loss = make(model)
        if world_size > 1:
            loss.model = DistributedDataParallel(model, find_unused_parameters=True)
        value = loss(features, batch["label"])
        value = sum(value.values()) if isinstance(value, dict) else value
        value.backward()
        used = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        gradients = {name: (g.to_dense() if g.is_sparse else g).numpy() for name, g in used.items()}
        np.savez(out / f"{kind}-{dtype}-{rank}.npz", **gradients)
        record[f"{kind}-{dtype}"] = value.item()

# The trainer, with the same global batch of 8 rows; the classifier's rows start differently on each rank.
for kind in ("pool", "unified"):
    model = new_model(torch.float64)
    if kind == "unified":
        torch.manual_seed(rank)
        model.add_classifier(len(WORDS), None, residual=False, dropout=0)
        model.label_classifier.double()
    args = XMCTrainingArguments(
        output_dir=str(out / "run"), use_cpu=True, max_steps=3, per_device_train_batch_size=8 // world_size,
        positives_per_row=None, learning_rate=1e-3, report_to="none", disable_tqdm=True, save_strategy="no",
        dataloader_drop_last=True, max_grad_norm=0.05,
    )  # fmt: skip
    loss = UnifiedLoss(model) if kind == "unified" else DecoupledSoftmaxLoss(model)
    trainer = XMCTrainer(model=model, args=args, train_dataset=data, loss=loss)
    assert trainer.accelerator.num_processes == world_size
    trainer.train()
    np.savez(out / f"trained-{kind}-{rank}.npz", **{n: p.detach().numpy() for n, p in model.named_parameters()})
(out / f"rank{rank}.json").write_text(json.dumps(record))
