"""The files of a published repo, read and checked: JSON, tensors, modules, index; and how halves are joined.

With numpy alone. This file travels inside every published repo.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from .filters_xmc import checked_ids
from .search_xmc import FaissSearcher, StoredRows, VectorIndex, faiss

FORMAT_VERSION = 1
CONFIG_FILE, LABELS_FILE, VECTORS_FILE = "xmc_config.json", "labels.json", "label_embeddings.safetensors"
INDEX_FILE, MEMORY_FILE, MEMORY_TEXTS_FILE = "index.faiss", "memory/memory.safetensors", "memory/texts.json"
CALIBRATION_FILE, SETTINGS_FILE = "calibration.json", "config_sentence_transformers.json"
# Kinds of index that are a file of FAISS; all others are made of the vectors in no time.
FAISS_KINDS = ("hnsw", "ivf", "pq")
_WAY_OUT = "fetch or save the repo again"
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I8": np.int8}
_SAMPLED_ROWS = 256
_SAMPLED_BLOCKS, _BLOCK_BYTES = 64, 1 << 16

# Gives the local path of a file of the repo, or None where the repo has no such file.
Files = Callable[[str], "str | None"]


@dataclass(frozen=True)
class Folder:
    """The files of a local folder."""

    path: Path

    def __call__(self, name: str) -> str | None:
        """The path of a file, or None."""
        file = self.path / name
        return str(file) if file.is_file() else None


def required(files: Files, name: str) -> Path:
    """The path of a file that the repo must have.

    Raises:
        ValueError: If it has none.
    """
    path = files(name)
    if path is None:
        raise ValueError(f"the repo has no {name}; save it with Retriever.save_pretrained, or fetch the whole repo")
    return Path(path)


def read_json(files: Files, name: str) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: Naming a file that is missing or damaged.
    """
    path = required(files, name)
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path} is damaged ({error}); {_WAY_OUT}") from error


def read_versioned(files: Files, name: str) -> dict[str, Any]:
    """The content of a JSON file that states the version of its format.

    Raises:
        ValueError: Naming a file that is missing, damaged or newer than this reads, and the way out.
    """
    content = read_json(files, name)
    check_version(content.get("format_version") if isinstance(content, dict) else None, files(name) or name)
    return content


def check_version(version: Any, source: str | Path) -> None:
    """Refuse what was written in a format that is none, or newer than this reads."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"{source}: format_version must be a positive integer, got {version!r}; {_WAY_OUT}")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{source}: format_version {version} is newer than {FORMAT_VERSION}, which this hf_xmc reads; "
            "upgrade it: pip install -U hf_xmc"
        )


class Tensors(NamedTuple):
    """What a safetensors file holds."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


