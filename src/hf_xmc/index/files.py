"""The file of a LabelIndex in FAISS's format, and the JSON beside it that tells what it is and what it was made of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from hf_xmc.hub.repo_xmc import digest_of, sample_of
from hf_xmc.hub.search_xmc import FaissSearcher, Searcher, faiss


def write(path: Path, vectors: np.ndarray, searcher: Searcher, kind: str, recall: float) -> None:
    """Write the JSON, and ``path`` where the searcher is one of FAISS; each in full under another name first.

    The index may be mapped from the very file that it is written to.
    """
    about: dict[str, Any] = {
        "kind": kind,
        "recall": recall,
        "effort": searcher.effort,
        "shape": list(vectors.shape),
        "sample": sample_of(vectors).tolist(),
    }
    if isinstance(searcher, FaissSearcher):
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            faiss.write_index(searcher.index, str(scratch))
            about["digest"] = digest_of(scratch)
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    note = path.with_suffix(".json")
    scratch = note.with_name(f".{note.name}.{os.getpid()}")
    scratch.write_text(json.dumps(about), encoding="utf8")
    os.replace(scratch, note)
