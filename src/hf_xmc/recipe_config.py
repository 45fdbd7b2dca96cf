"""The command line of a recipe: a YAML file, then any ``field=value``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from transformers import HfArgumentParser

from hf_xmc.training_args import XMCTrainingArguments

T = TypeVar("T")


def read_recipe_config(
    recipe_arguments: type[T], description: str, argv: Sequence[str] | None = None
) -> tuple[T, XMCTrainingArguments]:
    """Parse ``--config FILE [--data_dir DIR] [--output_dir DIR] [field=value ...]``.

    Later values win: the fields' defaults, the YAML file, the two options, then ``field=value`` (read as YAML).

    Args:
        recipe_arguments: A dataclass with the recipe's own fields, ``data_dir`` among them.
        description: For ``--help``.
        argv: The command line; None for the process's own.

    Returns:
        The recipe's own fields and the training arguments.

    Raises:
        ValueError: naming a file that is missing or no mapping, or a field that neither class has.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", help="YAML file with fields of the recipe and of XMCTrainingArguments")
    parser.add_argument("--data_dir", help="folder in the LF raw format")
    parser.add_argument("--output_dir", help="folder for the retriever, metrics.json and checkpoints")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="any field, read as YAML")
    given = parser.parse_args(argv)
    values = _read_yaml(given.config) if given.config else {}
    values |= {name: getattr(given, name) for name in ("data_dir", "output_dir") if getattr(given, name)}
    for override in given.overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"expected field=value, got {override!r}")
        values[name] = yaml.safe_load(value)
    known = {f.name for cls in (recipe_arguments, XMCTrainingArguments) for f in fields(cls)}
    if unknown := sorted(set(values) - known):
        own = sorted(f.name for f in fields(recipe_arguments))
        raise ValueError(f"unknown field(s) {unknown}; the recipe has {own} and all fields of XMCTrainingArguments")
    share_cores()
    return HfArgumentParser((recipe_arguments, XMCTrainingArguments)).parse_dict(values)


def share_cores() -> None:
    """Give this process its share of the machine's cores: ``accelerate launch`` leaves each process one thread."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _read_yaml(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError(f"--config {path}: no such file")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf8"))
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: expected a mapping of fields, got {type(values).__name__}")
    return values
