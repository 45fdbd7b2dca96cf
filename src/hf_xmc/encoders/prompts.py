"""The prompt that a model puts before a query or a label: one answer for training, mining, evaluation and serving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sentence_transformers import SentenceTransformer

from hf_xmc.hub.checks_xmc import check_batch_size

# As the host's encode_query and encode_document look for them.
_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}
# What of the host's encode changes no vector; all else would make vectors that a saved index does not meet.
HOW = ("batch_size", "show_progress_bar", "device", "pool", "chunk_size")


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
        The prompt, or None where the model has none for the task and none by default. Of names that fit, the first
        whose prompt is not empty: the host fills in an empty "document" beside a "passage" when it loads a model.

    Raises:
        ValueError: For a name that the model does not have, or both a prompt and a name.
    """
    if prompt is not None and prompt_name is not None:
        raise ValueError(f"give a prompt or a prompt_name, not both, got {prompt!r} and {prompt_name!r}")
    if prompt is not None:
        return prompt
    if prompt_name is None:
        own = [model.prompts[name] for name in _NAMES[task] if name in model.prompts]
        default = model.prompts.get(model.default_prompt_name) if model.default_prompt_name is not None else None
        return next((text for text in own if text), "" if own else default)
    if prompt_name not in model.prompts:
        raise ValueError(f"the model has no prompt named {prompt_name!r}, only {sorted(model.prompts)}")
    return model.prompts[prompt_name]


def encode_options(model: SentenceTransformer, task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the host's ``encode`` for a task, its prompt found by :func:`prompt_of`.

    Raises:
        ValueError: For an option that is none, or would make other vectors than those of the labels.
    """
    unknown = sorted(set(options) - {*HOW, "prompt", "prompt_name"})
    if unknown:
        known = ", ".join((*HOW, "prompt", "prompt_name"))
        raise ValueError(f"unknown option {', '.join(unknown)}; texts are encoded with {known}")
    check_batch_size(options.get("batch_size", 1))
    rest = {name: value for name, value in options.items() if name in HOW}
    prompt = prompt_of(model, task, options.get("prompt"), options.get("prompt_name"))
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(f"a prompt must be a str, got {prompt!r:.80}")
    return {"task": task, "prompt": prompt} | rest
