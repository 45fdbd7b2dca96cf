"""DEXML: a dual encoder trained with decoupled softmax or soft top-k, over a pool or over all labels.

    accelerate launch recipes/dexml.py --config recipes/configs/<data set>/dexml.yaml [--data_dir DIR] [field=value]

``labels: all`` encodes every label in every step, sharded over the processes (dist-de-all); ``labels: pool`` takes the
batch's positives with ``hard_negatives`` mined and ``random_negatives`` random ones a step (dist-de-hnm); ``labels:
table`` has a denominator of all labels of which a step encodes the highest and a few random ones, the others as they
were some steps ago, where labels are too many to encode at every step and a pool is too small. With ``hold_out`` above
0 a part of train, by title key, is left out first: where epochs are evaluated the best there is kept. With ``refit``
the encoder is then trained again on every row, for all epochs. A ranker is fitted on the held-out part. The test split
is looked at once. With ``memory`` training rows vote beside the labels in a line of their own (RAE-XMC), and tell the
ranker more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

import hf_xmc
from hf_xmc import losses
from hf_xmc.encoders.start import start_encoder
from hf_xmc.losses import blockwise
from hf_xmc.runs.method import MethodFields, MethodRun

TOP_K = 5
LABELS = ("pool", "all", "table")
ALL_LABELS = {
    "decoupled_softmax": blockwise.decoupled_softmax,
    "soft_top_k": partial(blockwise.soft_top_k, k=TOP_K),
    "info_nce": blockwise.info_nce,
    "binary_cross_entropy": blockwise.binary_cross_entropy,
}
POOL = {
    "decoupled_softmax": losses.DecoupledSoftmaxLoss,
    "soft_top_k": partial(losses.SoftTopKLoss, k=TOP_K),
    "info_nce": losses.InfoNCELoss,
    "binary_cross_entropy": losses.BinaryCrossEntropyLoss,
}


@dataclass
class DEXML(MethodFields):
    """The recipe's own fields; everything else is a field of XMCTrainingArguments."""

    labels: str = "pool"
    loss: str = "decoupled_softmax"
    scale: float = 20.0
    mini_batch_size: int = 256

    def __post_init__(self) -> None:
        """Refuse what is no choice, and a loss that the label table does not have."""
        for name, value, known in (("labels", self.labels, LABELS), ("loss", self.loss, tuple(POOL))):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; expected one of {known}")
        if self.labels == "table" and self.loss != "decoupled_softmax":
            raise ValueError(f"labels: table is decoupled softmax, got loss: {self.loss}; take labels: pool or all")


def make_model(config: DEXML, part: hf_xmc.XMCDataset) -> tuple[hf_xmc.XMCEncoder, nn.Module, hf_xmc.XMCDataset]:
    """The encoder before training, its loss, and the rows that it learns from."""
    encoder = start_encoder(config.encoder, part, max_seq_length=config.max_seq_length)
    if config.labels == "pool":
        return encoder, POOL[config.loss](encoder, scale=config.scale), part
    texts = part.labels["text"][:]
    if config.labels == "table":
        return encoder, losses.LabelTableLoss(encoder, texts, scale=config.scale), part
    function, size = ALL_LABELS[config.loss], config.mini_batch_size
    return encoder, losses.AllLabelsLoss(encoder, texts, function, scale=config.scale, mini_batch_size=size), part


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe with a command line, the process's own where none is given."""
    # 1. Settings and data: the YAML, then the command line; a held-out part that no title of the rest stands in.
    run = MethodRun(DEXML, __file__, __doc__, argv)
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
        print(run.finish("DEXML", "DEXML", encoder, ranker))


if __name__ == "__main__":
    main()
