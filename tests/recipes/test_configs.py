"""Every shipped config is one that its recipe, or accelerate, accepts."""

from __future__ import annotations

import importlib
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from results import read_results

from hf_xmc.data.catalog import BENCHMARKS
from hf_xmc.runs.config import read_recipe_config

RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"
CONFIGS = sorted((RECIPES / "configs").glob("*/*.yaml"))
METHODS = ("unidec", "dexml", "raexmc", "gandalf")


def arguments_of(recipe: str) -> type:
    """The recipe's own dataclass."""
    module = importlib.import_module(f"recipes.{recipe}")
    (found,) = (each for each in vars(module).values() if is_dataclass(each) and each.__module__ == module.__name__)
    return found


def recipe_of(config: Path) -> str:
    """unidec of unidec.yaml, and of unidec-minilm.yaml."""
    return config.stem.partition("-")[0]


@pytest.fixture(scope="module")
def recipes() -> dict[str, type]:
    stems = {recipe_of(file) for file in CONFIGS}
    return {stem: arguments_of(stem) for stem in stems}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_recipe_accepts_its_config(file: Path, recipes: dict[str, type], tmp_path: Path) -> None:
    assert is_dataclass(recipes[recipe_of(file)])
    own, args = read_recipe_config(recipes[recipe_of(file)], "", ["--config", str(file), "use_cpu=true"])
    given = yaml.safe_load(file.read_text())
    for name, value in given.items():
        came = getattr(own, name) if hasattr(own, name) else getattr(args, name)
        if name not in ("output_dir", "learning_rate_mapping"):  # a mapping gains the classifier's rate
            assert str(came).removeprefix("SaveStrategy.").lower() in (str(value), str(value).lower()) or came == value
    if "data_dir" in given:
        assert (RECIPES.parent / given["data_dir"]).is_dir()
    assert file.parent.name in given["output_dir"] or file.parent.name == "default" or file.stem == "quickstart"
    if file.parent.name in BENCHMARKS and own.fields:
        known = BENCHMARKS[file.parent.name]
        assert (tuple(own.fields), tuple(own.label_fields)) == (known.fields, known.label_fields)


def test_every_benchmark_has_a_config_for_every_method() -> None:
    have = {(file.parent.name, file.stem) for file in CONFIGS}
    wanted = {(name, method) for name in BENCHMARKS for method in ("dexml", "unidec", "raexmc")}
    # The papers of the other two do not run it.
    assert wanted - have == {("eurlex-4k", "unidec"), ("eurlex-4k", "raexmc")}
    assert {("default", method) for method in METHODS} <= have
    assert {(name, "gandalf") for name in ("lf-gutenberg-science-tiny", "lf-gutenberg-titles")} <= have


@pytest.mark.parametrize("method", METHODS)
def test_every_field_of_a_method_is_set_by_a_config_or_a_row(method: str, recipes: dict[str, type]) -> None:
    own = set(recipes[method].__annotations__)
    given = {name for file in CONFIGS if recipe_of(file) == method for name in yaml.safe_load(file.read_text())}
    commands = [row["command"] for row in read_results()["rows"] if f"recipes/{method}.py" in row["command"]]
    given |= {word.partition("=")[0] for command in commands for word in command.split()}
    assert own and own <= given


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("one_process", "NO"),
        ("multi_gpu", "MULTI_GPU"),
        ("multi_node", "MULTI_GPU"),
        ("fsdp", "FSDP"),
        ("deepspeed", "DEEPSPEED"),
    ],
)
def test_accelerate_loads_its_configs(name: str, kind: str) -> None:
    file = RECIPES / "accelerate_configs" / f"{name}.yaml"
    config = load_config_from_file(str(file))
    assert config.distributed_type == kind
    assert config.num_machines == (2 if name == "multi_node" else 1)
    # What nobody has run says so.
    assert ("ntested" in file.read_text()) == (name != "one_process")
    assert {f.stem for f in file.parent.glob("*.yaml")} == {
        "one_process",
        "multi_gpu",
        "multi_node",
        "fsdp",
        "deepspeed",
    }
