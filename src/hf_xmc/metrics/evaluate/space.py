"""The page of a published module: predictions and references as JSON in, metrics out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import evaluate


def load_module(folder: str | Path) -> evaluate.EvaluationModule:
    """The evaluate module in ``folder``, whose own name does not matter: a Space runs in a folder called app."""
    (script,) = Path(folder).glob("xmc*.py")
    return evaluate.load(str(script))


def answer(module: evaluate.EvaluationModule, predictions: str, references: str, options: str) -> dict[str, float]:
    """Metrics of JSON texts: lists of label ids twice, and an object of further arguments, such as {"k": [1, 3]}."""
    return module.compute(
        predictions=json.loads(predictions), references=json.loads(references), **json.loads(options or "{}")
    )


def build_page(folder: str | Path) -> Any:
    """The gradio page of the module in ``folder``; ``.launch()`` serves it."""
    import gradio

    module = load_module(folder)

    def respond(predictions: str, references: str, options: str) -> dict[str, float]:
        try:
            return answer(module, predictions, references, options)
        except (TypeError, ValueError) as error:  # an option that does not exist is a TypeError
            raise gradio.Error(str(error)) from error

    return gradio.Interface(
        fn=respond,
        inputs=[
            gradio.Textbox(label="predictions", value="[[2, 1, 0], [1, 4]]"),
            gradio.Textbox(label="references", value="[[0, 2], [1]]"),
            gradio.Textbox(label="further arguments", value='{"k": [1, 3], "inverse_propensities": [1, 2, 3, 4, 5]}'),
        ],
        outputs=gradio.JSON(label="metrics"),
        title=module.name,
        description=module.info.description,
    )
