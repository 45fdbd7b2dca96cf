"""Settings are checked before any data is read, and a field of another type is named."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_xmc.runs import run as runs
from hf_xmc.runs.config import read_recipe_config
from hf_xmc.runs.run import EncoderFields, Run


@dataclass
class Own(EncoderFields):
    scale: float = 20.0
    classifier: bool = True
    dimension: int | None = None
    space: dict = field(default_factory=dict)


def read(*words: str) -> tuple[Own, Any]:
    return read_recipe_config(Own, "", ["use_cpu=true", "output_dir=o", *words])


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-3", "1.e-3", "10e-4", "0.001", "1.0e-3"])
def test_every_way_to_write_a_number_is_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"learning_rate: {text}\nscale: {text}\n")
    own, args = read("--config", str(tmp_path / "c.yaml"))
    assert args.learning_rate == own.scale == 1e-3
    assert read(f"learning_rate={text}")[1].learning_rate == 1e-3


def test_whole_numbers_are_whole() -> None:
    own, args = read("per_device_train_batch_size=1e2", "dimension=8.0", "num_train_epochs=3", "scale=7")
    assert (args.per_device_train_batch_size, own.dimension, args.num_train_epochs, own.scale) == (100, 8, 3, 7)
    assert type(args.per_device_train_batch_size) is type(own.dimension) is int
    assert read("dimension=null")[0].dimension is None


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("num_train_epochs=three", "a number"),
        ("learning_rate=fast", "a number"),
        ("learning_rate=true", "a number"),
        ("learning_rate=.nan", "a number"),
        ("learning_rate=[1e-3]", "a number"),
        ("learning_rate=null", "a number"),
        ("per_device_train_batch_size=1.5", "a whole number"),
        ("per_device_train_batch_size=true", "a whole number"),
        ("positives_per_row='3'", "a whole number or null"),
        ("dimension=wide", "a whole number or null"),
        ("classifier='false'", "true or false"),
        ("classifier=1", "true or false"),
        ("classifier=null", "true or false"),
        ("fields=title", r"a list, \[a, b\]"),
        ("fields={title: 1}", r"a list, \[a, b\]"),
        ("fields=[1, 2]", r"a list, \[a, b\]"),
        ("space=[1]", r"a mapping, \{a: 1\}"),
        ("encoder=16", "a string"),
        ("encoder=[minilm]", "a string"),
        ("data_dir=2024", "a string"),
        ("fsdp=16", "a string or null"),
        ("eval_strategy=16", "a string"),
        ("prompts=16", "a string or null or a mapping"),
        ("load_best_model_at_end=yes please", "true or false"),
    ],
)
def test_a_value_of_another_type_is_named(word: str, expected: str, tmp_path: Path) -> None:
    name, _, value = word.partition("=")
    with pytest.raises(ValueError, match=f"^{name} is .*; expected {expected}"):
        read(word)
    (tmp_path / "c.yaml").write_text(f"{name}: {value}\n")
    with pytest.raises(ValueError, match=f"^{name} is .*; expected {expected}"):
        read("--config", str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    "word", ["eval_strategy=sometimes", "optim=nonsense", "lr_scheduler_type=up", "save_strategy=x", "batch_sampler=y"]
)
def test_a_value_that_is_no_choice_is_named_with_the_choices(word: str) -> None:
    with pytest.raises(ValueError, match=rf"^{word.split('=')[0]} is '\w+'; expected one of \["):
        read(word)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is no YAML"),
        (b"a: b: c", "is no YAML"),
        (b"\ttab: 1", "is no YAML"),
        (b"!!python/object:os.system a", "is no YAML"),
        (b"a: 2024-99-99", "is no YAML"),
        (b"[" * 5000, "is no YAML"),
        (b"scale: 1\nfields: [h\xf6he]\n", "cannot be read as UTF-8"),
        ("scale: 1\n".encode("utf-16"), "cannot be read as UTF-8"),
        (b"\x00\x01", "is no YAML"),
        (b"- a", "expected a mapping of fields, got list"),
        (b"", "expected a mapping of fields, got NoneType"),
        (b"1: 2\nscael: 3", r"unknown field\(s\) \['1', 'scael'\]"),
        (b"[a]: 2", "is no YAML|unknown field"),
    ],
)
def test_a_file_that_is_no_config_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read("--config", str(tmp_path / "bad.yaml"))
    assert "bad.yaml" in str(error.value) or "unknown field" in str(error.value)
    with pytest.raises(ValueError, match="no such file"):
        read("--config", str(tmp_path))


@pytest.mark.parametrize("word", ["scale=[1", "scale={a: b: c}", "scale=!!python/object:os.system a"])
def test_a_value_that_is_no_yaml_is_named(word: str) -> None:
    with pytest.raises(ValueError, match="scale=.* is no YAML"):
        read(word)


RANGES = ["hold_out=1", "hold_out=-0.1", "max_seq_length=0", "scale=0", "scale=-3", "dimension=0"]


@pytest.mark.parametrize("word", [*RANGES, "num_train_epochs=three", "fields=title", "sclae=3", "hard_negatives=-1"])
def test_no_data_is_read_for_settings_that_are_wrong(
    word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load_data(*args: Any) -> None:
        raise AssertionError("data was read")

    monkeypatch.setattr(runs, "load_data", load_data)
    default = tmp_path / "c.yaml"
    default.write_text("use_cpu: true\noutput_dir: o\n")
    with pytest.raises(ValueError, match=word.split("=")[0]):
        Run(Own, __file__, "", [word], default)
    with pytest.raises(AssertionError, match="data was read"):
        Run(Own, __file__, "", [], default)


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
NAMES = """
    data_dir fields label_fields encoder max_seq_length hold_out scale classifier dimension space learning_rate
    num_train_epochs per_device_train_batch_size fsdp optim report_to warmup_steps eval_strategy save_strategy
    lr_scheduler_type prompts seed bf16 hard_negatives token_dropout max_grad_norm logging_steps learning_rate_mapping
    accelerator_config debug log_level resume_from_checkpoint disable_tqdm batch_sampler router_mapping hub_strategy
    lr_scheduler_kwargs
""".split()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(NAMES), junk)
def test_junk_is_a_setting_or_is_named(name: str, value: Any) -> None:
    try:
        read(f"{name}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10))}")
    except ValueError as error:
        assert len(str(error)) > 10
    else:
        assert not (isinstance(value, float) and math.isnan(value))
