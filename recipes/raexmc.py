"""RAE-XMC: a dual encoder trained for one search over training rows and labels, whose votes are its predictions.

    accelerate launch recipes/raexmc.py --config recipes/configs/<data set>/raexmc.yaml [--data_dir DIR] [field=value]

Trains with one positive a row, mined negatives and the batch's queries that share no label as negatives, on all but a
held-out part of train (by title key). There it fits how rows and labels vote (lambda, temperature, number of keys) for
a blend of P@1 and PSP@1, then trains again on every row (``refit``) and remembers every row. With ``hold_out=0`` the
votes are fitted leave-one-out. The test split is looked at once, for the model without memory, with it, and with the
memory folded into the label vectors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import PartialState

import hf_xmc
from hf_xmc.runs.config import last_checkpoint, load_data, read_recipe_config, stage_args
from hf_xmc.runs.encoder import start_encoder
from hf_xmc.runs.memory import decide_memory, memory_rows
from hf_xmc.runs.model_card import write_model_card
from hf_xmc.runs.record import RunRecord, metrics_table

HERE = Path(__file__).parent


@dataclass
class RAEXMC:
    """The recipe's own fields; everything else is a field of XMCTrainingArguments."""

    data_dir: str = str(HERE / "data" / "lf-gutenberg-science-tiny")
    fields: list[str] = field(default_factory=list)
    label_fields: list[str] = field(default_factory=list)
    encoder: str = "static"
    max_seq_length: int = 64
    min_pair_count: int = 5
    table_dimension: int | None = None
    scale: float = 20.0
    hold_out: float = 0.1
    refit: bool = True
    memory_psp_weight: float = 0.2


# 1. Settings: the YAML, then the command line.
config, args = read_recipe_config(RAEXMC, __doc__, default=HERE / "configs" / "default" / "raexmc.yaml")
record = RunRecord(asdict(config) | args.to_dict())
state = PartialState()

# 2. Data: the raw folder, and a validation split that no title of the rest stands in.
data, assumed = load_data(config.data_dir, config.fields, config.label_fields)
record.notes += assumed
record.describe(data, config.data_dir)
development = data.hold_out(config.hold_out, seed=args.seed, answerable_only=True) if config.hold_out else data
state.print(data)


# 3. One run of training on a part of the data.
def train(part: hf_xmc.XMCDataset, stage: str) -> hf_xmc.XMCEncoder:
    table = {"min_pair_count": config.min_pair_count, "table_dimension": config.table_dimension}
    encoder = start_encoder(config.encoder, part, max_seq_length=config.max_seq_length, **table)
    loss = hf_xmc.losses.RetrievalAugmentedLoss(encoder, scale=config.scale)
    trainer = hf_xmc.XMCTrainer(model=encoder, args=stage_args(args, stage), train_dataset=part, loss=loss)
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args))
    record.citations = list(encoder.model_card_data.citations.values())
    return encoder


with record.timed("training, held-out part left out" if config.hold_out else "training"):
    encoder = train(development, "held-out")

# 4. How rows and labels vote is chosen on the held-out part, or leave-one-out.
if state.is_main_process:
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
    table = {"without memory": record.test("without memory", test, test.predict(encoder)[0])}
    table |= memory_rows(retriever, test, choice, record)
    retriever.save_pretrained(output)
    record.write(output / "metrics.json", table.get("with memory", table["without memory"]))
    write_model_card(output, "RAE-XMC")
    print(f"\n{data.name}, test split, percent\n{metrics_table(table)}\n\nsaved to {output}")
    print("\n".join(["assumed or chosen:"] * bool(record.notes) + record.notes))
