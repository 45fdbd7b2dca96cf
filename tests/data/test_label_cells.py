"""Lists, lists written as strings, multi-hot rows and ids are known for what they are, or refused by name."""

from __future__ import annotations

import csv
import json
from decimal import Decimal

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_xmc.data import XMCDataset


def labels_of(cells, split="train", **arguments) -> list[list[str]]:
    """The label texts of each row of a column of cells, or of a table."""
    table = {"text": [f"text {row}" for row in range(len(cells))], "labels": cells}
    source = cells if isinstance(cells, pa.Table | pd.DataFrame) else datasets.Dataset.from_dict(table)
    dataset = XMCDataset.from_dataset(source, text="text", labels="labels", **arguments)
    names = dataset.label_texts.to_pylist()
    return [[names[id] for id in ids] for ids in dataset[split]["label_ids"]]


@pytest.mark.parametrize(
    "cells",
    [
        ["['x', 'y']", "['x']", "[]"],
        ['["x", "y"]', '["x"]', "[]"],
        ["['x', \"y\"]", ' [ "x" , ] ', ""],
        ["('x', 'y')", "('x',)", ""],
        ["{'x', 'y'}", "{'x'}", None],
    ],
)
@pytest.mark.parametrize("separator", [None, ",", "|"])
@pytest.mark.filterwarnings("ignore:.*have null for labels")
def test_written_lists_are_lists(cells, separator):
    assert labels_of(cells, separator=separator) == [["x", "y"], ["x"], []]


def test_written_lists_keep_commas_quotes_and_brackets():
    names = ["a, b", "it's", 'say "no"', "[x]", "é\n", "\\", "004", "None"]
    assert labels_of([repr(names), repr(["a, b"])]) == [names, ["a, b"]]
    assert labels_of([json.dumps(names), json.dumps(["a, b"])]) == [names, ["a, b"]]


@pytest.mark.filterwarnings("ignore:.*have null for labels")
@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), max_size=4)))
def test_any_list_written_by_python_or_json_is_that_list(rows):
    rows = [*rows, ["x"]]
    assert labels_of([repr(row) for row in rows]) == rows
    assert labels_of([json.dumps(row) for row in rows]) == rows


