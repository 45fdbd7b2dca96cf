from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from hf_xmc.recipe_config import read_recipe_config
from hf_xmc.run_record import RunRecord, metrics_table


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
        ["--config", str(config), "--data_dir", "d", "--output_dir", "o", "num_train_epochs=3", "use_cpu=true"],
    )
    assert (own.scale, own.data_dir) == (30, "d")
    assert (args.learning_rate, args.num_train_epochs, args.output_dir, args.use_cpu) == (1e-3, 3, "o", True)


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


def test_a_run_record_holds_metrics_costs_and_config(tmp_path: Path) -> None:
    record = RunRecord({"scale": 20})
    with record.timed("training"):
        sum(i * i for i in range(300_000))
    record.write(tmp_path / "metrics.json", {"precision@1": 0.5})
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["metrics"] == {"precision@1": 0.5} and written["config"] == {"scale": 20}
    assert written["world_size"] == 1 and 0 < written["peak_memory_gib"] < 64
    assert 0 < written["seconds"]["training"]["cpu"] < 60
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_the_table_is_aligned_and_in_percent() -> None:
    rows = {"a": {"precision@1": 0.12345}, "long name": {"precision@1": 1.0, "recall@10": 0.5}}
    lines = metrics_table(rows, ("precision@1", "recall@10")).split("\n")
    assert lines == [
        "               P@1     R@10",
        "a            12.35        -",
        "long name   100.00    50.00",
    ]
