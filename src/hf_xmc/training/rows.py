"""What a collator is handed, checked: rows of a batch, their labels, weights and filters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_xmc.hub.checks_xmc import checked_texts
from hf_xmc.hub.filters_xmc import checked_ids
from hf_xmc.metrics.inputs import as_array


def checked_rows(rows: Any, num_labels: int) -> tuple[list[str], list[np.ndarray]]:
    """The texts and the label ids, int64, of the rows of a batch; None for label ids is no label.

    Raises:
        ValueError: Naming what came in place of rows, of a text or of label ids.
    """
    if not isinstance(rows, list | tuple) or not rows or not all(isinstance(row, Mapping) for row in rows):
        came = type(rows).__name__ if not isinstance(rows, list | tuple) else [type(row).__name__ for row in rows[:3]]
        raise ValueError(f"a batch is a list of rows, each a dict with text and label_ids; got {came}")
    for place, row in enumerate(rows):
        if missing := {"text", "label_ids"} - row.keys():
            raise ValueError(f"row {place} of the batch lacks {sorted(missing)}; it has {list(row)}")
    texts = checked_texts([row["text"] for row in rows])
    positives = [checked_ids([] if row["label_ids"] is None else row["label_ids"]) for row in rows]
    for place, ids in enumerate(positives):
        if ids.size and not 0 <= ids.min() <= ids.max() < num_labels:
            raise ValueError(
                f"row {place} of the batch has label ids {ids[:10].tolist()}; there are {num_labels} labels"
            )
    return texts, positives


def checked_weights(rows: list[dict[str, Any]], positives: list[np.ndarray]) -> list[np.ndarray]:
    """The soft targets of each row, float32.

    Raises:
        ValueError: Unless there is a number in [0, 1] for each label.
    """
    weights = []
    for place, (row, ids) in enumerate(zip(rows, positives, strict=True)):
        given = as_array(row.get("label_weights") if len(ids) else [])
        if given.shape != ids.shape or given.dtype.kind not in "fiu":
            raise ValueError(
                f"row {place} of the batch has {len(ids)} labels and the weights {row.get('label_weights')!r:.80}"
            )
        if given.size and not ((given >= 0) & (given <= 1)).all():
            raise ValueError(f"row {place} of the batch has weights outside [0, 1]: {given[:10]}")
        weights.append(given.astype(np.float32))
    return weights


def check_filters(filters: Any, num_labels: int) -> None:
    """Refuse what is no CSR pair of row ends and label ids.

    Raises:
        ValueError: For pairs of (row, label id), among others.
    """
    parts = [as_array(part) for part in filters] if isinstance(filters, tuple) and len(filters) == 2 else []
    if (
        not parts
        or any(part.ndim != 1 or part.dtype.kind not in "iu" for part in parts)
        or not len(parts[0])
        or (np.diff(parts[0], prepend=0) < 0).any()
        or parts[0][-1] != len(parts[1])
        or (len(parts[1]) and not 0 <= parts[1].min() <= parts[1].max() < num_labels)
    ):
        raise ValueError(
            f"filters are a {type(filters).__name__}; expected (indptr, indices) of label ids below {num_labels}, as "
            "data.filter_csr('train') gives them"
        )
