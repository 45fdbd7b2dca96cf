from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_xmc.data import load_lf, save_lf, stream_lf
from hf_xmc.data.lf import json_lines, read
from hf_xmc.data.lf.json_lines import read_json
from hf_xmc.data.lf.text_lines import read_truth

TINY = Path(__file__).parents[2] / "recipes" / "data" / "lf-gutenberg-science-tiny"
ROWS = [[2, 0], [1], []]


def as_lists(dataset) -> dict:
    """Everything of a data set but uids, as plain values."""
    return {
        "train": [(row["text"], row["label_ids"]) for row in dataset.train],
        "test": [(row["text"], row["label_ids"]) for row in dataset.test],
        "labels": dataset.label_texts.to_pylist(),
        "filters": {split: pairs.tolist() for split, pairs in dataset.filters.items()},
    }


TOY = {
    "train": [("Café au lait", [2, 0]), ("Tea, Vol. 1", [1]), ("", [])],
    "test": [("Mokka", [0]), ("x", [])],
    "labels": ["coffee", "tea", "milk", "unused"],
    "filters": {"train": [[1, 1]], "test": [[0, 0], [1, 3]]},
}
TEXT_FILES = {
    "trn_X.txt": "Café au lait\nTea, Vol. 1\n\n".encode(),
    "tst_X.txt": b"Mokka\nx\n",
    "Y.txt": b"coffee\ntea\nmilk\nunused\n",
    "trn_X_Y.txt": b"3 4\n2:1.0 0:1.0\n1:1\n\n",
    "tst_X_Y.txt": b"2 4\n0:1.00000\n\n",
    "trn_filter_labels.txt": b"1 1\n",
    "tst_filter_labels.txt": b"0 0\n1 3\n",
}


def test_a_toy_folder_is_read_value_for_value(toy):
    assert as_lists(toy) == TOY
    assert toy.train["uid"][:] == ["p0", "l1", "l3"] and toy.labels["uid"][:] == ["l0", "l1", "l2", "l3"]
    assert toy.train.column_names == ["text", "label_ids", "uid"]  # all weights are 1
    assert toy.train.features["label_ids"].feature.dtype == "int32"
    assert toy.name == "toy" and (toy.propensity.a, toy.propensity.b, toy.propensity.assumed) == (0.55, 1.5, True)


def test_an_unused_last_label_still_counts(toy):
    assert toy.num_labels == 4 and toy.to_csr("train").shape == (3, 4)


def test_fields_are_joined_by_one_space_and_missing_ones_read_as_nothing(load, toy_files):
    dataset = load(toy_files, fields=("title", "content"))
    assert dataset.train["text"][:] == ["Café au lait coffee with milk", "Tea, Vol. 1", "nothing but content"]
    assert dataset.train["title"][:] == ["Café au lait", "Tea, Vol. 1", ""]


def test_a_row_without_any_of_its_fields_stays(load, toy_files):
    files = replaced("trn.json.gz", b'"title": "", "content": "nothing but content"', b'"title": ""')(toy_files)
    dataset = load(files, fields=("title", "content"))
    assert dataset.train["text"][:] == ["Café au lait coffee with milk", "Tea, Vol. 1", ""]


def test_text_files_give_the_same_data_set(load):
    assert as_lists(load(TEXT_FILES)) == TOY


def test_a_scipy_matrix_beside_a_raw_folder_gives_the_same_data_set(load):
    files = {f"raw/{name}": content for name, content in TEXT_FILES.items() if "_X_Y" not in name}
    matrices = {"trn": sp.lil_matrix((3, 4), dtype=np.float32), "tst": sp.lil_matrix((2, 4), dtype=np.float32)}
    matrices["trn"][0, [0, 2]] = matrices["trn"][1, 1] = matrices["tst"][0, 0] = 1
    for split, matrix in matrices.items():
        content = io.BytesIO()
        sp.save_npz(content, matrix.tocsr())
        files[f"Y.{split}.npz"] = content.getvalue()
    expected = TOY | {"train": [("Café au lait", [0, 2]), *TOY["train"][1:]]}
    assert as_lists(load(files)) == expected


