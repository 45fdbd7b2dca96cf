"""UniDEC: dual encoder and classifier trained together, searched as one index.

    accelerate launch recipes/unidec.py --config recipes/configs/<data set>/unidec.yaml [--data_dir DIR] [field=value]

Trains on all but a held-out part of train (by title key), fits there how the two halves are weighed, how long the rows
of frequent labels, and of labels that are training rows themselves, should be, and what probabilities answers have;
then, with ``refit``, trains again on every row with those settings. The test split is looked at once, for every form
at the same time. With ``classifier: false`` it is DePSL; with ``memory`` training rows vote beside the labels
(RAE-XMC), as fitted on the held-out part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

import hf_xmc
from hf_xmc.encoders.start import start_encoder
from hf_xmc.evaluation import RowLengths, fit_row_lengths, fit_search_form, lengthen_rows
from hf_xmc.runs.calibration import calibrate_held_out
from hf_xmc.runs.method import MethodFields, MethodRun
from hf_xmc.runs.record import metrics_table

HALVES = {0.0: "dual encoder", 1.0: "classifier", 0.5: "both alike"}


@dataclass
class UniDEC(MethodFields):
    """The recipe's own fields; everything else is a field of XMCTrainingArguments."""

    table_dimension: int | None = None
    classifier: bool = True
    dimension: int | None = None
    encoder_dimension: int | None = None
    residual: bool = True
    dropout: float = 0.1
    scale: float = 20.0
    symmetric_weight: float = 0.0
    bce_weight: float = 0.0
    memory: bool = True


def make_model(config: UniDEC, part: hf_xmc.XMCDataset) -> tuple[hf_xmc.XMCEncoder, nn.Module, hf_xmc.XMCDataset]:
    """The encoder before training, its loss, and the rows that it learns from."""
    encoder = start_encoder(
        config.encoder, part, max_seq_length=config.max_seq_length, table_dimension=config.table_dimension
    )
    if config.classifier:
        encoder.add_classifier(
            part.num_labels,
            config.dimension,
            encoder_dimension=config.encoder_dimension,
            residual=config.residual,
            dropout=config.dropout,
        )
    weights = {"symmetric_weight": config.symmetric_weight, "bce_weight": config.bce_weight}
    return encoder, hf_xmc.losses.UnifiedLoss(encoder, scale=config.scale, **weights), part


def fit_halves(run: MethodRun[UniDEC], encoder: hf_xmc.XMCEncoder) -> tuple[hf_xmc.SearchForm, RowLengths]:
    """What is best on the held-out part, where the rows are lengthened so; all that was tried is printed."""
    with run.record.timed("fitting"):
        form, tried = fit_search_form(encoder, run.held_out)
        lengths, lengthened = fit_row_lengths(encoder, run.held_out)
        lengthen_rows(encoder, run.development, lengths)
    table = {
        f"{name}{unit_rows(form_tried)}": metrics
        for form_tried, metrics in tried.items()
        for weight, name in HALVES.items()
        if form_tried.classifier_weight == weight
    }
    table |= {f"fitted: {form.classifier_weight}{unit_rows(form)}": tried[form], "rows lengthened": lengthened}
    run.record.notes.append(f"row lengths: {lengths}")
    run.record.metrics |= {f"held out: {name}": metrics for name, metrics in table.items()}
    print(f"\n{run.data.name}, held-out part, percent\n{metrics_table(table)}\n")
    return form, lengths


def unit_rows(form: hf_xmc.SearchForm) -> str:
    """The end of the name of a form whose classifier rows have unit length."""
    return ", unit rows" if form.normalize_classifier else ""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe with a command line, the process's own where none is given."""
    # 1. Settings and data: the YAML, then the command line; a held-out part that no title of the rest stands in.
    run = MethodRun(UniDEC, __file__, __doc__, argv)
    config, name = run.config, "UniDEC" if run.config.classifier else "DePSL"
    if run.held_out is None:
        raise ValueError("hold_out is 0; the two halves are weighed on a held-out part, for example hold_out=0.1")
    run.state.print(run.data)

    # 2. Training on all but the held-out part.
    make = partial(make_model, config)
    encoder = run.train(make)

    # 3. Search form, row lengths, memory and probabilities are chosen on the held-out part.
    form, lengths, choice, calibration = encoder.search_form, RowLengths(), None, None
    if run.is_main:
        if config.classifier:
            form, lengths = fit_halves(run, encoder)
        if config.memory:
            choice = run.choose_memory(encoder)
            print(choice)
        calibration = calibrate_held_out(encoder, run.development, choice and choice.form, run.record)
        if calibration is not None:
            print(calibration.report)

    # 4. Training on every row, with what was chosen.
    if config.refit:
        encoder = run.refit(make)
        if run.is_main:
            with run.record.timed("training"):
                lengthen_rows(encoder, run.data, lengths)
    encoder.search_form = form

    # 5. One look at the test split, and one file with everything that was measured.
    if run.is_main:
        retriever, table = run.test(name, encoder, choice)
        retriever.calibration = calibration
        run.save(retriever, table.get("with memory", table[name]), name)
        print(f"\n{run.data.name}, test split, percent\n{metrics_table(table)}\n\n{run.closing()}")


if __name__ == "__main__":
    main()
