"""Who is relevant to whom in a candidate pool, by ids or, for plain text columns, by keys made of the texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_xmc.distributed import PAD, pad_gather
from hf_xmc.losses.streaming.pairs import Csr


@dataclass(frozen=True)
class PoolTargets:
    """Who is relevant to whom in a pool, by global ids.

    Args:
        candidate_ids: (C,) int64, the candidates' ids; no order needed.
        positive_ids: (B, P) int64, all known positives of each row, padded with -1.
        weights: (B, P) float32 soft targets in (0, 1], or None.
        filter_ids: (B, F) int64, ids that are neither positive nor negative, padded with -1, or None.
    """

    candidate_ids: Tensor
    positive_ids: Tensor
    weights: Tensor | None = None
    filter_ids: Tensor | None = None

    @classmethod
    def from_features(cls, features: list[dict[str, Any]], labels: Tensor | None) -> PoolTargets:
        """From an :class:`~hf_xmc.XMCDataCollator` batch, or from plain (anchor, positive, ...) columns.

        Plain columns have no ids: a hash of the tokens stands for a text. So equal texts are one candidate, and the
        positives of an anchor that the batch repeats are positives of each of its rows.

        Raises:
            ValueError: If there is no column of candidates, if candidates have ids and the rows no labels, or rows of
                plain columns have labels or scores.
        """
        if len(features) < 2:
            raise ValueError(f"expected queries and candidates, got {len(features)} text column(s)")
        query = features[0]
        if "ids" in features[1]:
            if labels is None:
                raise ValueError("a batch with ids of candidates needs the label ids of its rows, got None")
            return cls(features[1]["ids"], labels, query.get("label_weights"), query.get("filter_ids"))
        if labels is not None:
            raise ValueError(
                f"of plain text columns the second holds positives alone, got labels or scores {tuple(labels.shape)} "
                "beside them; leave pairs out that are none, and the column"
            )
        keys = [text_keys(feature) for feature in features[1:]]
        anchors = text_keys(query)
        same_anchor = anchors.unsqueeze(1) == anchors  # (B, B)
        return cls(torch.cat(keys), torch.where(same_anchor, keys[0], PAD))

    def relevance(self, candidate_ids: Tensor) -> Tensor:
        """(B, C) bool, or the soft weights in [0, 1]; candidate_ids: (C,) ascending, distinct."""
        if self.weights is None:
            return membership(self.positive_ids, candidate_ids) > 0
        return membership(self.positive_ids, candidate_ids, self.weights)

    def excluded(self, candidate_ids: Tensor) -> Tensor | None:
        """(B, C) bool, or None where no pair is filtered."""
        if self.filter_ids is None:
            return None
        return (membership(self.filter_ids, candidate_ids) > 0) & ~(membership(self.positive_ids, candidate_ids) > 0)

    def of_all_ranks(self) -> tuple[PoolTargets, Tensor]:
        """The targets of all ranks' queries, in the order of :func:`pad_gather`, and which are queries and no pads.

        ``candidate_ids`` stay as they are. The second value is (W B,) bool.
        """
        present = pad_gather(torch.ones_like(self.positive_ids[:, 0]), 0) > 0
        everyone = PoolTargets(
            self.candidate_ids,
            pad_gather(self.positive_ids, PAD),
            None if self.weights is None else pad_gather(self.weights, 0.0),
            None if self.filter_ids is None else pad_gather(self.filter_ids, PAD),
        )
        return everyone, present


def membership(ids: Tensor, candidate_ids: Tensor, weights: Tensor | None = None) -> Tensor:
    """(B, C) float32: the weight (1 without weights) with which each candidate stands in a row of ``ids``.

    Args:
        ids: (B, P) int64, padded with -1.
        candidate_ids: (C,) int64, ascending, without -1.
        weights: (B, P) float, or None.
    """
    place = torch.searchsorted(candidate_ids, ids).clamp_(max=candidate_ids.numel() - 1)  # (B, P)
    found = (candidate_ids[place] == ids) & (ids != PAD)
    values = found.float() if weights is None else found * weights.float()
    matrix = torch.zeros(ids.size(0), candidate_ids.numel(), device=ids.device)  # (B, C)
    return matrix.scatter_reduce_(1, place, values, reduce="amax")


def places(ids: Tensor, num_labels: int) -> Tensor:
    """(L,) int64: where each label stands among ``ids`` (n,) int64, -1 for nowhere."""
    place = torch.full((num_labels,), PAD, device=ids.device)
    place[ids] = torch.arange(len(ids), device=ids.device)
    return place


def to_csr(ids: Tensor, place: Tensor, weights: Tensor | None = None) -> Csr:
    """Padded ids -> CSR pair, or triple with weights, each place once in a row.

    Args:
        ids: (B, P) int64 global label ids, padded with -1.
        place: (L,) int64, where each label stands, -1 for nowhere; see :func:`places`.
        weights: (B, P) float, or None.
    """
    columns = F.pad(place, (0, 1), value=PAD)[ids]  # pads read the last place
    ordered, order = columns.sort(dim=1, stable=True)
    own = ordered != PAD
    own[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    indptr = F.pad(own.sum(1).cumsum(0), (1, 0))  # (B + 1,)
    if weights is None:
        return indptr, ordered[own]
    return indptr, ordered[own], weights.gather(1, order)[own]


def text_keys(feature: dict[str, Tensor]) -> Tensor:
    """One non-negative int64 key a text, a hash of its tokens: equal texts have equal keys.

    Args:
        feature: Tokens, padded (``input_ids`` (C, T), ``attention_mask``) or flat (``input_ids``, ``offsets`` (C,)).
    """
    tokens = feature["input_ids"]
    if "offsets" in feature:
        starts = feature["offsets"]  # (C,)
        lengths = torch.diff(starts, append=starts.new_tensor([tokens.numel()]))
        text = torch.repeat_interleave(torch.arange(starts.numel(), device=tokens.device), lengths)  # (T,)
        place = torch.arange(tokens.numel(), device=tokens.device) - starts[text]
        terms = (tokens + 1) * _mix(place)
        keys = torch.zeros(starts.numel(), dtype=torch.int64, device=tokens.device).index_add_(0, text, terms)
    else:
        mask = feature.get("attention_mask", torch.ones_like(tokens))
        place = mask.cumsum(1) - 1  # left and right padding alike
        keys = ((tokens + 1) * _mix(place) * mask).sum(1)
    return _mix(keys) & (2**63 - 1)


def _mix(x: Tensor) -> Tensor:
    """A fixed scrambling of int64 values; products wrap around."""
    x = (x + 0x1E3779B97F4A7C15) * 0x3F58476D1CE4E5B9
    return (x ^ (x >> 29)) * 0x14D049BB133111EB | 1
