"""Copy the model card a recipe wrote, with its pictures, to model_cards/.

    python recipes/tools/cards.py RUN_FOLDER [NAME]

The name is ``<data set>-<method>-<encoder>`` where none is given.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from results import ROOT

CARDS = ROOT / "model_cards"


def main(argv: Sequence[str]) -> Path:
    """Returns the card's folder.

    Raises:
        ValueError: if the run has no card.
    """
    run = Path(argv[0])
    if not (run / "README.md").is_file() or not (run / "metrics.json").is_file():
        raise ValueError(f"{run} has no README.md and metrics.json; a recipe writes both into its output_dir")
    record = json.loads((run / "metrics.json").read_text(encoding="utf8"))
    method = Path(record["command"][0]).stem
    name = argv[1] if len(argv) > 1 else f"{record['data']['name']}-{method}-{Path(record['config']['encoder']).name}"
    folder = CARDS / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in [run / "README.md", *sorted(run.glob("*.png"))]:
        shutil.copyfile(file, folder / file.name)
    return folder


if __name__ == "__main__":
    print(main(sys.argv[1:]).relative_to(ROOT))
