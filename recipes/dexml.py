"""DEXML: a dual encoder trained with decoupled softmax or soft top-k, over a pool or over all labels.

    accelerate launch recipes/dexml.py --config recipes/configs/<data set>/dexml.yaml [--data_dir DIR] [field=value]

``labels: all`` encodes every label in every step, sharded over the processes (dist-de-all); ``labels: pool`` takes the
batch's positives with ``hard_negatives`` mined and ``random_negatives`` random ones a step (dist-de-hnm); ``labels:
table`` has a denominator of all labels of which a step encodes ``num_top`` and ``num_random``, the others as they were
``refresh_steps`` ago at most, where labels are too many to encode at every step and a pool is too small. With
``hold_out`` above 0 a part of train, by title key, is left out first: where epochs are evaluated the best there is
kept. With ``refit`` the encoder is then trained again on every row, for all epochs. The test split is looked at once.
With ``memory`` training rows vote beside the labels in further lines (RAE-XMC), as fitted on the held-out part, or
leave-one-out where there is none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from accelerate import PartialState

import hf_xmc
from hf_xmc.losses import blockwise
from hf_xmc.runs.config import last_checkpoint, load_data, read_recipe_config, stage_args
from hf_xmc.runs.encoder import start_encoder
from hf_xmc.runs.memory import decide_memory, memory_rows
from hf_xmc.runs.model_card import write_model_card
from hf_xmc.runs.record import RunRecord, metrics_table

HERE = Path(__file__).parent
ALL_LABELS = {
    "decoupled_softmax": blockwise.decoupled_softmax,
    "soft_top_k": blockwise.soft_top_k,
    "info_nce": blockwise.info_nce,
    "binary_cross_entropy": blockwise.binary_cross_entropy,
}
POOL = {
    "decoupled_softmax": hf_xmc.losses.DecoupledSoftmaxLoss,
    "soft_top_k": hf_xmc.losses.SoftTopKLoss,
    "info_nce": hf_xmc.losses.InfoNCELoss,
    "binary_cross_entropy": hf_xmc.losses.BinaryCrossEntropyLoss,
}


@dataclass
class DEXML:
    """The recipe's own fields; everything else is a field of XMCTrainingArguments."""

    data_dir: str = str(HERE / "data" / "lf-gutenberg-science-tiny")
    fields: list[str] = field(default_factory=list)
    label_fields: list[str] = field(default_factory=list)
    encoder: str = "static"
    max_seq_length: int = 64
    min_pair_count: int = 5
    table_dimension: int | None = None
    labels: str = field(default="pool", metadata={"choices": ["pool", "all", "table"]})
    loss: str = field(default="decoupled_softmax", metadata={"choices": sorted(POOL)})
    k: int = 5
    scale: float = 20.0
    mini_batch_size: int = 256
    num_top: int = 1024
    num_random: int = 256
    refresh_steps: int = 50
    hold_out: float = 0.1
    refit: bool = True
    memory: bool = True
    memory_psp_weight: float = 0.2


# 1. Settings: the YAML, then the command line.
config, args = read_recipe_config(DEXML, __doc__, default=HERE / "configs" / "default" / "dexml.yaml")
if config.labels == "table" and config.loss != "decoupled_softmax":
    raise ValueError(f"labels: table is decoupled softmax, got loss: {config.loss}; take labels: pool or all")
record = RunRecord(asdict(config) | args.to_dict())
state = PartialState()

# 2. Data: the raw folder, and a validation split that no title of the rest stands in.
data, assumed = load_data(config.data_dir, config.fields, config.label_fields)
record.notes += assumed
record.describe(data, config.data_dir)
development = data.hold_out(config.hold_out, seed=args.seed, answerable_only=True) if config.hold_out else data
state.print(data)


# 3. One run of training on a part of the data; where epochs are evaluated, the best on the held-out part is kept.
def train(part: hf_xmc.XMCDataset, stage: str, evaluator: hf_xmc.XMCEvaluator | None = None) -> hf_xmc.XMCEncoder:
    table = {"min_pair_count": config.min_pair_count, "table_dimension": config.table_dimension}
    encoder = start_encoder(config.encoder, part, max_seq_length=config.max_seq_length, **table)
    extra = {"k": config.k} if config.loss == "soft_top_k" else {}
    if config.labels == "all":
        function = partial(ALL_LABELS[config.loss], **extra)
        loss = hf_xmc.losses.AllLabelsLoss(
            encoder, part.labels["text"][:], function, scale=config.scale, mini_batch_size=config.mini_batch_size
        )
    elif config.labels == "table":
        sampling = {"num_top": config.num_top, "num_random": config.num_random, "refresh_steps": config.refresh_steps}
        loss = hf_xmc.losses.LabelTableLoss(encoder, part.labels["text"][:], config.scale, **sampling)
    else:
        loss = POOL[config.loss](encoder, scale=config.scale, **extra)
    stage_settings = stage_args(args, stage, evaluated=evaluator is not None)
    trainer = hf_xmc.XMCTrainer(encoder, stage_settings, train_dataset=part, loss=loss, evaluator=evaluator)
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args))
    record.citations = list(encoder.model_card_data.citations.values())
    return encoder


evaluator = hf_xmc.XMCEvaluator(development, name="held_out") if config.hold_out else None
with record.timed("training, held-out part left out" if config.hold_out else "training"):
    encoder = train(development, "held-out", evaluator)

# 4. What the held-out part says, and how rows and labels vote there, or leave-one-out.
choice = None
if state.is_main_process:
    if evaluator is not None:
        record.metrics["held out"] = evaluator.metrics(evaluator.predict(encoder)[0])
    if config.memory:
        held_out = bool(config.hold_out)
        choice = decide_memory(encoder, development, config.memory_psp_weight, record, held_out=held_out)
state.wait_for_everyone()
if config.hold_out and config.refit:
    with record.timed("training"):
        encoder = train(data, "all-rows")

# 5. One look at the test split, and one file with everything that was measured.
if state.is_main_process:
    output = Path(args.output_dir)
    test = hf_xmc.XMCEvaluator(data, name="test")
    retriever = hf_xmc.Retriever.build(encoder, data.labels["text"], show_progress_bar=True)
    record.test("DEXML", test, test.predict(encoder)[0])
    if choice is not None:
        memory_rows(retriever, test, choice, record)
    retriever.save_pretrained(output)
    record.write(output / "metrics.json", record.metrics.get("with memory", record.metrics["DEXML"]))
    write_model_card(output, "DEXML")
    print(f"\n{data.name}, percent\n{metrics_table(record.metrics)}\n\nsaved to {output}")
    print("\n".join(["assumed or chosen:"] * bool(record.notes) + record.notes))
