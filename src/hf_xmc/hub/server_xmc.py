"""Serves a published repo without torch: static encoders in numpy, others exported for ONNX Runtime or OpenVINO.

This file travels inside every published repo and needs numpy, safetensors and tokenizers there:

    folder = huggingface_hub.snapshot_download("user/repo")
    sys.path.insert(0, folder)
    from server_xmc import StaticServer
    StaticServer(folder)(["a text", "another"], top_k=5)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from tokenizers import Tokenizer

try:
    from .search_xmc import LabelSearch, query_prompt, read_json, required
except ImportError:  # imported from the repo's own folder, which is no package
    from search_xmc import LabelSearch, query_prompt, read_json, required

_ACTIVATIONS = {"Identity": lambda x: x, "Tanh": np.tanh, "ReLU": lambda x: np.maximum(x, 0)}


class Server(ABC):
    """Labels for texts, the same as those of the pipeline; a subclass encodes the texts.

    Args:
        folder: The folder of a saved retriever, with all its files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.label_search = LabelSearch(self._path)
        self.prompt = query_prompt(self._path)
        self.tokenizer = Tokenizer.from_file(required(self._path, "tokenizer.json"))
        self.tokenizer.no_padding()

    def _path(self, name: str) -> str | None:
        file = self.folder / name
        return str(file) if file.is_file() else None

    def __call__(self, texts: str | Sequence[str], top_k: int = 5, *, batch_size: int = 32, **asked: Any) -> list[Any]:
        """``[{"label": str, "score": float, "label_id": int}, ...]`` for a text, a list of them for a list of texts.

        Args:
            texts: A text or a list of texts.
            top_k: Labels of each text.
            batch_size: Texts encoded and searched at once.
            asked: ``memory``, ``return_evidence``, ``num_evidence`` as in the pipeline.

        Raises:
            ValueError: for a text that is no str, a top_k out of range or a memory that is not there.
        """
        if isinstance(texts, str):
            return self([texts], top_k, **asked)[0]
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise ValueError(f"texts must be str, got {type(texts[wrong]).__name__} at place {wrong}")
        answers = []
        for start in range(0, len(texts), batch_size):
            queries = self.encode([self.prompt + text for text in texts[start : start + batch_size]])
            answers += self.label_search.predict(queries, top_k, **asked)
        return answers

    @abstractmethod
    def encode(self, texts: list[str]) -> np.ndarray:
        """B texts, prompt included -> (B, D) float32 query vectors."""


