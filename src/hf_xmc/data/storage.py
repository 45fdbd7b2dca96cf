"""What a data set has beside its tables, on disk and on the Hub: filter pairs, propensity constants, its name."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hf_xmc.data.catalog import Propensity

SIDE_FILE = "xmc_dataset.json"
SIDE_FILES = (SIDE_FILE, "filter_labels_train.txt", "filter_labels_test.txt")
FORMAT_VERSION = 1


def filter_file(split: str) -> str:
    """The file of the filter pairs of a split; lines "row label", as in the raw format."""
    return f"filter_labels_{split}.txt"


def side_files(name: str, propensity: Propensity, filters: dict[str, np.ndarray]) -> dict[str, bytes]:
    """File name -> content."""
    described = {"format_version": FORMAT_VERSION, "name": name, "propensity": asdict(propensity)}
    files = {filter_file(split): pairs_as_text(pairs) for split, pairs in filters.items()}
    return files | {SIDE_FILE: json.dumps(described, indent=2).encode() + b"\n"}


def pairs_as_text(pairs: np.ndarray) -> bytes:
    """Lines "row label" of int64 (n, 2) pairs."""
    return "".join(f"{row} {label}\n" for row, label in pairs.tolist()).encode()


def read_side_files(paths: dict[str, str | Path]) -> dict[str, Any]:
    """The `name`, `propensity` and `filters` in files as `side_files` makes them, given as file name -> path."""
    path = Path(paths[SIDE_FILE])
    described = json.loads(path.read_text())
    if described["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {described['format_version']}; this version of hf_xmc reads up to "
            f"{FORMAT_VERSION}: pip install --upgrade hf_xmc"
        )
    filters = {split: read_pairs(Path(paths[filter_file(split)])) for split in ("train", "test")}
    return {"name": described["name"], "propensity": Propensity(**described["propensity"]), "filters": filters}


def read_pairs(path: Path) -> np.ndarray:
    """int64 (n, 2) pairs of a file that `pairs_as_text` wrote."""
    return np.array(path.read_text().split(), np.int64).reshape(-1, 2)


CARD_TEXT = """
# {name}

Extreme multi-label classification: a query text, and the few right ones of {num_labels:,} labels that have texts of \
their own. The config `default` holds `train` and `test` (`text`, `label_ids`), the config `labels` the label table; a
label id is a row number of that table. `filter_labels_*.txt` lists pairs (row, label id) that are neither rewarded nor
punished; PSP is computed with A {a} and B {b}{assumed}.

```python
from hf_xmc import XMCDataset

dataset = XMCDataset.from_hub("{repo_id}")
```

{report}
"""


def described_card(card: Any, text: str) -> Any:
    """The card that `datasets` made, with tags and a text."""
    card.data.tags = sorted({*(card.data.get("tags") or ()), "hf_xmc", "extreme-multi-label-classification"})
    card.data.task_categories = ["text-classification"]
    card.text = text
    return card
