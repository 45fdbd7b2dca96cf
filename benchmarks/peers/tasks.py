"""A data set as plain files, for processes that do not import hf_xmc."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import scipy.sparse as sp

import hf_xmc

TOP_K = 100


def export_task(data: hf_xmc.XMCDataset, folder: Path) -> None:
    """Write train.txt, test.txt, labels.txt (a text a line, in row order), truth.npz (CSR of train) and task.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("train", data.train), ("test", data.test), ("labels", data.labels)):
        lines = (" ".join(text.split()) for text in table["text"][:])
        folder.joinpath(f"{name}.txt").write_text("\n".join(lines), encoding="utf8")
    sp.save_npz(folder / "truth.npz", sp.csr_matrix(data.to_csr("train")))
    folder.joinpath("task.json").write_text(json.dumps({"k": num_places(data)}))


def num_places(data: hf_xmc.XMCDataset) -> int:
    """Places of a ranking of which 100 are left when the filtered pairs of any test row are dropped."""
    filters = data.filters["test"]
    most = int(np.bincount(filters[:, 0]).max()) if len(filters) else 0
    return min(TOP_K + most, data.num_labels)
