"""Stores the weights of an exported encoder in 8 bits, as many as leave its answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_xmc.hub.checks_xmc import checked_request, checked_texts
from hf_xmc.hub.server_xmc import OnnxServer

_BLOCK = 16  # weights that share a scale, float16: 9 bits a weight
_LEAST = 1 << 10  # weights of a matrix worth it
_HARM_TEXTS = 128
_BATCH = 32


@dataclass(frozen=True)
class Int8Export:
    """What :func:`export_int8` wrote; ``agreement`` is that on the texts that chose, so look at others too."""

    matrices: int
    of_matrices: int
    agreement: float
    megabytes: float
    float_megabytes: float


def export_int8(
    folder: str | Path, texts: Sequence[str], *, agreement: float = 0.97, top_k: int = 5, num_threads: int = 0
) -> Int8Export:
    """Write ``onnx/model_int8.onnx`` beside what ``export_onnx`` wrote, for ``OnnxServer`` and ``OpenVinoServer``.

    Every matrix and token table is first quantized alone, which tells how much it moves the labels' scores. They are
    taken in the order of squared change per weight, as many as keep ``agreement``; that number is found by bisection,
    for agreement falls as matrices are added. Weights are int8 in blocks of 16 with a float16 scale, so a matrix has
    9/32 of its size; sums stay float32, so it is the files and the token table in memory that shrink, not the time.
    8-bit sums, which would be faster, change half of the answers of a MiniLM.

    Args:
        folder: A saved retriever with ``onnx/model.onnx``.
        texts: Some hundreds of queries like those to come, none of which is to measure the result.
        agreement: The least share of texts, in (0, 1], that keep the set of their ``top_k`` labels.
        top_k: Labels of each text.
        num_threads: Of ONNX Runtime; 0: all cores.

    Raises:
        ImportError: if the extra ``onnx`` is not installed.
        ValueError: without texts, for an agreement outside (0, 1], or if the repo has not been exported.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ImportError("onnx and onnxruntime are required: pip install hf_xmc[onnx]") from error
    texts = checked_texts(texts)
    if not texts or not 0 < agreement <= 1:
        raise ValueError(f"expected texts and an agreement in (0, 1], got {len(texts)} texts and {agreement}")
    server = OnnxServer(folder, num_threads=num_threads)
    top_k = checked_request(server.parts, top_k).top_k
    graph = onnx.load(server.graph)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads

    def scores(quantized: Sequence[str], some: Sequence[str]) -> np.ndarray:
        model = quantize(graph, quantized).SerializeToString()
        server.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        parts = [some[start : start + _BATCH] for start in range(0, len(some), _BATCH)]
        halves = [server.encode([server.prompt + text for text in part]) for part in parts]
        queries = np.vstack([server.parts.join(*half) for half in halves])
        index = server.parts.index
        return queries @ index.vectors[index.alive].T  # (B, L)

    right = scores([], texts)
    harm = {
        name: float(np.square(scores([name], texts[:_HARM_TEXTS]) - right[:_HARM_TEXTS]).mean()) / size
        for name, size in _matrices(graph).items()
    }
    order = sorted(harm, key=harm.__getitem__)
    best, kept, too_many = 0, 1.0, len(order) + 1
    while too_many - best > 1:
        # All of them first, which is often well.
        count = len(order) if too_many > len(order) else (best + too_many) // 2
        share = _agreement(right, scores(order[:count], texts), top_k)
        if share >= agreement:
            best, kept = count, share
        else:
            too_many = count
    target = Path(server.graph).with_name("model_int8.onnx")
    onnx.save(quantize(graph, order[:best]), str(target))
    sizes = [file.stat().st_size / 1e6 for file in (target, Path(server.graph))]
    return Int8Export(best, len(order), kept, *sizes)


