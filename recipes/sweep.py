"""A search for hyper-parameters on the held-out part of train, which writes a config for unidec.py.

    accelerate launch recipes/sweep.py [--config YAML] [--data_dir DIR] [--output_dir DIR] [field=value]

``space`` maps a field of XMCTrainingArguments or of the loss (scale, encoder_weight, symmetric_weight, bce_weight) to
``{low: .., high: .., log: true}`` or ``{choices: [..]}``. Optuna draws from it through the Trainer's
``hyperparameter_search``; what is drawn depends on the seed alone. The test split is not looked at.
``<output_dir>/unidec.yaml`` has the settings of the best trial, ``trials.json`` every trial.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import optuna
import yaml
from accelerate import PartialState

import hf_xmc
from hf_xmc.runs.config import load_data, read_recipe_config
from hf_xmc.runs.encoder import start_encoder
from hf_xmc.training.arguments import CLASSIFIER_ROWS

HERE = Path(__file__).parent


@dataclass
class Sweep:
    """The recipe's own fields, those of unidec.py among them; everything else is a field of XMCTrainingArguments."""

    space: dict = field(default_factory=dict)
    num_trials: int = 20
    metric: str = "precision@1"
    data_dir: str = str(HERE / "data" / "lf-gutenberg-science-tiny")
    fields: list[str] = field(default_factory=list)
    label_fields: list[str] = field(default_factory=list)
    encoder: str = "static"
    max_seq_length: int = 64
    min_pair_count: int = 5
    table_dimension: int | None = None
    classifier: bool = True
    residual: bool = True
    dropout: float = 0.1
    scale: float = 20.0
    hold_out: float = 0.1


# 1. Settings: the YAML, then the command line.
config, args = read_recipe_config(Sweep, __doc__, default=HERE / "configs" / "default" / "sweep.yaml")
state = PartialState()
training_fields = {each.name for each in fields(hf_xmc.XMCTrainingArguments)}

# 2. Data: what is held out by title key, as in unidec.py with the same seed.
data, assumed = load_data(config.data_dir, config.fields, config.label_fields)
development = data.hold_out(config.hold_out, seed=args.seed, answerable_only=True)
state.print(data, *assumed, sep="\n")
trials: list[dict[str, Any]] = []


# 3. What a trial draws, and the model it begins with.
def draw(trial: optuna.Trial) -> dict[str, Any]:
    return {
        name: trial.suggest_categorical(name, each["choices"])
        if "choices" in each
        else (trial.suggest_int if isinstance(each["low"], int) else trial.suggest_float)(
            name, each["low"], each["high"], log=each.get("log", False)
        )
        for name, each in config.space.items()
    }


def make_encoder(trial: optuna.Trial | None = None) -> hf_xmc.XMCEncoder:
    if trial is not None:
        trials.append(draw(trial))
        for name, value in draw(trial).items():
            if name == "classifier_learning_rate":
                args.learning_rate_mapping = args.learning_rate_mapping | {CLASSIFIER_ROWS: value}
            elif name not in training_fields:
                setattr(trainer.loss, name, value)
    table = {"min_pair_count": config.min_pair_count, "table_dimension": config.table_dimension}
    encoder = start_encoder(config.encoder, development, max_seq_length=config.max_seq_length, **table)
    if config.classifier:
        encoder.add_classifier(data.num_labels, None, residual=config.residual, dropout=config.dropout)
    return encoder


# 4. The search.
trainer = hf_xmc.XMCTrainer(
    model_init=make_encoder,
    args=args,
    train_dataset=development,
    loss=lambda encoder: hf_xmc.losses.UnifiedLoss(encoder, scale=config.scale),
    evaluator=hf_xmc.XMCEvaluator(development, name="held_out"),
)
if unknown := sorted(name for name in config.space if name not in training_fields and not hasattr(trainer.loss, name)):
    raise ValueError(f"space has {unknown}; neither XMCTrainingArguments nor the loss has such a field")


def objective(metrics: dict[str, float]) -> float:
    trials[-1][config.metric] = metrics[f"eval_held_out_{config.metric}"]
    return trials[-1][config.metric]


best = trainer.hyperparameter_search(
    hp_space=lambda trial: {name: value for name, value in draw(trial).items() if name in training_fields},
    compute_objective=objective,
    n_trials=config.num_trials,
    direction="maximize",
    backend="optuna",
    sampler=optuna.samplers.TPESampler(seed=args.seed),
)

# 5. The config of the best trial, for unidec.py.
if state.is_main_process:
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    own = {"space", "num_trials", "metric", "data_dir"}
    chosen = {name: value for name, value in asdict(config).items() if name not in own and value != []}
    # Of the training arguments, those that the config or the command line set.
    initial = hf_xmc.XMCTrainingArguments(output_dir=args.output_dir).to_dict()
    chosen |= {
        name: value
        for name, value in args.to_dict().items()
        if initial.get(name) != value and name not in ("output_dir", "learning_rate_mapping", "run_name")
    }
    chosen |= best.hyperparameters
    head = (
        f"# {config.metric} {best.objective:.4f} on the held-out part of {data.name}, the best of {config.num_trials}."
    )
    (output / "unidec.yaml").write_text(f"{head}\n{yaml.safe_dump({'output_dir': str(args.output_dir)} | chosen)}")
    (output / "trials.json").write_text(json.dumps(trials, indent=2))
    print(f"best: {best.hyperparameters}, {config.metric} {100 * best.objective:.2f}; saved {output / 'unidec.yaml'}")
