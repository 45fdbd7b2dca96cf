"""One rank of test_train_and_resume.py: trained twice, evaluated each epoch, the best one kept."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from toys import make_bert_encoder, make_static_encoder, make_words_data

from hf_xmc import XMCEvaluator, XMCTrainer, XMCTrainingArguments, losses

out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
# Before the arguments: they join the ranks, and then the first one alone writes an encoder.
encoders = {"static": make_static_encoder(), "classifier": make_bert_encoder(out / f"bert{rank}")}
encoders["classifier"].add_classifier(17, 8)
data, record = make_words_data(), {}
for kind, encoder in encoders.items():
    args = XMCTrainingArguments(
        output_dir=str(out / kind), use_cpu=True, report_to="none", disable_tqdm=True, learning_rate=1e-2,
        num_train_epochs=3, per_device_train_batch_size=8, per_device_eval_batch_size=5, eval_strategy="epoch",
        save_strategy="epoch", load_best_model_at_end=True,
    )  # fmt: skip
    loss = losses.UnifiedLoss(encoder) if kind == "classifier" else losses.DecoupledSoftmaxLoss(encoder)
    trainer = XMCTrainer(encoder, args, data, loss, eval_dataset=data, evaluator=XMCEvaluator(data))
    losses_of_runs = [trainer.evaluate()["eval_loss"]]
    for _ in range(2):
        trainer.train()
        losses_of_runs.append(trainer.evaluate()["eval_loss"])
    record[kind] = {
        "world_size": dist.get_world_size(),
        "losses": losses_of_runs,
        "best": trainer.state.best_metric,
        "optimizer": type(trainer.optimizer.optimizer).__name__,
        "wrapped": trainer.model_wrapped is not encoder,
        "weights": sum(float(p.double().abs().sum()) for p in encoder.parameters()),
    }
(out / f"rank{rank}.json").write_text(json.dumps(record))
dist.destroy_process_group()
