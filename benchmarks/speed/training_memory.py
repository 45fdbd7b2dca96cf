"""Memory of training: what a recipe's process holds at each step, and whether it grows over an epoch.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.training_memory [--data_dir FOLDER] [--only unidec dexml raexmc]

Each recipe is a process of its own with its settings for the data set, trained for two epochs on all but the held-out
part. After every step its resident memory is read; where torch has CUDA, what torch has allocated at most as well.
"start" is before the first step: imports, data, features, model. A model's gradients and optimizer states come with
its first steps, so growth counts from a tenth of the first epoch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import torch
import transformers.trainer
from transformers import TrainerCallback

from benchmarks import RECIPES, TITLES
from benchmarks.table import Picture, Table, add_output, write

METHODS = ("unidec", "dexml", "raexmc")
GIB = 2**30
PLACES = (0.1, 0.5, 1.0, 1.5, 2.0)  # epochs


class MemoryLog(TrainerCallback):
    """(epoch, resident bytes, bytes allocated on the GPU at most) after every step, as JSON in ``path``."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, []

    def read(self, epoch: float) -> None:
        device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        self.lines.append((epoch, psutil.Process().memory_info().rss, device))

    def on_train_begin(self, args, state, control, **kwargs):
        self.read(0.0)

    def on_step_end(self, args, state, control, **kwargs):
        self.read(state.epoch)

    def on_train_end(self, args, state, control, **kwargs):
        self.path.write_text(json.dumps(self.lines))
        raise SystemExit  # what follows in the recipe is not training


def run_recipe(recipe: str, log: Path, words: list[str]) -> None:
    """The recipe as a user runs it, in this process, with the log among the host's callbacks."""
    transformers.trainer.DEFAULT_CALLBACKS.append(MemoryLog(log))
    importlib.import_module(f"recipes.{recipe}").main(words)


def measure(recipe: str, data_dir: Path) -> list[tuple[float, int, int]]:
    config = RECIPES / "configs" / data_dir.name / f"{recipe}.yaml"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "memory.json"
        words = ["--data_dir", str(data_dir), "--output_dir", folder, "num_train_epochs=2", "report_to=none"]
        words = (["--config", str(config)] if config.exists() else []) + words
        subprocess.run(
            [sys.executable, "-m", "benchmarks.speed.training_memory", "--child", recipe, str(log), *words],
            check=True,
        )
        return json.loads(log.read_text())


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return run_recipe(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=TITLES)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS)
    add_output(parser)
    args = parser.parse_args()

    name = args.data_dir.resolve().name
    where = "of the GPU, at most" if torch.cuda.is_available() else "resident"
    table = Table(
        f"Memory of training, {name}",
        {"recipe": "", "epoch": ".1f", "GiB": ".3f", "grown by": "+.3f"},
        about=f"GiB {where}, at a step; what has come since a tenth of the first epoch.",
        picture=Picture(x="epoch", y="GiB", by="recipe"),
    )
    for recipe in args.only:
        lines = measure(recipe, args.data_dir)
        held = [(epoch, device or resident) for epoch, resident, device in lines]
        table.add(recipe, 0.0, held[0][1] / GIB, None)
        first = next(size for epoch, size in held if epoch >= PLACES[0])
        for place in PLACES:
            epoch, size = min(held, key=lambda line: (abs(line[0] - place), -line[0]))
            table.add(recipe, epoch, size / GIB, (size - first) / GIB)
    write(args.output, table)


if __name__ == "__main__":
    main()
