"""What is refused before a training begins, with the reason in one line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer import losses as host_losses
from torch import nn

from hf_xmc.data.columns import chunks_of
from hf_xmc.data.dataset import XMCDataset
from hf_xmc.encoders.classifier import LabelClassifier
from hf_xmc.losses.all_labels import AllLabelsLoss
from hf_xmc.losses.label_table import LabelTableLoss
from hf_xmc.losses.pool.base import PoolLoss, uses_pool
from hf_xmc.losses.unified import UnifiedLoss

# Losses of the host that look at no pairs: around a loss of ours, or at the vectors of each column by themselves.
_WITHOUT_PAIRS = (host_losses.MatryoshkaLoss, host_losses.GlobalOrthogonalRegularizationLoss)

_OURS = (PoolLoss, AllLabelsLoss, LabelTableLoss, UnifiedLoss)


def loss_parts(loss: nn.Module) -> Iterator[nn.Module]:
    """A loss and the modules it is made of, without the model."""
    yield loss
    for child in loss.children():
        if not isinstance(getattr(child, "module", child), SentenceTransformer):
            yield from loss_parts(child)


def check_loss(loss: nn.Module, model: SentenceTransformer | None, data: XMCDataset) -> None:
    """Refuse a loss that cannot learn from batches of queries, a pool of candidates and label ids.

    Of the host's losses none can by itself: they pair query i with candidate i, which is a label of any row, or read
    ``label`` as one number a row. ``MatryoshkaLoss`` works around a loss of ours; ``AdaptiveLayerLoss`` does not, as
    it reads hidden states of padded texts, which are not padded here; ``GlobalOrthogonalRegularizationLoss`` works as
    a part of a loss of your own.

    Args:
        loss: The loss.
        model: The model that is trained; None where it is made later.
        data: The data set that is trained on.

    Raises:
        ValueError: For such a loss, one of another model, one made for another number of labels, or one that leaves
            a classifier as it is.
    """
    _check_rows_are_trained(loss, model)
    for part in loss_parts(loss):
        _check_kind(part)
        own = getattr(part, "model", None)
        own = getattr(own, "module", own)
        if model is not None and isinstance(own, SentenceTransformer) and own is not model:
            raise ValueError(
                f"{type(part).__name__} was made with another model; make it with the one that is trained"
            )
        num_labels = getattr(part, "num_labels", None)
        if isinstance(num_labels, int) and num_labels != data.num_labels:
            raise ValueError(
                f"{type(part).__name__} was made for {num_labels} labels, {data.name} has {data.num_labels}"
            )
        if isinstance(part, UnifiedLoss) and part.needs_classifier and model is not None and not _classifiers(model):
            raise ValueError(
                f"this UnifiedLoss weighs a classifier (encoder_weight={part.encoder_weight}, "
                f"bce_weight={part.bce_weight}), which the encoder does not have; add_classifier, or leave both out"
            )


def _check_rows_are_trained(loss: nn.Module, model: SentenceTransformer | None) -> None:
    """Refuse a loss of ours that looks at the dual encoder alone, beside a classifier that is to be trained."""
    parts = [part for part in loss_parts(loss) if isinstance(part, _OURS)]
    trained = any(isinstance(part, UnifiedLoss) and part.encoder_weight < 1 for part in parts)
    if not parts or trained or model is None:
        return
    if any(weights.requires_grad for rows in _classifiers(model) for weights in rows.parameters()):
        raise ValueError(
            f"{type(parts[0]).__name__} trains the dual encoder alone, and the rows of the encoder's classifier would "
            "stay as they are; take UnifiedLoss(model), call add_classifier after this training, or say that they "
            "are to stay: model.label_classifier.requires_grad_(False)"
        )


def _check_kind(part: nn.Module) -> None:
    bases = type(part).__mro__
    name = type(part).__name__
    if isinstance(part, host_losses.AdaptiveLayerLoss):
        raise ValueError(f"{name} reads the hidden states of padded texts, which are not padded here; leave it out")
    if not isinstance(part, _WITHOUT_PAIRS) and any(
        base.__module__.startswith("sentence_transformers.")
        and "Loss" in base.__name__
        and "Mixin" not in base.__name__
        for base in bases
    ):
        raise ValueError(
            f"{name} cannot be trained with: it pairs query i with candidate i, or reads one label a row, but "
            "candidates are a pool of labels for all rows; take one of hf_xmc.losses, such as "
            "DecoupledSoftmaxLoss(model)"
        )
    if any(base.__module__ == "torch.nn.modules.loss" for base in bases):
        raise ValueError(
            f"{name} compares scores, of which a trainer has none; take one of hf_xmc.losses, such as "
            "DecoupledSoftmaxLoss(model)"
        )


def check_model(model: Any, data: XMCDataset) -> None:
    """Refuse what is no model, or has a classifier for other labels.

    Raises:
        ValueError: For such a model.
    """
    if not isinstance(model, SentenceTransformer):
        raise ValueError(
            f"model is {model if isinstance(model, str) else type(model).__name__!r}; expected an XMCEncoder or a "
            "SentenceTransformer"
        )
    for classifier in _classifiers(model):
        if classifier.num_targets != data.num_labels:
            raise ValueError(
                f"the encoder has a classifier for {classifier.num_targets} labels, {data.name} has "
                f"{data.num_labels}; make the encoder anew and add_classifier({data.num_labels}, ...)"
            )


def _classifiers(model: nn.Module) -> list[LabelClassifier]:
    return [module for module in model.modules() if isinstance(module, LabelClassifier)]


def check_data(data: Any) -> XMCDataset:
    """The data set, unless it is none or holds nothing to train on.

    Raises:
        ValueError: For what is no XMCDataset, one without train rows, or texts that are null.
    """
    if not isinstance(data, XMCDataset):
        raise ValueError(
            f"XMCTrainer trains on an XMCDataset, got {type(data).__name__}; make one with load_lf or "
            "XMCDataset.from_dataset, or use SentenceTransformerTrainer with an XMCDataCollator"
        )
    if not len(data.train):
        raise ValueError(f"{data.name} has no train rows")
    for name, texts in (("train", chunks_of(data.train, "text")), ("labels", data.label_texts)):
        if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
            raise ValueError(f"the column 'text' of {name} is {texts.type}; expected strings")
        if texts.null_count:
            raise ValueError(f"text {pc.index(pc.is_null(texts), True).as_py()} of {name} is None; expected a string")
    return data


def check_pool(loss: nn.Module, args: Any) -> None:
    """Refuse settings of a pool beside a loss that has none.

    Raises:
        ValueError: Naming the settings.
    """
    drawn = {name: getattr(args, name) for name in ("hard_negatives", "random_negatives", "max_candidates")}
    if not uses_pool(loss) and any(drawn.values()):
        asked = ", ".join(f"{name}={value}" for name, value in drawn.items() if value)
        raise ValueError(f"{asked}: {type(loss).__name__} has no pool of candidates to put them in; leave them out")


def check_mining(args: Any, num_rows: int) -> None:
    """Refuse to mine at the beginning of an epoch that a training does not reach.

    Args:
        args: Of an XMCTrainer.
        num_rows: Train rows.

    Raises:
        ValueError: Naming the settings and the way out.
    """
    asked = [name for name in ("hard_negatives", "cluster_batches") if getattr(args, name)]
    epochs = args.num_train_epochs
    if args.max_steps > 0:
        epochs = args.max_steps / max(1, math.ceil(num_rows / (args.train_batch_size * args.world_size)))
        epochs *= args.gradient_accumulation_steps
    if asked and epochs <= args.refresh_epochs:
        raise ValueError(
            f"{asked[0]}={getattr(args, asked[0])}: neighbors are searched for when refresh_epochs="
            f"{args.refresh_epochs} epochs have been trained, and the training ends after {epochs:g}; lower "
            f"refresh_epochs, or leave {' and '.join(asked)} out"
        )


def check_settings(args: Any, *, evaluates_loss: bool) -> None:
    """Refuse arguments that would do nothing, or end the training later.

    Args:
        args: Of an XMCTrainer.
        evaluates_loss: Whether there are rows to evaluate the loss on, not several by name.

    Raises:
        ValueError: Naming the argument and the way out.
    """
    if args.batch_sampler != BatchSamplers.BATCH_SAMPLER:
        raise ValueError(
            f"batch_sampler={args.batch_sampler}: XMCTrainer draws its batches itself; cluster_batches=True puts near "
            "neighbors into one"
        )
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("fp16=True needs a GPU; on a CPU take bf16=True or neither")
    if args.neftune_noise_alpha is not None:
        raise ValueError("neftune_noise_alpha is for transformers' own models; token_dropout=0.1 blurs texts here")
    if args.load_best_model_at_end and args.metric_for_best_model in ("loss", "eval_loss") and not evaluates_loss:
        raise ValueError(
            f"metric_for_best_model={args.metric_for_best_model!r} is the loss of an eval_dataset, of which there is "
            "none (or several by name); give one, or name a metric, such as 'eval_<name>_precision@1'"
        )


def check_counts(least: dict[str, int], given: Any) -> None:
    """Refuse attributes of ``given`` that are no integers from a minimum on; None passes.

    Raises:
        ValueError: Naming the first one.
    """
    for name, minimum in least.items():
        value = getattr(given, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} must be an integer, got {value!r}")
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def column_prompts(prompts: Any) -> dict[str, str]:
    """Prompts by task, "query" and "document", of a string for both or of a dict.

    Raises:
        ValueError: Naming a key that is neither, or a prompt that is no string.
    """
    if prompts is None:
        return {}
    if isinstance(prompts, str):
        return {"query": prompts, "document": prompts}
    if not isinstance(prompts, dict):
        raise ValueError(f"prompts are a {type(prompts).__name__}; expected a string or a dict")
    if unknown := [key for key in prompts if key not in ("query", "document", "candidate")]:
        raise ValueError(f"prompts have the key(s) {unknown}; expected 'query' and 'document'")
    if wrong := {key: value for key, value in prompts.items() if value is not None and not isinstance(value, str)}:
        raise ValueError(f"prompts must be strings, got {wrong}")
    if {"document", "candidate"} <= set(prompts) and prompts["document"] != prompts["candidate"]:
        raise ValueError(f"'document' and 'candidate' are one thing, got {prompts}")
    named = {"document" if key == "candidate" else key: value for key, value in prompts.items()}
    return {task: prompt for task, prompt in named.items() if prompt is not None}
