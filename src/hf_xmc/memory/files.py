"""memory.safetensors: the training rows of a KnowledgeMemory on disk; ``hub/memory_xmc.py`` reads it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from hf_xmc.hub.memory_xmc import MemoryParts
from hf_xmc.hub.repo_xmc import FORMAT_VERSION

MEMORY_FILE = "memory.safetensors"


def write_memory(folder: str | Path, parts: MemoryParts) -> None:
    """Write ``memory.safetensors``, in full under another name first: the parts may be mapped from the same file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "keys": np.ascontiguousarray(parts.keys.stored),
        "indptr": parts.indptr.astype(np.int64),
        "indices": parts.indices.astype(np.int32),
    }
    if parts.keys.scales is not None:
        tensors["key_scales"] = parts.keys.scales
    if (parts.votes != 1).any():
        tensors["votes"] = parts.votes
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "form": json.dumps(asdict(parts.form)),
        "num_labels": str(parts.num_labels),
    }
    scratch = folder / f".{MEMORY_FILE}.{os.getpid()}"
    try:
        save_file(tensors, scratch, metadata)
        os.replace(scratch, folder / MEMORY_FILE)
    finally:
        scratch.unlink(missing_ok=True)
