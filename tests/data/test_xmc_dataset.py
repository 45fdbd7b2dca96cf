from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_xmc
from hf_xmc.data import Propensity, XMCDataset, load_lf, save_lf
from hf_xmc.data.storage import LAST_FILE, digests
from hf_xmc.hub.filters_xmc import NO_PAIRS

NO_FILTERS = {"train": NO_PAIRS, "test": NO_PAIRS}


def points(label_ids, weights=None, **columns) -> datasets.Dataset:
    columns = {"text": pa.array([f"text {row}" for row in range(len(label_ids))])} | columns
    columns["label_ids"] = pa.array(label_ids, pa.list_(pa.int32()))
    if weights is not None:
        columns["label_weights"] = pa.array(weights, pa.list_(pa.float32()))
    return datasets.Dataset(pa.table(columns))


def labels(number, **columns) -> datasets.Dataset:
    return datasets.Dataset(
        pa.table({"text": pa.array([f"label {id}" for id in range(number)], pa.string())} | columns)
    )


def dataset_of(train, test=None, num_labels=7, **columns) -> XMCDataset:
    return XMCDataset(train, test or train, labels(num_labels), **{"filters": NO_FILTERS} | columns)


def slow_truth(rows, num_labels, weights=None):
    truth = np.zeros((len(rows), num_labels), np.float32)
    for row, ids in enumerate(rows):
        for place, id in enumerate(ids):
            truth[row, id] = max(truth[row, id], 1 if weights is None else weights[row][place])
    return truth


ROWS = st.lists(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0.0, 0.25, 1.0])), max_size=5), min_size=1, max_size=9
)


@settings(deadline=None)
@given(rows=ROWS, soft=st.booleans(), seed=st.none() | st.integers(0, 99))
def test_to_csr_is_the_slow_truth_for_any_rows_in_any_order(rows, soft, seed):
    ids, weights = [[id for id, _ in row] for row in rows], [[weight for _, weight in row] for row in rows]
    train = points(ids, weights if soft else None)
    order = range(len(rows))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(len(rows))[: max(1, len(rows) - 1)].tolist()
        train = train.select(order)
    expected = slow_truth([ids[row] for row in order], 7, [weights[row] for row in order] if soft else None)
    truth = dataset_of(train).to_csr("train")
    assert truth.dtype == np.float32 and truth.has_sorted_indices and (truth.data != 0).all()
    assert truth.toarray().tolist() == expected.tolist()


def test_an_id_outside_the_label_table_is_refused_by_row():
    with pytest.raises(
        ValueError, match=r"train, row 2, column 'label_ids': label id 7 is out of range; .* has 7 rows"
    ):
        dataset_of(points([[0], [], [1, 7]])).to_csr("train")


@pytest.mark.parametrize("pair", [(3, 0), (0, 7), (-1, 0)])
def test_a_filter_pair_out_of_range_is_refused(pair):
    with pytest.raises(ValueError, match=r"filters\['test'\], pair 1: .* there are 3 rows and 7 labels"):
        dataset_of(points([[], [], []]), filters=NO_FILTERS | {"test": np.array([(0, 0), pair])})


def test_a_table_without_its_columns_is_refused():
    with pytest.raises(ValueError, match="train lacks the column"):
        dataset_of(points([[0]]).remove_columns("label_ids"))
    with pytest.raises(ValueError, match="There is no split 'validation'"):
        dataset_of(points([[0]])).to_csr("validation")


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=12))
def test_filter_csr_lists_the_labels_of_each_row_once_in_order(pairs):
    filters = NO_FILTERS | {"train": np.array(pairs, np.int64).reshape(-1, 2)}
    indptr, indices = dataset_of(points([[]] * 5), filters=filters).filter_csr("train")
    assert (indptr.dtype, indices.dtype, len(indptr)) == (np.int64, np.int32, 6)
    for row in range(5):
        assert indices[indptr[row] : indptr[row + 1]].tolist() == sorted({label for r, label in pairs if r == row})


