"""The prompt that a model puts before a query or a label: one answer for training, mining, evaluation and serving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sentence_transformers import SentenceTransformer

# As the host's encode_query and encode_document look for them.
_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}


def prompt_of(
    model: SentenceTransformer, task: str, prompt: str | None = None, prompt_name: str | None = None
) -> str | None:
    """The prompt of a task: the one that is given, else the one that is named, else the model's own.

    Args:
        model: Any sentence-transformers model.
        task: "query" or "document".
        prompt: A prompt itself, "" for none.
        prompt_name: The name of one of the model's prompts.

    Returns:
        The prompt, or None where the model has none for the task and none by default.

    Raises:
        ValueError: For a name that the model does not have, or both a prompt and a name.
    """
    if prompt is not None and prompt_name is not None:
        raise ValueError(f"give a prompt or a prompt_name, not both, got {prompt!r} and {prompt_name!r}")
    if prompt is not None:
        return prompt
    if prompt_name is None:
        own = next((name for name in _NAMES[task] if name in model.prompts), model.default_prompt_name)
        return None if own is None else model.prompts.get(own)
    if prompt_name not in model.prompts:
        raise ValueError(f"the model has no prompt named {prompt_name!r}, only {sorted(model.prompts)}")
    return model.prompts[prompt_name]


def encode_options(model: SentenceTransformer, task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the host's ``encode`` for a task, its prompt found by :func:`prompt_of`."""
    rest = {name: value for name, value in options.items() if name not in ("prompt", "prompt_name")}
    prompt = prompt_of(model, task, options.get("prompt"), options.get("prompt_name"))
    return {"task": task, "prompt": prompt} | rest
