"""The file of a LabelIndex in FAISS's format, and the JSON beside it that tells what it is and what it was made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_xmc.index.faiss_kinds import FaissSearcher, faiss, read_searcher
from hf_xmc.index.torch_kinds import Searcher

_SAMPLED_ROWS = 256
_SAMPLED_BLOCKS, _BLOCK_BYTES = 64, 1 << 16


@dataclass(frozen=True)
class StoredIndex:
    """What a file holds; ``searcher`` is None for kinds that are made of the vectors in no time."""

    kind: str
    recall: float
    searcher: FaissSearcher | None


def write(path: Path, vectors: np.ndarray, searcher: Searcher, kind: str, recall: float) -> None:
    """Write ``path`` and its JSON."""
    if isinstance(searcher, FaissSearcher):
        searcher.write(path)
    else:
        flat = faiss.IndexFlatIP(vectors.shape[1])
        flat.add(vectors)
        faiss.write_index(flat, str(path))
    about = {
        "kind": kind,
        "recall": recall,
        "effort": searcher.effort,
        "shape": list(vectors.shape),
        "digest": _digest(path),
        "sample": _sample(vectors).tolist(),
    }
    path.with_suffix(".json").write_text(json.dumps(about), encoding="utf8")


def read(path: Path, vectors: np.ndarray, mmap: bool, kinds: Sequence[str]) -> StoredIndex:
    """Read what :func:`write` wrote of ``vectors``.

    Raises:
        ValueError: naming the file that is missing, damaged or made of other vectors.
    """
    note = path.with_suffix(".json")
    for file in (path, note):
        if not file.is_file():
            raise ValueError(f"{file} is missing; build the index anew")
    try:
        about = json.loads(note.read_text(encoding="utf8"))
        kind, recall, effort, shape = about["kind"], float(about["recall"]), int(about["effort"]), about["shape"]
        digest, sample = about["digest"], np.asarray(about["sample"], dtype=np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{note} is damaged ({error!r}); build the index anew") from error
    if kind not in kinds:
        raise ValueError(f"{note} tells of kind {kind!r}, expected one of {', '.join(kinds)}; build the index anew")
    if shape != list(vectors.shape):
        raise ValueError(f"{path} was made of {shape} vectors, got {list(vectors.shape)}; build the index anew")
    own = _sample(vectors)
    # Not to the bit: another processor may round the vectors otherwise.
    if sample.shape != own.shape or not np.allclose(sample, own, rtol=1e-3, atol=1e-3 * np.abs(own).max(initial=0)):
        raise ValueError(f"{path} was made of other vectors; build the index anew")
    if _digest(path) != digest:
        raise ValueError(f"{path} is damaged: its content is not what was written; build the index anew")
    if kind not in ("hnsw", "ivf"):
        return StoredIndex(kind, recall, None)
    try:
        return StoredIndex(kind, recall, read_searcher(path, mmap, effort))
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged ({error}); build the index anew") from error


def _sample(vectors: np.ndarray) -> np.ndarray:
    """One number for each of some rows spread over all of them."""
    rows = np.linspace(0, len(vectors) - 1, min(len(vectors), _SAMPLED_ROWS)).astype(int)
    return vectors[rows].astype(np.float64) @ np.cos(np.arange(vectors.shape[1]))


def _digest(path: Path) -> str:
    """A hash of the size and of blocks spread over the file, which reads 4 MB of a file of any size."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in np.linspace(0, max(0, size - _BLOCK_BYTES), _SAMPLED_BLOCKS).astype(int):
            file.seek(int(start))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()
