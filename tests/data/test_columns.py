"""Columns in the order of rows, and those too long for offsets of 32 bits."""

from __future__ import annotations

from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import make_static_encoder, make_words_data

from hf_xmc import XMCDataset, XMCTrainer, XMCTrainingArguments
from hf_xmc.data import columns
from hf_xmc.data.columns import chunks_of, column_of, join_texts, list_lengths
from hf_xmc.data.pairs import equal_pairs


@settings(deadline=None)
@given(data=st.data())
def test_a_column_is_in_the_order_of_the_rows_however_it_is_chunked_and_selected(data):
    values = data.draw(st.lists(st.none() | st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=12))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=3)))
    parts = [values[a:b] for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True)]
    kind = data.draw(st.sampled_from([pa.list_(pa.int32()), pa.string()]))
    if kind == pa.string():
        parts = [[None if value is None else "".join(map(str, value)) for value in part] for part in parts]
    whole = [value for part in parts for value in part]
    dataset = datasets.Dataset(pa.table({"a": pa.chunked_array([pa.array(part, kind) for part in parts])}))
    rows = data.draw(st.none() | st.lists(st.integers(0, len(values) - 1), max_size=20))
    if rows is not None:
        dataset, whole = dataset.select(rows), [whole[row] for row in rows]
    most = data.draw(st.sampled_from([0, 20, 1 << 30]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_MAX_SMALL_BYTES", most)
        column, chunks = column_of(dataset, "a"), chunks_of(dataset, "a")
    assert column.to_pylist() == chunks.to_pylist() == whole
    assert isinstance(column, pa.Array)
    if len(whole) > 20 or most == 0 and whole:
        assert column.type in (pa.large_string(), pa.large_list(pa.int32()))
    if most > 20:
        assert column.type == kind


@pytest.fixture(params=["small", "large"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Columns as they are, and as those above a gigabyte are."""
    if request.param == "large":
        monkeypatch.setattr(columns, "_MAX_SMALL_BYTES", 0)
    return request.param


def facts(tiny: XMCDataset) -> dict[str, object]:
    """What is made of columns."""
    held, texts = tiny.hold_out(0.1, answerable_only=True), column_of(tiny.labels, "text")
    return {
        "figures": held.report().figures,
        "truth": held.to_csr("test").indices.tolist(),
        "filters": held.filters["test"].tolist(),
        "same": equal_pairs(texts, pa.array(texts[:5].to_pylist())).tolist(),
        "joined": join_texts([column_of(tiny.train, "text")[:9], pa.array([None] * 4 + ["b"] * 5)]).to_pylist(),
        "lengths": list_lengths(column_of(tiny.train, "label_ids")).tolist(),
    }


def test_a_data_set_above_a_gigabyte_is_what_a_small_one_is(tiny, monkeypatch):
    small = facts(tiny)
    monkeypatch.setattr(columns, "_MAX_SMALL_BYTES", 0)
    assert pa.types.is_large_string(column_of(tiny.train, "text").type)
    large = facts(replace(tiny))  # with no column cached
    assert large == small and len(small["truth"]) > 100 and len(small["same"]) >= 5


def test_training_starts_on_large_columns(form, tmp_path):
    data = make_words_data()
    args = XMCTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=3, save_strategy="no",
        hard_negatives=2, mining_depth=5, refresh_epochs=1, per_device_train_batch_size=32,
    )  # fmt: skip
    trainer = XMCTrainer(make_static_encoder(), args, data, eval_dataset=data)
    assert trainer.train().global_step == 3 and int(trainer.miner.mined.max()) > 0
    assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_what_reads_piece_by_piece_copies_no_column(words_data):
    assert chunks_of(words_data.train, "text").chunk(0).buffers()[2].address == (
        words_data.train.data.column("text").chunk(0).buffers()[2].address
    )
