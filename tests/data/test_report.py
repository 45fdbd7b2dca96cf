from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_xmc.data import Propensity, report
from hf_xmc.data.report import measure

STATS = Path(__file__).parents[2] / "recipes" / "data" / "lf-gutenberg-science-tiny" / "stats.json"


def test_the_tiny_set_has_the_figures_of_its_stats(tiny):
    stats, figures = json.loads(STATS.read_text()), tiny.report().figures
    same = {
        "num_train": "n_train", "num_test": "n_test", "num_labels": "n_labels",
        "max_label_frequency": "max_label_freq",
        "labels_per_train_point": "labels_per_train_point", "labels_per_test_point": "labels_per_test_point",
        "train_points_per_label": "train_points_per_label",
        "labels_with_1_train_point_share": "labels_with_1_train_point",
        "labels_with_at_most_5_train_points_share": "labels_with_le5", "words_per_train_text": "words_title",
        "words_per_label": "words_label", "distinct_label_texts": "distinct_label_texts",
        "test_texts_in_train": "train_test_same_title",
    }  # fmt: skip
    for ours, theirs in same.items():
        assert abs(figures[ours] - stats[theirs]) < 1e-2, ours
    leak = stats["test_leak_title"]
    assert abs(figures["label_in_test_text_pairs_share"] - leak["pairs"]) < 5e-5
    assert abs(figures["label_in_test_text_points_any_share"] - leak["points_any"]) < 5e-5
    assert abs(figures["label_in_test_text_points_all_share"] - leak["points_all"]) < 5e-5


TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=4).map(" ".join), min_size=1, max_size=6)


@settings(deadline=None)
@given(texts=TEXTS, labels=TEXTS, places=st.sampled_from([1, 7, 1 << 22]), data=st.data())
def test_labels_that_stand_in_a_text_are_those_of_the_loop(texts, labels, places, data):
    pairs = data.draw(st.sets(st.tuples(st.integers(0, len(texts) - 1), st.integers(0, len(labels) - 1))))
    truth = np.zeros((len(texts), len(labels)), np.float32)
    for row, label in pairs:
        truth[row, label] = 1
    expected = [labels[l] != "" and f" {labels[l]} " in f" {texts[row]} " for row, l in sorted(pairs)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_PLACES_AT_ONCE", places)
        found = report._verbatim(pa.array(texts), pa.array(labels), sp.csr_matrix(truth))
    assert found.tolist() == expected


def toy_report():
    train = sp.csr_matrix([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=np.float32)
    return measure(
        name="toy",
        propensity=Propensity(),
        texts={
            "train": pa.array(["Hot tea, please", "teas", "teas", " "]),
            "test": pa.array(["teas", "Green (tea)!"]),
        },
        label_texts=pa.array(["Tea", "please hot", "tea!", ""]),
        truth={"train": train, "test": sp.csr_matrix([[0, 1, 1, 0], [1, 0, 0, 0]], dtype=np.float32)},
        filters={"train": np.array([[0, 1]]), "test": np.array([[1, 0], [1, 1]])},
    )


def test_every_figure_of_a_toy_set_counted_by_hand():
    assert toy_report().figures == {
        "num_train": 4, "num_test": 2, "num_labels": 4, "train_points_per_label": 1.0, "max_label_frequency": 3,
        "labels_without_train_point_share": 0.5, "labels_with_1_train_point_share": 0.25,
        "labels_with_at_most_5_train_points_share": 1.0, "zero_shot_labels": 1, "words_per_label": 1.0,
        "empty_label_texts": 1, "distinct_label_texts": 3, "near_duplicate_label_texts": 2,
        "train_pairs": 4, "labels_per_train_point": 1.0, "max_labels_per_train_point": 2,
        "train_points_without_label": 1, "train_filter_pairs": 1, "max_filter_pairs_per_train_point": 1,
        "words_per_train_text": 1.25, "empty_train_texts": 1, "repeated_train_texts": 1,
        "label_in_train_text_pairs_share": 0.25, "label_in_train_text_points_any_share": 0.25,
        "label_in_train_text_points_all_share": 0.0,
        "test_pairs": 3, "labels_per_test_point": 1.5, "max_labels_per_test_point": 2,
        "test_points_without_label": 0, "test_filter_pairs": 2, "max_filter_pairs_per_test_point": 2,
        "words_per_test_text": 1.5, "empty_test_texts": 0, "repeated_test_texts": 0,
        "label_in_test_text_pairs_share": 1 / 3, "label_in_test_text_points_any_share": 0.5,
        "label_in_test_text_points_all_share": 0.5,
        "test_texts_in_train": 1, "propensity_a": 0.55, "propensity_b": 1.5,
    }  # fmt: skip
    assert toy_report().label_frequencies.tolist() == [3, 1, 0, 0]
    assert toy_report().labels_per_point.tolist() == [1, 2, 1]


def test_a_report_prints_as_a_table_and_saves_as_json_and_png(tmp_path):
    report = toy_report()
    assert str(report).splitlines()[:4] == ["| toy | |", "| --- | --- |", "| num train | 4 |", "| num test | 2 |"]
    report.to_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == {"name": "toy"} | report.figures
    report.save_png(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
