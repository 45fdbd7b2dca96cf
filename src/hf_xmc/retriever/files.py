"""The folder of a retriever, which is also its Hub repo: written whole or not at all, read with every file checked."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from hf_xmc.encoders.encoder import CONFIG_FILE, XMCEncoder, check_format_version
from hf_xmc.encoders.lora import has_lora
from hf_xmc.encoders.shared_static import SharedStaticEmbedding
from hf_xmc.hub import PUBLISHED_FILES, pipeline_xmc
from hf_xmc.index.label_index import LabelIndex, faiss
from hf_xmc.memory.knowledge_memory import KnowledgeMemory
from hf_xmc.metrics.plots import plot_reliability
from hf_xmc.retriever.calibration import FittedCalibration

LABELS_FILE, VECTORS_FILE, INDEX_FILE = "labels.json", "label_embeddings.safetensors", "index.faiss"
MEMORY_FOLDER, MEMORY_TEXTS_FILE, CALIBRATION_FILE = "memory", "texts.json", "calibration.json"
RELIABILITY_FILE = "reliability.png"
# Of these a repo that is saved over may hold one of an earlier retriever; its export answers with other vectors.
OPTIONAL = (INDEX_FILE, "index.json", MEMORY_FOLDER, CALIBRATION_FILE, RELIABILITY_FILE, "onnx")
_PIPELINES = {"xmc-retrieval": {"impl": "pipeline_xmc.XMCRetrievalPipeline", "pt": ["AutoModel"], "type": "text"}}
logger = logging.getLogger(__name__)
_WAY_OUT = "fetch or save the repo again"


@dataclass
class RetrieverParts:
    """What a retriever's folder holds.

    Attributes:
        encoder: The encoder, with or without a classifier.
        labels: L label texts in id order.
        embedding: (L, De) float32.
        classifier: (L, Dc) float32, or None.
        index: Of the L labels; it knows which are removed.
        memory: The training rows that vote, or None.
        memory_texts: Their texts.
        calibration: What makes probabilities of scores, or None.

    Raises:
        ValueError: if texts and vectors differ in number.
    """

    encoder: XMCEncoder
    labels: list[str]
    embedding: np.ndarray
    classifier: np.ndarray | None
    index: LabelIndex
    memory: KnowledgeMemory | None = None
    memory_texts: list[str] = field(default_factory=list)
    calibration: FittedCalibration | None = None

    def __post_init__(self) -> None:
        rows = {"label texts": len(self.labels), "label vectors": len(self.embedding), "index rows": len(self.index)}
        if self.classifier is not None:
            rows["classifier rows"] = len(self.classifier)
        if len(set(rows.values())) > 1:
            raise ValueError(f"texts and vectors must agree in number, got {rows}")


# -- writing ----------------------------------------------------------------------------------------------------------


def save_parts(parts: RetrieverParts, path: str | Path) -> None:
    """Write the repo in full under another name, then move its files into place.

    Args:
        parts: What to write.
        path: The folder. Its files that this repo has too are replaced, one by one and never cut short, so that parts
            loaded from this very folder may be mapped from it; optional files of ours that this repo lacks are
            removed; all others stay.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        whole = Path(scratch) / "repo"
        whole.mkdir()
        write_parts(parts, whole)
        stale = [name for name in OPTIONAL if not (whole / name).exists()]
        mode = (whole / LABELS_FILE).stat().st_mode
        for file in sorted(file for file in whole.rglob("*") if file.is_file()):
            file.chmod(mode)  # safetensors keeps its files to the owner
            place = path / file.relative_to(whole)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
        for name in stale:
            if (path / name).exists():
                shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()


def write_parts(parts: RetrieverParts, folder: Path) -> None:
    """Write the repo into an empty folder: that of sentence-transformers, with labels, index and pipeline beside."""
    if has_lora(parts.encoder):
        raise ValueError("the encoder carries adapters, which no repo can be served from; hf_xmc.lora.merge_lora it")
    if any(isinstance(module, SharedStaticEmbedding) for module in parts.encoder):
        raise ValueError("the encoder's table is still in its training form, which only hf_xmc loads; fold() it")
    backbone = parts.encoder.transformers_model
    if backbone is not None:
        backbone.config.custom_pipelines = _PIPELINES
    parts.encoder.save_pretrained(str(folder))
    if isinstance(parts.encoder[0], StaticEmbedding):
        _write_static_door(folder, parts.encoder[0])
    for file in PUBLISHED_FILES:
        shutil.copyfile(file, folder / file.name)
    _write_json(parts.labels, folder / LABELS_FILE)
    vectors = {"embedding": parts.embedding}
    if parts.classifier is not None:
        vectors["classifier"] = parts.classifier
    save_file({name: np.ascontiguousarray(half) for name, half in vectors.items()}, folder / VECTORS_FILE)
    if faiss is not None:
        parts.index.save(folder / INDEX_FILE)
    if parts.memory is not None:
        parts.memory.save(folder / MEMORY_FOLDER)
        _write_json(parts.memory_texts, folder / MEMORY_FOLDER / MEMORY_TEXTS_FILE)
    if parts.calibration is not None:
        parts.calibration.save(folder / CALIBRATION_FILE)
        if find_spec("matplotlib") is not None:
            plot_reliability(parts.calibration.report, folder / RELIABILITY_FILE)
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf8"))
    config["removed_ids"] = np.flatnonzero(~parts.index.alive).tolist()
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf8")