def test_label_texts_are_taken_by_id_also_from_a_reordered_table():
    dataset = replace(dataset_of(points([[0]])), labels=labels(7).select([6, 0, 3]))
    assert dataset.label_texts.take(pa.array([2, 0])).to_pylist() == ["label 3", "label 6"]
    assert dataset.num_labels == 3


def test_training_rows_number_the_rows_of_a_part_from_0():
    dataset = dataset_of(points([[id] for id in range(6)]).select([4, 1, 3]))
    rows = dataset.training_rows()
    assert rows["row"][:] == [0, 1, 2] and rows["label_ids"][:] == [[4], [1], [3]]
    repeated = replace(dataset, train=dataset.train.select([0, 0, 2])).training_rows()
    assert repeated["row"][:] == [0, 1, 2] and repeated["label_ids"][:] == [[4], [4], [3]]
    assert "row" not in dataset.train.column_names


def item_dataset(seed: int, with_uids: bool) -> XMCDataset:
    """40 train items, most of which are labels, too, in groups of titles that differ in their volume."""
    rng = np.random.default_rng(seed)
    num_rows, num_labels = 40, 30
    items = rng.permutation(num_rows)  # item i is label items[i] where that is a label
    rows = [sorted(set(rng.integers(0, num_labels, rng.integers(0, 4)).tolist())) for _ in range(num_rows)]
    titles = pa.array([f"Work {'abcdefghijklm'[row % 13]}, volume {row}" for row in range(num_rows)])
    own = np.array([(row, item) for row, item in enumerate(items) if item < num_labels], np.int64)
    uids = {"uid": pa.array([f"u{item}" for item in items])} if with_uids else {}
    train = points(rows, text=titles, **uids)
    label_uids = {"uid": pa.array([f"u{label}" for label in range(num_labels)])} if with_uids else {}
    filters = {"train": own, "test": NO_PAIRS}
    return XMCDataset(
        train, train.select([0]), labels(num_labels, **label_uids), filters, "items", Propensity(0.6, 2.6, False)
    )


@pytest.mark.parametrize("with_uids", [True, False])
@pytest.mark.parametrize("by", ["title_key", "row"])
def test_hold_out_splits_train_and_rebuilds_its_filter_pairs(with_uids, by):
    whole = item_dataset(3, with_uids)
    parts = whole.hold_out(0.25, seed=1, by=by)
    texts = whole.train["text"][:]
    rows = {split: [texts.index(text) for text in parts[split]["text"]] for split in ("train", "test")}
    assert sorted(rows["train"] + rows["test"]) == list(range(40))
    assert rows["train"] == sorted(rows["train"]) and rows["test"] == sorted(rows["test"])
    assert 6 <= len(rows["test"]) <= 10
    truth = whole.train["label_ids"][:]
    assert parts.test["label_ids"][:] == [truth[row] for row in rows["test"]]
    label_of = dict(whole.filters["train"].tolist())

    own = {split: {(new, label_of[row]) for new, row in enumerate(rows[split]) if row in label_of} for split in rows}
    turned = {
        (t, label_of[i])
        for t, held in enumerate(rows["test"])
        for i in rows["train"]
        if held in label_of and i in label_of and label_of[held] in truth[i]
    }
    assert turned and own["test"] and own["train"]
    assert set(map(tuple, parts.filters["train"].tolist())) == own["train"]
    assert set(map(tuple, parts.filters["test"].tolist())) == own["test"] | turned
    assert len(parts.filters["test"]) == len(own["test"] | turned)
    assert (parts.name, parts.propensity, parts.label_texts) == (whole.name, whole.propensity, whole.label_texts)


