"""UniDEC: dual encoder and classifier trained together, searched as one index.

    accelerate launch recipes/unidec.py --config recipes/configs/<data set>/unidec.yaml [--data_dir DIR] [field=value]

Trains on all but a held-out part of train (by title key), and fits there how everything known about a label makes the
probability that it is right (the ranker); then, with ``refit``, trains again on every row. The test split is looked at
once, for every way of answering at the same time. With ``classifier: false`` it is DePSL; with ``memory`` training
rows vote beside the labels (RAE-XMC) in a line of their own, and tell the ranker more.

Tried without gain beside the ranker: a weight of the two halves and the lengths of rows fitted on held-out rows, which
it learns by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

import hf_xmc
from hf_xmc.encoders.start import start_encoder
from hf_xmc.runs.method import MethodFields, MethodRun

FORM = hf_xmc.SearchForm(0.5, normalize_classifier=False)


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
        encoder.search_form = FORM
    weights = {"symmetric_weight": config.symmetric_weight, "bce_weight": config.bce_weight}
    return encoder, hf_xmc.losses.UnifiedLoss(encoder, scale=config.scale, **weights), part


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe with a command line, the process's own where none is given."""
    # 1. Settings and data: the YAML, then the command line; a held-out part that no title of the rest stands in.
    run = MethodRun(UniDEC, __file__, __doc__, argv)
    name = "UniDEC" if run.config.classifier else "DePSL"
    run.state.print(run.data)

    # 2. Training on all but the held-out part.
    make = partial(make_model, run.config)
    encoder = run.train(make)

    # 3. The ranker is fitted on the held-out part.
    ranker = run.fit_ranker(encoder) if run.is_main else None

    # 4. Training on every row.
    if run.held_out is not None and run.config.refit:
        encoder = run.refit(make)

    # 5. One look at the test split, and one file with everything that was measured.
    if run.is_main:
        print(run.finish(name, name, encoder, ranker))


if __name__ == "__main__":
    main()
