"""The command line of a recipe: a YAML file, then any ``field=value``."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import yaml
from transformers import HfArgumentParser, IntervalStrategy
from transformers.trainer import TRAINER_STATE_NAME

from hf_xmc.data.catalog import find_benchmark
from hf_xmc.data.dataset import XMCDataset
from hf_xmc.data.lf.load import load_lf
from hf_xmc.runs.settings import checked_settings
from hf_xmc.training.arguments import XMCTrainingArguments

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
logger = logging.getLogger(__name__)


def read_recipe_config(
    recipe_arguments: type[T], description: str, argv: Sequence[str] | None = None, default: str | Path | None = None
) -> tuple[T, XMCTrainingArguments]:
    """Parse ``[--config FILE] [--data_dir DIR] [--output_dir DIR] [field=value ...]``.

    Later values win: the fields' defaults, the YAML file, the two options, then ``field=value`` (read as YAML).

    Args:
        recipe_arguments: A dataclass with the recipe's own fields, ``data_dir`` among them.
        description: For ``--help``.
        argv: The command line; None for the process's own.
        default: YAML file that is read where the command line names none.

    Returns:
        The recipe's own fields and the training arguments.

    Raises:
        ValueError: naming a file that is missing, no YAML or no mapping, a field that neither class has, or a value
            of another type or no choice of it.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", help="YAML file with fields of the recipe and of XMCTrainingArguments")
    parser.add_argument("--data_dir", help="folder in the LF raw format")
    parser.add_argument("--output_dir", help="folder for the retriever, metrics.json and checkpoints")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="any field, read as YAML")
    given = parser.parse_intermixed_args(argv)  # fields may stand on both sides of an option
    config = given.config or default
    values = _read_yaml(config) if config else {}
    values |= {name: getattr(given, name) for name in ("data_dir", "output_dir") if getattr(given, name)}
    for override in given.overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"expected field=value, got {override!r}")
        values[name] = _parsed(value, f"{name}={value}")
    # YAML reads a bare no as false.
    values |= {name: "no" for name, value in values.items() if str(name).endswith("_strategy") and value is False}
    classes: Any = (recipe_arguments, XMCTrainingArguments)
    known = {f.name for cls in classes for f in fields(cls)}
    if unknown := sorted(str(name) for name in values if name not in known):
        own = sorted(f.name for f in fields(recipe_arguments))
        raise ValueError(f"unknown field(s) {unknown}; the recipe has {own} and all fields of XMCTrainingArguments")
    values = checked_settings(values, classes)
    share_cores()
    try:
        return cast("tuple[T, XMCTrainingArguments]", HfArgumentParser(classes).parse_dict(values))
    except (TypeError, KeyError, AttributeError, RuntimeError, ImportError, OSError) as error:
        raise ValueError(f"these settings make no training arguments: {type(error).__name__} {error}") from error


def load_data(folder: str | Path, fields: Sequence[str], label_fields: Sequence[str]) -> tuple[XMCDataset, list[str]]:
    """Load an LF folder by the fields a config names; where it names none, by those of the benchmark of that name.

    Args:
        folder: Whatever ``load_lf`` takes.
        fields: Raw fields of a query text; empty for the benchmark's, or for title and content where there is none.
        label_fields: Raw fields of a label text; empty for the benchmark's, or for the title.

    Returns:
        The data set, and what was assumed, in words.
    """
    known = find_benchmark(Path(folder).name)
    taken = tuple(fields) or (known.fields if known else ("title", "content"))
    label_taken = tuple(label_fields) or (known.label_fields if known else ("title",))
    assumed = []
    if not fields and not known:
        assumed.append(f"fields: a query text is {' + '.join(taken)}; another choice is fields=[...]")
    if not label_fields and not known:
        assumed.append(
            f"label_fields: a label text is {' + '.join(label_taken)}; another choice is label_fields=[...]"
        )
    return load_lf(folder, fields=taken, label_fields=label_taken), assumed


def stage_args(args: XMCTrainingArguments, stage: str, *, evaluated: bool = True) -> XMCTrainingArguments:
    """The arguments of one of a recipe's trainings: its checkpoints lie in ``<output_dir>/checkpoints/<stage>``.

    Without rows to evaluate on, ``evaluated`` false, no epoch is, and the last is kept.
    """
    own = copy.copy(args)
    own.output_dir = str(Path(str(args.output_dir)) / "checkpoints" / stage)
    if not evaluated:
        own.eval_strategy, own.load_best_model_at_end = IntervalStrategy.NO, False
    return own


def last_checkpoint(args: XMCTrainingArguments) -> str | None:
    """The checkpoint a run starts from.

    Returns:
        None without ``resume_from_checkpoint``; with ``resume_from_checkpoint=true`` the newest in ``output_dir`` that
        was written to its end, or None where there is none yet: a recipe that trains twice may have been killed before
        the second training, or while it wrote.

    Raises:
        ValueError: if ``resume_from_checkpoint`` names a folder, which could belong to only one of two trainings.
    """
    if isinstance(args.resume_from_checkpoint, str):
        raise ValueError(
            f"expected resume_from_checkpoint=true, got {args.resume_from_checkpoint!r}: a run is resumed from the "
            "newest checkpoint in its output_dir"
        )
    if not args.resume_from_checkpoint or not Path(str(args.output_dir)).is_dir():
        return None
    folders = [path for path in Path(str(args.output_dir)).glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if _is_whole(folder):
            return str(folder)
        logger.warning("%s was not written to its end; an older checkpoint is taken", folder)
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Whether it has the trainer's state, which is written last, and wholly."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf8"))
    except (OSError, ValueError):
        return False
    return True


def share_cores() -> None:
    """Give this process its share of the machine's cores: ``accelerate launch`` leaves each process one thread."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _read_yaml(path: str | Path) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError(f"--config {path}: no such file")
    try:
        text = Path(path).read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} cannot be read as UTF-8: {error}") from error
    values = _parsed(text, f"--config {path}")
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: expected a mapping of fields, got {type(values).__name__}")
    return values


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # a date that is none, a key that is a list
        raise ValueError(f"{where} is no YAML: {str(error) or type(error).__name__}") from error
