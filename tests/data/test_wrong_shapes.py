"""Whatever is handed to from_dataset: a data set whose truth can be built, or a ValueError of our own."""

from __future__ import annotations

import datetime
import decimal
import pathlib

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_xmc.data import XMCDataset

GOOD = datasets.Dataset.from_dict({"text": ["a", "b"], "labels": [["x"], ["y", "z"]]})
VALUES = [
    None, 0, 1, -1, 5, 2**70, 10**400, 1.5, float("nan"), float("inf"), True, False, "a", "", "x.csv", complex(1, 2),
    "\ud800", "a\x00b", b"x", b"\xff", [], {}, (), ["a"], ("a", "b"), {"a"}, [1, 2], [0, 1], [0, 1, 1], [[1]], [None],
    {"text": "a"}, {"uid": "a"}, {"text": None}, {"a": 1}, {0: "a", 1: "b"}, {"a": 0, "b": 1}, {"a": 0, "b": 0},
    {"a": "b"}, {"1": "x", 1: "y"}, {1.5: "a"}, {True: "a"}, {("a",): "b"}, {"a": None}, {"a": ["b"], "t": 1},
    {"text": ["a", "b"]}, {"text": ["a"], "uid": ["x", "y"]}, [{"text": "a"}, {"uid": "b"}], range(3), object(),
    np.int64(3), np.float32(2), np.array([1, 0]), np.array(["a", "b"]), np.zeros((2, 2)), pd.NA,
    pd.NaT, pd.Series(["a", "b"]), pa.array(["a", None]), datasets.ClassLabel(names=["a", "b"]), GOOD,
    decimal.Decimal("1.1"), datetime.date(2020, 1, 1), pathlib.Path("x"), Exception, {"train": GOOD},
    pd.DataFrame(),
]  # fmt: skip
ANY = st.sampled_from(range(len(VALUES))).map(VALUES.__getitem__)
CELLS = st.lists(ANY, max_size=3)


@st.composite
def tables(draw):
    """A frame or a data set of any cells, or no table at all."""
    cells = draw(CELLS)
    texts = draw(st.sampled_from([[f"text {row}" for row in range(len(cells))], cells]))
    columns = {"text": texts, "labels": draw(st.sampled_from([cells, [["x"]] * len(cells)]))}
    if draw(st.booleans()):
        return pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in columns.items()})
    try:
        return datasets.Dataset.from_dict(columns)
    except Exception:  # what datasets itself refuses never comes here
        return draw(ANY)


OPTIONS = st.fixed_dictionaries(
    {"text": st.just("text") | ANY, "labels": st.just("labels") | ANY},
    optional={name: ANY for name in ("uid", "label_texts", "separator", "unseen", "name")} | {"test": tables()},
)
OPTIONS |= st.fixed_dictionaries({"text": st.just("text"), "labels": st.just("labels")}, optional={"label_texts": ANY})


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=500, deadline=None)
@given(source=st.just(GOOD) | tables(), options=OPTIONS)
def test_any_shape_is_read_or_refused(source, options):
    try:
        dataset = XMCDataset.from_dataset(source, **options)
    except ValueError as error:
        assert not isinstance(error, pa.ArrowException | UnicodeError), (
            "an error of Arrow's names neither place nor cure"
        )
    else:
        assert dataset.to_csr("train").shape == (len(dataset.train), dataset.num_labels)
        assert dataset.label_texts.null_count == 0 and dataset.num_labels > 0