def test_hold_out_keeps_titles_together_and_is_deterministic(tiny):
    parts, again = tiny.hold_out(0.1), tiny.hold_out(0.1)
    assert parts.test["text"][:] == again.test["text"][:] != tiny.hold_out(0.1, seed=1).test["text"][:]
    assert len(parts.test) == 419 and len(parts.train) == 3772
    from hf_xmc.data.splitting import title_keys

    keys = {split: set(title_keys(pa.array(parts[split]["text"][:])).to_pylist()) for split in ("train", "test")}
    assert not keys["train"] & keys["test"]
    by_row = tiny.hold_out(0.1, by="row")
    keys = {split: set(title_keys(pa.array(by_row[split]["text"][:])).to_pylist()) for split in ("train", "test")}
    assert keys["train"] & keys["test"], "the tiny set has works in volumes"
    with pytest.raises(ValueError, match="by is 'uid'; expected 'title_key' or 'row'"):
        tiny.hold_out(0.1, by="uid")


@pytest.mark.parametrize("weighted", [False, True])
def test_held_out_rows_are_judged_by_labels_that_keep_a_training_row(tiny, weighted):
    if weighted:
        lengths = [len(ids) for ids in tiny.train["label_ids"][:]]
        weights = [[0.5 + 0.1 * (n % 5) for n in range(length)] for length in lengths]
        tiny = replace(tiny, train=tiny.train.add_column("label_weights", weights))
    parts = tiny.hold_out(0.1, seed=1, answerable_only=True)
    assert abs(len(parts.test) - 419) <= 5 and len(parts.train) + len(parts.test) == len(tiny.train)
    seen = {label for ids in parts.train["label_ids"] for label in ids}
    whole = dict(zip(tiny.train["uid"], zip(tiny.train["label_ids"], tiny.train["text"], strict=True), strict=True))
    dropped = 0
    for uid, text, ids in zip(parts.test["uid"], parts.test["text"], parts.test["label_ids"], strict=True):
        assert ids and text == whole[uid][1]
        assert ids == [label for label in whole[uid][0] if label in seen]
        dropped += len(whole[uid][0]) - len(ids)
    assert dropped > 10, "some labels have all their rows held out"
    truth = parts.to_csr("test")
    if weighted:
        known = dict(zip(tiny.train["uid"], tiny.to_csr("train"), strict=True))
        for uid, row in zip(parts.test["uid"], truth, strict=True):
            assert row.data.tolist() == known[uid][:, row.indices].toarray()[0].tolist()
    else:
        assert (truth.data == 1).all()


def test_held_out_items_are_judged_without_the_reverse_of_what_is_trained_on(tmp_path):
    # 20 items in a ring: item n is related to n - 1 and to n + 1, so most pairs stand in both directions.
    items = [{"uid": str(n), "title": f"item {'abcdefghijklmnopqrst'[n]}"} for n in range(20)]
    near = [{**item, "target_ind": [(n - 1) % 20, (n + 1) % 20]} for n, item in enumerate(items)]
    for name, rows in (("trn", near), ("tst", near[:1]), ("lbl", items)):
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "filter_labels_train.txt").write_text("".join(f"{n} {n}\n" for n in range(20)))
    data = hf_xmc.load_lf(tmp_path)
    whole, parts = (data.hold_out(0.4, seed=3, answerable_only=only) for only in (False, True))
    trained = {int(uid) for uid in parts.train["uid"]}
    assert 0 < len(parts.test) < len(whole.test), "rows with both neighbors in train have nothing to answer"
    expected = {}
    for uid in map(int, whole.test["uid"]):
        others = [near for near in ((uid - 1) % 20, (uid + 1) % 20) if near not in trained]
        seen = [label for label in others if {(label - 1) % 20, (label + 1) % 20} & trained]
        if seen:
            expected[uid] = sorted(seen)
    assert {int(u): sorted(ids) for u, ids in zip(parts.test["uid"], parts.test["label_ids"], strict=True)} == expected
    filtered = {(int(parts.test["uid"][row]), label) for row, label in parts.filters["test"].tolist()}
    for uid in expected:
        assert (uid, uid) in filtered
        assert all(((uid, near) in filtered) == (near in trained) for near in ((uid - 1) % 20, (uid + 1) % 20))


