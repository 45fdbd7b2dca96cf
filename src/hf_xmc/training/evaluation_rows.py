"""What a trainer is given to evaluate on -> rows of our columns, checked against the labels that are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_xmc.data.columns import column_of, list_lengths, table_of
from hf_xmc.data.dataset import XMCDataset

Rows: TypeAlias = datasets.Dataset | datasets.DatasetDict
# What a collator reads of a row; a number ``row`` would be one of another data set.
COLUMNS = ("text", "label_ids", "label_weights", "filter_ids", "dataset_name")


def evaluation_rows(given: Any, data: XMCDataset, name: str = "eval_dataset") -> Rows:
    """The rows to evaluate on, without a column ``row``.

    Args:
        given: An :class:`~hf_xmc.XMCDataset`, whose ``test`` rows are meant, each with its filtered labels in a column
            ``filter_ids``; a ``datasets.Dataset`` with the columns ``text`` and ``label_ids``, perhaps
            ``label_weights`` and ``filter_ids``; or a mapping of names to such.
        data: The data set that is trained on.
        name: What an error calls them.

    Raises:
        ValueError: If it is anything else, has no rows, lacks a column, or has other labels than those trained on.
    """
    if isinstance(given, Mapping):
        if not given:
            raise ValueError(
                f"{name} is empty; expected data sets by name, such as {{'held_out': data.hold_out(0.1)}}"
            )
        return datasets.DatasetDict(
            {key: evaluation_rows(each, data, f"{name}[{key!r}]") for key, each in given.items()}
        )
    if isinstance(given, XMCDataset):
        _check_labels(given, data, name)
        given = _with_filters(given)
    if not isinstance(given, datasets.Dataset):  # of a stream accelerate cuts batches, to the length of the first part
        raise ValueError(
            f"{name} is a {type(given).__name__}; expected an XMCDataset (its test rows), a datasets.Dataset with the "
            "columns text and label_ids, or several of them by name"
        )
    columns = given.column_names
    if missing := {"text", "label_ids"} - set(columns):
        raise ValueError(f"{name} lacks the column(s) {sorted(missing)}; it has {columns}")
    _check_rows(given, data.num_labels, name)
    return given.select_columns([column for column in columns if column in COLUMNS])


def _with_filters(data: XMCDataset) -> datasets.Dataset:
    """The test rows, with the labels filtered for each where there are any."""
    if not len(data.filters["test"]):
        return data.test
    indptr, indices = data.filter_csr("test")
    lists = pa.ListArray.from_arrays(pa.array(indptr.astype(np.int32)), pa.array(indices))
    return datasets.Dataset(table_of(data.test).append_column("filter_ids", lists))


def _check_labels(given: XMCDataset, data: XMCDataset, name: str) -> None:
    if given.num_labels != data.num_labels:
        raise ValueError(f"{name} has {given.num_labels} labels, the data set that is trained on {data.num_labels}")
    own, other = (each.label_texts.cast(pa.large_string()) for each in (data, given))
    if not own.equals(other):
        place = int(np.flatnonzero(~pc.fill_null(pc.equal(own, other), False).to_numpy(zero_copy_only=False))[0])
        raise ValueError(
            f"label {place} of {name} is {other[place].as_py()!r}, that of the data set that is trained on "
            f"{own[place].as_py()!r}; both need the same labels in the same order"
        )


def _check_rows(rows: datasets.Dataset, num_labels: int, name: str) -> None:
    if not len(rows):
        raise ValueError(f"{name} has no rows to evaluate on; data.hold_out(0.1) makes some")
    column = column_of(rows, "label_ids")
    values = getattr(column.type, "value_type", None)
    if values is None or not pa.types.is_integer(values) or not _is_string(rows):
        types = {each: str(rows.features[each]) for each in ("text", "label_ids")}
        raise ValueError(f"{name} has the columns {types}; expected strings, and lists of integers that are label ids")
    ids, lengths = column.flatten().to_numpy(zero_copy_only=False), list_lengths(column)
    if not len(ids):
        raise ValueError(f"no row of {name} has a label; there is nothing to evaluate on")
    if not 0 <= ids.min() <= ids.max() < num_labels:
        raise ValueError(f"{name} has label ids from {ids.min()} to {ids.max()}; there are {num_labels} labels")
    if num_labels > 2 and ids.max() <= 1 and (lengths == num_labels).all():
        raise ValueError(f"{name} has a mark for each label in label_ids; expected ids: np.flatnonzero of each row")


def _is_string(rows: datasets.Dataset) -> bool:
    column = column_of(rows, "text")
    return (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)) and not column.null_count
