"""Answers of saved repos through doors, in a process that may lack hf_xmc, FAISS or torch: its argument is JOB.json.

JOB: {"encoders": {folder of an encoder: [folders of repos with it]}, "texts": [...], "asked": [[batch size, number of
texts, options], ...], "missing": [module, ...], "doors": [...], "out": file}. Doors are "pipeline", "static", "onnx"
and "package". An encoder is loaded once; the repos with it differ in all the rest. In the file that is written, an
answer is called "door folder number of the call".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

Ask = Callable[..., list[Any]]


def pipeline_door(first: Path) -> Callable[[Path], Ask]:
    from transformers import pipeline

    pipe = pipeline("xmc-retrieval", model=str(first), trust_remote_code=True, device="cpu")

    def opened(folder: Path) -> Ask:
        files = lambda name: str(folder / name) if (folder / name).is_file() else None  # noqa: E731
        pipe.parts = type(pipe.parts)(files)
        return lambda texts, size, **options: pipe(texts, batch_size=size, **options)

    return opened


def server_door(first: Path, name: str) -> Callable[[Path], Ask]:
    sys.path.insert(0, str(first))
    server_class = getattr(import_module("server_xmc"), name)

    def opened(folder: Path) -> Ask:
        server = server_class(folder)
        return lambda texts, size, **options: server(texts, batch_size=size, **options)

    return opened


def package_door(first: Path) -> Callable[[Path], Ask]:
    from hf_xmc import Retriever
    from hf_xmc.retriever import files

    read = vars(files).setdefault("read_for_the_first_time", files._read_encoder)
    encoder = read(first, "cpu")
    files._read_encoder = lambda folder, device: encoder

    def opened(folder: Path) -> Ask:
        retriever = Retriever.from_pretrained(folder)
        return lambda texts, size, **options: retriever.predict(texts, batch_size=size, **options)

    return opened


def main(job: dict[str, Any]) -> dict[str, np.ndarray]:
    """What each door answers; a repo that a door is not made for is left out."""
    given: dict[str, np.ndarray] = {}
    for door in job["doors"]:
        for first, folders in job["encoders"].items():
            is_static = json.loads((Path(first) / "modules.json").read_text())[0]["type"].endswith("StaticEmbedding")
            if door in ("static", "onnx") and is_static != (door == "static"):
                continue
            if door == "pipeline":
                opened = pipeline_door(Path(first))
            elif door == "package":
                opened = package_door(Path(first))
            else:
                opened = server_door(Path(first), {"static": "StaticServer", "onnx": "OnnxServer"}[door])
            for folder in folders:
                for call, answers in enumerate(answers_of(opened(Path(folder)), job["texts"], job["asked"])):
                    given[f"{door} {folder} {call}"] = answers
    return given


def answers_of(ask: Ask, texts: list[str], asked: list[Any]) -> list[np.ndarray]:
    """For each call (texts, top_k, 3): id, score and probability, NaN where there is none."""
    return [
        np.array(
            [
                [(label["label_id"], label["score"], label.get("probability", np.nan)) for label in line]
                for line in ask(texts[:count], size, **options)
            ]
        )
        for size, count, options in asked
    ]


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    if job["missing"]:  # also for what was imported before
        for name in [name for name in sys.modules if name.split(".")[0] == "hf_xmc"]:
            del sys.modules[name]
    sys.modules |= dict.fromkeys(job["missing"])
    np.savez(job["out"], **main(job))