def test_the_names_of_pecos_are_known(load):
    names = {"trn_X.txt": "X.trn.txt", "tst_X.txt": "X.tst.txt", "Y.txt": "output-items.txt"}
    assert as_lists(load({names.get(name, name): content for name, content in TEXT_FILES.items()})) == TOY


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_an_archive_with_a_folder_inside_is_read_and_unpacked_again_only_if_it_changes(tmp_path, toy_files, suffix):
    def pack(files):
        with zipfile.ZipFile(path, "w") if suffix == ".zip" else tarfile.open(path, "w:gz") as archive:
            for name, content in files.items():
                content = gzip.compress(content) if name.endswith(".gz") else content
                if suffix == ".zip":
                    archive.writestr(f"xmc-base/set/{name}", content)
                else:
                    member = tarfile.TarInfo(f"xmc-base/set/{name}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))

    path = tmp_path / f"set{suffix}"
    pack(toy_files | {"../../outside.txt": b"1 1\n"})
    first = load_lf(path, cache_dir=tmp_path / "cache")
    assert as_lists(first) == TOY and first.name == "set"
    assert not list(tmp_path.rglob("outside.txt"))
    pack(toy_files | {"filter_labels_train.txt": b"2 3\n0 0\n"})
    assert load_lf(path, cache_dir=tmp_path / "cache").filters["train"].tolist() == [[2, 3], [0, 0]]


def replaced(name, old, new):
    def change(files):
        assert old in files[name]
        return files | {name: files[name].replace(old, new)}

    return change


def without(*names):
    return lambda files: {name: content for name, content in files.items() if name not in names}


HANDLED = {
    "byte-order mark": lambda files: files | {"trn.json.gz": b"\xef\xbb\xbf" + files["trn.json.gz"]},
    "Windows line ends": lambda files: {name: content.replace(b"\n", b"\r\n") for name, content in files.items()},
    "no final newline": lambda files: {name: content.removesuffix(b"\n") for name, content in files.items()},
    "empty lines at the end": lambda files: {name: content + b"\n\n" for name, content in files.items()},
    "one latin-1 line": replaced("trn.json.gz", "Café".encode(), "Café".encode("latin-1")),
    "ids as strings": replaced("trn.json.gz", b"[2, 0]", b'["2", "0"]'),
    "a list as a string": replaced("trn.json.gz", b"[2, 0]", b'"[2, 0]"'),
    "ids as floats": replaced("trn.json.gz", b"[2, 0]", b"[2.0, 0.0]"),
    "extra fields": replaced("trn.json.gz", b'"uid": "p0"', b'"uid": "p0", "price": 3.5, "also": {"x": [1]}'),
    "null title": replaced("trn.json.gz", b'"title": ""', b'"title": null'),
    "no target_rel": replaced("trn.json.gz", b', "target_rel": [1.0, 1.0]', b""),
    "comments and commas in a filter file": replaced("filter_labels_test.txt", b"0 0\n", b"# row label\n0,0\n\n"),
    "tabs in a filter file": replaced("filter_labels_test.txt", b"0 0", b"0\t0"),
    "files that are not compressed": lambda files: {name.removesuffix(".gz"): text for name, text in files.items()},
    "no filter files for a set of one's own": lambda files: files,
    "many brackets that are not nested": replaced(
        "trn.json.gz", b'"uid": "p0"', b'"uid": "p0", "also": [' + b'"[[[[", {}, ' * 60 + b"1]"
    ),
}


@pytest.mark.parametrize("change", HANDLED.values(), ids=HANDLED)
def test_unusual_files_give_the_same_data_set(load, toy_files, change):
    assert as_lists(load(change(toy_files))) == TOY


TEXT_HANDLED = {
    "byte-order mark": lambda files: {name: b"\xef\xbb\xbf" + content for name, content in files.items()},
    "Windows line ends": lambda files: {name: content.replace(b"\n", b"\r\n") for name, content in files.items()},
    "no final newline": lambda files: (
        {name: content.removesuffix(b"\n") for name, content in files.items() if name != "trn_X.txt"}
        | {"trn_X.txt": files["trn_X.txt"]}
    ),
    "one latin-1 line": replaced("trn_X.txt", "é".encode(), "é".encode("latin-1")),
    "two spaces": replaced("trn_X_Y.txt", b"2:1.0 0:1.0", b"2:1.0  0:1e0 "),
    "compressed": lambda files: {f"{name}.gz": content for name, content in files.items()},
}


@pytest.mark.parametrize("change", TEXT_HANDLED.values(), ids=TEXT_HANDLED)
def test_unusual_text_files_give_the_same_data_set(load, change):
    assert as_lists(load(change(TEXT_FILES))) == TOY


REFUSED = {
    "not JSON": (replaced("trn.json.gz", b'{"uid": "l1"', b'{uid: "l1"'), "trn.json.gz, line 2: .* not JSON"),
    "null line": (replaced("trn.json.gz", b'{"uid": "l1"', b'null\n{"uid": "l1"'), "trn.json.gz, line 2: .*NoneType"),
    "a list": (
        replaced("tst.json.gz", b'{"uid": "q1", "title": "x", "target_ind": []}', b"[1]"),
        "tst.json.gz, line 2",
    ),
    "empty line": (replaced("lbl.json.gz", b'{"uid": "l2"', b'\n{"uid": "l2"'), "lbl.json.gz, line 3: .*empty"),
    "two objects": (replaced("lbl.json.gz", b'}\n{"uid": "l2"', b'} {"uid": "l2"'), "lbl.json.gz, line 2"),
    "id too large": (
        replaced("trn.json.gz", b'"target_ind": [1]', b'"target_ind": [4]'),
        "line 2, field 'target_ind': label id 4",
    ),
    "huge id": (
        replaced("trn.json.gz", b'"target_ind": [1]', b'"target_ind": [5000000000]'),
        "line 2, field 'target_ind'",
    ),
    "negative id": (replaced("trn.json.gz", b"[2, 0]", b"[2, -1]"), "line 1, field 'target_ind': label id -1"),
    "null id": (replaced("trn.json.gz", b"[2, 0]", b"[2, null]"), "line 1, field 'target_ind'"),
    "half an id": (replaced("trn.json.gz", b"[2, 0]", b"[2, 0.5]"), "line 1, field 'target_ind': 0.5"),
    "a word as id": (replaced("trn.json.gz", b"[2, 0]", b'["two", 0]'), "line 1, field 'target_ind': 'two'"),
    "no list of ids": (replaced("trn.json.gz", b"[2, 0]", b'{"2": 1}'), "line 1, field 'target_ind'"),
    "weights missing": (
        replaced("trn.json.gz", b"[1.0, 1.0]", b"[1.0]"),
        "line 1, field 'target_rel': 1 weights for 2",
    ),
    "negative weight": (replaced("trn.json.gz", b"[1.0, 1.0]", b"[1.0, -1]"), "line 1, field 'target_rel'"),
    "infinite weight": (replaced("trn.json.gz", b"[1.0, 1.0]", b"[1.0, Infinity]"), "line 1, field 'target_rel'"),
    "title is a number": (
        replaced("lbl.json.gz", b'"milk"', b"7"),
        "lbl.json.gz, line 3, field 'title': 7 is not text",
    ),
    "half a surrogate": (replaced("lbl.json.gz", b'"milk"', b'"\\ud800"'), "lbl.json.gz, line 3, field 'title'"),
    "same uid twice": (
        replaced("trn.json.gz", b'"l3"', b'"p0"'),
        "trn.json.gz, line 3, field 'uid': .*'p0' stands in line 1",
    ),
    "no title at all": (
        lambda files: files | {"lbl.json.gz": files["lbl.json.gz"].replace(b"title", b"name")},
        "field 'title'",
    ),
    "labels as points": (
        lambda files: files | {"trn.json.gz": files["lbl.json.gz"]},
        "trn.json.gz.*field 'target_ind'",
    ),
    "empty file": (lambda files: files | {"trn.json.gz": b""}, "trn.json.gz holds no line"),
    "empty label file": (lambda files: files | {"lbl.json.gz": b"\n"}, "lbl.json.gz holds no line"),
    "nested deep": (
        replaced("trn.json.gz", b'"uid": "l1"', b'"also": ' + b"[" * 1000 + b"]" * 1000 + b', "uid": "l1"'),
        "trn.json.gz, line 2: the JSON is nested more than 100 deep",
    ),
    "nested in objects": (
        replaced("lbl.json.gz", b'"uid": "l2"', b'"also": ' + b'{"a": ' * 200 + b"1" + b"}" * 200 + b', "uid": "l2"'),
        "lbl.json.gz, line 3: the JSON is nested more than 100 deep",
    ),
    "hexadecimal filter pair": (
        replaced("filter_labels_test.txt", b"0 0", b"0x0 0"),
        "filter_labels_test.txt, line 1",
    ),
    "UTF-16": (
        lambda files: files | {"lbl.json.gz": '{"title": "x"}\n'.encode("utf-16")},
        "lbl.json.gz, line 1: .*UTF-16",
    ),
    "filter row": (
        replaced("filter_labels_test.txt", b"1 3", b"2 3"),
        "filter_labels_test.txt, line 2, field 'row': row 2",
    ),
    "filter label": (replaced("filter_labels_test.txt", b"1 3", b"# x\n1 4"), "line 3, field 'label': label 4"),
    "negative filter": (
        replaced("filter_labels_train.txt", b"1 1", b"-1 1"),
        "filter_labels_train.txt, line 1, field 'row'",
    ),
    "three columns": (replaced("filter_labels_test.txt", b"1 3", b"1 3 1"), "filter_labels_test.txt, line 2: '1 3 1'"),
    "all three columns": (
        replaced("filter_labels_test.txt", b"0 0\n1 3", b"0 0 1\n1 3 1"),
        "filter_labels_test.txt, line 1",
    ),
    "half a filter pair": (replaced("filter_labels_test.txt", b"1 3", b"1"), "filter_labels_test.txt, line 2"),
    "a label line missing": (replaced("lbl.json.gz", b'{"uid": "l2"', b""), "lbl.json.gz, line 3"),
}


def assert_refused(load, tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        load(files)
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_dir() and path.name.endswith(".incomplete")]
    assert not left, "half-made tables are left in the cache"


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_files_are_refused_by_file_line_and_field(load, toy_files, tmp_path, change, message):
    assert_refused(load, tmp_path, change(toy_files), message)


def test_a_missing_last_label_line_is_refused_where_its_id_is_used(load, toy_files, tmp_path):
    files = toy_files | {"lbl.json.gz": b"\n".join(toy_files["lbl.json.gz"].split(b"\n")[:2])}
    assert_refused(load, tmp_path, files, "trn.json.gz, line 1, field 'target_ind': label id 2 is out of range")


# fmt: off
TEXT_REFUSED = {
    "a label line missing": (replaced("Y.txt", b"unused\n", b""), "trn_X_Y.txt, line 1: .*4 columns.* 3 lines"),
    "a line break inside a text": (replaced("tst_X.txt", b"x\n", b"x\ny\n"), "tst_X.txt, line 3: .*has 2 rows"),
    "a text missing": (replaced("tst_X.txt", b"x\n", b""), "tst_X.txt, line 1: the file ends here"),
    "rows missing": (replaced("trn_X_Y.txt", b"1:1\n\n", b""), "trn_X_Y.txt, line 2: .*1 rows; its header says 3"),
    "rows too many": (replaced("tst_X_Y.txt", b"\n\n", b"\n\n0:1\n"), "tst_X_Y.txt, line 4: .*3 rows"),
    "no header": (replaced("tst_X_Y.txt", b"2 4\n", b""), "tst_X_Y.txt, line 1: the header"),
    "id too large": (replaced("trn_X_Y.txt", b"1:1\n", b"4:1\n"), "trn_X_Y.txt, line 3, field 'label': label id 4"),
    "negative id": (replaced("trn_X_Y.txt", b"2:1.0", b"-2:1.0"), "trn_X_Y.txt, line 2, field 'label': label id -2"),
    "hexadecimal id": (replaced("trn_X_Y.txt", b"1:1\n", b"0x1:1\n"), "line 3, field 'label:value': '0x1:1'"),
    "no value": (replaced("trn_X_Y.txt", b"1:1\n", b"1\n"), "trn_X_Y.txt, line 3, field 'label:value': '1'"),
    "negative value": (replaced("trn_X_Y.txt", b"1:1\n", b"1:-1\n"), "trn_X_Y.txt, line 3, field 'label:value'"),
    "words": (replaced("trn_X_Y.txt", b"1:1\n", b"one:1\n"), "trn_X_Y.txt, line 3, field 'label:value': 'one:1'"),
    "no matrix": (without("tst_X_Y.txt"), "lacks tst_X_Y.txt"),
    "not a matrix": (
        lambda files: without("tst_X_Y.txt")(files) | {"Y.tst.npz": b"x"},
        "Y.tst.npz is not a sparse matrix",
    ),
}
# fmt: on


@pytest.mark.parametrize(("change", "message"), TEXT_REFUSED.values(), ids=TEXT_REFUSED)
def test_wrong_text_files_are_refused_by_file_and_line(load, tmp_path, change, message):
    assert_refused(load, tmp_path, change(TEXT_FILES), message)


@pytest.mark.parametrize("name", ["trn.json.gz", "lbl.json.gz"])
def test_a_cut_off_gzip_is_refused_and_can_be_mended(load, toy_files, tmp_path, name):
    load_damaged = {file: content for file, content in toy_files.items() if file != name}
    folder = tmp_path / "toy"
    folder.mkdir()
    whole = gzip.compress(toy_files[name] * 1 + b" " * 50_000)
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{name}, line \d+: the gzip stream is damaged or cut off"):
        load(load_damaged)
    assert as_lists(load(toy_files)) == TOY


def test_missing_files_are_listed_with_the_place_of_publication(tmp_path, toy_files):
    folder = tmp_path / "LF-AmazonTitles-131K"
    folder.mkdir()
    (folder / "trn.json.gz").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"lacks tst.json.gz, lbl.json.gz\. LF-AmazonTitles-131K is published at http"
    ):
        load_lf(folder)
    with pytest.raises(ValueError, match="does not exist"):
        load_lf(tmp_path / "nowhere")


