"""A run of a method: trained on all but a held-out part, where choices are made, then on every row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn
from transformers import set_seed

from hf_xmc.data.dataset import XMCDataset
from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.evaluation.evaluator import XMCEvaluator
from hf_xmc.retriever.retriever import Retriever
from hf_xmc.runs.config import last_checkpoint, stage_args
from hf_xmc.runs.memory import MemoryChoice, decide_memory, memory_rows
from hf_xmc.runs.run import EncoderFields, Run
from hf_xmc.training.trainer import XMCTrainer

MakeModel = Callable[[XMCDataset], tuple[XMCEncoder, nn.Module, XMCDataset]]


@dataclass
class MethodFields(EncoderFields):
    """The fields of a recipe that trains twice.

    Args:
        refit: Whether the encoder is trained again on every row, with what was chosen on the held-out part.
    """

    refit: bool = True


Fields = TypeVar("Fields", bound=MethodFields)


class MethodRun(Run[Fields]):
    """A :class:`~hf_xmc.runs.run.Run` with a held-out part of train, a refit and one look at the test split.

    Attributes:
        development: ``data`` whose ``test`` are held-out rows of ``train``, drawn by title key; ``data`` itself
            where ``hold_out`` is 0.
        held_out: The evaluator of these rows; None where there are none.
    """

    def __init__(
        self, settings: type[Fields], recipe: str, description: str | None, argv: Sequence[str] | None = None
    ) -> None:
        super().__init__(settings, recipe, description, argv)
        self.development = self.data
        self.held_out: XMCEvaluator | None = None
        if self.config.hold_out:
            self.development = self.data.hold_out(self.config.hold_out, seed=self.args.seed, answerable_only=True)
            self.held_out = XMCEvaluator(self.development, name="held_out")

    def train(self, make: MakeModel) -> XMCEncoder:
        """Train on all but the held-out part; where epochs are evaluated, the best one there is kept.

        Args:
            make: A part of the data -> an encoder to train, its loss, and the rows to train on.
        """
        with self.record.timed("training, held-out part left out" if self.held_out else "training"):
            return self._train(make, self.development, "held-out", self.held_out)

    def refit(self, make: MakeModel) -> XMCEncoder:
        """Train a new encoder on every row, for all epochs, when every process has come here."""
        self.state.wait_for_everyone()
        with self.record.timed("training"):
            return self._train(make, self.data, "all-rows", None)

    def choose_memory(self, encoder: XMCEncoder) -> MemoryChoice:
        """How rows and labels vote: fitted on the held-out part, or leave-one-out where there is none."""
        return decide_memory(encoder, self.development, self.record, held_out=self.held_out is not None)

    def test(
        self, line: str, encoder: XMCEncoder, choice: MemoryChoice | None = None
    ) -> tuple[Retriever, dict[str, dict[str, float]]]:
        """Look at the test split, once, for every form at the same time.

        Args:
            line: Name of the results of the encoder by itself.
            encoder: Finished.
            choice: How training rows vote; None where they are not asked.

        Returns:
            The retriever, which remembers the training rows where their votes help, and line of the results ->
            metrics in [0, 1], "with memory" and "folded" among them where there is such a form.
        """
        test = XMCEvaluator(self.data, name="test")
        retriever = Retriever.build(encoder, self.data.labels["text"], show_progress_bar=True)
        table = {line: self.record.test(line, test, test.predict(encoder)[0])}
        if choice is not None:
            table |= memory_rows(retriever, test, choice, self.record)
        return retriever, table

    def _train(self, make: MakeModel, part: XMCDataset, stage: str, evaluator: XMCEvaluator | None) -> XMCEncoder:
        set_seed(self.args.seed)  # here: the trainer does it when the rows of a classifier have been drawn
        encoder, loss, rows = make(part)
        args = stage_args(self.args, stage, evaluated=evaluator is not None)
        trainer = XMCTrainer(model=encoder, args=args, train_dataset=rows, loss=loss, evaluator=evaluator)
        trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args))
        return encoder
