"""Serves a published repo without torch: static encoders in numpy, others exported for ONNX Runtime or OpenVINO.

This file travels inside every published repo and needs numpy and tokenizers there:

    folder = huggingface_hub.snapshot_download("user/repo")
    sys.path.insert(0, folder)
    from server_xmc import StaticServer
    StaticServer(folder)(["a text", "another"], top_k=5)
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tokenizers import Tokenizer

if not __package__:  # imported from the repo's own folder, which is no package: make one of it
    __package__ = "xmc_repo"
    __spec__ = ModuleSpec(f"{__package__}.server_xmc", None)
    sys.modules[__package__] = ModuleType(__package__)
    sys.modules[__package__].__path__ = [str(Path(__file__).parent)]

from .answers_xmc import RepoParts, answer
from .checks_xmc import check_batch_size, check_options, checked_request, checked_texts
from .repo_xmc import Folder, map_tensors, query_prompt, read_json, required, unit

_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
}


class Server(ABC):
    """Labels for texts, the same as those of the pipeline; a subclass encodes the texts.

    Args:
        folder: The folder of a saved retriever, with all its files.

    Raises:
        ValueError: Naming a file that is missing, damaged or of a newer format version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise ValueError(f"{folder} does not exist; expected the folder of a saved retriever")
        self.files = Folder(self.folder)
        self.parts = RepoParts(self.files)
        self.prompt = query_prompt(self.files)
        self.tokenizer = Tokenizer.from_file(str(required(self.files, "tokenizer.json")))
        self.tokenizer.no_padding()

    def __call__(
        self, texts: str | Iterable[str], top_k: int | None = None, *, batch_size: int = 32, **asked: Any
    ) -> list[Any]:
        """``[{"label": str, "score": float, "label_id": int}, ...]`` for a text, a list of them for several texts.

        Args:
            texts: A text, or a list, iterator or column of texts.
            top_k: Labels of each text; None for 5, or all where there are fewer.
            batch_size: Texts encoded and searched at once.
            asked: ``threshold``, ``min_precision``, ``tail``, ``candidates``, ``memory``, ``return_evidence`` and
                ``num_evidence``, as for ``Retriever.predict``.

        Raises:
            ValueError: For what is no text, or an option with a value that this repo cannot answer.
        """
        check_batch_size(batch_size)
        check_options(asked)
        request = checked_request(self.parts, top_k, **asked)
        listed, answers = checked_texts(texts), []
        for start in range(0, len(listed), batch_size):
            part = listed[start : start + batch_size]
            halves = self.encode([self.prompt + text for text in part])
            answers += answer(self.parts, self.parts.join(*halves), part, request)
        return answers[0] if isinstance(texts, str) else answers

    @abstractmethod
    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
        """B texts, prompt included -> the dual encoder's vectors (B, De) and the classifier head's (B, Dc) or None."""


class StaticServer(Server):
    """Serves a static encoder: a table of token vectors, and at most linear heads after it.

    Raises:
        ValueError: For an encoder of another kind.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        first, *self.steps = self.parts.steps
        unknown = [step.kind for step in self.steps if step.kind not in ("Dense", "Normalize", "Dropout")]
        if first.kind != "StaticEmbedding" or unknown:
            raise ValueError(
                f"StaticServer serves a StaticEmbedding with Dense and Normalize after it, got "
                f"{[step.kind for step in self.parts.steps]}; export the repo with hf_xmc.serving.export_onnx and use "
                "OnnxServer"
            )
        for step in self.steps:
            if step.kind == "Dense" and (step.activation not in _ACTIVATIONS or step.config.get("use_residual")):
                raise ValueError(f"a Dense of this repo has {step.activation}; StaticServer knows {[*_ACTIVATIONS]}")
        table = map_tensors(required(self.files, "model.safetensors")).arrays["embedding.weight"]
        self.table = table.astype(np.float32, copy=False)  # (V, D)

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
        """See :class:`Server`."""
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False)]
        nothing = np.zeros(self.table.shape[1], np.float32)
        vectors = np.stack([self.table[row].mean(0) if row else nothing for row in ids])  # (B, D)
        features = {"sentence_embedding": vectors}
        for step in self.steps:
            if step.kind == "Dense":
                out = features[step.source] @ step.weights["linear.weight"].T + step.weights.get("linear.bias", 0)
                features[step.target] = _ACTIVATIONS[step.activation](out)
            elif step.kind == "Normalize":
                features[step.target] = unit(features[step.source])
        return features["sentence_embedding"], features.get("classifier_embedding")


class ExportedServer(Server):
    """Serves what ``hf_xmc.serving.export_onnx`` wrote; a subclass runs the graph.

    Args:
        folder: The folder of a saved retriever, with all its files.
        file: The graph, a file of ``onnx/``.

    Raises:
        ValueError: If the repo has not been exported.
    """

    def __init__(self, folder: str | Path, file: str = "model.onnx") -> None:
        super().__init__(folder)
        export = f"hf_xmc.serving.export_onnx({str(folder)!r})"
        if self.files(f"onnx/{file}") is None:
            raise ValueError(f"{folder} has no onnx/{file}; make it: {export}")
        self.graph = str(required(self.files, f"onnx/{file}"))
        settings = read_json(self.files, "onnx/server.json")
        if "outputs" not in settings:
            raise ValueError(f"{folder} was exported before 0.2, its halves joined; export it anew: {export}")
        self.inputs: list[str] = settings["inputs"]
        if settings["max_length"]:
            self.tokenizer.enable_truncation(settings["max_length"])
        self.tokenizer.enable_padding(direction=settings["padding_side"], pad_id=settings["pad_token_id"])

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
        """See :class:`Server`."""
        encodings = self.tokenizer.encode_batch(texts)
        columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        batch = {
            name: np.array([getattr(encoding, columns[name]) for encoding in encodings], dtype=np.int64)
            for name in self.inputs
        }
        first, *second = (half.astype(np.float32, copy=False) for half in self.run(batch))
        return first, second[0] if second else None

    @abstractmethod
    def run(self, batch: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Tokens (B, T) int64 by input name -> (B, De), and (B, Dc) where there are two vectors."""


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

    def run(self, batch: dict[str, np.ndarray]) -> list[np.ndarray]:
        """See :class:`ExportedServer`."""
        return self.session.run(None, batch)


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
        self._requests = threading.local()

    def run(self, batch: dict[str, np.ndarray]) -> list[np.ndarray]:
        """See :class:`ExportedServer`."""
        # The model's own request is one for all threads, whose answers would be mixed up.
        if not hasattr(self._requests, "own"):
            self._requests.own = self.model.create_infer_request()
        return [np.array(half) for half in self._requests.own.infer(batch).values()]
