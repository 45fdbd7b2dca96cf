"""Padded texts of a batch -> one flat row of tokens, each text attending to itself alone: no work is spent on pads."""

from __future__ import annotations

from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "sdpa_of_flat_texts"
# Absolute positions and full attention in every layer. Value: whether positions start after the padding id.
_POSITIONS_AFTER_PAD = {
    "bert": False,
    "camembert": True,
    "distilbert": False,
    "electra": False,
    "roberta": True,
    "xlm-roberta": True,
}
_TOKEN_KEYS = ("input_ids", "token_type_ids")
# What embed returns of what the model gives.
VECTORS = ("sentence_embedding", "classifier_embedding", "label_weight")


def embed(model: nn.Module, feature: dict[str, Any]) -> dict[str, Tensor]:
    """All vectors the model gives for n texts, in their order: a dict of (n, D) tensors with the keys of ``VECTORS``.

    Padded texts are run as one flat row of tokens where :func:`can_pack` holds: the same vectors as
    with padding, at about half the work for titles, in one forward on every rank, and the batch keeps its random
    composition.

    Args:
        model: A ``SentenceTransformer``, wrapped or not.
        feature: One column of a batch; every tensor in it has n rows, or the tokens are flat (``offsets``).
    """
    inner = getattr(model, "module", model)
    back = None
    if can_pack(inner, feature):
        feature, back = pack(inner, feature)
    out = model(feature)
    return {key: out[key] if back is None else out[key][back] for key in VECTORS if key in out}


def can_pack(model: nn.Module, feature: dict[str, Any]) -> bool:
    """Whether :func:`pack` may be applied: a known architecture over SDPA, pooled by the host, and padded tokens.

    Args:
        model: A ``SentenceTransformer``, not wrapped.
        feature: One column of a batch.
    """
    mask = feature.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or feature.keys() & {"inputs_embeds", "position_ids"}:
        return False
    modules = list(model.children())
    if len(modules) < 2 or not isinstance(modules[0], Transformer) or not isinstance(modules[1], Pooling):
        return False
    config = modules[0].model.config
    return (
        config.model_type in _POSITIONS_AFTER_PAD
        and not getattr(config, "is_decoder", False)
        and not getattr(config, "output_hidden_states", False)
        and config._attn_implementation in ("sdpa", ATTENTION)
    )


def pack(model: nn.Module, feature: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """A padded column of n texts as one flat row, in the host's own form of flattened inputs.

    The model is told to attend within texts, which leaves padded inputs as they were.

    Args:
        model: A ``SentenceTransformer`` for which :func:`can_pack` holds.
        feature: ``input_ids`` and ``attention_mask`` (n, T), and tensors of n rows.

    Returns:
        The column with its texts by ascending length, and (n,) int64, where each text of ``feature`` is in it.
    """
    transformer = cast(Transformer, next(model.children())).model
    config = transformer.config
    if config._attn_implementation != ATTENTION:
        transformer.set_attn_implementation(ATTENTION)
    mask = feature["attention_mask"].bool()  # (n, T)
    lengths, order = mask.sum(1).sort(stable=True)
    num_texts, device = len(lengths), mask.device
    text = torch.repeat_interleave(torch.arange(num_texts, device=device), lengths)  # (tokens,)
    ends = F.pad(lengths.cumsum(0), (1, 0))  # (n + 1,)
    first = config.pad_token_id + 1 if _POSITIONS_AFTER_PAD[config.model_type] else 0
    positions = torch.arange(len(text), device=device) - ends[text] + first
    longest = int(lengths[-1])
    packed = {
        key: value[order] if isinstance(value, Tensor) and value.dim() and len(value) == num_texts else value
        for key, value in feature.items()
        if key != "attention_mask"
    }
    mask = mask[order]
    packed |= {key: packed[key][mask].unsqueeze(0) for key in _TOKEN_KEYS if key in packed}  # (1, tokens)
    packed |= {
        "position_ids": positions.unsqueeze(0),
        "seq_idx": text.unsqueeze(0).int(),
        "cu_seq_lens_q": ends.int(),
        "cu_seq_lens_k": ends.int(),
        "max_length_q": longest,
        "max_length_k": longest,
    }
    return packed, order.argsort()


def attention_within_texts(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of flat texts, each within itself; of padded texts as the host does it.

    Args:
        module: The attention layer.
        query: (1, H, tokens, d) with ``cu_seq_lens_q``, else (n, H, T, d), and
        key: likewise, and
        value: likewise.
        attention_mask: For padded texts.
        dropout: Probability that a weight is dropped.
        scaling: Factor of the scores; None for ``d ** -0.5``.
        cu_seq_lens_q: (n + 1,) int32, where texts begin and end; the texts in order of length.
        kwargs: What the host hands to its own attention.

    Returns:
        (1, tokens, H, d), or (n, T, H, d), and None for the weights.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    q, k, v = (x.transpose(1, 2)[0] for x in (query, key, value))  # (tokens, H, d)
    within = _in_runs if query.device.type == "cpu" else _padded
    return within(q, k, v, cu_seq_lens_q, dropout_p=dropout, scale=scaling).unsqueeze(0), None


def _in_runs(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, **kwargs: Any) -> Tensor:
    """(tokens, H, d) -> the same shape; one call for the texts of each length, no pads and no mask."""
    runs = [(length, sum(1 for _ in same)) for length, same in groupby(ends.diff().tolist())]
    outs = [q[:0]]
    for shape, *parts in zip(runs, *(x.split([a * b for a, b in runs]) for x in (q, k, v)), strict=True):
        if shape[0]:
            qkv = (x.unflatten(0, shape[::-1]).transpose(1, 2) for x in parts)  # (count, H, length, d)
            outs.append(F.scaled_dot_product_attention(*qkv, **kwargs).transpose(1, 2).flatten(0, 1))
    return torch.cat(outs)


def _padded(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, **kwargs: Any) -> Tensor:
    """The same in one call over padded texts: a GPU would wait for many small ones, and attention is a small part."""
    lengths = ends.diff().long()
    count, length = len(lengths), int(lengths[-1])
    text = torch.repeat_interleave(torch.arange(count, device=q.device), lengths, output_size=len(q))
    place = text * length + torch.arange(len(q), device=q.device) - ends[text]
    mask = torch.arange(length, device=q.device) < lengths[:, None]  # (count, length)
    q, k, v = (
        x.new_zeros(count * length, *x.shape[1:]).index_copy(0, place, x).unflatten(0, (count, length)).transpose(1, 2)
        for x in (q, k, v)
    )
    out = F.scaled_dot_product_attention(q, k, v, mask[:, None, None], **kwargs)  # (count, H, length, d)
    return out.transpose(1, 2).flatten(0, 1)[place]


AttentionInterface.register(ATTENTION, attention_within_texts)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
