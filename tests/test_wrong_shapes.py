"""Whatever is handed in as texts, truth, label ids or predictions, at every public function that takes such.

The answer is that of the plain lists which the value holds, where it holds such lists; otherwise it is a ValueError
that says what came, what was expected and what to do.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import WORDS, make_static_encoder, make_words_data, word_tokenizer

from hf_xmc import LabelIndex, Retriever, metrics
from hf_xmc.encoders.encoder import dual_vectors
from hf_xmc.encoders.static import static_embedding
from hf_xmc.losses import AllLabelsLoss, LabelTableLoss

NONE, NO_CHANGE = object(), {"num_samples": 4, "num_labels": 17}
IDS, TRUTH, Q = [[1, 3, 0], [0, 1, 2]], [[1, 3], [0]], [2.0] * 17
COUNTS, PAIRS = [3] * 17, [(0, 1)]


def fresh() -> Retriever:
    """One that a call may change."""
    return Retriever(SHARED.parts)


SHARED = Retriever.build(make_static_encoder(), WORDS)
ENCODER = SHARED.encoder
DATA = make_words_data()
TABLE = torch.eye(len(WORDS) + 2)
Call = Callable[[Any], Any]

TEXTS: dict[str, Call] = {
    "Retriever.predict": lambda texts: SHARED.predict(texts, 3),
    "Retriever.rank": lambda texts: SHARED.rank(texts, 3).ids,
    "XMCEncoder.query_vectors": ENCODER.query_vectors,
    "XMCEncoder.key_vectors": ENCODER.key_vectors,
    "XMCEncoder.label_vectors": ENCODER.label_vectors,
    "XMCEncoder.encode_halves": lambda texts: ENCODER.encode_halves(texts)[0],
    "dual_vectors": lambda texts: dual_vectors(ENCODER, texts, "query"),
    "Retriever.build": lambda texts: Retriever.build(ENCODER, texts).labels,
    "Retriever.add_labels": lambda texts: fresh().add_labels(texts),
    "Retriever.remember": lambda texts: remembered(texts, [[1], [2]]),
    "static_embedding": lambda texts: static_embedding(texts, start=(word_tokenizer(), TABLE)).embedding.weight.shape,
    "AllLabelsLoss": lambda texts: AllLabelsLoss(ENCODER, texts).num_labels,
    "LabelTableLoss": lambda texts: LabelTableLoss(ENCODER, texts, num_top=1, num_random=0).num_labels,
}
TRUTHS: dict[str, Call] = {
    "xmc_metrics": lambda truth: metrics.xmc_metrics(IDS, truth, 3, Q, num_labels=17),
    "row_metrics": lambda truth: metrics.row_metrics(IDS, truth, 3, Q, num_labels=17),
    "bootstrap_intervals": lambda truth: metrics.bootstrap_intervals(IDS, truth, 3, Q, **NO_CHANGE),
    "bootstrap_differences": lambda truth: metrics.bootstrap_differences(IDS, IDS[::-1], truth, 3, Q, **NO_CHANGE),
    "frequency_bins": lambda truth: metrics.frequency_bins(IDS, truth, COUNTS, 3),
    "frequency_deciles": lambda truth: metrics.frequency_deciles(IDS, truth, COUNTS, 3),
    "label_counts": lambda truth: metrics.label_counts(truth, num_labels=17),
    "inverse_propensities": lambda truth: metrics.inverse_propensities(truth, 0.55, 1.5, num_labels=17),
    "filter_truth": lambda truth: metrics.filter_truth(truth, PAIRS, num_labels=17).toarray(),
    "Retriever.remember": lambda truth: remembered(WORDS[:2], truth),
}
PREDICTIONS: dict[str, Call] = {
    "xmc_metrics": lambda ids: metrics.xmc_metrics(ids, TRUTH, 3, Q, num_labels=17),
    "row_metrics": lambda ids: metrics.row_metrics(ids, TRUTH, 3, Q, num_labels=17),
    "bootstrap_intervals": lambda ids: metrics.bootstrap_intervals(ids, TRUTH, 3, Q, **NO_CHANGE),
    "bootstrap_differences": lambda ids: metrics.bootstrap_differences(IDS, ids, TRUTH, 3, Q, **NO_CHANGE),
    "frequency_bins": lambda ids: metrics.frequency_bins(ids, sp.csr_array(truth_of(TRUTH)), COUNTS, 3),
    "frequency_deciles": lambda ids: metrics.frequency_deciles(ids, sp.csr_array(truth_of(TRUTH)), COUNTS, 3),
}
LABEL_IDS: dict[str, Call] = {
    "candidates": lambda ids: SHARED.predict(["war"], 1, candidates=ids),
    "Retriever.remove_labels": lambda ids: removed(ids),
}


def remembered(texts: Any, truth: Any) -> Any:
    retriever = fresh()
    retriever.remember(texts, truth)
    return retriever.predict(WORDS, 3)


def removed(ids: Any) -> np.ndarray:
    retriever = fresh()
    retriever.index = LabelIndex(SHARED.index.vectors)
    retriever.remove_labels(ids)
    return retriever.index.alive


def truth_of(rows: list[list[int]]) -> np.ndarray:
    dense = np.zeros((len(rows), 17))
    for row, ids in enumerate(rows):
        dense[row, [i for i in ids if i >= 0]] = 1
    return dense


# -- what may come: contents, in a form ------------------------------------------------------------------------------

FORMS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "deque": deque,
    "generator": lambda values: (value for value in values),
    "keys": lambda values: dict.fromkeys(values).keys(),
    "set": set,
    "dict": lambda values: dict(enumerate(values)),
    "array": np.array,
    "array of objects": lambda values: np.array([*values, None], dtype=object)[:-1],
    "masked array": lambda values: np.ma.array(values, mask=False),
    "array with gaps": lambda values: np.ma.array(values, mask=[True] + [False] * (len(values) - 1)),
    "array of two axes": lambda values: np.array([values, values]),
    "array of three axes": lambda values: np.array([[values]]),
    "array without axes": lambda values: np.array(values[0]),
    "series": lambda values: pd.Series(values, index=range(7, 7 + len(values))),
    "frame": lambda values: pd.DataFrame({"a": values}),
    "arrow": pa.array,
    "chunked arrow": lambda values: pa.chunked_array([values[:1], values[1:]]),
    "arrow table": lambda values: pa.table({"a": values}),
    "column": lambda values: datasets.Dataset.from_dict({"a": values})["a"],
    "data set": lambda values: datasets.Dataset.from_dict({"a": values}),
    "tensor": torch.tensor,
    "nested": lambda values: [values],
    "each in a list": lambda values: [[value] for value in values],
    "the first alone": lambda values: values[0],
    "rows of arrays": lambda values: [np.array(value) for value in values],
    "rows with gaps": lambda values: [np.ma.array(value, mask=[1] + [0] * (len(value) - 1)) for value in values],
    "sparse": lambda values: sp.csr_matrix(np.array(values)),
    "sparse in coordinates": lambda values: sp.coo_array(np.array(values)),
}
ODD = [None, float("nan"), True, b"war", 1.5, -1, -2, 2**31, 2**70, {"a": 1}, [None], ["war"], object, "half \ud83d"]
FEW = [["war", "sea"], ["war"], ["sea", "sea"], [1, 3], [0, 2], [5], [0.5, 1.5], [True, False], [[1, 3], [0]]]
FEW += [[[1, 3, 0], [0, 1, 2]], [[2, -1], [3, -1]], [[0, 1, 0], [1, 0, 0]], [[0.0, 1.0], [1.0, -1.0]], [[1], [], [0]]]
FEW += [[[True, False], [False, True]], [["war"], ["sea"]], [[[1]], [[0]]], [{1: 1}, {0: 1}], [{1, 3}, {0}]]
FEW += [(np.eye(2, 17) * 0.5).tolist(), (np.eye(2, 17) - 2 * np.eye(2, 17, 3)).tolist(), np.eye(2, 17).tolist()]
CONTENTS = st.sampled_from(FEW) | st.lists(
    st.sampled_from([*ODD, "war", "sea", "", 1, 3, 16, 17, [1, 3], [0], [-1, 2], (1, 2), []]), min_size=1, max_size=3
)


def made(content: list[Any], form: str) -> Any:
    """The content in its form, or as a list where there is no such thing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return FORMS[form](content)
    except Exception:  # of numpy, pandas, Arrow and the rest
        return content


