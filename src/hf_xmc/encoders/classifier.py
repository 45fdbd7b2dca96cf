"""One free weight row per label, living inside the model so that it is synchronised, saved and clipped with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sentence_transformers.base.modules.module import Module
from torch import Tensor, nn

# Both vectors of a text side by side, so that one pass of the host's ``encode`` returns both.
JOINT_EMBEDDING = "joint_embedding"


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a loader's keyword arguments that say where and how files are fetched."""
    names = ("token", "cache_folder", "revision", "local_files_only")
    return {name: options[name] for name in names if name in options}


class LabelClassifier(Module):
    """Rows w_l (L, D) of a per-label linear classifier; the last module of an :class:`~hf_xmc.XMCEncoder`.

    For a batch of candidates, ``features["ids"]`` (C,) int64 label ids, it adds ``features["label_weight"]`` (C, D).
    With ``residual=True`` row l is ``g2(z_l) + eta_l``: the classifier head's vector of the label's own text plus a
    free row that starts at zero, so that a label nobody trained on still has a useful row. Without ids (queries) only
    the dropout of ``classifier_embedding`` applies; outside of training they have a ``joint_embedding`` too,
    ``[sentence_embedding ; classifier_embedding]``, where these are two vectors.

    The rows' gradient is sparse: a step touches C of L rows, and optimizer and network traffic follow
    (see :class:`~hf_xmc.training.RowSparseAdamW`). Where the encoder has no classifier head, ``sentence_embedding``
    takes the part of ``classifier_embedding``.

    Args:
        num_targets: L, the number of labels.
        dimension: D, the width of ``classifier_embedding``.
        residual: Whether a row is added to the head's vector of the label text.
        dropout: Probability in [0, 1) with which entries of query vectors and rows are dropped while training.
    """

    config_keys = ["num_targets", "dimension", "residual", "dropout"]

    def __init__(self, num_targets: int, dimension: int, residual: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        if num_targets < 1 or dimension < 1:
            raise ValueError(
                f"LabelClassifier needs at least one label and one dimension, got {num_targets} x {dimension}"
            )
        self.num_targets = num_targets
        self.dimension = dimension
        self.residual = residual
        self.dropout = dropout
        # An Embedding, not a bare parameter: DDP cannot reduce the sparse gradient of the latter.
        self.rows = nn.Embedding(num_targets, dimension, sparse=True)
        self._fill()

    @torch.no_grad()
    def _fill(self) -> None:
        if self.residual:
            self.rows.weight.zero_()
        else:
            nn.init.xavier_uniform_(self.rows.weight)

    @torch.no_grad()
    def initialize(self, rows: Tensor) -> None:
        """Set all rows, for example to the labels' own text vectors. rows: (L, D), any float dtype."""
        if tuple(rows.shape) != (self.num_targets, self.dimension):
            raise ValueError(
                f"the classifier has rows of shape {(self.num_targets, self.dimension)}, got {tuple(rows.shape)}"
            )
        self.rows.weight.copy_(rows)

    @torch.no_grad()
    def append(self, rows: Tensor) -> None:
        """Give new labels the next ids. rows: (n, D), any float dtype; an optimizer must be made anew afterwards."""
        if rows.ndim != 2 or rows.size(1) != self.dimension:
            raise ValueError(f"new rows must have shape (n, {self.dimension}), got {tuple(rows.shape)}")
        old = self.rows.weight
        self.rows = nn.Embedding.from_pretrained(torch.cat([old, rows.to(old)]), freeze=False, sparse=True)
        self.num_targets += len(rows)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add the rows of ``features["ids"]``, or drop entries of the query vectors; see the class."""
        head = features.get("classifier_embedding", features["sentence_embedding"])
        if "ids" in features:
            rows = self.rows(features["ids"])  # (C, D)
            if self.residual:
                rows = rows + head
            features["label_weight"] = nn.functional.dropout(rows, self.dropout, self.training)
        else:
            if not self.training and "classifier_embedding" in features:
                vector = features["sentence_embedding"]
                features[JOINT_EMBEDDING] = torch.cat([vector, head.to(vector.dtype)], 1)
            features["classifier_embedding"] = nn.functional.dropout(head, self.dropout, self.training)
        return features

    def to(self, *args: Any, **kwargs: Any) -> LabelClassifier:
        """Move the rows; a bare dtype leaves them theirs."""
        # A bare dtype comes from the host, which casts every later module to the first one's; the rows keep theirs.
        if len(args) == 1 and isinstance(args[0], torch.dtype) and not kwargs:
            return self
        return super().to(*args, **kwargs)

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write settings and rows into a folder."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(  # type: ignore[override]
        cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any
    ) -> LabelClassifier:
        """Read what :meth:`save` wrote."""
        hub = hub_options(kwargs)
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        return cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=cls(**config), **hub)