def test_names_in_brackets_are_names():
    names = ["[sic]", "[S.l.]", "x", "(2019)", "{set}", "[a] and [b]", "[", "[]x"]
    assert labels_of(names) == [[name] for name in names]
    assert labels_of(["[a]|[b]", "[b]"], separator="|") == [["[a]", "[b]"], ["[b]"]]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["['x' 'y']", "['x']"], "train, row 0, column 'labels': .* cannot be read as JSON or Python's"),
        (["[1 2 3]", "[4]"], "row 0.* cannot be read"),
        (["[0. 1. 0.]"], "row 0.* cannot be read"),
        (["x", "['x', 'y']"], "row 1.* is written as a list, row 0 is not: 'x'"),
        (["array(['x', 'y'], dtype=object)", "x"], "row 0.* cannot be read"),
        (["x", "frozenset({'x', 'y'})"], "row 1.* cannot be read"),
        (["{war, sea}", "", "{war}"], "row 0.* is written as a list, but cannot be read"),
        (["[war, sea]", "[]"], "row 1.* is written as a list, row 0 is not"),
        (["[war]", "{war;sea}"], "row 0.* cannot be read"),
        (["['x', 'y'", "['x', 'y']"], "row 1.* is written as a list, row 0 is not"),
        (["['x', None]"], "row 0.*: a label is null or empty"),
        (['["x", ""]'], "row 0.*: a label is null or empty"),
        (['["x", 1]'], "labels of several types"),
        (['["x"]', "[1]"], "labels of several types"),
        (["[0.5, 0.25]"], "labels are double"),
        (["[['x'], ['y']]"], "row 0"),
        (['[["x"], ["y"]]'], "labels are list"),
        (["{'uid': 'x'}"], "row 0.* cannot be read"),
        ([["x"], [None]], "row 1.*: a label is null or empty"),
        ([["x"], [""]], "row 1.*: a label is null or empty"),
        ([[["x"]]], "labels are list"),
        ([{"name": "x"}], "labels are dicts of .'name'.; expected a 'text'"),
        ([[{"uid": None, "text": None}]], "row 0.*: a label dict lacks its 'text' or its 'uid'"),
        ([0.5, 1.5], "labels are double"),
        ([True, False], "labels are bool"),
        ([b"\xff"], "column 'labels' is damaged"),
        ([None, None], "No row has a label"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*have null for labels")
@pytest.mark.parametrize("separator", [None, ",", " "])
def test_cells_that_are_no_labels_are_refused(cells, message, separator):
    with pytest.raises(ValueError, match=message):
        labels_of(cells, separator=separator)


def test_frames_are_read_as_their_values():
    frame = pd.DataFrame({"text": ["a", "b"], "labels": [np.array(["x", "y"]), np.array(["y"])]})
    assert labels_of(frame) == [["x", "y"], ["y"]]
    assert labels_of(frame.assign(labels=["x", "y"]).astype({"labels": "category"})) == [["x"], ["y"]]
    assert labels_of(frame.assign(labels=pd.array([3, 20], "Int64"))) == [["3"], ["20"]]
    with pytest.raises(ValueError, match="labels are double; .* a pandas column of whole numbers with a missing one"):
        with pytest.warns(UserWarning, match="1 of 2 rows have null"):
            labels_of(frame.assign(labels=[1.0, None]))
    for wrong in ([Decimal("1.1"), Decimal("2")], pd.to_datetime(["2020-01-01", "2020-01-02"])):
        with pytest.raises(ValueError, match="labels are |mixed types"):
            labels_of(frame.assign(labels=wrong))


HOT = [[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
NUMBERS = ["int8", "uint8", "int16", "int32", "int64", "uint64", "float16", "float32", "float64", "bool"]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("fixed", [True, False])
def test_multi_hot_rows_of_any_number_type_are_the_labels_at_the_ones(dtype, fixed):
    values = pa.array(np.array(HOT, dtype).ravel())
    cells = pa.FixedSizeListArray.from_arrays(values, 4) if fixed else pa.ListArray.from_arrays([0, 4, 8, 12], values)
    table = pa.table({"text": ["a", "b", "c"], "labels": cells})
    assert labels_of(table, label_texts=list("wxyz")) == [["x", "z"], ["w"], []]
    assert labels_of(table) == [["1", "3"], ["0"], []]


def test_multi_hot_rows_of_frames_arrays_and_written_ones_are_read(tmp_path):
    expected = [["x", "z"], ["w"], []]
    frame = pd.DataFrame({"text": ["a", "b", "c"], "labels": [np.array(row) for row in HOT]})
    assert labels_of(frame, label_texts=list("wxyz")) == expected
    features = {"text": datasets.Value("string"), "labels": datasets.List(datasets.Value("int8"), length=4)}
    fixed = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "labels": HOT}, datasets.Features(features))
    assert labels_of(fixed.data.table, label_texts=list("wxyz")) == expected
    for write, separator in ((json.dumps, None), (repr, None), (lambda row: " ".join(map(str, row)), " ")):
        with (tmp_path / "t.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "labels"), *zip("abc", map(write, HOT), strict=True)])
        dataset = XMCDataset.from_dataset(
            tmp_path / "t.csv", text="text", labels="labels", label_texts=list("wxyz"), separator=separator
        )
        assert dataset.train["label_ids"][:] == [[1, 3], [0], []]


def test_a_test_split_is_multi_hot_where_train_is():
    train, test = (
        datasets.Dataset.from_dict({"text": ["a"] * len(rows), "labels": rows}) for rows in (HOT, [[0, 0, 1, 0]])
    )
    for split, expected in (("train", [["x", "z"], ["w"], []]), ("test", [["y"]])):
        assert labels_of(train.data.table, split, test=test, label_texts=list("wxyz")) == expected


def test_ids_are_ids():
    for ids in ([[0], [1]], [[0, 1], [1], []], [[1, 0], [2, 1]], [[3, 1, 0]], [0, 1, 1]):
        lists = [row if isinstance(row, list) else [row] for row in ids]
        assert labels_of(ids, label_texts=list("wxyz")) == [["wxyz"[id] for id in row] for row in lists]
    assert labels_of([[0, 1], [1, 0]], label_texts=list("wxyz")) == [["w", "x"], ["x", "w"]]


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        ([[0, 1], [1, 0]], "wx", "every row of labels is a 0 and a 1: two ids, or a multi-hot row"),
        ([[0, 1], [1, 0]], None, "two ids, or a multi-hot row"),
        (HOT, "wxy", "rows of 4 numbers that are 0 or 1, and there are 3 labels"),
        ([[0, 1, 0, 1], [1, 0, 0]], "wxyz", "rows of 3 or 4 numbers that are 0 or 1"),
        ([[0.0, 1.0, 0.5]], "wxy", "labels are double"),
        ([[1, 4]], "wxyz", "row 0: label 4 is not among the 4 label_texts"),
        ([[-1, 1, -1], [1, 1, -1]], "wxy", "rows of -1 and 1; expected 0 and 1 in multi-hot rows"),
        ([[-1.0, 1.0, -1.0]], None, "rows of -1 and 1"),
        ([[2, -1], [1, -3]], "wxyz", "train, row 1, column 'labels': label -3 is below 0; expected ids, -1 for none"),
        ([[2, -1], [1, -3]], None, "label -3 is below 0"),
    ],
)
def test_rows_that_might_be_either_or_neither_are_refused(rows, names, message):
    with pytest.raises(ValueError, match=message):
        labels_of(rows, label_texts=names and list(names))


