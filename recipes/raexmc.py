"""RAE-XMC: a dual encoder trained for one search over training rows and labels, whose votes are its predictions.

    accelerate launch recipes/raexmc.py --config recipes/configs/<data set>/raexmc.yaml [--data_dir DIR] [field=value]

Trains with one positive a row, mined negatives and the batch's queries that share no label as negatives, on all but a
held-out part of train (by title key), where a ranker is fitted; then trains again on every row (``refit``) and
remembers every row. The test split is looked at once: for the labels alone, for the votes of rows and labels, which is
the published method, and for the ranker, which weighs both with all else that is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

import hf_xmc
from hf_xmc.encoders.start import start_encoder
from hf_xmc.runs.method import MethodFields, MethodRun


@dataclass
class RAEXMC(MethodFields):
    """The recipe's own fields; everything else is a field of XMCTrainingArguments."""

    scale: float = 20.0


def make_model(config: RAEXMC, part: hf_xmc.XMCDataset) -> tuple[hf_xmc.XMCEncoder, nn.Module, hf_xmc.XMCDataset]:
    """The encoder before training, its loss, and the rows that it learns from."""
    encoder = start_encoder(config.encoder, part, max_seq_length=config.max_seq_length)
    return encoder, hf_xmc.losses.RetrievalAugmentedLoss(encoder, scale=config.scale), part


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe with a command line, the process's own where none is given."""
    # 1. Settings and data: the YAML, then the command line; a held-out part that no title of the rest stands in.
    run = MethodRun(RAEXMC, __file__, __doc__, argv)
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
        print(run.finish("without memory", "RAE-XMC", encoder, ranker))


if __name__ == "__main__":
    main()
