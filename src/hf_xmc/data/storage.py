"""What a data set has beside its tables, on disk and on the Hub: filter pairs, propensity constants, its name."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from hf_xmc.data.catalog import Propensity
from hf_xmc.data.report import DataReport

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
    """The ``name``, ``propensity`` and ``filters`` of the files that :func:`side_files` made, file name -> path."""
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
    """int64 (n, 2) pairs of a file that :func:`pairs_as_text` wrote."""
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


def add_side_files(
    repo_id: str, sides: dict[str, bytes], name: str, propensity: Propensity, report: DataReport, token: str | None
) -> str:
    """Upload the side files and a text for the card that ``datasets`` made; returns the URL of the commit."""
    card = DatasetCard.load(repo_id, token=token)
    card.data.tags = sorted({*(card.data.get("tags") or ()), "hf_xmc", "extreme-multi-label-classification"})
    card.data.task_categories = ["text-classification"]
    card.text = CARD_TEXT.format(
        name=name,
        repo_id=repo_id,
        num_labels=report.figures["num_labels"],
        a=propensity.a,
        b=propensity.b,
        assumed=" (the usual constants, not fitted)" if propensity.assumed else "",
        report=report,
    )
    operations = [
        CommitOperationAdd(file, content) for file, content in (sides | {"README.md": str(card).encode()}).items()
    ]
    message = "Add filter pairs, propensity constants and card"
    return (
        HfApi(token=token).create_commit(repo_id, operations, repo_type="dataset", commit_message=message).commit_url
    )


def download_side_files(
    repo_id: str, revision: str | None, token: str | None
) -> tuple[dict[str, str | Path], str | None]:
    """File name -> path of the side files, and the commit they are of."""
    paths: dict[str, str | Path] = {}
    try:
        for file in SIDE_FILES:
            paths[file] = hf_hub_download(repo_id, file, repo_type="dataset", revision=revision, token=token)
            revision = Path(paths[file]).parent.name  # the commit, so that a push meanwhile mixes nothing
    except RemoteEntryNotFoundError as error:
        told = f"{repo_id} lacks {SIDE_FILE} or filter pairs; push it with XMCDataset.push_to_hub"
        raise ValueError(told) from error
    return paths, revision
