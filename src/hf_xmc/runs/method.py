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
from hf_xmc.hub.ranker_xmc import Ranker
from hf_xmc.retriever.retriever import Retriever
from hf_xmc.runs.config import last_checkpoint, stage_args
from hf_xmc.runs.ranking import fit_held_out, test_lines
from hf_xmc.runs.record import metrics_table
from hf_xmc.runs.run import EncoderFields, Run
from hf_xmc.training.trainer import XMCTrainer

MakeModel = Callable[[XMCDataset], tuple[XMCEncoder, nn.Module, XMCDataset]]


@dataclass
class MethodFields(EncoderFields):
    """The fields of a recipe that trains twice.

    Args:
        refit: Whether the encoder is trained again on every row, with what was chosen on the held-out part.
        memory: Whether training rows are remembered: they vote beside the labels, and tell the ranker more.
    """

    refit: bool = True
    memory: bool = True


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
        self.report = ""
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

    def fit_ranker(self, encoder: XMCEncoder) -> Ranker | None:
        """What orders the labels, fitted on the held-out part and noted; None where there is none."""
        if self.held_out is None:
            self.record.notes.append("ranker: none, as hold_out is 0")
            return None
        ranker, self.report = fit_held_out(encoder, self.development, self.config.memory, self.record)
        return ranker

    def test(
        self, line: str, encoder: XMCEncoder, ranker: Ranker | None
    ) -> tuple[Retriever, dict[str, dict[str, float]]]:
        """Look at the test split, once, for every way of answering at the same time.

        Args:
            line: Name of the results of the encoder by itself.
            encoder: Finished.
            ranker: From :meth:`fit_ranker`.

        Returns:
            The retriever, which remembers the training rows and ranks so, and line of the results -> metrics in
            [0, 1], the encoder's own first, those of the published way under the last name without a dial.
        """
        test = XMCEvaluator(self.data, name="test")
        retriever = Retriever.build(encoder, self.data.labels["text"], show_progress_bar=True)
        return retriever, test_lines(retriever, line, test, ranker, self.config.memory, self.record)

    def finish(self, line: str, method: str, encoder: XMCEncoder, ranker: Ranker | None) -> str:
        """:meth:`test`, and save the retriever with everything that was measured; the table and what to say of it.

        Args:
            line: As in :meth:`test`.
            method: For the title of the card.
            encoder: Finished.
            ranker: From :meth:`fit_ranker`.
        """
        retriever, table = self.test(line, encoder, ranker)
        published = next(name for name in ("with ranker", "with memory", line) if name in table)
        self.save(retriever, table[published], method)
        shown = f"{self.data.name}, test split, percent\n{metrics_table(table)}"
        return "\n".join(["", self.report, "", shown, "", self.closing()])

    def _train(self, make: MakeModel, part: XMCDataset, stage: str, evaluator: XMCEvaluator | None) -> XMCEncoder:
        set_seed(self.args.seed)  # here: the trainer does it when the rows of a classifier have been drawn
        encoder, loss, rows = make(part)
        args = stage_args(self.args, stage, evaluated=evaluator is not None)
        trainer = XMCTrainer(model=encoder, args=args, train_dataset=rows, loss=loss, evaluator=evaluator)
        trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args))
        return encoder