def map_tensors(path: str | Path) -> Tensors:
    """Open a safetensors file without reading it: arrays mapped from it, read-only, of which a page is read when used.

    Raises:
        ValueError: Naming a file that is damaged.
    """
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size < 1 << 27:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(file.read(size))
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[8 + size :]
        metadata = header.pop("__metadata__", {})
        arrays = {}
        for name, about in header.items():
            begin, end = about["data_offsets"]
            if not 0 <= begin <= end <= len(data):
                raise ValueError(f"{name!r} lies at {begin} .. {end} of {len(data)} bytes")
            if about["dtype"] == "BF16":  # the upper half of a float32, which numpy does not know
                array = (np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                array = np.frombuffer(data[begin:end], _DTYPES[about["dtype"]])
            arrays[name] = array.reshape(about["shape"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {_WAY_OUT}") from error
    return Tensors(arrays, metadata)


# -- the encoder ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchForm:
    """How the two halves of a joint vector make one score: ``(1 - u) e_q . e_l + u c_q . w_l``.

    Args:
        classifier_weight: u in [0, 1]; 0.5 weighs both halves alike, as UniDEC publishes it.
        normalize_classifier: Whether c_q and w_l are cut to unit length first, as UniDEC publishes it.
    """

    classifier_weight: float = 0.5
    normalize_classifier: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.classifier_weight <= 1:
            raise ValueError(f"classifier_weight must lie in [0, 1], got {self.classifier_weight}")

    def join_queries(self, encoder_half: np.ndarray, classifier_half: np.ndarray | None) -> np.ndarray:
        """(N, De) and (N, Dc) -> (N, De + Dc), weighted; without a second half the first."""
        if classifier_half is None:
            return encoder_half
        weight = self.classifier_weight
        return np.hstack([(1 - weight) * encoder_half, weight * self._cut(classifier_half)]).astype(np.float32)

    def join_labels(
        self, encoder_half: np.ndarray, classifier_half: np.ndarray | None, shares_vector: bool
    ) -> np.ndarray:
        """(L, De) and (L, Dc) -> (L, De + Dc), or (L, D) where both halves of a query are one vector."""
        if classifier_half is None:
            return encoder_half
        if shares_vector:  # e_q . ((1 - u) e_l + u w_l) is the same score with half the index
            weight = self.classifier_weight
            return ((1 - weight) * encoder_half + weight * self._cut(classifier_half)).astype(np.float32)
        return np.hstack([encoder_half, self._cut(classifier_half)]).astype(np.float32)

    def _cut(self, vectors: np.ndarray) -> np.ndarray:
        return unit(vectors) if self.normalize_classifier else vectors


def cut_to(vectors: np.ndarray, width: int | None) -> np.ndarray:
    """(N, D) -> the first ``width`` numbers, of unit length again; None leaves them alone."""
    return vectors if width is None or not vectors.size else unit(vectors[:, :width])


def unit(vectors: np.ndarray) -> np.ndarray:
    """(N, D) of length 1, but for zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


class Step(NamedTuple):
    """One module of the encoder: its class, settings and, of a Dense or LayerNorm, weights, arrays or tensors."""

    kind: str
    config: dict[str, Any]
    weights: dict[str, Any]

    @property
    def source(self) -> str:
        """The feature that it reads."""
        return self.config.get("module_input_name") or "sentence_embedding"

    @property
    def target(self) -> str:
        """The feature that it writes."""
        return self.config.get("module_output_name") or self.source

    @property
    def activation(self) -> str:
        """The class of a Dense's activation."""
        return self.config["activation_function"].rsplit(".", 1)[-1]


def read_steps(files: Files) -> list[Step]:
    """The modules that ``modules.json`` lists.

    Raises:
        ValueError: Naming a file that is missing or damaged, or a module that lies outside the repo.
    """
    steps = []
    for row in read_json(files, "modules.json"):
        kind, folder = row["type"].rsplit(".", 1)[-1], row["path"]
        if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
            raise ValueError(f"modules.json: the module {row['type']} lies outside the repo, at {folder!r}")
        config = read_json(files, f"{folder}/config.json") if folder and files(f"{folder}/config.json") else {}
        has_weights = kind in ("Dense", "LayerNorm")
        weights = map_tensors(required(files, f"{folder}/model.safetensors")).arrays if has_weights else {}
        steps.append(Step(kind, config, weights))
    return steps


def query_prompt(files: Files) -> str:
    """What is put before every query."""
    settings = read_json(files, SETTINGS_FILE)
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    return (prompts.get(default) if prompts.get("query") is None else prompts["query"]) or ""


# -- the labels and their index ---------------------------------------------------------------------------------------


def read_labels(files: Files) -> list[str]:
    """The label texts in id order."""
    labels = read_json(files, LABELS_FILE)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{files(LABELS_FILE)} is damaged (expected a list of texts); {_WAY_OUT}")
    return labels


def read_alive(config: dict[str, Any], num_labels: int) -> np.ndarray:
    """(L,) bool, the labels that are not removed, from the content of ``xmc_config.json``."""
    alive = np.ones(num_labels, dtype=bool)
    try:
        removed = checked_ids(config.get("removed_ids", []))
        if (removed < 0).any():
            raise IndexError(f"removed_ids hold {removed.min()}")
        alive[removed] = False
    except (ValueError, IndexError) as error:
        raise ValueError(f"{CONFIG_FILE} is damaged ({error}, of {num_labels} labels); {_WAY_OUT}") from error
    return alive


def read_halves(files: Files, num_labels: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Dual-encoder vectors (L, De) and classifier rows (L, Dc) or None, float32, mapped from their file."""
    if files(VECTORS_FILE) is None:
        raise ValueError(
            f"the repo has no {VECTORS_FILE}; rebuild it: Retriever.build(XMCEncoder(folder), labels), and save it"
        )
    file = required(files, VECTORS_FILE)
    arrays = map_tensors(file).arrays
    if "embedding" not in arrays:
        raise ValueError(f"{file} is damaged (it has no 'embedding'); {_WAY_OUT}")
    for name, half in arrays.items():
        if half.ndim != 2 or len(half) != num_labels:
            raise ValueError(
                f"{file.parent}: {LABELS_FILE} has {num_labels} labels but {VECTORS_FILE} {len(half)} rows of "
                f"{name!r}; the repo is damaged, {_WAY_OUT}"
            )
    embedding, classifier = arrays["embedding"], arrays.get("classifier")
    embedding = embedding.astype(np.float32, copy=False)
    return embedding, None if classifier is None else classifier.astype(np.float32, copy=False)


def read_index(files: Files, name: str, vectors: np.ndarray | StoredRows, alive: np.ndarray) -> VectorIndex:
    """The index of some vectors; one that looks at every vector where the repo has no file, or FAISS is not there.

    Args:
        files: Of the repo.
        name: The file of the index, with a JSON beside it.
        vectors: (L, D) float32, what it was made of.
        alive: (L,) bool, the rows that are not removed.
    """
    about_file = files(str(PurePosixPath(name).with_suffix(".json")))
    if about_file is None:
        return VectorIndex(vectors, alive)
    about = read_about(Path(about_file), vectors)
    if about["kind"] not in FAISS_KINDS or faiss is None:
        return VectorIndex(vectors, alive)
    return VectorIndex(vectors, alive, FaissSearcher(read_faiss(required(files, name), about), about["effort"]))


def read_about(file: Path, vectors: np.ndarray | StoredRows) -> dict[str, Any]:
    """What the JSON beside an index says of it: kind, recall, effort, digest, and the sample of its vectors.

    Raises:
        ValueError: Naming a file that is damaged, or of other vectors.
    """
    try:
        about = json.loads(file.read_text(encoding="utf8"))
        shape, sample = list(about["shape"]), np.asarray(about["sample"], dtype=np.float64)
        about |= {"kind": str(about["kind"]), "recall": float(about["recall"]), "effort": int(about["effort"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}); build the index anew") from error
    if shape != list(vectors.shape):
        raise ValueError(f"{file} tells of {shape} vectors, got {list(vectors.shape)}; build the index anew")
    own = sample_of(vectors)
    # Not to the bit: another processor may round the vectors otherwise.
    if sample.shape != own.shape or not np.allclose(sample, own, rtol=1e-3, atol=1e-3 * np.abs(own).max(initial=0)):
        raise ValueError(f"{file} tells of other vectors; build the index anew")
    return about


def read_faiss(path: Path, about: dict[str, Any], mmap: bool = True) -> Any:
    """The FAISS index of a file, left on disk with ``mmap``: what a search touches is read.

    Raises:
        ValueError: Naming a file that is missing or damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; build the index anew")
    if digest_of(path) != about.get("digest"):
        raise ValueError(f"{path} is damaged: its content is not what was written; build the index anew")
    try:
        # Not IO_FLAG_MMAP: inverted lists opened so are lost in a forked process.
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged ({error}); build the index anew") from error


def sample_of(vectors: np.ndarray | StoredRows) -> np.ndarray:
    """One number for each of some rows spread over all of them."""
    rows = np.linspace(0, len(vectors) - 1, min(len(vectors), _SAMPLED_ROWS)).astype(int)
    return vectors[rows].astype(np.float64) @ np.cos(np.arange(vectors.shape[1]))


def digest_of(path: Path) -> str:
    """A hash of the size and of blocks spread over the file, which reads 4 MB of a file of any size."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in np.linspace(0, max(0, size - _BLOCK_BYTES), _SAMPLED_BLOCKS).astype(int):
            file.seek(int(start))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()
