"""Whatever is handed to a metric: the answer of the right form of it, or a ValueError that says what came."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_xmc import metrics
from hf_xmc.metrics import reliability
from hf_xmc.metrics.evaluate import publish, space

IDS, TRUTH, NUM_LABELS = np.array([[1, 3, 0], [0, 1, 2]]), [[1, 3], [0]], 4
HOT = [[0, 1, 0, 1], [1, 0, 0, 0]]
MATRIX = sp.csr_array(np.array(HOT))
Q = [1.0, 2.0, 3.0, 4.0]
DOORS: dict[str, Callable[..., Any]] = {
    "xmc_metrics": lambda truth=TRUTH, ids=IDS, k=3, q=Q, n=NUM_LABELS: metrics.xmc_metrics(
        ids, truth, k, q, num_labels=n
    ),
    "row_metrics": lambda truth=TRUTH, ids=IDS, k=3, q=Q, n=NUM_LABELS: metrics.row_metrics(
        ids, truth, k, q, num_labels=n
    ),
    "bootstrap_intervals": lambda truth=TRUTH, ids=IDS, k=3, q=Q, n=NUM_LABELS: metrics.bootstrap_intervals(
        ids, truth, k, q, num_samples=8, num_labels=n
    ),
    "bootstrap_differences": lambda truth=TRUTH, ids=IDS, k=3, q=Q, n=NUM_LABELS: metrics.bootstrap_differences(
        ids, IDS, truth, k, q, num_samples=8, num_labels=n
    ),
    "frequency_bins": lambda truth=TRUTH, ids=IDS, k=3: metrics.frequency_bins(ids, truth, [4, 3, 2, 1], k),
    "frequency_deciles": lambda truth=TRUTH, ids=IDS, k=3: metrics.frequency_deciles(ids, truth, [4, 3, 2, 1], k),
    "label_counts": lambda truth=TRUTH, n=NUM_LABELS: metrics.label_counts(truth, num_labels=n),
    "inverse_propensities": lambda truth=TRUTH, n=NUM_LABELS: metrics.inverse_propensities(
        truth, 0.55, 1.5, num_labels=n
    ),
    "filter_truth": lambda truth=TRUTH, pairs=((0, 1),), n=NUM_LABELS: metrics.filter_truth(
        truth, pairs, num_labels=n
    ).toarray(),
    "drop_pairs": lambda ids=IDS, pairs=((0, 1),): metrics.drop_pairs(ids, np.zeros((2, 3)), pairs),
    "top_k": lambda scores=MATRIX, k=3, pairs=((0, 1),): metrics.top_k(scores, k, pairs),
}
WRONG: dict[str, Any] = {
    "none": None,
    "nan": float("nan"),
    "number": 1,
    "float": 1.5,
    "bool": True,
    "text": "war",
    "bytes": b"war",
    "dict": {0: [1], 1: [0]},
    "set": {0, 1},
    "generator": (row for row in [[1], [0]]),
    "frame": pd.DataFrame({"a": [[1], [0]], "b": [0.5, 1.5]}),
    "frame of texts": pd.DataFrame({"a": ["1", "0"]}),
    "table": datasets.Dataset.from_dict({"a": [[1], [0]]}),
    "texts": ["war", "peace"],
    "lists of texts": [["1", "3"], ["0"]],
    "nones": [None, None],
    "none in a row": [[1, None], [0]],
    "nan in a row": [[1.0, float("nan")], [0]],
    "floats": [[1.0, 3.0], [0.0]],
    "masks": [[False, True, False, True], [True, False, False, False]],
    "array of masks": np.array(HOT, dtype=bool),
    "rank 0": np.array(3),
    "rank 1": np.array([0, 1]),
    "rank 3": np.array([HOT]),
    "array of floats": np.array(HOT, dtype=float),
    "array of objects": np.array([[1, 3], [0]], dtype=object),
    "nested": [[[1], [3]], [[0]]],
    "ragged nested": [[[1, 3], [3]], [[0]]],
    "dicts in it": [{1: 1}, {0: 1}],
    "sets in it": [{1, 3}, {0}],
    "flat": [1, 3],
    "2^31": [[2**31], [0]],
    "2^63": [[2**63], [0]],
    "2^70": [[2**70], [0]],
    "minus two": [[-2], [0]],
    "rank 3 tensor": torch.zeros(2, 2, 2),
    "sparse of one axis": sp.coo_array(np.array([1, 0])),
    "sparse of complex numbers": sp.csr_array(np.array(HOT) * 1j),
    "sparse in a list": [MATRIX, MATRIX],
    "a billion labels": sp.csr_array(([1], ([0], [0])), shape=(2, 10**9)),
    "three rows": [[1], [0], [0]],
}
RIGHT_TRUTH = {
    "array of rows": [np.array([1, 3]), np.array([0])],
    "tuples": ((1, 3), (0,)),
    "column": datasets.Dataset.from_dict({"a": TRUTH})["a"],
    "arrow": pa.array(TRUTH),
    "chunked arrow": pa.chunked_array([TRUTH[:1], TRUTH[1:]]),
    "series": pd.Series(TRUTH),
    "deque": deque(TRUTH),
    "twice the same label": [[1, 3, 3], [0]],
    "csr": MATRIX,
    "coo matrix": sp.coo_matrix(np.array(HOT)),
    "csc of floats": sp.csc_array(np.array(HOT) * 0.5),
}
ARGUMENTS = [
    (door, argument)
    for door, call in DOORS.items()
    for argument in call.__code__.co_varnames[: call.__code__.co_argcount]
]
# What tests/test_wrong_shapes.py does not hand in: numbers, pairs, propensities and scores.
PLACES = [(door, argument) for door, argument in ARGUMENTS if argument not in ("truth", "ids")]


def outcome(call: Callable[[], Any]) -> Any:
    """The values, or the words of the ValueError; anything else fails the test."""
    try:
        return call()
    except ValueError as error:
        assert len(str(error)) > 15
        return str(error)


@pytest.mark.parametrize(("door", "argument"), PLACES, ids=lambda part: part)
def test_no_shape_leads_to_another_error(door: str, argument: str) -> None:
    for wrong in WRONG.values():
        outcome(lambda wrong=wrong: DOORS[door](**{argument: wrong}))


@pytest.mark.parametrize("door", [door for door, argument in ARGUMENTS if argument == "truth"])
def test_rows_of_marks_are_not_read_as_ids(door: str) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1, 0, 1\] in row 0.*give np.flatnonzero\(row\)"):
        DOORS[door](truth=HOT)
    with pytest.raises(ValueError, match=r"in row 1, 0 and 1 several times"):
        DOORS[door](truth=[[3], np.array([0, 0, 1])])


def test_short_rows_of_zero_and_one_and_pads_are_ids() -> None:
    assert metrics.label_counts([[0, 1], [1, 0], [1], [1, -1, -1]]).tolist() == [2, 4]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "4", float("nan"), 10**9, 2**70, [4]])
def test_a_number_of_labels_that_is_none_is_named(wrong: Any) -> None:
    with pytest.raises(ValueError, match="num_labels is"):
        metrics.xmc_metrics(IDS, TRUTH, num_labels=wrong)


@pytest.mark.parametrize(
    "q", [[1e308] * 4, [1e-320] * 4, [np.inf] * 4, "1234", ["1"] * 4, {0: 1}, 3.0, [[1.0] * 4], [True] * 4, [1, 2]]
)
def test_propensities_that_leave_the_range_of_numbers_are_refused(q: Any) -> None:
    with pytest.raises(ValueError, match="inverse_propensities"):
        metrics.xmc_metrics(IDS, TRUTH, 3, q, num_labels=4)
    with pytest.raises(ValueError, match="a, b are"):
        metrics.inverse_propensities(TRUTH, 1e308, 1e308)


@pytest.mark.parametrize("k", [10**9, 2**31, 2**70, 0, "3", {1: 1}, [[1]], [1, [2]], None, True, [1.0], float("nan")])
def test_a_cutoff_beyond_memory_or_reason_is_refused(k: Any) -> None:
    for call in (lambda: metrics.xmc_metrics(IDS, TRUTH, k), lambda: metrics.top_k(MATRIX, k)):
        with pytest.raises(ValueError, match="k is"):
            call()


@pytest.mark.parametrize("options", [{"level": 1.5}, {"level": "0.9"}, {"num_samples": 0}, {"seed": -1}])
def test_options_of_the_bootstrap_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        metrics.bootstrap_intervals(IDS, TRUTH, **options)


@pytest.mark.parametrize(
    ("probabilities", "right"), [("a", [True]), ([0.5], ["x"]), ([1.5], [True]), ([np.nan], [True]), ([0.5], [0.3])]
)
def test_probabilities_and_hits_are_checked(probabilities: Any, right: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        reliability.reliability_bins(probabilities, right)


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PLACES), junk)
def test_junk_is_answered_or_refused_at_every_door(place: tuple[str, str], value: Any) -> None:
    door, argument = place
    outcome(lambda: DOORS[door](**{argument: value}))


@pytest.fixture(scope="module")
def module() -> evaluate.EvaluationModule:
    return evaluate.load(str(Path(publish.HERE) / "xmc"))


def test_the_evaluate_modules_check_alike(module: evaluate.EvaluationModule) -> None:
    expected = metrics.xmc_metrics(IDS, TRUTH, 3)
    for right in RIGHT_TRUTH.values():
        assert module.compute(predictions=IDS, references=right, k=3) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"give np.flatnonzero\(row\)"):
        module.compute(predictions=IDS.tolist(), references=HOT, k=3)
    for part, wrong in itertools.product(("predictions", "references"), WRONG.values()):
        given_rows = {"predictions": IDS, "references": TRUTH} | {part: wrong}
        got = outcome(lambda given_rows=given_rows: module.compute(**given_rows, k=3))
        assert isinstance(got, str) or part == "predictions"
    assert module.compute(predictions=IDS, references=TRUTH, k=3) == pytest.approx(expected), "nothing is left over"


def test_rows_are_added_one_by_one_and_a_batch_may_be_without_positives(module: evaluate.EvaluationModule) -> None:
    module.add(prediction=[1, 3, 0], reference=[1, 3])
    module.add_batch(predictions=[[2]], references=[[]])
    expected = metrics.xmc_metrics([[1, 3, 0], [2]], [[1, 3], []], 3)
    assert module.compute(k=3) == pytest.approx(expected)


def test_a_page_refuses_options_that_do_not_exist(module: evaluate.EvaluationModule) -> None:
    with pytest.raises((TypeError, ValueError)):
        space.answer(module, "[[0]]", "[[0]]", '{"depth": 3}')
    assert space.answer(module, "[[0]]", "[[0]]", '{"k": 1}')["precision@1"] == 1.0
