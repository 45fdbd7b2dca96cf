from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from toys import TINY

import hf_xmc
from hf_xmc.runs.config import last_checkpoint, load_data, read_recipe_config, stage_args


@dataclass
class Own:
    data_dir: str = "somewhere"
    scale: float = 20.0


def test_later_values_win(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("scale: 30\nlearning_rate: 1.0e-3\nnum_train_epochs: 7\n")
    own, args = read_recipe_config(
        Own,
        "",
        ["--config", str(config), "num_train_epochs=3", "--data_dir", "d", "--output_dir", "o", "use_cpu=true"],
    )
    assert (own.scale, own.data_dir) == (30, "d")
    assert (args.learning_rate, args.num_train_epochs, args.output_dir, args.use_cpu) == (1e-3, 3, "o", True)


def test_a_bare_no_is_a_strategy_and_not_false() -> None:
    assert read_recipe_config(Own, "", ["save_strategy=no"])[1].save_strategy == "no"


def test_wrong_command_lines_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown field\(s\) \['sacle'\]; the recipe has \['data_dir', 'scale'\]"):
        read_recipe_config(Own, "", ["sacle=3"])
    with pytest.raises(ValueError, match="expected field=value, got 'scale'"):
        read_recipe_config(Own, "", ["scale"])
    with pytest.raises(ValueError, match="nowhere.yaml: no such file"):
        read_recipe_config(Own, "", ["--config", "nowhere.yaml"])
    bad = tmp_path / "bad.yaml"
    bad.write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="expected a mapping of fields, got list"):
        read_recipe_config(Own, "", ["--config", str(bad)])


def test_the_default_file_is_read_where_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "default.yaml").write_text("scale: 30\nnum_train_epochs: 7\n")
    (tmp_path / "own.yaml").write_text("scale: 40\n")
    argv = ["--output_dir", str(tmp_path)]
    own, args = read_recipe_config(Own, "", argv, default=tmp_path / "default.yaml")
    assert (own.scale, args.num_train_epochs) == (30, 7)
    own, args = read_recipe_config(
        Own, "", [*argv, "--config", str(tmp_path / "own.yaml")], default=tmp_path / "default.yaml"
    )
    assert (own.scale, args.num_train_epochs) == (40, 3)


def test_a_folder_without_a_name_is_read_with_assumptions_that_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "books-of-mine"
    folder.mkdir()
    for name, rows in {
        "trn": [{"uid": "a", "title": "one", "content": "more of one", "target_ind": [0], "target_rel": [1.0]}],
        "tst": [{"uid": "b", "title": "two", "target_ind": [1], "target_rel": [1.0]}],
        "lbl": [{"uid": "x", "title": "first", "content": "long text"}, {"uid": "y", "title": "second"}],
    }.items():
        with gzip.open(folder / f"{name}.json.gz", "wt") as file:
            file.write("\n".join(map(json.dumps, rows)) + "\n")
    data, assumed = load_data(folder, [], [])
    assert data.train["text"][:] == ["one more of one"] and data.labels["text"][:] == ["first", "second"]
    assert [line.partition(":")[0] for line in assumed] == ["fields", "label_fields"]
    data, assumed = load_data(folder, ["title"], ["title", "content"])
    assert data.train["text"][:] == ["one"] and data.labels["text"][:] == ["first long text", "second"]
    assert assumed == []


def test_a_benchmark_is_read_by_its_own_fields(tiny: hf_xmc.XMCDataset) -> None:
    data, assumed = load_data(TINY, [], [])
    assert assumed == [] and data.train["text"][0] == tiny.train["text"][0]


def test_a_stage_without_rows_to_evaluate_on_evaluates_no_epoch(tmp_path: Path) -> None:
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    args = hf_xmc.XMCTrainingArguments(output_dir=str(tmp_path), metric_for_best_model="precision@1", **settings)
    held_out, last = stage_args(args, "held-out"), stage_args(args, "all-rows", evaluated=False)
    assert (held_out.eval_strategy, held_out.load_best_model_at_end) == ("epoch", True)
    assert (last.eval_strategy, last.load_best_model_at_end) == ("no", False)
    assert (held_out.output_dir, last.output_dir) == tuple(
        str(tmp_path / "checkpoints" / stage) for stage in ("held-out", "all-rows")
    )


def test_a_run_resumes_from_its_newest_checkpoint_or_starts_anew(tmp_path: Path) -> None:
    args = hf_xmc.XMCTrainingArguments(output_dir=str(tmp_path / "run"))
    assert last_checkpoint(args) is None
    args.resume_from_checkpoint = True  # type: ignore[assignment]
    assert last_checkpoint(args) is None
    for step in (5, 10, 15):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
    assert last_checkpoint(args) is None
    for step in (5, 10):
        (tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(args) == str(tmp_path / "run" / "checkpoint-10")
    (tmp_path / "run" / "checkpoint-15" / "trainer_state.json").write_text('{"epoch": ')  # killed while it wrote
    assert last_checkpoint(args) == str(tmp_path / "run" / "checkpoint-10")
    args.resume_from_checkpoint = str(tmp_path / "run" / "checkpoint-5")
    with pytest.raises(ValueError, match="expected resume_from_checkpoint=true, got '.*checkpoint-5'"):
        last_checkpoint(args)
