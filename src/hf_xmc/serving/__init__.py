"""Doors for processes that only answer: pipelines, ONNX Runtime, OpenVINO."""

from __future__ import annotations

from hf_xmc.serving.int8 import Int8Export, export_int8
from hf_xmc.serving.onnx import export_onnx
from hf_xmc.serving.pipeline import pipeline, register

__all__ = [
    "Int8Export",
    "export_int8",
    "export_onnx",
    "pipeline",
    "register",
]