@pytest.mark.parametrize(("names", "expected"), [(None, "0123"), ("wxyz", "wxyz")])
def test_minus_one_pads_a_list_and_is_no_label(names, expected):
    rows, told = [[2, -1, -1], [0, 1, 3], [-1, -1, -1]], "5 labels are -1, which stands for none"
    expected = [[expected[2]], [expected[0], expected[1], expected[3]], []]
    with pytest.warns(UserWarning, match=told):
        assert labels_of(rows, label_texts=names and list(names)) == expected
    with pytest.warns(UserWarning, match="1 labels are -1"):
        assert labels_of([3, -1], label_texts=names and list(names)) == [expected[1][2:], []]
    assert labels_of([["2", "-1"]]) == [["2", "-1"]]


@settings(max_examples=50, deadline=None)
@given(data=st.data(), width=st.integers(3, 6))
def test_any_mask_of_three_or_more_labels_gives_the_places_of_its_ones(data, width):
    bits = st.lists(st.integers(0, 1), min_size=width, max_size=width)
    rows = data.draw(st.lists(bits, min_size=1, max_size=5))
    names = [f"n{number}" for number in range(width)]
    expected = [[names[place] for place in np.flatnonzero(row)] for row in rows]
    for kind in (int, float, bool):
        assert labels_of([[kind(bit) for bit in row] for row in rows], label_texts=names) == expected


def test_separated_cells_are_split_and_trimmed():
    assert labels_of(["x; y ;;", "", "y"], separator=";") == [["x", "y"], [], ["y"]]
    assert labels_of(["x  y", "y"], separator=" ") == [["x", "y"], ["y"]]
    assert labels_of([" x ", "x"]) == [[" x "], ["x"]], "a cell of one label stays as it is"


@pytest.mark.parametrize("name", ["separator", "uid", "labels", "text", "unseen", "name"])
@pytest.mark.parametrize("wrong", [5, b"x", ["x", 1], 1.5, True, "", {}, object(), pd.NA])
def test_arguments_of_another_type_are_refused(name, wrong):
    if isinstance(wrong, str) and name in ("uid", "labels"):
        pytest.skip("the name of a column")
    table = datasets.Dataset.from_dict({"text": ["a"], "labels": ["x"]})
    with pytest.raises(ValueError, match=f"{name} is|train has no column"):
        XMCDataset.from_dataset(table, **{"text": "text", "labels": "labels", name: wrong})
