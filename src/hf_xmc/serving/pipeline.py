"""``hf_xmc.pipeline``: the published pipeline run from the installed package, without remote code."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from hf_xmc.hub.pipeline_xmc import XMCRetrievalPipeline
from hf_xmc.retriever.files import fetched

TASK = "xmc-retrieval"


def register() -> None:
    """Make "xmc-retrieval" known to ``transformers.pipeline``; runs at ``import hf_xmc``."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=XMCRetrievalPipeline, pt_model=AutoModel, type="text")


def pipeline(task: str = TASK, model: str | None = None, **kwargs: Any) -> XMCRetrievalPipeline:
    """An "xmc-retrieval" pipeline for a saved :class:`~hf_xmc.Retriever`, from the installed code.

    Calling it with a text or a list of texts gives ``[{"label": str, "score": float, "label_id": int}, ...]`` per
    text, best first. ``transformers.pipeline(task, model=..., trust_remote_code=True)`` does the same from the code
    inside the repo.

    Args:
        task: "xmc-retrieval".
        model: A folder or Hub id that :meth:`~hf_xmc.Retriever.save_pretrained` wrote.
        kwargs: Those of ``transformers.pipeline`` (device, batch_size, revision, ...).

    Raises:
        ValueError: for another task or no model.
    """
    if task != TASK:
        raise ValueError(
            f"hf_xmc.pipeline serves the task {TASK!r}, got {task!r}; give a repo by name, pipeline(model=...); other "
            "tasks are those of transformers.pipeline"
        )
    if model is None:
        raise ValueError("model is required: a folder or Hub id saved by Retriever.save_pretrained")
    revision = kwargs.pop("revision", None)
    # The commit of a Hub repo does not reach a pipeline, its folder does.
    folder = fetched(model, revision=revision, token=kwargs.get("token"))
    make: Any = transformers.pipeline  # its overloads are of the host's own tasks
    return make(task, model=str(folder), pipeline_class=XMCRetrievalPipeline, **kwargs)
