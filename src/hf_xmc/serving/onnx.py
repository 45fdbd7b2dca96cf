"""Exports the encoder of a saved retriever as an ONNX graph, which ONNX Runtime and OpenVINO both run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_xmc.hub.pipeline_xmc import XMCRetrievalPipeline
from hf_xmc.serving.pipeline import pipeline

_NO_LIMIT = 10**9  # tokenizers without a limit say 10^30


def export_onnx(folder: str | Path) -> Path:
    """Add ``onnx/model.onnx`` to a saved retriever: tokens in, the dual encoder's vectors out, and the classifier's.

    ``hf_xmc.hub.server_xmc.OnnxServer`` and ``OpenVinoServer`` answer with it, in processes without torch. The host's
    own ONNX and OpenVINO back ends are not used: optimum-onnx 0.1 wants transformers below 4.58, optimum-intel 2.2
    wants it below 5.6. :func:`~hf_xmc.serving.export_int8` stores the weights of the graph in 8 bits.

    Args:
        folder: What ``Retriever.save_pretrained`` wrote.

    Returns:
        The folder ``onnx``.

    Raises:
        ImportError: if the extra ``onnx`` is not installed.
        ValueError: for a static encoder, which ``StaticServer`` serves as it is.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("onnx and onnxscript are required: pip install hf_xmc[onnx]") from error
    folder = Path(folder).expanduser()
    pipe = pipeline(model=str(folder), device="cpu", model_kwargs={"attn_implementation": "eager"})
    if pipe.is_static:
        raise ValueError(f"{folder} holds a static encoder; serve it with hf_xmc.hub.server_xmc.StaticServer")
    target = Path(folder) / "onnx"
    target.mkdir(exist_ok=True)
    graph = _QueryEncoder(pipe)
    has_head = any(step.target == "classifier_embedding" for step in pipe.steps)
    outputs = ["sentence_embedding", *(["classifier_embedding"] if has_head else [])]
    batch = torch.export.Dim("batch")
    tokens = torch.export.Dim("tokens")
    example = pipe.tokenizer(["an example", "and another, longer one"], padding=True, return_tensors="pt")
    inputs = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in example]
    torch.onnx.export(
        graph,
        tuple(example[name] for name in inputs),
        str(target / "model.onnx"),
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=tuple({0: batch, 1: tokens} for _ in inputs),
        external_data=False,
        dynamo=True,
    )
    limit = pipe.tokenizer.model_max_length
    settings: dict[str, Any] = {
        "inputs": inputs,
        "outputs": outputs,
        "max_length": limit if limit < _NO_LIMIT else None,
        "pad_token_id": pipe.tokenizer.pad_token_id,
        "padding_side": pipe.tokenizer.padding_side,
    }
    (target / "server.json").write_text(json.dumps(settings, indent=2), encoding="utf8")
    return target


class _QueryEncoder(nn.Module):
    def __init__(self, pipe: XMCRetrievalPipeline) -> None:
        super().__init__()
        self.model = pipe.model
        self.pipe = pipe

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        halves = self.pipe.encode(input_ids, attention_mask, token_type_ids)
        return tuple(half.float() for half in halves if half is not None)
