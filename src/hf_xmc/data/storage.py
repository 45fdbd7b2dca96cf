"""What a data set has beside its tables, on disk and on the Hub: filter pairs, propensity constants, its name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from hf_xmc.data.catalog import Propensity
from hf_xmc.data.lf.pair_lines import read_filter_pairs
from hf_xmc.data.report import DataReport
from hf_xmc.hub.whole_xmc import folder_beside

SIDE_FILE = "xmc_dataset.json"
SIDE_FILES = (SIDE_FILE, "filter_labels_train.txt", "filter_labels_test.txt")
LAST_FILE = "SHA256SUMS"
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


def read_side_files(paths: dict[str, str | Path], num_rows: dict[str, int], num_labels: int) -> dict[str, Any]:
    """The ``name``, ``propensity`` and ``filters`` of the files that :func:`side_files` made.

    Args:
        paths: File name -> path.
        num_rows: Split -> rows.
        num_labels: Rows of the label table.

    Raises:
        ValueError: If one is damaged or of another data set; it is named.
    """
    path = Path(paths[SIDE_FILE])
    try:
        described = json.loads(path.read_text(encoding="utf8"))
        version, name = int(described["format_version"]), described["name"]
        propensity = Propensity(**described["propensity"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}; this version of hf_xmc reads up to {FORMAT_VERSION}: "
            "pip install --upgrade hf_xmc"
        )
    filters = {
        split: read_filter_pairs(paths[filter_file(split)], rows, num_labels) for split, rows in num_rows.items()
    }
    return {"name": name, "propensity": propensity, "filters": filters}


@contextmanager
def in_one_step(folder: str | Path, last: str) -> Iterator[Path]:
    """An empty folder; what is written into it moves to ``folder`` when all is there.

    The old file ``last`` goes first and the new one comes last: a folder without it is not whole, so that old files
    and new ones are never taken for one data set. What a killed call left behind is removed.
    """
    folder = Path(folder).expanduser()
    with folder_beside(folder) as whole:
        yield whole
        folder.mkdir(exist_ok=True)
        (folder / last).unlink(missing_ok=True)
        for part in sorted(whole.iterdir(), key=lambda part: (part.name == last, part.name)):
            if (folder / part.name).is_dir():
                shutil.rmtree(folder / part.name)
            part.replace(folder / part.name)


def digests(folder: Path) -> str:
    """A line "digest  file" of every file of a saved data set, as ``sha256sum`` writes them."""
    files = [folder / file for file in SIDE_FILES]
    files += sorted(file for part in ("default", "labels") for file in (folder / part).rglob("*") if file.is_file())
    lines = []
    for file in files:
        with file.open("rb") as content:
            lines.append(
                f"{hashlib.file_digest(content, 'sha256').hexdigest()}  {file.relative_to(folder).as_posix()}\n"
            )
    return "".join(lines)


def check_digests(folder: Path) -> None:
    """Refuse a folder whose files are not those that were saved.

    Raises:
        ValueError: Naming a file that is missing, was added, or has changed.
    """
    path = folder / LAST_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {LAST_FILE}; expected a folder that save_to_disk wrote to its end")
    try:
        saved, found = set(path.read_text(encoding="utf8").splitlines()), set(digests(folder).splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder} cannot be read: {error}; save the data set again") from error
    if changed := sorted(line[66:] for line in saved ^ found):
        raise ValueError(
            f"{folder / changed[0]} is not as it was saved, or {path} is damaged; save the data set again"
        )


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
