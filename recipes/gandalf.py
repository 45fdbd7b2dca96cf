"""Gandalf: the texts of the labels are training rows too, with soft targets from how labels stand together.

    accelerate launch recipes/gandalf.py --config recipes/configs/<data>/gandalf.yaml [--data_dir DIR] [field=value]

As published the classifier is blind: a label is nothing but a row of it, searched by its score, and the label rows are
what tells it what labels are called. With ``label_texts`` labels are scored by their texts too, as in unidec.py.
``label_rows: false`` leaves the label rows out; with ``in_batch_weight`` the labels of a batch's pool are queries as
well, with the same targets and nothing more encoded. A ranker is fitted on a held-out part of train (by title key).
With ``refit`` the encoder is then trained again on every row. The test split is looked at once.

What did not help (recipes/README.md has the rows): label rows beside ``label_texts``, and for the targets shrunk
counts, symmetric counts or walks in place of counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

import hf_xmc
from hf_xmc.data.gandalf import label_row_statistics, label_rows, with_label_rows
from hf_xmc.encoders.start import start_encoder
from hf_xmc.runs.method import MethodFields, MethodRun

FORM, BLIND = (hf_xmc.SearchForm(weight, normalize_classifier=False) for weight in (0.5, 1.0))


@dataclass
class Gandalf(MethodFields):
    """The recipe's own fields; everything else is a field of XMCTrainingArguments."""

    dropout: float = 0.1
    scale: float = 20.0
    label_texts: bool = False
    label_rows: bool = True
    in_batch_weight: float = 0.0
    delta: float = 0.1


def make_model(config: Gandalf, part: hf_xmc.XMCDataset) -> tuple[hf_xmc.XMCEncoder, nn.Module, hf_xmc.XMCDataset]:
    """The encoder before training, its loss, and the rows that it learns from."""
    encoder = start_encoder(config.encoder, part, max_seq_length=config.max_seq_length)
    encoder.add_classifier(part.num_labels, None, residual=config.label_texts, dropout=config.dropout)
    encoder.search_form = FORM if config.label_texts else BLIND
    targets = label_rows(part.to_csr("train"), config.delta)
    encoder_weight, terms = (0.5 if config.label_texts else 0.0), None
    if config.in_batch_weight:
        between_texts = config.in_batch_weight if config.label_texts else 0.0
        terms = hf_xmc.losses.LabelTerms(targets, between_texts, config.in_batch_weight)
    loss = hf_xmc.losses.UnifiedLoss(encoder, scale=config.scale, encoder_weight=encoder_weight, label_terms=terms)
    return encoder, loss, with_label_rows(part, targets) if config.label_rows else part


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe with a command line, the process's own where none is given."""
    # 1. Settings and data: the YAML, then the command line; a held-out part that no title of the rest stands in.
    run = MethodRun(Gandalf, __file__, __doc__, argv)
    config, truth = run.config, run.data.to_csr("train")
    run.state.print(run.data, label_row_statistics(truth, label_rows(truth, config.delta)), sep="\n")

    # 2. Training on all but the held-out part.
    make = partial(make_model, config)
    encoder = run.train(make)

    # 3. The ranker is fitted on the held-out part.
    ranker = run.fit_ranker(encoder) if run.is_main else None

    # 4. Training on every row.
    if run.held_out is not None and config.refit:
        encoder = run.refit(make)

    # 5. One look at the test split, and one file with everything that was measured.
    if run.is_main:
        print(run.finish("Gandalf", "Gandalf", encoder, ranker))


if __name__ == "__main__":
    main()
