from __future__ import annotations

import datasets
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_xmc.data import XMCDataset

ROWS = [("latte", ["milk", "coffee"]), ("espresso", ["coffee"]), ("water", [])]
TEST = [("chai", ["tea", "milk"])]


def table(rows) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"query": [text for text, _ in rows], "tags": [tags for _, tags in rows]})


def truth_texts(dataset: XMCDataset, split: str) -> list[list[str]]:
    names = dataset.label_texts.to_pylist()
    return [[names[id] for id in ids] for ids in dataset[split]["label_ids"]]


def test_string_labels_get_ids_in_ascending_order_and_unseen_ones_the_last():
    dataset = XMCDataset.from_dataset(table(ROWS), text="query", labels="tags", test=table(TEST), name="drinks")
    assert dataset.label_texts.to_pylist() == ["coffee", "milk", "tea"]
    assert dataset.train["text"][:] == ["latte", "espresso", "water"]
    assert dataset.train["label_ids"][:] == [[1, 0], [0], []] and dataset.test["label_ids"][:] == [[2, 1]]
    assert dataset.train.features["label_ids"].feature.dtype == "int32"
    assert dataset.name == "drinks" and dataset.propensity.assumed and dataset.filters["test"].shape == (0, 2)


def test_unseen_labels_are_dropped_when_said():
    dataset = XMCDataset.from_dataset(
        {"train": table(ROWS), "test": table(TEST)}, text="query", labels="tags", unseen="drop"
    )
    assert dataset.label_texts.to_pylist() == ["coffee", "milk"] and dataset.test["label_ids"][:] == [[1]]
    with pytest.raises(ValueError, match="unseen is 'maybe'; expected 'keep' or 'drop'"):
        XMCDataset.from_dataset(table(ROWS), text="query", labels="tags", unseen="maybe")


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(3)), test=st.booleans())
def test_ids_depend_on_neither_the_order_of_rows_nor_the_test_table(order, test):
    dataset = XMCDataset.from_dataset(
        table([ROWS[row] for row in order]), text="query", labels="tags", test=table(TEST) if test else None
    )
    assert dataset.label_texts.to_pylist()[:2] == ["coffee", "milk"]
    assert truth_texts(dataset, "train") == [ROWS[row][1] for row in order]


def test_numbers_are_known_by_themselves_and_sorted_as_numbers():
    dataset = XMCDataset.from_dataset(table([("a", [10, 9]), ("b", [100])]), text="query", labels="tags")
    assert dataset.label_texts.to_pylist() == ["9", "10", "100"] and dataset.train["label_ids"][:] == [[1, 0], [2]]


def test_numbers_with_label_texts_are_row_numbers():
    texts = ["coffee", "milk", "tea", "unused"]
    dataset = XMCDataset.from_dataset(table([("a", [2, 0])]), text="query", labels="tags", label_texts=texts)
    assert dataset.num_labels == 4 and truth_texts(dataset, "train") == [["tea", "coffee"]]
    with pytest.raises(ValueError, match="train, row 1: label 4 is not among the 4 label_texts"):
        XMCDataset.from_dataset(table([("a", [0]), ("b", [1, 4])]), text="query", labels="tags", label_texts=texts)


def test_strings_with_label_texts_keep_the_given_ids():
    texts = ["tea", "milk", "coffee"]
    dataset = XMCDataset.from_dataset(
        table(ROWS), text="query", labels="tags", test=table(TEST), label_texts=texts, unseen="drop"
    )
    assert dataset.train["label_ids"][:] == [[1, 2], [2], []] and dataset.test["label_ids"][:] == [[1]]
    with pytest.raises(ValueError, match="test, row 0: label 'tea' is not among"):
        XMCDataset.from_dataset(table(ROWS), text="query", labels="tags", test=table(TEST), label_texts=texts[1:])
    with pytest.raises(ValueError, match="Two rows of label_texts are the same"):
        XMCDataset.from_dataset(table(ROWS), text="query", labels="tags", label_texts=["milk", "milk", "coffee"])


def test_dicts_bring_their_own_text_and_uid():
    milk, tea = {"uid": "b1", "text": "milk"}, {"uid": "a7", "text": "milk"}
    dataset = XMCDataset.from_dataset(table([("a", [milk]), ("b", [tea, milk])]), text="query", labels="tags")
    assert dataset.labels["uid"][:] == ["a7", "b1"] and dataset.label_texts.to_pylist() == ["milk", "milk"]
    assert dataset.train["label_ids"][:] == [[1], [0, 1]]
    with pytest.raises(
        ValueError, match="Label 'b1' has two texts: cream and milk|Label 'b1' has two texts: milk and cream"
    ):
        XMCDataset.from_dataset(table([("a", [milk]), ("b", [milk | {"text": "cream"}])]), text="query", labels="tags")


def test_class_labels_are_known_by_their_names():
    features = datasets.Features(
        {"query": datasets.Value("string"), "tag": datasets.ClassLabel(names=["tea", "milk"])}
    )
    one = datasets.Dataset.from_dict({"query": ["a", "b"], "tag": [1, 0]}, features=features)
    dataset = XMCDataset.from_dataset(one, text="query", labels="tag")
    assert dataset.label_texts.to_pylist() == ["milk", "tea"] and dataset.train["label_ids"][:] == [[0], [1]]