def test_the_title_alone_makes_the_key_where_the_text_has_more(load, toy_files):
    rows = [
        b'{"uid": "%d", "title": "Work %c", "content": "%d", "target_ind": []}\n' % (n, b"ab"[n % 2], n)
        for n in range(8)
    ]
    dataset = load(toy_files | {"trn.json.gz": b"".join(rows)}, fields=("title", "content")).hold_out(0.5)
    assert len({text.split()[1] for text in dataset.train["text"]}) == 1 and len(dataset.test) == 4


def test_filter_pairs_are_made_from_equal_uids_or_texts(load, toy_files):
    no_filters = {name: content for name, content in toy_files.items() if "filter" not in name}
    dataset = load(no_filters)
    assert dataset.filters["train"].shape == dataset.filters["test"].shape == (0, 2)
    by_uid = dataset.make_filters()
    # Train rows 1 and 2 are labels 1 and 3; test row 0 is label 0, which neither of them carries.
    assert by_uid.filters["train"].tolist() == [[1, 1], [2, 3]] and by_uid.filters["test"].tolist() == [[0, 0]]
    carried = load(
        no_filters | {"trn.json.gz": toy_files["trn.json.gz"].replace(b"[], ", b"[0], ").replace(b": []", b": [1]")}
    )
    assert carried.make_filters().filters["test"].tolist() == [[0, 0], [0, 3]]
    same = {"trn.json.gz": toy_files["trn.json.gz"].replace(b"Tea, Vol. 1", b"TEA!")}
    by_text = load(no_filters | same).make_filters(by="text")
    assert by_text.filters["train"].tolist() == [[1, 1]] and by_text.filters["test"].tolist() == []


def test_a_data_set_saved_to_disk_comes_back(toy, tmp_path):
    toy.save_to_disk(tmp_path / "saved")
    again = XMCDataset.load_from_disk(tmp_path / "saved")
    for split in ("train", "test"):
        assert list(again[split]) == list(toy[split]) and again.filters[split].tolist() == toy.filters[split].tolist()
    assert list(again.labels) == list(toy.labels)
    assert (again.name, again.propensity) == (toy.name, toy.propensity)
    side = tmp_path / "saved" / "xmc_dataset.json"
    side.write_text(side.read_text().replace('"format_version": 1', '"format_version": 2'))
    (tmp_path / "saved" / LAST_FILE).write_text(digests(tmp_path / "saved"))
    with pytest.raises(ValueError, match="xmc_dataset.json has format version 2; this version .* reads up to 1"):
        XMCDataset.load_from_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="holds no SHA256SUMS"):
        XMCDataset.load_from_disk(tmp_path)


def test_a_tilde_in_a_path_is_the_home_folder(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    toy.save_to_disk("~/saved")
    save_lf(toy, "~/raw")
    toy.report().to_json("~/report.json")
    toy.report().save_png(Path("~/report.png"))
    shutil.make_archive(str(tmp_path / "home" / "packed"), "zip", tmp_path / "home" / "raw")
    (tmp_path / "home" / "t.csv").write_text("text,labels\na,x\n")
    (tmp_path / "home" / "names.txt").write_text("x\n")
    for folder in ("~/raw", "~/packed.zip"):
        assert load_lf(folder, cache_dir="~/cache").train["text"][:] == toy.train["text"][:]
    assert XMCDataset.load_from_disk("~/saved").train["text"][:] == toy.train["text"][:]
    made = XMCDataset.from_dataset("~/t.csv", text="text", labels="labels", test="~/t.csv", label_texts="~/names.txt")
    assert made.test["label_ids"][:] == [[0]]
    assert not (tmp_path / "~").exists() and (tmp_path / "home" / "report.png").is_file()
