"""The model card of a run, from its metrics.json: README.md with pictures, and results in both forms the Hub reads."""

from __future__ import annotations

import html
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import validate_repo_id
from sentence_transformers import SentenceTransformerTrainingArguments

from hf_xmc.metrics.frequency import FrequencyBin
from hf_xmc.metrics.plots import plot_head_to_tail

TEMPLATE = Path(__file__).parent / "model_card_template.md"
METRICS_FILE, CARD_FILE, PICTURE, RELIABILITY = "metrics.json", "README.md", "head_to_tail.png", "reliability.png"
_NAMES = {"precision": "P", "ndcg": "nDCG", "psp": "PSP", "recall": "R"}
_SHOWN = ("precision@1", "precision@3", "precision@5", "psp@1", "psp@3", "psp@5", "ndcg@5", "recall@10", "recall@100")
_TRAINING = (
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "fp16",
    "seed",
)
_BASES = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}


def write_model_card(
    folder: str | Path, method: str, *, repo_id: str | None = None, licence: str = "apache-2.0"
) -> ModelCard:
    """Write README.md, head_to_tail.png and ``.eval_results/<data set>.yaml`` beside a run's metrics.json.

    The picture needs the extra ``plots`` and is left out without it. A ``reliability.png`` in the folder is shown too.

    Args:
        folder: Where the recipe saved its retriever and metrics.json.
        method: For the title, for example "UniDEC".
        repo_id: Under which the folder will be published, for the code on the card.
        licence: Of the weights, a Hub licence identifier.

    Returns:
        The card.

    Raises:
        ValueError: if the folder has no metrics.json, or one without tested lines, or ``repo_id`` is none of the Hub.
    """
    folder = Path(folder)
    if repo_id is not None:
        validate_repo_id(repo_id)
    if not (folder / METRICS_FILE).is_file():
        raise ValueError(f"{folder} has no {METRICS_FILE}; a recipe writes it with RunRecord.write")
    run = json.loads((folder / METRICS_FILE).read_text(encoding="utf8"))
    if not run.get("tests") or not run.get("data"):
        raise ValueError(f"{folder / METRICS_FILE} has no results of the test split; see RunRecord.test and .describe")
    bins = {line: [FrequencyBin(**each) for each in test["bins"]] for line, test in run["tests"].items()}
    published = next(bins[line] for line, metrics in run["all_metrics"].items() if metrics == run["metrics"])
    # A long training must not end in an error for want of a picture.
    draws = importlib.util.find_spec("matplotlib") is not None
    if draws:
        plot_head_to_tail(bins, folder / PICTURE, k=5)
    data, encoder = run["data"], run["config"].get("encoder", "static")
    name = one_line(data["name"])
    static = encoder == "static"
    card_data = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        license=licence,
        base_model=None if static else _BASES.get(encoder, encoder),
        datasets=[name],
        metrics=["precision", "recall", "ndcg"],
        tags=["hf_xmc", "xmc-retrieval", "extreme-multi-label-classification", "sentence-transformers"],
        model_name=one_line(f"{method} on {name}"),
        eval_results=model_index(run),
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        method=plain(method),
        repo_id=repo_id or f"you/{file_name(name)}-{file_name(method.lower())}",
        licence=plain(licence),
        data=data | {key: plain(data[key]) for key in ("name", "source", "licence") if key in data},
        static=static,
        results=results_table(run["tests"]),
        settings=settings_table(run["config"]),
        head_to_tail=draws,
        reliability=(folder / RELIABILITY).is_file(),
        ranked=(folder / "ranker").is_dir(),
        held_out=bool(run["config"].get("hold_out")),
        head=100 * published[0].recall,
        tail=100 * published[-1].recall,
        wrong=100 * (1 - run["metrics"]["precision@1"]),
        seconds=run["seconds"]["total"],
        hardware=plain(run["hardware"]),
        **{key: run[key] for key in ("world_size", "peak_memory_gib", "commit", "dirty", "versions")},
        notes=[plain(note) for note in run["notes"]],
        citations=[citation.replace("```", "") for citation in run["citations"]],
    )
    card.save(folder / CARD_FILE)
    entries = folder / ".eval_results" / f"{file_name(name)}.yaml"
    entries.parent.mkdir(exist_ok=True)
    entries.write_text(yaml.safe_dump(eval_result_entries_to_yaml(eval_entries(run)), sort_keys=False), "utf8")
    return card


def model_index(run: Mapping[str, Any]) -> list[EvalResult]:
    """The metrics of the published model as the ``model-index`` of a card's metadata, values in [0, 1]."""
    name = one_line(run["data"]["name"])
    return [
        EvalResult(
            task_type="text-retrieval",
            task_name="Extreme multi-label classification",
            dataset_type=name,
            dataset_name=name,
            dataset_split="test",
            metric_type=metric,
            metric_name=title_of(metric),
            metric_value=round(run["metrics"][metric], 4),
        )
        for metric in _SHOWN
    ]


def eval_entries(run: Mapping[str, Any]) -> list[EvalResultEntry]:
    """The same as entries of ``.eval_results/*.yaml``."""
    name, constants = one_line(run["data"]["name"]), run["data"]["propensity"]
    return [
        EvalResultEntry(
            dataset_id=name,
            task_id=metric.replace("@", "_at_"),
            value=round(run["metrics"][metric], 4),
            notes="hf_xmc, test split" + f", propensity A, B = {constants[0]}, {constants[1]}" * ("psp" in metric),
        )
        for metric in _SHOWN
    ]


def results_table(tests: Mapping[str, Any]) -> str:
    """Markdown: one row a line of the results, in percent, with intervals under the metrics that have one."""
    lines = ["| | " + " | ".join(map(title_of, _SHOWN)) + " |", "|---|" + "---:|" * len(_SHOWN)]
    for name, test in tests.items():
        cells = []
        for metric in _SHOWN:
            value, *ends = (f"{100 * number:.2f}" for number in test["metrics"][metric])
            cells.append(f"{value} [{', '.join(ends)}]" if ends else value)
        lines.append(f"| {plain(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def settings_table(config: Mapping[str, Any]) -> str:
    """Markdown: the recipe's fields, those of the pool and the usual ones of training; no path."""
    hidden = {field.name for field in fields(SentenceTransformerTrainingArguments)} - set(_TRAINING)
    hidden |= {"data_dir", "output_dir"}
    shown = {name: value for name, value in config.items() if name not in hidden and value not in (None, [], {}, "")}
    return "\n".join(["| | |", "|---|---|", *(f"| {plain(name)} | {_cell(value)} |" for name, value in shown.items())])


def title_of(metric: str) -> str:
    """The short name of a metric: "precision@1" -> "P@1"."""
    name, _, cut = metric.partition("@")
    return f"{_NAMES.get(name, name)}@{cut}"


def plain(text: Any) -> str:
    """One line of Markdown that shows a text as it stands: no HTML, link, code, table or heading of its own."""
    line = re.sub(r"([\\`\[\]|])", r"\\\1", html.escape(one_line(text), quote=False))
    return re.sub(r"^([#+*=-])", r"\\\1", line)


def one_line(text: Any) -> str:
    """A text on one line, as front matter takes it."""
    return " ".join(str(text).split())


def file_name(text: Any) -> str:
    """A text as the name of a file in this folder, of the characters that the Hub takes."""
    return re.sub(r"[^\w.-]+", "-", str(text), flags=re.ASCII).strip("-.") or "data"


def _cell(value: Any) -> str:
    return plain(" + ".join(map(str, value)) if isinstance(value, list) else value)
