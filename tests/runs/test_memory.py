from __future__ import annotations

from dataclasses import replace

import datasets
import numpy as np
import pytest
from toys import WORDS, make_static_encoder, make_words_data

from hf_xmc import Retriever, XMCDataset, XMCEvaluator
from hf_xmc.memory import MemoryForm
from hf_xmc.runs.memory import choose_memory, choose_memory_leave_one_out, gain_lines, memory_rows
from hf_xmc.runs.record import RunRecord


@pytest.fixture(scope="module")
def misleading() -> XMCDataset:
    """Label texts say nothing about their rows, so that only training rows can."""
    data = make_words_data(400)
    return replace(data, labels=datasets.Dataset.from_dict({"text": WORDS[5:] + WORDS[:5]}))


def test_rows_of_the_table_are_the_searches_they_name(misleading: XMCDataset) -> None:
    encoder = make_static_encoder()
    choice = choose_memory(encoder, misleading.hold_out(0.2))
    assert choice.form.row_weight > 0 and choice.fold_weight > 0
    assert choice.fit.precision > choice.fit.label_precision + 0.2 and "P@1 +" in str(choice)
    retriever, test, record = (
        Retriever.build(encoder, misleading.labels["text"]),
        XMCEvaluator(misleading),
        RunRecord({}),
    )
    plain = test.metrics(test.predict(encoder)[0])
    rows = memory_rows(retriever, test, choice, record)
    assert list(rows) == ["with memory", "folded"]
    assert retriever.memory is not None and len(retriever.memory) == len(misleading.train)
    ids, _ = retriever.memory.search(encoder.query_vectors(misleading.test["text"][:]), 100)
    assert rows["with memory"] == test.metrics(ids) == record.metrics["with memory"]
    for name, metrics in rows.items():
        gain, low, high = record.gains[name]["precision@1"]
        assert low <= gain <= high and gain > 0.1
        np.testing.assert_allclose(gain, metrics["precision@1"] - plain["precision@1"], atol=1e-9)
    assert record.costs["with memory"]["bytes"] == retriever.memory.num_bytes > 0 == record.costs["folded"]["bytes"]
    assert all(cost["ms_per_query"] >= 0 for cost in record.costs.values())
    gain = 100 * record.gains["folded"]["precision@1"][0]
    lines = gain_lines(record)
    assert [line.partition(":")[0] for line in lines] == ["with memory", "folded"]
    assert f"folded: precision@1 {gain:+.2f} [" in lines[1] and "; 0.0 MB, " in lines[1]


def test_where_rows_do_not_help_nothing_is_remembered() -> None:
    data, encoder = make_words_data(), make_static_encoder()
    choice = choose_memory(encoder, data.hold_out(0.2))
    silent = replace(choice, fit=replace(choice.fit, form=MemoryForm(row_weight=0)), fold_weight=0)
    assert "no vote" in str(silent)
    retriever, record = Retriever.build(encoder, data.labels["text"]), RunRecord({})
    assert memory_rows(retriever, XMCEvaluator(data), silent, record) == {}
    assert retriever.memory is None and list(record.costs) == ["label search"]


def test_leaving_rows_out_one_by_one_neither_asks_the_row_itself_nor_the_test_split(misleading: XMCDataset) -> None:
    encoder = make_static_encoder()
    choice = choose_memory_leave_one_out(encoder, misleading, num_rows=150)
    assert 0.2 + choice.fit.label_precision < choice.fit.precision and choice.form.row_weight > 0
    wrong = misleading.test.map(lambda row: {"text": "cats", "label_ids": [0]})
    assert choose_memory_leave_one_out(encoder, replace(misleading, test=wrong), num_rows=150) == choice
    # Rows with texts and labels of their own: with its own vote each row would be right, without it none is.
    alone = misleading.train.select(range(len(WORDS))).map(
        lambda row, place: {"text": WORDS[place], "label_ids": [place]}, with_indices=True
    )
    lonely = replace(
        misleading, train=alone, filters={split: np.zeros((0, 2), np.int64) for split in ("train", "test")}
    )
    assert choose_memory_leave_one_out(encoder, lonely).fit.precision < 0.3