def listed(value: Any) -> list[Any] | None:
    """The entries of what holds one entry a place, in order; None for what does not."""
    if isinstance(value, list | tuple | deque | Iterator) or type(value) is type({}.keys()):
        return list(value)
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return value.to_pylist()
    if isinstance(value, np.ndarray | pd.Series | torch.Tensor):
        return None if np.ma.is_masked(value) or np.ndim(value) != 1 else value.tolist()
    return list(value) if type(value).__name__ == "Column" else None


def whole(entries: list[Any]) -> bool:
    """Whether they are whole numbers; True among them is 1, but truth values alone are a mask."""
    masks = entries and all(isinstance(entry, bool) for entry in entries)
    return not masks and all(isinstance(entry, int | np.integer) for entry in entries)


def as_texts(value: Any) -> list[str] | None:
    entries = [value] if isinstance(value, str) else listed(value)
    right = entries is not None and all(isinstance(entry, str) and "\ud83d" not in entry for entry in entries)
    return entries if right else None


def as_rows(value: Any) -> list[list[int]] | None:
    """Rows of whole numbers, what is masked left out."""
    if isinstance(value, Iterator | torch.Tensor) or isinstance(value, type({}.keys())):
        return None  # they are read more than once
    rows = [
        row.compressed().tolist() if isinstance(row, np.ma.MaskedArray) and row.ndim == 1 else listed(row)
        for row in (listed(value) or [None])
    ]
    if isinstance(value, np.ndarray) or any(
        row is None or isinstance(row, Iterator) or not whole(row) for row in rows
    ):
        return None
    return rows