def quantize(graph: Any, names: Sequence[str]) -> Any:
    """An ``onnx.ModelProto`` with the named weights in 8 bits, widened by standard operators; a new one."""
    import onnx
    from onnx import numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(graph)
    del model.graph.value_info[:]
    weights = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer if each.name in names}
    stored = [each for each in model.graph.initializer if each.name not in weights]
    nodes = []
    for node in model.graph.node:
        name = next((name for name in node.input if name in weights), None)
        if name is None:
            nodes.append(node)
        else:
            # A Gather reads rows of a table; a matrix (D_in, D_out) is stored by columns.
            widened = _table if node.op_type == "Gather" else _matrix
            tensors, more = widened(node, name, weights[name])
            stored += tensors
            nodes += more
    for field, content in ((model.graph.initializer, stored), (model.graph.node, nodes)):
        content = list(content)
        del field[:]
        field.extend(content)
    return model


def _table(node: Any, name: str, weight: np.ndarray) -> tuple[list[Any], list[Any]]:
    """Tensors and nodes of a look-up of rows: codes and scales are looked up, then multiplied."""
    from onnx import helper

    tensors = _tensors(name, weight, np.array([0, 0, weight.shape[1]]))
    nodes = [
        helper.make_node("Gather", [f"{name}.{key}", node.input[1]], [f"{name}.{key}.rows"], axis=0) for key in "qs"
    ]
    return tensors, nodes + _widened(name, ".rows", node.output[0])


def _matrix(node: Any, name: str, weight: np.ndarray) -> tuple[list[Any], list[Any]]:
    """Tensors and nodes of a product: the whole matrix is made again under its own name."""
    from onnx import helper

    tensors = _tensors(name, weight.T, np.array([weight.shape[1], weight.shape[0]]))
    transpose = helper.make_node("Transpose", [f"{name}.rows"], [name], perm=[1, 0])
    return tensors, [*_widened(name, "", f"{name}.rows"), transpose, node]


def _tensors(name: str, rows: np.ndarray, shape: np.ndarray) -> list[Any]:
    from onnx import numpy_helper

    codes, scales = _blocks(rows)
    parts = {"q": codes, "s": scales, "shape": shape}
    return [numpy_helper.from_array(part, f"{name}.{key}") for key, part in parts.items()]


def _widened(name: str, suffix: str, output: str) -> list[Any]:
    """Nodes that multiply codes by scales in float32 and lay the blocks side by side."""
    import onnx
    from onnx import helper

    wide = onnx.TensorProto.FLOAT
    return [
        *(helper.make_node("Cast", [f"{name}.{key}{suffix}"], [f"{name}.{key}.wide"], to=wide) for key in "qs"),
        helper.make_node("Mul", [f"{name}.q.wide", f"{name}.s.wide"], [f"{name}.blocks"]),
        helper.make_node("Reshape", [f"{name}.blocks", f"{name}.shape"], [output]),
    ]


def _matrices(graph: Any) -> dict[str, int]:
    """Name and size of each weight that a single lookup of (B, T) ids or a single product reads."""
    sizes = {each.name: int(np.prod(each.dims)) for each in graph.graph.initializer if len(each.dims) == 2}
    widths = {each.name: each.dims for each in graph.graph.initializer}
    readers: dict[str, list[str]] = {}
    for node in graph.graph.node:
        for place, name in enumerate(node.input):
            if name in sizes:
                readers.setdefault(name, []).append(f"{node.op_type} {place}")
    found = {}
    for name, users in readers.items():
        width = widths[name][1 if users == ["Gather 0"] else 0]
        if users in (["Gather 0"], ["MatMul 1"]) and sizes[name] >= _LEAST and width % _BLOCK == 0:
            found[name] = sizes[name]
    return found


def _blocks(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) float32 -> (N, D / 16, 16) int8 and their scales (N, D / 16, 1) float16, none of which is 0."""
    blocks = weight.reshape(len(weight), -1, _BLOCK)
    scales = (np.abs(blocks).max(2, keepdims=True) / 127).astype(np.float16)
    scales = np.where(scales == 0, np.float16(1), scales)
    return np.clip(np.rint(blocks / scales.astype(np.float32)), -127, 127).astype(np.int8), scales


def _agreement(ours: np.ndarray, theirs: np.ndarray, top_k: int) -> float:
    """The share of rows of (B, L) scores that have the same set of best labels."""
    top_k = min(top_k, ours.shape[1])
    sets = [np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :top_k], axis=1) for scores in (ours, theirs)]
    return float((sets[0] == sets[1]).all(1).mean())