class StaticServer(Server):
    """Serves a static encoder: a table of token vectors, and at most linear heads after it.

    Raises:
        ValueError: for an encoder of another kind.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        rows = read_json(self._path, "modules.json")
        self.steps = [(row["type"].rsplit(".", 1)[-1], row["path"]) for row in rows]
        unknown = [kind for kind, _ in self.steps[1:] if kind not in ("Dense", "Normalize", "Dropout")]
        if self.steps[0][0] != "StaticEmbedding" or unknown:
            raise ValueError(
                f"StaticServer serves a StaticEmbedding with Dense and Normalize after it, got {self.steps}; "
                "export the repo with hf_xmc.serving.export_onnx and use OnnxServer"
            )
        (self.table,) = self._weights("model.safetensors", "embedding.weight")  # (V, D)
        self.heads = {path: self._head(path) for kind, path in self.steps if kind == "Dense"}

    def _weights(self, name: str, *tensors: str) -> list[np.ndarray]:
        with safe_open(required(self._path, name), "numpy") as file:
            return [file.get_tensor(tensor).astype(np.float32, copy=False) for tensor in tensors]

    def _head(self, path: str) -> tuple[np.ndarray, np.ndarray | float, Any, str, str]:
        config = read_json(self._path, f"{path}/config.json")
        activation = config["activation_function"].rsplit(".", 1)[-1]
        if activation not in _ACTIVATIONS or config.get("use_residual"):
            raise ValueError(f"{path}/config.json: StaticServer knows {sorted(_ACTIVATIONS)}, got {activation}")
        weight, *bias = self._weights(
            f"{path}/model.safetensors", "linear.weight", *(["linear.bias"] if config["bias"] else [])
        )
        source = config.get("module_input_name") or "sentence_embedding"
        target = config.get("module_output_name") or source
        return weight, bias[0] if bias else 0.0, _ACTIVATIONS[activation], source, target

    def encode(self, texts: list[str]) -> np.ndarray:
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False)]
        nothing = np.zeros(self.table.shape[1], np.float32)
        vectors = np.stack([self.table[row].mean(0) if row else nothing for row in ids])  # (B, D)
        features = {"sentence_embedding": vectors}
        for kind, path in self.steps[1:]:
            if kind == "Dense":
                weight, bias, activation, source, target = self.heads[path]
                features[target] = activation(features[source] @ weight.T + bias)
            elif kind == "Normalize":
                features["sentence_embedding"] = _unit(features["sentence_embedding"])
        if "classifier_embedding" not in features:
            return features["sentence_embedding"]
        form = self.label_search.config["search"]
        share, row = form["classifier_weight"], features["classifier_embedding"]
        row = _unit(row) if form["normalize_classifier"] else row
        return np.hstack([(1 - share) * features["sentence_embedding"], share * row]).astype(np.float32)


class ExportedServer(Server):
    """Serves what ``hf_xmc.serving.export_onnx`` wrote; a subclass runs the graph.

    Args:
        folder: The folder of a saved retriever, with all its files.
        file: The graph, a file of ``onnx/``.

    Raises:
        ValueError: if the repo has not been exported.
    """

    def __init__(self, folder: str | Path, file: str = "model.onnx") -> None:
        super().__init__(folder)
        if self._path(f"onnx/{file}") is None:
            raise ValueError(f"{folder} has no onnx/{file}; make it: hf_xmc.serving.export_onnx({str(folder)!r})")
        self.graph = required(self._path, f"onnx/{file}")
        settings = read_json(self._path, "onnx/server.json")
        self.inputs: list[str] = settings["inputs"]
        if settings["max_length"]:
            self.tokenizer.enable_truncation(settings["max_length"])
        self.tokenizer.enable_padding(direction=settings["padding_side"], pad_id=settings["pad_token_id"])

    def encode(self, texts: list[str]) -> np.ndarray:
        encodings = self.tokenizer.encode_batch(texts)
        columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        batch = {
            name: np.array([getattr(encoding, columns[name]) for encoding in encodings], dtype=np.int64)
            for name in self.inputs
        }
        return self.run(batch).astype(np.float32, copy=False)

    @abstractmethod
    def run(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """Tokens (B, T) int64 by input name -> (B, D)."""


class OnnxServer(ExportedServer):
    """Runs the graph by ONNX Runtime on the CPU."""

    def __init__(self, folder: str | Path, file: str = "model.onnx", num_threads: int = 0) -> None:
        super().__init__(folder, file)
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("onnxruntime is required: pip install onnxruntime, or hf_xmc[onnx]") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        self.session = onnxruntime.InferenceSession(self.graph, options, providers=["CPUExecutionProvider"])

    def run(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        return self.session.run(None, batch)[0]


class OpenVinoServer(ExportedServer):
    """Runs the same graph by OpenVINO on the CPU."""

    def __init__(self, folder: str | Path, file: str = "model.onnx", num_threads: int = 0) -> None:
        super().__init__(folder, file)
        try:
            import openvino
        except ImportError as error:
            raise ImportError("openvino is required: pip install openvino, or hf_xmc[openvino]") from error
        settings = {"INFERENCE_NUM_THREADS": num_threads, "INFERENCE_PRECISION_HINT": "f32"}
        self.model = openvino.Core().compile_model(self.graph, "CPU", settings)

    def run(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        return self.model(batch)[0]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
