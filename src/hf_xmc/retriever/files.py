"""The folder of a retriever, which is also its Hub repo: written whole or not at all, read with every file checked."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open
from safetensors.numpy import save_file
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.encoders.lora import has_lora
from hf_xmc.encoders.shared_static import SharedStaticEmbedding
from hf_xmc.hub import PUBLISHED_FILES, pipeline_xmc
from hf_xmc.hub.answers_xmc import read_texts
from hf_xmc.hub.ranker_xmc import RANKER_FILE, WORDS_FILE, Ranker, read_ranker
from hf_xmc.hub.repo_xmc import (
    CALIBRATION_FILE,
    CONFIG_FILE,
    FAISS_KINDS,
    INDEX_FILE,
    LABELS_FILE,
    MEMORY_FILE,
    MEMORY_TEXTS_FILE,
    VECTORS_FILE,
    Folder,
    read_about,
    read_alive,
    read_halves,
    read_labels,
    read_versioned,
)
from hf_xmc.hub.whole_xmc import folder_beside, move_into, read_whole, write_manifest
from hf_xmc.index.label_index import LabelIndex
from hf_xmc.memory.knowledge_memory import KnowledgeMemory
from hf_xmc.metrics.plots import plot_reliability
from hf_xmc.ranker.files import write_ranker
from hf_xmc.retriever.calibration import FittedCalibration

MEMORY_FOLDER, RANKER_FOLDER, RELIABILITY_FILE = "memory", "ranker", "reliability.png"
# Of these a repo that is saved over may hold one of an earlier retriever; its export answers with other vectors.
OPTIONAL = (INDEX_FILE, "index.json", MEMORY_FOLDER, RANKER_FOLDER, CALIBRATION_FILE, RELIABILITY_FILE, "onnx")
_PIPELINES = {"xmc-retrieval": {"impl": "pipeline_xmc.XMCRetrievalPipeline", "pt": ["AutoModel"], "type": "text"}}
# What must be of one save, beside the weights of the encoder.
_OF_ONE_SAVE = (
    CONFIG_FILE,
    LABELS_FILE,
    VECTORS_FILE,
    INDEX_FILE,
    "index.json",
    MEMORY_FILE,
    MEMORY_TEXTS_FILE,
    RANKER_FILE,
    WORDS_FILE,
    CALIBRATION_FILE,
    "modules.json",
    "tokenizer.json",
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrieverParts:
    """What a retriever is made of and its folder holds; never changed, but replaced as a whole.

    Attributes:
        encoder: The encoder, with or without a classifier.
        labels: L label texts in id order.
        embedding: (L, De) float32.
        classifier: (L, Dc) float32, or None.
        index: Of the L labels; it knows which are removed.
        memory: The training rows that vote, or None.
        memory_texts: Their texts.
        calibration: What makes probabilities of scores, or None.
        ranker: What orders the labels found, or None.

    Raises:
        ValueError: if texts and vectors differ in number.
    """

    encoder: XMCEncoder
    labels: Sequence[str]
    embedding: np.ndarray
    classifier: np.ndarray | None
    index: LabelIndex
    memory: KnowledgeMemory | None = None
    memory_texts: Sequence[str] = ()
    calibration: FittedCalibration | None = None
    ranker: Ranker | None = None

    def __post_init__(self) -> None:
        rows = {"label texts": len(self.labels), "label vectors": len(self.embedding), "index rows": len(self.index)}
        if self.classifier is not None:
            rows["classifier rows"] = len(self.classifier)
        if self.ranker is not None:
            rows["labels of the ranker"] = len(self.ranker.counts)
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
    if not str(path) or Path(path).expanduser().is_file():
        raise ValueError(f"expected the name of a folder, got {str(path)!r}")
    path = Path(path).expanduser()
    with folder_beside(path) as scratch:
        whole = scratch / "repo"
        whole.mkdir()
        write_parts(parts, whole)
        stale = [name for name in OPTIONAL if not (whole / name).exists()]
        mode = (whole / LABELS_FILE).stat().st_mode
        for file in whole.rglob("*.safetensors"):
            file.chmod(mode)  # safetensors keeps its files to the owner
        move_into(whole, path, stale)


def push_parts(parts: RetrieverParts, repo_id: str, private: bool | None, token: str | None) -> str:
    """Publish the repo in one commit, without optional files of an earlier retriever; the address of the commit."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        write_parts(parts, Path(folder))
        stale = [pattern for name in OPTIONAL for pattern in (name, f"{name}/*")]  # those not uploaded here
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Push retriever", delete_patterns=stale
        )
        return commit.commit_url


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
    parts.index.save(folder / INDEX_FILE)
    _write_optional(parts, folder)
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf8"))
    config["removed_ids"] = np.flatnonzero(~parts.index.alive).tolist()
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf8")
    modules = [row["path"] for row in json.loads((folder / "modules.json").read_text(encoding="utf8"))]
    weights = [f"{path}/model.safetensors".lstrip("/") for path in modules]
    write_manifest(folder, [*_OF_ONE_SAVE, *weights])


