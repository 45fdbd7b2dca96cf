"""The files of a ranker; ``hub/ranker_xmc.py`` reads them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from hf_xmc.hub.ranker_xmc import RANKER_FILE, WORDS_FILE, Ranker
from hf_xmc.hub.repo_xmc import FORMAT_VERSION


def write_ranker(folder: Path, ranker: Ranker) -> None:
    """Write ``ranker/`` into the folder of a repo: one file of the network and label counts, one of the words."""
    (folder / RANKER_FILE).parent.mkdir(parents=True, exist_ok=True)
    network, promise, words = ranker.network, ranker.promise, ranker.words
    about = {
        "names": ranker.names,
        "out_bias": network.out_bias,
        "confidence": promise.confidence,
        "propensity": asdict(ranker.propensity),
    }
    tensors = {
        "starts": network.starts,
        "widths": network.widths,
        "hidden": network.hidden,
        "hidden_bias": network.hidden_bias,
        "out": network.out,
        "means": ranker.means,
        "precisions": promise.precisions,
        "thresholds": promise.thresholds,
        "counts": ranker.counts.astype(np.int64),
        "is_row": ranker.is_row.astype(np.int8),
    }
    version = {"format_version": str(FORMAT_VERSION)}
    save_file(_whole(tensors), folder / RANKER_FILE, version | {"about": json.dumps(about)})
    vocabulary = words.labels.vocabulary
    bags = {
        "weights": vocabulary.weights,
        "label_indptr": words.labels.bags.indptr,
        "label_words": words.labels.bags.words,
    }
    if words.rows is not None:
        found = words.rows.found
        bags |= {
            "row_indptr": words.rows.bags.indptr,
            "row_words": words.rows.bags.words,
            "row_found": (np.ones(len(words.rows.bags), bool) if found is None else found).astype(np.int8),
        }
    listed = json.dumps(list(vocabulary.words), ensure_ascii=False)
    save_file(_whole(bags), folder / WORDS_FILE, version | {"words": listed})


def _whole(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}