def test_unknown_class_labels_are_left_out_of_lists_and_counted():
    of_lists = datasets.List(datasets.ClassLabel(names=["tea", "milk"]))
    features = datasets.Features({"query": datasets.Value("string"), "tags": of_lists})
    lists = [[-1, 1], None, [-1], [0, 1], []]
    one = datasets.Dataset.from_dict({"query": list("abcde"), "tags": lists}, features=features)
    with pytest.warns(UserWarning, match="2 class labels are -1"):
        dataset = XMCDataset.from_dataset(one, text="query", labels="tags")
    assert dataset.label_texts.to_pylist() == ["milk", "tea"]
    assert dataset.train["label_ids"][:] == [[0], [], [], [1, 0], []]


def test_frames_csv_and_json_lines_give_the_same_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    frame = pd.DataFrame({"query": ["latte", "espresso", "water"], "tags": [["milk", "coffee"], ["coffee"], []]})
    expected = XMCDataset.from_dataset(table(ROWS), text="query", labels="tags")
    frame.to_json(tmp_path / "train.jsonl", orient="records", lines=True)
    (tmp_path / "train.csv").write_text("query,tags\nlatte,milk; coffee\nespresso,coffee\nwater,\n")
    found = [
        XMCDataset.from_dataset(frame, text="query", labels="tags"),
        XMCDataset.from_dataset(tmp_path / "train.jsonl", text="query", labels="tags"),
        XMCDataset.from_dataset(str(tmp_path / "train.csv"), text="query", labels="tags", separator=";"),
    ]
    for dataset in found:
        assert list(dataset.train) == list(expected.train) and list(dataset.labels) == list(expected.labels)


def test_texts_of_several_columns_uids_and_a_single_label_a_row():
    rows = {"a": ["x", None], "b": ["y", "z"], "tag": ["milk", None], "sku": [1, 2]}
    dataset = XMCDataset.from_dataset(datasets.Dataset.from_dict(rows), text=("a", "b"), labels="tag", uid="sku")
    assert dataset.train["text"][:] == ["x y", "z"] and dataset.train["uid"][:] == ["1", "2"]
    assert dataset.train["label_ids"][:] == [[0], []]


def test_a_table_without_test_can_be_held_out_and_filtered():
    rows = [(f"{word} {number}", ["all"]) for number, word in enumerate(["alpha", "beta", "gamma", "delta"] * 5)]
    dataset = XMCDataset.from_dataset(table(rows), text="query", labels="tags")
    assert len(dataset.test) == 0 and dataset.to_csr("test").shape == (0, 1)
    parts = dataset.hold_out(0.25)
    assert (len(parts.train), len(parts.test)) == (15, 5) and len(
        {text.split()[0] for text in parts.test["text"]}
    ) == 1


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (table(ROWS), {"text": "title"}, "train has no column 'title'; it has .'query', 'tags'."),
        (table(ROWS), {"labels": "label"}, "train has no column 'label'"),
        (table([("a", ["x", None])]), {}, "train, row 0, column 'tags': a label is null"),
        (table([("a", [0.5])]), {}, "column 'tags': labels are double; expected strings"),
        ("nowhere.csv", {}, "nowhere.csv does not exist"),
        ("nowhere.doc", {}, "nowhere.doc ends in none of .csv"),
        ("nowhere.xlsx", {}, "nowhere.xlsx does not exist"),
        (3, {}, "Cannot read a table from a int"),
        ({"test": table(ROWS)}, {}, "expected 'train' and perhaps 'test'"),
        (pd.DataFrame({"query": ["a", "b"], "tags": ["x", 3]}), {}, "mixed types"),
        (table(ROWS), {"test": table([("a", [3])])}, "Labels of train are string, labels of test int64"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(source, arguments, message):
    with pytest.raises(ValueError, match=message):
        XMCDataset.from_dataset(source, **{"text": "query", "labels": "tags"} | arguments)


def test_a_list_of_dicts_is_a_table():
    rows = [{"query": text, "tags": tags, 5: object()} for text, tags in ROWS]
    dataset = XMCDataset.from_dataset(rows, text="query", labels="tags", test=[{"tags": ["milk"], "query": "chai"}])
    assert truth_texts(dataset, "train") == [tags for _, tags in ROWS] and dataset.test["text"][:] == ["chai"]
    with pytest.raises(ValueError, match="train has no column 'text'; it has .'query', 'tags', 5."):
        XMCDataset.from_dataset(rows, text="text", labels="tags")
    with pytest.raises(ValueError, match="train, column 'query': .*make its values all one type"):
        XMCDataset.from_dataset([*rows, {"query": 5}], text="query", labels="tags")


@pytest.mark.parametrize("form", ["csv", "tsv", "xlsx"])
def test_spaces_around_the_names_of_columns_are_no_part_of_them(tmp_path, form):
    path = tmp_path / f"t.{form}"
    header, row = ["query ", " tags"], ["latte", "milk"]
    if form == "xlsx":
        book = pytest.importorskip("openpyxl").Workbook()
        for cells in (header, row):
            book.active.append(cells)
        book.save(path)
    else:
        separator = "," if form == "csv" else "\t"
        path.write_text(f"{separator.join(header)}\n{separator.join(row)}\n")
    for text, tags in (("query", "tags"), header):
        dataset = XMCDataset.from_dataset(path, text=text, labels=tags)
        assert dataset.train["text"][:] == ["latte"] and truth_texts(dataset, "train") == [["milk"]]