def _write_optional(parts: RetrieverParts, folder: Path) -> None:
    if parts.memory is not None:
        parts.memory.save(folder / MEMORY_FOLDER)
        _write_json(parts.memory_texts, folder / MEMORY_TEXTS_FILE)
    if parts.ranker is not None:
        write_ranker(folder, parts.ranker)
    if parts.calibration is not None:
        parts.calibration.save(folder / CALIBRATION_FILE)
        if find_spec("matplotlib") is not None:
            plot_reliability(parts.calibration.report, folder / RELIABILITY_FILE)


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


def fetched(path: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of a retriever: a local one as it is, a Hub repo fetched.

    Args:
        path: A folder, ``~`` for the home directory, or a Hub repo id.
        revision: A branch, tag or commit of the Hub repo.
        token: For private repos.

    Raises:
        ValueError: If there is neither such a folder nor such a repo.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    try:
        validate_repo_id(str(path))
        return Path(snapshot_download(str(path), revision=revision, token=token))
    except HFValidationError:
        kind = "is a file" if folder.exists() else "does not exist"
        raise ValueError(
            f"{path} {kind}; expected a folder that Retriever.save_pretrained wrote, or a Hub id"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"{path} is no folder here, and could not be fetched from the Hub ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]})"
        ) from error


def read_parts(folder: Path, device: str | None = None) -> RetrieverParts:
    """Read what :func:`write_parts` wrote.

    Args:
        folder: The folder.
        device: Where the encoder runs.

    Raises:
        ValueError: Naming the file that is missing, damaged, of another size or a newer format version, and the way
            out.
    """
    return read_whole(Folder(folder), lambda: _read_parts(Folder(folder), device))


def _read_parts(files: Folder, device: str | None) -> RetrieverParts:
    folder = files.path
    config = read_versioned(files, CONFIG_FILE)
    labels = read_labels(files)
    halves = read_halves(files, len(labels))
    encoder = _read_encoder(folder, device)
    if encoder.label_classifier is not None and encoder.label_classifier.num_targets != len(labels):
        raise ValueError(
            f"{folder}: {LABELS_FILE} has {len(labels)} labels but the classifier that {CONFIG_FILE} lists "
            f"{encoder.label_classifier.num_targets} rows; the repo is damaged, fetch or save it again"
        )
    index = _read_index(folder, encoder.join_labels(*halves), read_alive(config, len(labels)))
    memory, calibration = None, None
    texts: Sequence[str] = ()
    if (folder / MEMORY_FOLDER).is_dir():
        memory = KnowledgeMemory.load(folder / MEMORY_FOLDER, index)
        texts = read_texts(files, len(memory))
    if (folder / CALIBRATION_FILE).is_file():
        calibration = FittedCalibration.load(folder / CALIBRATION_FILE)
    ranker = read_ranker(files, len(labels)) if (folder / RANKER_FILE).is_file() else None
    return RetrieverParts(encoder, labels, *halves, index, memory, texts, calibration, ranker)


def _read_index(folder: Path, vectors: np.ndarray, alive: np.ndarray) -> LabelIndex:
    """The saved index, or one built anew where it alone is missing or FAISS is not there to read it."""
    file, note, kind = folder / INDEX_FILE, (folder / INDEX_FILE).with_suffix(".json"), "auto"
    try:
        if note.is_file():
            kind = read_about(note, vectors)["kind"]
            if kind not in FAISS_KINDS or file.is_file():
                return LabelIndex.load(file, vectors, alive)
    except ImportError:
        logger.warning("faiss is not installed: every label vector of %s is looked at", folder)
        return LabelIndex(vectors, alive, "exact")
    except ValueError as error:
        raise ValueError(f"{error}: delete {note} and {file}, and it is built anew from {VECTORS_FILE}") from error
    absent = file if note.is_file() else note
    logger.warning("%s has no %s; the index is built anew from %s", folder, absent.name, VECTORS_FILE)
    return LabelIndex(vectors, alive, kind)


def _read_encoder(folder: Path, device: str | None) -> XMCEncoder:
    try:
        return XMCEncoder(str(folder), device=device)
    except Exception as error:  # of the host or of any library below it, which seldom names the file
        damaged = next(_damaged_files(folder), None)
        if damaged is None:
            raise
        raise ValueError(f"{damaged[0]} is damaged ({damaged[1]}); fetch or save the repo again") from error


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
