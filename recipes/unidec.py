"""UniDEC: dual encoder and classifier trained together, searched as one index.

    accelerate launch recipes/unidec.py --config recipes/configs/<data set>/unidec.yaml [--data_dir DIR] [field=value]

Trains on all but a held-out part of train (by title key), fits there how the two halves are weighed and how long the
rows of frequent labels, and of labels that are training rows themselves, should be, then, with ``refit``, trains again
on every row with those settings. The test split is looked at once, for every form at the same time. With ``classifier:
false`` it is DePSL; with ``memory`` training rows vote beside the labels (RAE-XMC), as fitted on the held-out part;
with ``calibrate`` answers have probabilities, fitted there too.

Labels learn from each other (Gandalf) in two ways. With ``label_rows`` their texts are training rows too, those of
``num_label_rows`` labels, rare ones first, or nothing else with ``train_rows: false``. With ``label_encoder_weight``
or ``label_classifier_weight`` those of a batch's pool are queries as well, and nothing more is encoded. Soft targets
are of ``label_graph``: ``counts`` (with ``prior``), ``symmetric``, ``walk`` or ``self``; with ``similarity_weight``
those in the batch are mixed with the encoder's own neighbours, made anew every ``refresh_epochs``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from accelerate import PartialState

import hf_xmc
from hf_xmc.data.gandalf import gandalf, label_rows, random_walk_label_rows, self_label_rows, symmetric_label_rows
from hf_xmc.evaluation.evaluator import fit_search_form
from hf_xmc.evaluation.row_lengths import RowLengths, fit_row_lengths, lengthen_rows
from hf_xmc.runs.calibration import calibrate_held_out
from hf_xmc.runs.config import last_checkpoint, load_data, read_recipe_config, stage_args
from hf_xmc.runs.encoder import start_encoder
from hf_xmc.runs.memory import decide_memory, memory_rows
from hf_xmc.runs.model_card import write_model_card
from hf_xmc.runs.record import RunRecord, metrics_table

HERE = Path(__file__).parent


@dataclass
class UniDEC:
    """The recipe's own fields; everything else is a field of XMCTrainingArguments."""

    data_dir: str = str(HERE / "data" / "lf-gutenberg-science-tiny")
    fields: list[str] = field(default_factory=list)
    label_fields: list[str] = field(default_factory=list)
    encoder: str = "static"
    max_seq_length: int = 64
    min_pair_count: int = 5
    table_dimension: int | None = None
    classifier: bool = True
    dimension: int | None = None
    encoder_dimension: int | None = None
    residual: bool = True
    dropout: float = 0.1
    scale: float = 20.0
    encoder_weight: float = 0.5
    symmetric_weight: float = 0.0
    bce_weight: float = 0.0
    hold_out: float = 0.1
    refit: bool = True
    label_rows: bool = False
    train_rows: bool = True
    num_label_rows: int | None = None
    label_graph: str = "counts"
    delta: float = 0.1
    prior: float = 0.0
    label_encoder_weight: float = 0.0
    label_classifier_weight: float = 0.0
    similarity_weight: float = 0.0
    memory: bool = True
    memory_psp_weight: float = 0.2
    calibrate: bool = True


GRAPHS = {"symmetric": symmetric_label_rows, "walk": random_walk_label_rows, "self": self_label_rows}

# 1. Settings: the YAML, then the command line.
config, args = read_recipe_config(UniDEC, __doc__, default=HERE / "configs" / "default" / "unidec.yaml")
graphs = GRAPHS | {"counts": partial(label_rows, prior=config.prior)}
if config.label_graph not in graphs:
    raise ValueError(f"label_graph is {config.label_graph!r}; expected one of {sorted(graphs)}")
record = RunRecord(asdict(config) | args.to_dict())
state = PartialState()

# 2. Data: the raw folder, and a validation split that no title of the rest stands in.
data, assumed = load_data(config.data_dir, config.fields, config.label_fields)
record.notes += assumed
record.describe(data, config.data_dir)
development = data.hold_out(config.hold_out, seed=args.seed, answerable_only=True)
state.print(data)