def _write_json(content: Any, file: Path) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf8")


def _write_static_door(folder: Path, module: StaticEmbedding) -> None:
    """Let AutoModel and AutoTokenizer open a static encoder, which has no transformers model of its own."""
    config = {
        "model_type": pipeline_xmc.XMCStaticConfig.model_type,
        "architectures": ["XMCStaticModel"],
        "auto_map": {"AutoConfig": "pipeline_xmc.XMCStaticConfig", "AutoModel": "pipeline_xmc.XMCStaticModel"},
        "vocab_size": module.num_embeddings,
        "hidden_size": module.embedding_dim,
        "dtype": str(torch.float32).removeprefix("torch."),
        "custom_pipelines": _PIPELINES,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf8")
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2), encoding="utf8")


# -- reading ----------------------------------------------------------------------------------------------------------


def read_parts(folder: Path, device: str | None = None) -> RetrieverParts:
    """Read what :func:`write_parts` wrote.

    Args:
        folder: The folder.
        device: Where the encoder runs.

    Raises:
        ValueError: naming the file that is missing, damaged, of another size or a newer format version, and the way
            out.
    """
    config = _read_json(folder, CONFIG_FILE)
    check_format_version(config, folder / CONFIG_FILE)
    labels = _read_json(folder, LABELS_FILE)
    vectors = _read_vectors(folder)
    for name, half in vectors.items():
        if len(half) != len(labels):
            raise ValueError(
                f"{folder}: {LABELS_FILE} has {len(labels)} labels but {VECTORS_FILE} {len(half)} rows of {name!r}; "
                f"the repo is damaged, {_WAY_OUT}"
            )
    encoder = _read_encoder(folder, device)
    if encoder.label_classifier is not None and encoder.label_classifier.num_targets != len(labels):
        raise ValueError(
            f"{folder}: {LABELS_FILE} has {len(labels)} labels but the classifier that {CONFIG_FILE} lists "
            f"{encoder.label_classifier.num_targets} rows; the repo is damaged, {_WAY_OUT}"
        )
    halves = vectors["embedding"], vectors.get("classifier")
    alive = np.ones(len(labels), dtype=bool)
    alive[config.get("removed_ids", [])] = False
    parts = RetrieverParts(encoder, labels, *halves, _read_index(folder, encoder.join_labels(*halves), alive))
    if (folder / MEMORY_FOLDER).is_dir():
        parts.memory = KnowledgeMemory.load(folder / MEMORY_FOLDER, parts.index)
        parts.memory_texts = _read_json(folder, f"{MEMORY_FOLDER}/{MEMORY_TEXTS_FILE}")
        if len(parts.memory_texts) != len(parts.memory):
            raise ValueError(
                f"{folder / MEMORY_FOLDER}: {MEMORY_TEXTS_FILE} has {len(parts.memory_texts)} texts, the memory "
                f"{len(parts.memory)} rows; the repo is damaged, {_WAY_OUT}"
            )
    if (folder / CALIBRATION_FILE).is_file():
        parts.calibration = FittedCalibration.load(folder / CALIBRATION_FILE)
    return parts


def _read_json(folder: Path, name: str) -> Any:
    file = folder / name
    if not file.is_file():
        raise ValueError(f"{folder} has no {name}; save it with Retriever.save_pretrained, or fetch the whole repo")
    try:
        return json.loads(file.read_text(encoding="utf8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{file} is damaged ({error}); {_WAY_OUT}") from error


def _read_vectors(folder: Path) -> dict[str, np.ndarray]:
    file = folder / VECTORS_FILE
    if not file.is_file():
        raise ValueError(f"{folder} has no {VECTORS_FILE}; rebuild it: Retriever.build(XMCEncoder(folder), labels)")
    try:
        return load_file(file)
    except Exception as error:  # safetensors raises a class of its own that is not exported everywhere
        raise ValueError(f"{file} is damaged ({error}); {_WAY_OUT}") from error


def _read_index(folder: Path, vectors: np.ndarray, alive: np.ndarray) -> LabelIndex:
    """The saved index, or one built anew where it alone is missing."""
    if faiss is None:
        return LabelIndex(vectors, alive)
    if not (folder / INDEX_FILE).is_file():
        logger.warning("%s has no %s; the index is built anew from %s", folder, INDEX_FILE, VECTORS_FILE)
        return LabelIndex(vectors, alive)
    try:
        return LabelIndex.load(folder / INDEX_FILE, vectors, alive)
    except ValueError as error:
        raise ValueError(f"{error}: delete {folder / INDEX_FILE}, and it is built anew from {VECTORS_FILE}") from error


def _read_encoder(folder: Path, device: str | None) -> XMCEncoder:
    try:
        return XMCEncoder(str(folder), device=device)
    except Exception as error:  # of the host or of any library below it, which seldom names the file
        damaged = next(_damaged_files(folder), None)
        if damaged is None:
            raise
        raise ValueError(f"{damaged[0]} is damaged ({damaged[1]}); {_WAY_OUT}") from error


def _damaged_files(folder: Path) -> Iterator[tuple[Path, Exception]]:
    """The JSON and safetensors files that cannot be opened, and why."""
    for file in sorted(folder.rglob("*")):
        try:
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf8"))
            elif file.suffix == ".safetensors":
                with safe_open(file, "pt"):
                    pass
        except Exception as error:  # safetensors raises a class of its own that is not exported everywhere
            yield file, error