def test_a_benchmark_needs_its_filter_files_and_its_counts(tmp_path, load, toy_files):
    with pytest.raises(ValueError, match=r"num_train is 3 instead of 294,805.*num_labels is 4 instead of 131,073"):
        load(toy_files, name="LF-AmazonTitles-131K")
    (tmp_path / "toy" / "filter_labels_test.txt").unlink()
    with pytest.raises(ValueError, match="lacks filter_labels_test.txt. LF-AmazonTitles-131K is published at"):
        load({}, name="lf-amazontitles-131k")


def test_text_files_have_no_field_but_the_title(load):
    with pytest.raises(ValueError, match=r"one text a line, read as the field 'title'; fields is .'title', 'content'"):
        load(TEXT_FILES, fields=("title", "content"))


def test_a_field_that_no_train_row_has_is_refused(load, toy_files):
    with pytest.raises(ValueError, match="trn.json.gz, line 1, field 'contnet': neither this line nor any other has"):
        load(toy_files, fields=("title", "contnet"))
    with pytest.raises(ValueError, match="lbl.json.gz, line 1, field 'content'"):
        load({}, label_fields=("title", "content"))


def test_no_test_rows_are_loaded_from_either_format(load, toy_files):
    files = {name: content for name, content in toy_files.items() if "filter" not in name}
    dataset = load(files | {"tst.json.gz": b""})
    assert len(dataset.test) == 0 and dataset.test.features == dataset.train.features
    assert dataset.train["uid"][:] == ["p0", "l1", "l3"] and dataset.to_csr("test").shape == (0, 4)