# 3. One run of training on a part of the data.
def train(part: hf_xmc.XMCDataset, stage: str) -> hf_xmc.XMCEncoder:
    table = {"min_pair_count": config.min_pair_count, "table_dimension": config.table_dimension}
    encoder = start_encoder(config.encoder, part, max_seq_length=config.max_seq_length, **table)
    if config.classifier:
        encoder.add_classifier(
            part.num_labels,
            config.dimension,
            encoder_dimension=config.encoder_dimension,
            residual=config.residual,
            dropout=config.dropout,
        )
    terms = None
    if config.label_encoder_weight or config.label_classifier_weight:
        neighbours = hf_xmc.losses.LabelNeighbours(part.num_labels) if config.similarity_weight else None
        terms = hf_xmc.losses.LabelTerms(
            graphs[config.label_graph](part.to_csr("train"), config.delta),
            config.label_encoder_weight,
            config.label_classifier_weight,
            neighbours,
            config.similarity_weight,
        )
    loss = hf_xmc.losses.UnifiedLoss(
        encoder,
        scale=config.scale,
        encoder_weight=config.encoder_weight,
        symmetric_weight=config.symmetric_weight,
        bce_weight=config.bce_weight,
        label_terms=terms,
    )
    if config.label_rows:
        part = gandalf(
            part,
            graphs[config.label_graph],
            delta=config.delta,
            num_label_rows=config.num_label_rows,
            with_train_rows=config.train_rows,
        )
    trainer = hf_xmc.XMCTrainer(model=encoder, args=stage_args(args, stage), train_dataset=part, loss=loss)
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args))
    record.citations = list(encoder.model_card_data.citations.values())
    return encoder


with record.timed("training, held-out part left out"):
    encoder = train(development, "held-out")

# 4. How the halves are weighed, and how long the rows are, is chosen on the held-out part.
form, lengths = encoder.search_form, RowLengths()
if config.classifier and state.is_main_process:
    held_out_part = hf_xmc.XMCEvaluator(development, name="held_out")
    with record.timed("fitting"):
        form, tried = fit_search_form(encoder, held_out_part)
        lengths, lengthened = fit_row_lengths(encoder, held_out_part)
        lengthen_rows(encoder, development, lengths)
    halves = {"dual encoder": 0.0, "classifier": 1.0, "both alike": 0.5}
    held_out = {
        f"{name}{', unit rows' * f.normalize_classifier}": metrics
        for f, metrics in tried.items()
        for name, weight in halves.items()
        if f.classifier_weight == weight
    }
    held_out[f"fitted: {form.classifier_weight}{', unit rows' * form.normalize_classifier}"] = tried[form]
    held_out["rows lengthened"] = lengthened
    record.notes.append(f"row lengths: {lengths}")
    print(f"\n{data.name}, held-out part, percent\n{metrics_table(held_out)}\n")
    record.metrics |= {f"held out: {name}": metrics for name, metrics in held_out.items()}
choice = None
if config.memory and state.is_main_process:
    choice = decide_memory(encoder, development, config.memory_psp_weight, record)
calibration = None
if config.calibrate and state.is_main_process:
    with record.timed("fitting"):
        calibration = calibrate_held_out(encoder, development, choice and choice.form, record)
state.wait_for_everyone()
if config.refit:
    with record.timed("training"):
        encoder = train(data, "all-rows")
        if state.is_main_process:
            lengthen_rows(encoder, data, lengths)
encoder.search_form = form

# 5. One look at the test split, and one file with everything that was measured.
if state.is_main_process:
    output = Path(args.output_dir)
    test = hf_xmc.XMCEvaluator(data, name="test")
    retriever = hf_xmc.Retriever.build(encoder, data.labels["text"], show_progress_bar=True)
    name = "UniDEC" if config.classifier else "DePSL"
    table = {name: record.test(name, test, test.predict(encoder)[0])}
    if choice is not None:
        table |= memory_rows(retriever, test, choice, record)
    metrics = table.get("with memory", table[name])
    retriever.calibration = calibration
    retriever.save_pretrained(output)
    record.write(output / "metrics.json", metrics)
    write_model_card(output, name)
    print(f"\n{data.name}, test split, percent\n{metrics_table(table)}\n\nsaved to {output}")
    print("\n".join(["assumed or chosen:"] * bool(record.notes) + record.notes))