def as_truth(value: Any) -> Any:
    """Lists of ids; those of a matrix that has no negative value and no NaN."""
    if sp.issparse(value):
        dense = value.toarray() if value.ndim == 2 and value.dtype.kind in "biuf" else np.array([[-1.0]])
        return [np.flatnonzero(row).tolist() for row in dense] if (dense >= 0).all() and dense.shape[1] <= 17 else None
    rows = as_rows(value)
    marks = rows and any(set(row) <= {-1, 0, 1} and max(row.count(0), row.count(1)) > 1 for row in rows)
    return None if marks else rows


def as_predictions(value: Any) -> Any:
    value = np.asarray(value) if isinstance(value, pd.DataFrame | pa.Table) else value
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind in "iu":
        return np.ma.filled(value, -1).tolist()
    if isinstance(value, torch.Tensor) and value.ndim == 2 and not value.is_floating_point():
        return None if value.dtype == torch.bool else value.tolist()
    return as_rows(value)


def as_ids(value: Any) -> list[int] | None:
    if isinstance(value, np.ndarray) and value.ndim and not value.size:
        return []
    if isinstance(value, set) or (sp.issparse(value) and value.ndim == 1):
        value = list(value)
    entries = [e.item() if isinstance(e, np.ndarray) and e.ndim == 0 else e for e in listed(value) or [None]]
    if entries and all(isinstance(each, list | tuple | np.ndarray) and not len(each) for each in entries):
        return []  # nothing, in whatever axes
    return entries if whole(entries) else None


def outcome(call: Call, value: Any) -> Any:
    """What is answered, or the ValueError; another error fails the test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call(value)
    except ValueError as error:
        return error


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, ValueError) or isinstance(theirs, ValueError):
        return type(ours) is type(theirs)
    if isinstance(ours, np.ndarray):
        return np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f")
    if is_dataclass(ours):
        return same(vars(ours), vars(theirs))
    if isinstance(ours, Mapping):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs or (ours != ours and theirs != theirs))


TOLD = re.compile(r"expected|must|give|take|make|mend|drop|repair|need|leave|keep|are not among|below|between|twice")
READ: dict[str, tuple[dict[str, Call], Call]] = {
    "texts": (TEXTS, as_texts),
    "truth": (TRUTHS, as_truth),
    "predictions": (PREDICTIONS, as_predictions),
    "label ids": (LABEL_IDS, as_ids),
}
PLACES = [(kind, name) for kind, (calls, _) in READ.items() for name in calls]


def check(kind: str, name: str, content: list[Any], form: str) -> None:
    calls, read = READ[kind]
    value = made(content, form)
    meant = read(made(content, form))  # made anew: a generator is read once
    if kind == "truth" and sp.issparse(value) and value.shape[-1] < 17 and name != "Retriever.remember":
        meant = None  # a memory may be of fewer labels than there are now, a truth of as many as predictions
    if (name == "candidates" and value is None) or (kind == "predictions" and sp.issparse(value)):
        return  # all labels; scores of each label
    got = outcome(calls[name], value)
    where = f"{kind} at {name}: {content!r} as {form}, {value!r:.200}, gave {got!r:.300}"
    if meant is None:
        assert isinstance(got, ValueError), where
    else:
        expected = outcome(calls[name], meant)
        assert same(got, expected), f"{where} instead of {expected!r:.300}"
    if isinstance(got, ValueError):
        assert 25 < len(str(got)) < 600 and TOLD.search(str(got)), where


@pytest.mark.parametrize(("kind", "name"), PLACES)
def test_a_value_is_read_as_the_lists_that_it_holds_or_refused_with_what_to_do(kind: str, name: str) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(CONTENTS, st.sampled_from(list(FORMS)))
    def any_value(content: list[Any], form: str) -> None:
        check(kind, name, content, form)

    any_value()


@pytest.mark.parametrize(("kind", "name"), [("texts", "Retriever.rank"), ("truth", "label_counts")] + [
    ("predictions", "row_metrics"), ("label ids", "candidates")])  # fmt: skip
def test_every_content_in_every_form(kind: str, name: str) -> None:
    for content, form in itertools.product([*FEW, *([odd] for odd in ODD), *(["war", odd] for odd in ODD)], FORMS):
        check(kind, name, content, form)
