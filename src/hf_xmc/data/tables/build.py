"""Tables of one's own -> the three tables of a data set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hf_xmc.data.columns import join_texts
from hf_xmc.data.tables.cells import Place, read_entries, without_multi_hot
from hf_xmc.data.tables.label_texts import read_label_texts
from hf_xmc.data.tables.labels import alike, as_strings, collect_labels, label_lists, resolve, tell_repeats
from hf_xmc.data.tables.read import split_tables


def build_tables(
    dataset: Any,
    test: Any,
    *,
    text: str | Sequence[str],
    labels: str,
    label_texts: Any,
    unseen: str | None,
    separator: str | None,
    uid: str | None,
) -> dict[str, pa.Table]:
    """The tables "train", "test" and "labels"; see :meth:`~hf_xmc.XMCDataset.from_dataset`."""
    texts = [text] if isinstance(text, str) else text
    _check_arguments(texts, labels, uid, separator, unseen)
    columns = list(dict.fromkeys([*texts, labels, *([] if uid is None else [uid])]))
    tables = dict(zip(("train", "test"), split_tables(dataset, test, columns), strict=True))
    given = None if label_texts is None else read_label_texts(label_texts)
    entries = {
        split: read_entries(table.column(labels).combine_chunks(), separator, Place(split, labels))
        for split, table in tables.items()
    }
    entries = without_multi_hot(entries, None if given is None else len(given.texts))
    lists = {split: label_lists(part, Place(split, labels)) for split, part in entries.items()}
    lists["train"], lists["test"] = alike(lists["train"], lists["test"])
    if given is None:
        known = collect_labels(lists["train"], lists["test"], keep_unseen=unseen != "drop")
        ids = {split: known.ids_of(part) for split, part in lists.items()}
    else:
        keys = pa.concat_arrays([part.keys for part in lists.values()])
        known, ids = resolve(given.keyed_for(keys), lists, unseen)
    if unseen == "drop":
        ids["test"] = _seen_in_train(ids, told=0 if given is None else ids["test"].null_count)
    tell_repeats(known)
    points = {}
    for split, table in tables.items():
        points[split] = {"text": _texts_of(table, texts, split), "label_ids": lists[split].to_lists(ids[split])}
        if uid is not None:
            points[split]["uid"] = _texts_of(table, [uid], split)
    made = points | {"labels": {"text": known.texts, "uid": known.uids}}
    return {name: pa.table(columns) for name, columns in made.items()}


def _check_arguments(texts: Any, labels: Any, uid: Any, separator: Any, unseen: Any) -> None:
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(name, str) for name in texts):
        raise ValueError(f"text is {texts!r:.80}; expected the name of a column, or a list of names")
    for told, name in {"labels": labels, "uid": uid}.items():
        if not isinstance(name, str) and (name is not None or told == "labels"):
            raise ValueError(f"{told} is {name!r:.80}; expected the name of a column")
    if separator is not None and (not isinstance(separator, str) or not separator):
        raise ValueError(f"separator is {separator!r:.80}; expected what stands between labels, such as ';'")
    if unseen is not None and (not isinstance(unseen, str) or unseen not in ("keep", "drop")):
        raise ValueError(f"unseen is {unseen!r}; expected 'keep' or 'drop'")


def _seen_in_train(ids: dict[str, pa.Array], told: int) -> pa.Array:
    """The ids of test, null where train lacks them, which is told but for those that were."""
    kept = pc.if_else(pc.is_in(ids["test"], value_set=ids["train"].drop_null()), ids["test"], None)
    if count := kept.null_count - told:
        warnings.warn(f"{count} labels of test rows, which no train row has, are left out", stacklevel=2)
    return kept


def _texts_of(table: pa.Table, columns: Sequence[str], where: str) -> pa.Array:
    """(N,) strings of one column, or of several joined by a space; null is "", which is told where all are."""
    arrays = [as_strings(table.column(name).combine_chunks(), f"{where}, column {name!r}") for name in columns]
    missing = pc.is_null(pc.coalesce(*arrays))
    if count := pc.sum(missing).as_py():
        row = pc.index(missing, True).as_py()
        told = f"{where}: {count} of {len(table)} rows have null for {' and '.join(columns)}, the first is row {row}"
        warnings.warn(f"{told}; they are kept as empty strings", stacklevel=2)
    return join_texts(arrays)
