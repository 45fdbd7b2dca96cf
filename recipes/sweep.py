"""A search for hyper-parameters on the held-out part of train, which writes a config for unidec.py.

    accelerate launch recipes/sweep.py [--config YAML] [--data_dir DIR] [--output_dir DIR] [field=value]

``space`` maps a field of XMCTrainingArguments or of the loss (scale, encoder_weight, symmetric_weight, bce_weight) to
``{low: .., high: .., log: true}`` or ``{choices: [..]}``. Optuna draws from it through the Trainer's
``hyperparameter_search``; what is drawn depends on the seed alone. The test split is not looked at.
``<output_dir>/unidec.yaml`` has the settings of the best trial, ``trials.json`` every trial.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import optuna
import yaml
from torch import nn

import hf_xmc
from hf_xmc.encoders.start import start_encoder
from hf_xmc.runs.run import EncoderFields, Run
from hf_xmc.training.arguments import CLASSIFIER_ROWS

TRAINING_FIELDS = {each.name for each in fields(hf_xmc.XMCTrainingArguments)}
# Not for unidec.py.
OWN_FIELDS = {"space", "num_trials", "metric", "data_dir"}


@dataclass
class Sweep(EncoderFields):
    """The recipe's own fields, those of unidec.py among them; everything else is a field of XMCTrainingArguments."""

    space: dict = field(default_factory=dict)
    num_trials: int = 20
    metric: str = "precision@1"
    classifier: bool = True
    residual: bool = True
    dropout: float = 0.1
    scale: float = 20.0

    def __post_init__(self) -> None:
        """Refuse a space that nothing can be drawn from."""
        for name, each in self.space.items():
            given = each if isinstance(each, dict) else {}
            ends = [end for end in (given.get("low"), given.get("high")) if isinstance(end, int | float)]
            if not given.get("choices") and not (len(ends) == 2 and ends[0] < ends[1]):
                raise ValueError(f"space has {name}: {each}; expected {{low: .., high: ..}} or {{choices: [..]}}")


def draw(trial: optuna.Trial, space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One value for each field of the space."""
    drawn = {}
    for name, each in space.items():
        if "choices" in each:
            drawn[name] = trial.suggest_categorical(name, each["choices"])
        else:
            suggest = trial.suggest_int if isinstance(each["low"], int) else trial.suggest_float
            drawn[name] = suggest(name, each["low"], each["high"], log=each.get("log", False))
    return drawn


def apply(drawn: Mapping[str, Any], args: hf_xmc.XMCTrainingArguments, loss: nn.Module) -> None:
    """Set what the host's search does not: the rows' learning rate, and the fields of the loss."""
    for name, value in drawn.items():
        if name == "classifier_learning_rate":
            args.learning_rate_mapping = args.learning_rate_mapping | {CLASSIFIER_ROWS: value}
        elif name not in TRAINING_FIELDS:
            setattr(loss, name, value)


def settings_of(config: Sweep, args: hf_xmc.XMCTrainingArguments, best: Mapping[str, Any]) -> dict[str, Any]:
    """A config for unidec.py: what the config or the command line set, and what the best trial drew."""
    chosen = {name: value for name, value in asdict(config).items() if name not in OWN_FIELDS and value != []}
    initial = hf_xmc.XMCTrainingArguments(output_dir=args.output_dir).to_dict()
    left_out = {"output_dir", "learning_rate_mapping", "run_name", "hub_token"}
    set_here = {name: value for name, value in args.to_dict().items() if initial.get(name) != value}
    chosen |= {name: value for name, value in set_here.items() if name not in left_out}
    return {"output_dir": str(args.output_dir)} | chosen | dict(best)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the search with a command line, the process's own where none is given."""
    # 1. Settings and data; what is held out by title key, as in unidec.py with the same seed.
    run = Run(Sweep, __file__, __doc__, argv)
    config, args = run.config, run.args
    development = run.data.hold_out(config.hold_out, seed=args.seed, answerable_only=True)
    run.state.print(run.data, *run.record.notes, sep="\n")
    trials: list[dict[str, Any]] = []

    # 2. What a trial draws, the model it begins with, and how it is judged.
    def make_encoder(trial: optuna.Trial | None = None) -> hf_xmc.XMCEncoder:
        if trial is not None:
            trials.append(draw(trial, config.space))
            apply(trials[-1], args, trainer.loss)
        encoder = start_encoder(config.encoder, development, max_seq_length=config.max_seq_length)
        if config.classifier:
            encoder.add_classifier(run.data.num_labels, None, residual=config.residual, dropout=config.dropout)
        return encoder

    def for_the_host(trial: optuna.Trial) -> dict[str, Any]:
        return {name: value for name, value in draw(trial, config.space).items() if name in TRAINING_FIELDS}

    def objective(metrics: dict[str, float]) -> float:
        trials[-1][config.metric] = metrics[f"eval_held_out_{config.metric}"]
        return trials[-1][config.metric]

    # 3. The search.
    trainer = hf_xmc.XMCTrainer(
        model_init=make_encoder,
        args=args,
        train_dataset=development,
        loss=lambda encoder: hf_xmc.losses.UnifiedLoss(encoder, scale=config.scale),
        evaluator=hf_xmc.XMCEvaluator(development, name="held_out"),
    )
    elsewhere = sorted(
        name for name in config.space if name not in TRAINING_FIELDS and not hasattr(trainer.loss, name)
    )
    if elsewhere:
        raise ValueError(f"space has {elsewhere}; neither XMCTrainingArguments nor the loss has such a field")
    best = trainer.hyperparameter_search(
        hp_space=for_the_host,
        compute_objective=objective,
        n_trials=config.num_trials,
        direction="maximize",
        backend="optuna",
        sampler=optuna.samplers.TPESampler(seed=args.seed),
    )

    # 4. The config of the best trial, for unidec.py.
    if run.is_main:
        found = f"{config.metric} {best.objective:.4f} on the held-out part of {run.data.name}"
        settings = yaml.safe_dump(settings_of(config, args, best.hyperparameters))
        file = run.output / "unidec.yaml"
        file.write_text(f"# {found}, the best of {config.num_trials}.\n{settings}", encoding="utf8")
        (run.output / "trials.json").write_text(json.dumps(trials, indent=2), encoding="utf8")
        print(f"best: {best.hyperparameters}, {config.metric} {100 * best.objective:.2f}; saved {file}")


if __name__ == "__main__":
    main()
