"""Labels come as a list, a map, a table or a file; unknown and repeated ones are counted."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from hf_xmc.data import XMCDataset

UIDS, NAMES = ["q7", "q2"], ["war", "sea"]
TABLE = {"uid": UIDS, "text": NAMES}


def read(labels, label_texts, **arguments) -> XMCDataset:
    table = datasets.Dataset.from_dict({"text": [f"text {row}" for row in range(len(labels))], "labels": labels})
    return XMCDataset.from_dataset(table, text="text", labels="labels", label_texts=label_texts, **arguments)


def found(*arguments, **options) -> list[list[str]]:
    dataset = read(*arguments, **options)
    names = dataset.label_texts.to_pylist()
    return [[names[id] for id in ids] for ids in dataset.train["label_ids"]]


def forms(folder) -> dict:
    """The same two labels with uids, in every form."""
    frame = pd.DataFrame(TABLE)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    (folder / "rows.json").write_text(json.dumps(frame.to_dict("records")))
    (folder / "lines.json").write_text((folder / "rows.jsonl").read_text())
    (folder / "map.json").write_text(json.dumps(dict(zip(UIDS, NAMES, strict=True)), indent=2))
    (folder / "config.json").write_text(
        json.dumps({"id2label": dict(zip(UIDS, NAMES, strict=True)), "model_type": "x"})
    )
    frame.to_csv(folder / "table.csv", index=False)
    frame.to_csv(folder / "semicolons.csv", index=False, sep=";")
    frame.to_csv(folder / "table.tsv", index=False, sep="\t")
    frame.to_parquet(folder / "table.parquet")
    made = {path.name: path for path in folder.iterdir()}
    return made | {
        "map": dict(zip(UIDS, NAMES, strict=True)),
        "dataset": datasets.Dataset.from_dict(TABLE),
        "frame": frame,
        "arrow": pa.table(TABLE),
        "columns": TABLE,
        "rows": frame.to_dict("records"),
        "annif's names": pa.table({"uri": UIDS, "label": NAMES}),
        "predict's names": [{"label": name, "label_id": uid} for uid, name in zip(UIDS, NAMES, strict=True)],
        "id": frame.rename(columns={"uid": "id"}),
        "index": frame.set_index("uid"),
        "series": frame.set_index("uid")["text"],
        "str path": str(folder / "table.csv"),
    }


def test_every_form_of_uids_and_texts_gives_the_same_labels(tmp_path):
    for form, label_texts in forms(tmp_path).items():
        dataset = read([["q2"], ["q7", "q2"]], label_texts)
        assert dataset.labels["uid"][:] == UIDS and dataset.label_texts.to_pylist() == NAMES, form
        assert dataset.train["label_ids"][:] == [[1], [0, 1]], form


def test_every_list_of_texts_gives_the_same_labels(tmp_path):
    (tmp_path / "names.txt").write_text("war\nsea\n\n")
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    column = datasets.Dataset.from_dict({"text": NAMES})
    lists = [
        NAMES, tuple(NAMES), iter(NAMES), (name for name in NAMES), np.array(NAMES), pd.Series(NAMES), pa.array(NAMES),
        pa.chunked_array([NAMES[:1], NAMES[1:]]), column["text"], column, datasets.ClassLabel(names=NAMES),
        tmp_path / "names.txt", tmp_path / "names.json", read(NAMES, NAMES).label_texts, read(NAMES, NAMES).labels,
    ]  # fmt: skip
    for label_texts in lists:
        dataset = read([["sea"], ["war", "sea"]], label_texts)
        assert dataset.label_texts.to_pylist() == NAMES and dataset.train["label_ids"][:] == [[1], [0, 1]]


@pytest.mark.parametrize(
    ("label_texts", "texts"),
    [
        ({"war": 0, "sea": 1}, ["war", "sea"]),
        ({"sea": 1, "war": 0}, ["war", "sea"]),
        ({0: "war", 1: "sea"}, ["war", "sea"]),
        ({1: "sea", 0: "war"}, ["war", "sea"]),
        ({"id2label": {0: "war", 1: "sea"}, "label2id": {}}, ["war", "sea"]),
        ({"1": "sea", "0": "war"}, ["war", "sea"]),
        ({np.int64(0): "war", np.int64(1): "sea"}, ["war", "sea"]),
        ({str(id): f"n{id}" for id in sorted(map(str, range(11)))}, ["n0", "n1", *(f"n{id}" for id in range(2, 11))]),
    ],
)
def test_maps_with_numbers_are_in_the_order_of_the_numbers(label_texts, texts):
    for labels in ([[0], [1, 0]], [["0"], ["1", "0"]], [[texts[0]], [texts[1], texts[0]]]):
        dataset = read(labels, label_texts)
        assert dataset.label_texts.to_pylist() == texts and dataset.train["label_ids"][:] == [[0], [1, 0]]


def test_numbers_are_uids_where_all_uids_are_numbers_and_row_numbers_elsewhere():
    numbered = {"uid": [20, 10], "text": NAMES}
    assert found([[10], [20]], numbered) == found([["10"], ["20"]], numbered) == [["sea"], ["war"]]
    assert found([[1], [0]], {"uid": [1, 0], "text": NAMES}) == [["war"], ["sea"]]
    assert found([[1], [0]], pa.table(TABLE)) == found([["1"], ["0"]], NAMES) == [["sea"], ["war"]]
    assert read([[1]], pa.table(TABLE)).labels["uid"][:] == UIDS
    assert found([["1984"]], ["2001", "1984"]) == [["1984"]]


def test_a_text_that_is_also_a_uid_names_its_own_label():
    countries = pa.table({"uid": ["IN", "PE", "XX"], "text": ["India", "Peru", "IN"]})
    assert found([["India"], ["IN"]], countries) == [["India"], ["IN"]]
    assert found([["PE"], ["IN"]], countries) == [["Peru"], ["India"]]
    assert found([["IN"]], countries) == [["India"]], "uids come first where both know as many"


@pytest.mark.parametrize("name", ["uid", "uri", "id", "label_id"])
def test_numbers_in_a_column_or_index_of_ids_are_no_row_numbers(name):
    frame = pd.DataFrame({name: [3, 1, 2, 0], "text": ["n3", "n1", "n2", "n0"]})
    indexed = frame.set_index(name)
    for label_texts in (frame, frame.to_dict("records"), frame.to_dict("list"), indexed, indexed["text"]):
        assert found([[3], [0, 1]], label_texts) == [["n3"], ["n0", "n1"]]
    assert found([[3], [1]], frame.sort_values(name)["text"][:2]) == [["n0"], ["n1"]]
    assert found([["n2"], ["n0"]], indexed) == found([["n2"], ["n0"]], indexed["text"]) == [["n2"], ["n0"]]
    twice = pd.Series(["a", "b"], index=[7, 7])
    for label_texts, told in (
        (twice, "a map in which 7 stands twice"),
        (twice.to_frame("text"), "are the same uid: 7"),
    ):
        with pytest.raises(ValueError, match=told):
            found([[7]], label_texts)


def test_texts_name_labels_of_a_table_that_has_uids():
    dataset = read([["sea"], ["war"]], pa.table(TABLE))
    assert dataset.train["label_ids"][:] == [[1], [0]] and dataset.labels["uid"][:] == UIDS


@pytest.mark.parametrize(
    ("label_texts", "message"),
    [
        (["war", None], "label_texts: texts must be str, got NoneType at place 1"),
        ([1, 2], "label_texts: texts must be str, got int at place 0"),
        (["war", 1.5], "got float at place 1"),
        (["war", "\ud800"], "label_texts: the text at place 1 is no valid Unicode"),
        (pa.array(["war", None]), "got NoneType at place 1"),
        (pa.array([1, 2]), "got int at place 0"),
        (np.array([["war"], ["sea"]]), "got ndarray"),
        ([("q7", "war")], "got tuple at place 0"),
        ({"war", "sea"}, "label_texts: texts must be a list of str, got set"),
        (b"war", "got bytes"),
        (5, "label_texts: .* got int 5"),
        (1.5, "got float"),
        (object(), "got object"),
        ([], "label_texts is empty"),
        ({}, "label_texts is empty"),
        ({"q7": None}, "got NoneType at place 0"),
        ({"q7": 1.5}, "got float at place 0"),
        ({1.5: "war"}, "a map of 1.5 .float.; expected uid to text"),
        ({"war": 0, "sea": 0}, "a map in which 0 stands twice"),
        ({"1": "war", 1: "sea"}, "a map in which 1 stands twice"),
        ({"war": "q7", "sea": "q2"}, "none of the 1 labels, such as 'q7', is a uid"),
        ({"uid": ["q7"], "name": ["war"]}, "label_texts has no column 'text'; it has .'uid', 'name'."),
        (pd.DataFrame({"uid": ["q7"], "text": [None]}), "label_texts, column 'text', row 0: expected text, got null"),
        (pd.DataFrame({"uid": [None], "text": ["war"]}), "label_texts, column 'uid', row 0: expected text, got null"),
        (pd.DataFrame({"uid": ["q7"], "text": [1.5]}), "label_texts, 'text' holds double, not text"),
        ({"uid": ["q7", "q7"], "text": NAMES}, "Two rows of label_texts are the same uid: 'q7'"),
        ("war", "war ends in none of"),
        ("nowhere.csv", "nowhere.csv does not exist"),
        ("nowhere.txt", "nowhere.txt does not exist"),
        ("nowhere.json", "nowhere.json does not exist"),
        ("nowhere.ttl", "nowhere.ttl does not exist"),
        (["x", "y"], "none of the 1 labels, such as 'q7', is a text of the 2 label_texts, such as 'x'"),
    ],
)  # fmt: skip
def test_what_names_no_labels_is_refused(label_texts, message):
    with pytest.raises(ValueError, match=message):
        read([["q7"]], label_texts)


def test_numbers_are_not_looked_up_in_a_map_of_words():
    with pytest.raises(ValueError, match="none of the 1 labels, such as 0, is a uid of the 2 label_texts"):
        read([[0]], {"q7": "war", "q2": "sea"})
    with pytest.raises(ValueError, match="none of the 1 labels, such as '0', is a uid"):
        read([["0"]], {"q7": "war", "q2": "sea"})


def test_unknown_labels_are_refused_left_out_or_added_and_counted():
    rows = [["q2", "gone"], ["lost", "gone"]]
    told = "train, row 0: label 'gone' is not among the 2 label_texts, nor are 2 other entries .2 labels in all."
    with pytest.raises(ValueError, match=f"{told}; unseen='drop' leaves them out, 'keep' adds"):
        read(rows, pa.table(TABLE))
    with pytest.warns(UserWarning, match=f"{told}; they are left out"):
        assert found(rows, pa.table(TABLE), unseen="drop") == [["sea"], []]
    with pytest.warns(UserWarning, match=f"{told}; they are added"):
        dataset = read(rows, pa.table(TABLE), unseen="keep")
    assert dataset.label_texts.to_pylist() == [*NAMES, "gone", "lost"] and dataset.labels["uid"][2:] == [
        "gone",
        "lost",
    ]
    assert dataset.train["label_ids"][:] == [[1, 2], [3, 2]]
    for unseen in ("drop", "keep"):
        with pytest.raises(ValueError, match="none of the 1 labels, such as 'gone'"):
            read([["gone"]], pa.table(TABLE), unseen=unseen)


def test_unknown_row_numbers_can_be_left_out_but_not_added():
    with pytest.warns(UserWarning, match="train, row 1: label 2 is not among the 2 label_texts"):
        assert found([[0], [1, 2]], NAMES, unseen="drop") == [["war"], ["sea"]]
    for number in (2, "2"):
        with pytest.raises(ValueError, match="'keep' adds labels that are no numbers"):
            read([[type(number)(0)], [number]], NAMES, unseen="keep")


def test_unseen_labels_of_test_are_counted_when_left_out():
    test = datasets.Dataset.from_dict({"text": ["c", "d"], "labels": [["sea", "x"], ["x"]]})
    with pytest.warns(UserWarning, match="2 labels of test rows, which no train row has, are left out"):
        dataset = read([["sea"]], None, test=test, unseen="drop")
    assert dataset.label_texts.to_pylist() == ["sea"] and dataset.test["label_ids"][:] == [[0], []]


def test_repeated_and_empty_label_texts_are_counted_and_stay():
    homonyms = {"uid": ["planet", "metal", "god", "sea"], "text": ["Mercury", "Mercury", "Mercury", ""]}
    with pytest.warns(UserWarning) as told:
        dataset = read([["metal"], ["sea"]], homonyms)
    assert [str(warning.message) for warning in told] == [
        "1 label texts belong to several labels, such as 'Mercury'; all stay",
        "1 label texts are empty, such as that of 'sea'; they stay",
    ]
    assert dataset.train["label_ids"][:] == [[1], [3]] and dataset.num_labels == 4


def test_a_repeated_text_names_no_label():
    names = ["Mercury", "Mercury", "sea"]
    with pytest.raises(ValueError, match="Two rows of label_texts are the same text: 'Mercury'"):
        read([["Mercury"]], names)
    with pytest.warns(UserWarning, match="1 label texts belong to several labels"):
        assert found([["sea"]], names) == [["sea"]]