def test_no_test_rows_come_back_from_a_raw_folder(load, toy_files, tmp_path):
    dataset = load({name: content for name, content in toy_files.items() if "filter" not in name})
    empty = replace(dataset, test=dataset.test.select([]))
    save_lf(empty, tmp_path / "again")
    again = load_lf(tmp_path / "again", cache_dir=tmp_path / "cache")
    assert as_lists(again) == as_lists(empty) and again.train["uid"][:] == dataset.train["uid"][:]


def test_a_name_of_the_hub_is_made_of_the_folder_and_demanded_of_the_user(tmp_path, toy):
    folder = shutil.copytree(tmp_path / "toy", tmp_path / "my [data] --1")
    assert load_lf(folder, cache_dir=tmp_path / "cache").name == "my-data-1"
    for name in ("a/b", "/etc", "..", "a..b", "-a", "a.", "", "x: y\n---\nlicense: mit", "a b", "é", "x" * 97, 5):
        with pytest.raises(ValueError, match="name is .*; expected at most 96 letters"):
            load_lf(folder, name=name)
        with pytest.raises(ValueError, match="name is .*; expected at most 96 letters"):
            replace(toy, name=name)


def test_fields_given_as_one_string_are_refused(load, toy_files):
    with pytest.raises(ValueError, match="fields is 'title'; expected a tuple"):
        load(toy_files, fields="title")


