"""LoRA (Hu et al., ICLR 2022): an encoder whose backbone is trained through low-rank adapters, by peft."""

from __future__ import annotations

from hf_xmc.encoders.encoder import XMCEncoder


def add_lora(encoder: XMCEncoder, rank: int) -> None:
    """Freeze the backbone and give each of its linear layers a trainable adapter of ``rank``, scaled by 2.

    Heads and classifier stay trainable as they are. Checkpoints of the trainer then hold the adapters in place of the
    backbone, which must be found again under its own name when they are loaded. :func:`merge_lora` before publishing.
    Other settings: ``encoder.add_adapter(peft.LoraConfig(...))``.

    Args:
        encoder: An encoder with a transformers backbone.
        rank: At least 1.

    Raises:
        ImportError: if the extra ``peft`` is not installed.
        ValueError: for a rank below 1, a static encoder, or one that has adapters already.
    """
    try:
        from peft import LoraConfig, TaskType
    except ImportError as error:
        raise ImportError("peft is required: pip install hf_xmc[peft]") from error
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if encoder.transformers_model is None:
        raise ValueError("LoRA needs a transformers backbone; a static encoder has none: train its table itself")
    if has_lora(encoder):
        raise ValueError("this encoder has adapters already; merge_lora them first")
    encoder.add_adapter(
        LoraConfig(
            task_type=TaskType.FEATURE_EXTRACTION,
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear",
            exclude_modules=r".*pooler.*",  # BERT's own, which no Pooling module reads
        )
    )


def has_lora(encoder: XMCEncoder) -> bool:
    """Whether the backbone carries adapters that are not merged."""
    return bool(getattr(encoder.transformers_model, "_hf_peft_config_loaded", False))


def merge_lora(encoder: XMCEncoder) -> None:
    """Add the adapters to the weights they adapt and drop them: the same vectors from a plain backbone.

    Raises:
        ValueError: if there are no adapters.
    """
    backbone = encoder.transformers_model
    if backbone is None or not has_lora(encoder):
        raise ValueError("this encoder has no adapters to merge")
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(parent), child, layer.get_base_layer())
    del backbone.peft_config
    backbone._hf_peft_config_loaded = False
    backbone.requires_grad_(True)
