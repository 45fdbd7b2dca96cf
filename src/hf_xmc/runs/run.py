"""A run of a recipe: its settings, data and record at the start, its files and closing lines at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from accelerate import PartialState

from hf_xmc.retriever.retriever import Retriever
from hf_xmc.runs.config import load_data, read_recipe_config
from hf_xmc.runs.model_card import METRICS_FILE, write_model_card
from hf_xmc.runs.ranking import gain_lines
from hf_xmc.runs.record import RunRecord

_SHIPPED = "lf-gutenberg-science-tiny"
_ANY, _SMALLEST = float("inf"), 1e-9
# Field of a recipe -> the least value, and what it must stay below.
_RANGES = {
    "hold_out": (0, 1),
    "max_seq_length": (1, _ANY),
    "dropout": (0, 1),
    "scale": (_SMALLEST, _ANY),
    "mini_batch_size": (1, _ANY),
    "dimension": (1, _ANY),
    "encoder_dimension": (1, _ANY),
    "table_dimension": (1, _ANY),
    "symmetric_weight": (0, 1 + _SMALLEST),
    "bce_weight": (0, _ANY),
    "in_batch_weight": (0, _ANY),
    "num_trials": (1, _ANY),
}


@dataclass
class DataFields:
    """The fields of every recipe.

    Args:
        data_dir: Folder in the LF raw format; empty for the small one that ships beside the recipes.
        fields: Raw fields of a query text; empty for those of the benchmark of the folder's name.
        label_fields: Raw fields of a label text, likewise.
    """

    data_dir: str = ""
    fields: list[str] = field(default_factory=list)
    label_fields: list[str] = field(default_factory=list)

    def check_ranges(self) -> None:
        """Refuse numbers outside the range of the field of that name, before any data is read.

        Raises:
            ValueError: Naming the field.
        """
        for name, (least, below) in _RANGES.items():
            value = getattr(self, name, None)
            if value is not None and not least <= value < below:
                raise ValueError(f"{name} is {value}; expected a number in [{least}, {below})")


@dataclass
class EncoderFields(DataFields):
    """The fields of a recipe that trains.

    Args:
        encoder: A name for :func:`~hf_xmc.encoders.start.start_encoder`.
        max_seq_length: Tokens of a text that count; a static table reads all.
        hold_out: Share of the training rows, by title key, that choices are made on.
    """

    encoder: str = "static"
    max_seq_length: int = 64
    hold_out: float = 0.1


Fields = TypeVar("Fields", bound=DataFields)


class Run(Generic[Fields]):
    """What every recipe does in one way.

    Args:
        settings: Dataclass of the recipe's own fields; all of XMCTrainingArguments come beside them.
        recipe: The recipe's ``__file__``.
        description: The recipe's docstring, for ``--help``.
        argv: A command line without the script's name; None for the process's own.
        default: YAML file that is read where the command line names none; None for the recipe's own in
            ``configs/default`` beside it.

    Attributes:
        config: The recipe's own fields.
        args: The training arguments.
        record: What the run cost and reached so far.
        state: The processes of the run.
        data: The data set.

    Raises:
        ValueError: naming a field that does not exist, or a file that cannot be read.
    """

    def __init__(
        self,
        settings: type[Fields],
        recipe: str,
        description: str | None,
        argv: Sequence[str] | None = None,
        default: Path | None = None,
    ) -> None:
        folder = Path(recipe).parent
        default = default or folder / "configs" / "default" / f"{Path(recipe).stem}.yaml"
        self.config, self.args = read_recipe_config(settings, description or "", argv, default)
        self.config.check_ranges()
        self.config.data_dir = self.config.data_dir or str(folder / "data" / _SHIPPED)
        command = sys.argv if argv is None else [recipe, *argv]
        self.record = RunRecord(asdict(self.config) | self.args.to_dict(), command)
        self.state = PartialState()
        self.data, assumed = load_data(self.config.data_dir, self.config.fields, self.config.label_fields)
        self.record.notes += assumed
        self.record.describe(self.data, self.config.data_dir)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that fits, tests, saves and prints."""
        return self.state.is_main_process

    @property
    def output(self) -> Path:
        """The folder of everything the run leaves; it exists."""
        folder = Path(str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def save(self, retriever: Retriever, metrics: dict[str, float], method: str) -> None:
        """Write the retriever, metrics.json and the model card.

        Args:
            retriever: With everything that is published.
            metrics: Its own on the test split, in [0, 1].
            method: For the title of the card, for example "UniDEC".
        """
        retriever.save_pretrained(self.output)
        self.record.citations = list(retriever.encoder.model_card_data.citations.values())
        self.record.write(self.output / METRICS_FILE, metrics)
        write_model_card(self.output, method)

    def closing(self) -> str:
        """What is printed after the last table: gains and costs, the folder, what was assumed or chosen."""
        notes = ["assumed or chosen:", *self.record.notes] if self.record.notes else []
        return "\n".join([*gain_lines(self.record), f"saved to {self.output}", *notes])
