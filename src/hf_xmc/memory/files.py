"""memory.safetensors: the training rows of a KnowledgeMemory on disk, mapped where they are read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_xmc.memory.form import MemoryForm

FORMAT_VERSION = 1
MEMORY_FILE = "memory.safetensors"


class MemoryParts(NamedTuple):
    """What is stored: everything but the label vectors."""

    keys: torch.Tensor  # (N, D) float32, float16 or int8
    key_scales: torch.Tensor | None  # (N,) float32, for int8
    truth: sp.csr_matrix  # (N, L) float32, the votes of a row
    form: MemoryForm


def write_memory(folder: str | Path, parts: MemoryParts) -> None:
    """Write ``memory.safetensors``, in full under another name first: the parts may be mapped from the same file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    keys, key_scales, truth, form = parts
    tensors = {
        "keys": keys.contiguous(),
        "indptr": torch.from_numpy(truth.indptr.astype(np.int64)),
        "indices": torch.from_numpy(truth.indices.astype(np.int32)),
    }
    if key_scales is not None:
        tensors["key_scales"] = key_scales
    if (truth.data != 1).any():
        tensors["votes"] = torch.from_numpy(truth.data)
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "form": json.dumps(asdict(form)),
        "num_labels": str(truth.shape[1]),
    }
    scratch = folder / f".{MEMORY_FILE}.{os.getpid()}"
    try:
        save_file(tensors, scratch, metadata)
        os.replace(scratch, folder / MEMORY_FILE)
    finally:
        scratch.unlink(missing_ok=True)


def read_memory(folder: str | Path) -> MemoryParts:
    """Map what :func:`write_memory` wrote; keys are read from the file as they are needed.

    Raises:
        ValueError: naming the file that is missing, damaged or of a newer format version.
    """
    file = Path(folder) / MEMORY_FILE
    if not file.is_file():
        raise ValueError(f"{folder} has no {MEMORY_FILE}; save one with KnowledgeMemory.save")
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        version = int(metadata["format_version"])
        if version > FORMAT_VERSION:
            raise ValueError(
                f"{file}: format_version {version} is newer than {FORMAT_VERSION}, which this hf_xmc reads; "
                "upgrade it: pip install -U hf_xmc"
            )
        form = MemoryForm(**json.loads(metadata["form"]))
        keys, indptr, indices = tensors["keys"], tensors["indptr"].numpy(), tensors["indices"].numpy()
        num_labels = int(metadata["num_labels"])
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is damaged ({error}); fetch or save it again") from error
    votes = tensors["votes"].numpy() if "votes" in tensors else np.ones(len(indices), np.float32)
    truth = sp.csr_matrix((votes, indices, indptr), shape=(len(keys), num_labels))
    return MemoryParts(keys, tensors.get("key_scales"), truth, form)