def test_the_second_load_reads_no_raw_table_and_a_changed_file_is_read_again(load, toy_files, monkeypatch):
    load(toy_files)
    changed = toy_files | {"tst.json.gz": toy_files["tst.json.gz"].replace(b"Mokka", b"Mocca")}
    assert load(changed).test["text"][0] == "Mocca"  # of the same length
    untouched = {}
    assert load(untouched, label_fields=("uid",)).label_texts.to_pylist() == ["l0", "l1", "l2", "l3"]
    monkeypatch.setattr("hf_xmc.data.lf.builder.read_json", None)
    assert load(untouched).test["text"][0] == "Mocca"


def test_soft_targets_are_kept_as_weights(load, toy_files):
    files = replaced("trn.json.gz", b"[1.0, 1.0]", b"[0.25, 1]")(toy_files)
    dataset = load(files)
    assert dataset.train["label_weights"][:] == [[0.25, 1.0], [1.0], []]
    assert dataset.to_csr("train").toarray().tolist() == [[1, 0, 0.25, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_streaming_gives_the_rows_of_loading(load, toy_files, tmp_path):
    dataset = load(toy_files)
    streamed = [(row["text"], row["label_ids"], row["uid"]) for row in stream_lf(tmp_path / "toy", "train")]
    assert streamed == [(row["text"], row["label_ids"], row["uid"]) for row in dataset.train]


@pytest.mark.parametrize("fields", [("title",), ("title", "content")])
def test_raw_files_written_and_read_again_are_equal(load, toy_files, tmp_path, fields):
    files = replaced("trn.json.gz", b"[1.0, 1.0]", b"[0.25, 1]")(toy_files)
    first = load(files, fields=fields)
    save_lf(first, tmp_path / "again")
    second = load_lf(tmp_path / "again", fields=fields, cache_dir=tmp_path / "cache")
    assert as_lists(second) == as_lists(first)
    for split in ("train", "test"):
        assert list(second[split]) == list(first[split])
    assert second.labels["uid"][:] == first.labels["uid"][:]
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(files)


def test_the_tiny_set_has_the_counts_of_its_stats(tiny):
    stats = json.loads((TINY / "stats.json").read_text())
    assert (len(tiny.train), len(tiny.test), tiny.num_labels) == (stats["n_train"], stats["n_test"], stats["n_labels"])
    assert tiny.to_csr("train").nnz == stats["dropped"]["trn_pairs_kept"]
    assert tiny.to_csr("test").nnz == stats["dropped"]["tst_pairs_kept"]
    assert (
        tiny.train[0]["label_ids"] == [3422, 3423] and tiny.label_texts[3422].as_py() == "Sleep, Physiological aspects"
    )
    assert tiny.propensity.assumed is False


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
RECORDS = st.fixed_dictionaries(
    {}, optional={"uid": TEXTS, "title": TEXTS, "ids": st.lists(st.integers(0, 2**31 - 1), max_size=4)}
)


@settings(max_examples=60, deadline=None)
@given(records=st.lists(RECORDS, min_size=1, max_size=12), block=st.integers(1, 200), ascii_only=st.booleans())
def test_any_records_come_back_with_their_line_numbers_at_any_block_size(tmp_path_factory, records, block, ascii_only):
    path = tmp_path_factory.mktemp("records") / "trn.json.gz"
    lines = "".join(json.dumps(record, ensure_ascii=ascii_only) + "\n" for record in records)
    path.write_bytes(gzip.compress(lines.encode(), 1))
    schema = pa.schema({"uid": pa.string(), "title": pa.string(), "ids": pa.list_(pa.int32())})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "BLOCK_BYTES", block)
        tables = list(read_json(path, schema))
    assert [first for first, _ in tables] == list(np.cumsum([1] + [len(table) for _, table in tables])[:-1])
    rows = [row for _, table in tables for row in table.to_pylist()]
    assert rows == [{"uid": None, "title": None, "ids": None} | record for record in records]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.integers(0, 6), st.floats(0, 8, width=16), max_size=4), min_size=1, max_size=9),
    block=st.integers(1, 60),
)
def test_any_truth_matrix_comes_back_at_any_block_size(tmp_path_factory, rows, block):
    path = tmp_path_factory.mktemp("truth") / "trn_X_Y.txt"
    lines = [" ".join(f"{label}:{weight}" for label, weight in row.items()) for row in rows]
    path.write_text("\n".join([f"{len(rows)} 7", *lines]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "BLOCK_BYTES", block)
        truth = read_truth(path)
    ids, weights = truth.lists(0, len(rows))
    assert (truth.num_rows, truth.num_labels) == (len(rows), 7)
    assert ids.to_pylist() == [list(row) for row in rows] and weights.to_pylist() == [
        list(row.values()) for row in rows
    ]


def test_the_fast_and_the_slow_way_of_reading_agree(tmp_path, monkeypatch):
    schema = pa.schema({"uid": pa.string(), "title": pa.string(), "target_ind": pa.list_(pa.int32())})
    fast = [table.to_pylist() for _, table in read_json(TINY / "trn.json.gz", schema)]
    monkeypatch.setattr(json_lines, "_parse_json", lambda *_: None)
    assert [table.to_pylist() for _, table in read_json(TINY / "trn.json.gz", schema)] == fast
