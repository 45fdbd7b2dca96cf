from __future__ import annotations

import pickle

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import WORDS, make_static_encoder

from hf_xmc import XMCDataCollator
from hf_xmc.encoders.tokens import TokenizedTexts
from hf_xmc.training.sampler import XMCBatchSampler

LABELS = pa.array(WORDS)


def make(**kwargs: object) -> XMCDataCollator:
    options = {"preprocess_fn": make_static_encoder()[0].preprocess, "label_texts": LABELS} | kwargs
    return XMCDataCollator(**options)


def rows(*label_ids: list[int]) -> list[dict]:
    return [{"row": i, "text": f"war {i}", "label_ids": ids} for i, ids in enumerate(label_ids)]


def test_candidates_are_the_union_of_positives_ascending_and_label_holds_all_of_them() -> None:
    batch = make()(rows([5, 2], [], [2, 9, 1]))
    assert batch["candidate_ids"].tolist() == [1, 2, 5, 9]
    assert batch["label"].tolist() == [[5, 2, -1], [-1, -1, -1], [2, 9, 1]]


def test_candidate_texts_follow_their_ids() -> None:
    collator = make()
    batch = collator(rows([5, 2], [9]))
    expected = collator.preprocess_fn([WORDS[i] for i in (2, 5, 9)])
    assert batch["candidate_input_ids"].tolist() == expected["input_ids"].tolist()


def test_unsampled_positives_stay_marked() -> None:
    batch = make(positives_per_row=1)(rows([5, 2, 7], [3, 8]))
    assert len(batch["candidate_ids"]) == 2
    assert batch["label"].tolist() == [[5, 2, 7], [3, 8, -1]]
    sampled = set(batch["candidate_ids"].tolist())
    assert len(sampled & {5, 2, 7}) == 1 and len(sampled & {3, 8}) == 1


def test_filter_pairs_and_soft_targets_are_carried_by_row() -> None:
    indptr, indices = np.array([0, 0, 2, 3]), np.array([4, 6, 1], dtype=np.int32)
    soft = [r | {"label_weights": [0.5] * len(r["label_ids"])} for r in rows([0], [1, 2], [3])]
    batch = make(filters=(indptr, indices))(soft)
    assert batch["query_filter_ids"].tolist() == [[-1, -1], [4, 6], [1, -1]]
    assert batch["query_label_weights"].tolist() == [[0.5, 0], [0.5, 0.5], [0.5, 0]]


def test_rows_without_a_number_are_no_rows_of_the_data_set(caplog: pytest.LogCaptureFixture) -> None:
    """Neither filters, nor mined lines, nor kept tokens of the first rows; a filter of their own, if they have one."""
    filters = np.array([0, 2, 2, 3]), np.array([4, 6, 1], dtype=np.int32)
    encoder = make_static_encoder()
    kept = TokenizedTexts.of_model(encoder, ["peace", "cats", "dogs"], "query")
    mined = torch.tensor([[7], [8], [9]], dtype=torch.int32)
    collator = make(filters=filters, mined=mined, hard_negatives=1, row_tokens=kept)
    numbered = rows([0], [2])
    unnumbered = [{key: value for key, value in row.items() if key != "row"} for row in numbered]
    with_numbers, without = collator(numbered), collator(unnumbered)
    assert with_numbers["query_filter_ids"].tolist() == [[4, 6], [-1, -1]]
    assert with_numbers["candidate_ids"].tolist() == [0, 2, 7, 8]
    assert with_numbers["query_input_ids"].tolist() == encoder[0].preprocess(["peace", "cats"])["input_ids"].tolist()
    assert without["query_filter_ids"].tolist() == [[-1], [-1]] and without["candidate_ids"].tolist() == [0, 2]
    texts = [row["text"] for row in unnumbered]
    assert without["query_input_ids"].tolist() == encoder[0].preprocess(texts)["input_ids"].tolist()
    collator(unnumbered)
    assert [record.message for record in caplog.records] == [
        "rows without a column 'row' have no filters, mined negatives or kept tokens of the collator; "
        "data.training_rows() has it"
    ]
    mixed = collator([numbered[0], unnumbered[1]])
    assert mixed["query_input_ids"].tolist() == without["query_input_ids"].tolist()
    own = [row | {"filter_ids": ids} for row, ids in zip(unnumbered, ([5], []), strict=True)]
    assert collator(own)["query_filter_ids"].tolist() == [[5], [-1]]


def test_a_row_of_another_data_set_is_named() -> None:
    mined = torch.tensor([[1], [2]], dtype=torch.int32)
    for row in (-1, 2):
        with pytest.raises(ValueError, match="are not all among the 2 of train"):
            make(mined=mined, hard_negatives=1)([{"row": row, "text": "war", "label_ids": [0]}])


def test_draws_of_rows_without_a_number_follow_their_texts() -> None:
    collator = make(random_negatives=6)
    first, second = ([{"text": text, "label_ids": [0]}] for text in ("war", "peace"))
    draws = [collator(batch)["candidate_ids"].tolist() for batch in (first, second, first)]
    assert draws[0] == draws[2] != draws[1]


def test_the_collator_of_evaluation_takes_all_positives_and_a_draw_that_stays() -> None:
    collator = make(
        positives_per_row=1, random_negatives=5, max_candidates=3, hard_negatives=1,
        mined=torch.tensor([[9], [10]], dtype=torch.int32), filters=(np.array([0, 1, 2]), np.array([3, 4])),
    )  # fmt: skip
    batch, evaluates = rows([0, 1, 2], [11, 12]), collator.for_evaluation()
    pools = []
    for epoch in range(3):
        collator.epoch.fill_(epoch)
        pools.append(evaluates([{key: row[key] for key in ("text", "label_ids")} for row in batch]))
    assert {0, 1, 2, 11, 12} < set(pools[0]["candidate_ids"].tolist())
    assert all(torch.equal(pool["candidate_ids"], pools[0]["candidate_ids"]) for pool in pools)
    assert not any("filter_ids" in key for key in pools[0])


def test_hard_negatives_come_from_the_rows_own_mined_line() -> None:
    mined = torch.tensor([[1, 2], [3, -1], [-1, -1]], dtype=torch.int32)
    batch = make(mined=mined, hard_negatives=2)(rows([10], [11], [12]))
    assert batch["candidate_ids"].tolist() == [1, 2, 3, 10, 11, 12]


def test_draws_repeat_for_an_epoch_and_change_with_it_in_any_process() -> None:
    collator = make(random_negatives=5, positives_per_row=1)
    batch = rows([5, 2, 7], [3, 8])
    first = collator(batch)["candidate_ids"].tolist()
    copy = pickle.loads(pickle.dumps(collator))
    assert collator(batch)["candidate_ids"].tolist() == first == copy(batch)["candidate_ids"].tolist()
    draws = set()
    for epoch in range(5):
        collator.epoch.fill_(epoch)
        draws.add(tuple(collator(batch)["candidate_ids"].tolist()))
    assert len(draws) > 1


def test_a_capped_pool_keeps_rare_positives_and_drops_negatives_first() -> None:
    collator = make(random_negatives=10, max_candidates=4)
    pool = collator(rows([0, 1], [0, 2], [0, 3], [0]))["candidate_ids"].tolist()
    assert pool == [0, 1, 2, 3]
    collator = make(max_candidates=3)
    assert collator(rows([0, 1], [0, 2], [0, 3], [0]))["candidate_ids"].tolist() == [1, 2, 3]


def test_a_batch_without_any_label_still_has_a_candidate() -> None:
    batch = make()(rows([], []))
    assert len(batch["candidate_ids"]) == 1 and batch["label"].tolist() == [[-1], [-1]]


def test_missing_parts_are_named() -> None:
    with pytest.raises(ValueError, match="needs label_texts"):
        XMCDataCollator(preprocess_fn=print)
    with pytest.raises(ValueError, match="hard_negatives=2 needs mined"):
        make(hard_negatives=2)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("clustered", [True, False])
def test_batches_cover_every_row_once_and_differ_by_epoch(drop_last: bool, clustered: bool) -> None:
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0)) if clustered else None
    sampler = XMCBatchSampler(range(23), batch_size=5, drop_last=drop_last, seed=3, row_order=order)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == (4 if drop_last else 5)
        seen = sorted(i for batch in batches for i in batch)
        assert len(set(seen)) == len(seen) == (20 if drop_last else 23)
        assert batches == list(sampler)
        epochs.append(batches)
    assert epochs[0] != epochs[1]


def test_clustered_batches_are_runs_of_the_row_order() -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    place = {row: number for number, row in enumerate(order.tolist())}
    sampler = XMCBatchSampler(range(20), batch_size=4, row_order=order)
    for batch in sampler:
        steps = np.diff([place[row] for row in batch]) % 20
        assert set(steps.tolist()) == {1}


def test_without_neighbours_yet_batches_are_random() -> None:
    waiting = XMCBatchSampler(range(20), batch_size=4, row_order=torch.full((20,), -1))
    assert list(waiting) == list(XMCBatchSampler(range(20), batch_size=4))


GOOD = {"row": 0, "text": "war", "label_ids": [1, 2]}
WRONG_PARTS = {
    "text": [None, 3, float("nan"), b"war", ["war"], {"a": "war"}, np.array(["war"])],
    "label_ids": [
        "1", 1, 1.0, [1.0], [float("nan")], ["1"], [None], [True, False], {1: 1}, [[1]], [[1], [1, 2]],
        np.array([True]), np.array([[1]]), np.array(1), [-1], [17], [2**31], [2**63], [2**70], float("nan"),
    ],
    "row": ["0", 1.5, [0], True, -1, 9, 2**70, float("nan")],
    "label_weights": [[0.5], [1.5, 0.5], [float("nan"), 1], ["a", "b"], 3, [[0.5, 0.5]], {0: 1, 1: 1}, [True, True]],
    "filter_ids": ["1", 1, [1.0], [True], {1: 1}, [[1]], float("nan")],
}  # fmt: skip
PARTS = [(part, wrong) for part, wrongs in WRONG_PARTS.items() for wrong in wrongs]


@pytest.mark.parametrize(("part", "wrong"), PARTS, ids=lambda each: repr(each)[:30])
def test_a_row_of_another_form_is_named(part: str, wrong: object) -> None:
    collator = make(filters=(np.array([0, 1, 1]), np.array([3])))
    with pytest.raises(ValueError, match=r"\w{3}"):
        collator([GOOD | {part: wrong}])
    for other in (part,) if part in ("text", "label_ids") else ():
        with pytest.raises(ValueError, match=f"row 1 of the batch lacks .*{other}"):
            collator([GOOD, {key: value for key, value in GOOD.items() if key != other}])


def test_weights_and_filters_of_some_rows_are_not_lost() -> None:
    with pytest.raises(ValueError, match="row 0 of the batch has 2 labels and the weights None"):
        make()([GOOD, GOOD | {"label_weights": [0.5, 0.5]}])
    unlabelled = GOOD | {"label_ids": None, "label_weights": None}
    batch = make()([unlabelled, GOOD | {"label_weights": [0.5, 1], "filter_ids": [3]}])
    assert batch["query_label_weights"].tolist() == [[0, 0], [0.5, 1]]
    assert batch["query_filter_ids"].tolist() == [[-1], [3]]


def test_labels_may_be_missing_and_come_as_any_integers() -> None:
    collator = make()
    forms = [[1, 2], (1, 2), np.array([1, 2], dtype=np.uint8), pa.array([1, 2]), range(1, 3)]
    assert all(collator([GOOD | {"label_ids": form}])["label"].tolist() == [[1, 2]] for form in forms)
    assert collator([GOOD, GOOD | {"label_ids": None}])["label"].tolist() == [[1, 2], [-1, -1]]


WRONG_BATCHES = [
    None, 3, "war", [], (), {}, GOOD, {"text": ["war"], "label_ids": [[1]]}, ["war"], [None], [[GOOD]], [GOOD, None],
    pd.DataFrame([GOOD]), datasets.Dataset.from_list([GOOD]), (row for row in [GOOD]), np.array([GOOD]), {1, 2},
]  # fmt: skip


@pytest.mark.parametrize("batch", WRONG_BATCHES, ids=lambda each: repr(each)[:30])
def test_what_is_no_list_of_rows_is_named(batch: object) -> None:
    with pytest.raises(ValueError, match="a batch is a list of rows"):
        make()(batch)


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*GOOD, "a"]), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(junk | st.lists(st.fixed_dictionaries({"text": junk, "label_ids": junk}, optional={"row": junk}), max_size=3))
def test_junk_is_a_batch_or_is_named(batch: object) -> None:
    try:
        found = make(filters=(np.array([0, 1]), np.array([3])))(batch)
    except ValueError as error:
        assert len(str(error)) > 15
    else:
        assert len(found["label"]) == len(batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": np.array([[0, 1], [1, 2]])}, "filters are a ndarray; expected .indptr, indices."),
        ({"filters": (np.array([0, 2]), np.array([1]))}, "filters are a tuple"),
        ({"filters": (np.array([0, 1]), np.array([17]))}, "of label ids below 17"),
        ({"positives_per_row": 0}, "positives_per_row must be at least 1"),
        ({"random_negatives": "3"}, "random_negatives must be an integer, got '3'"),
        ({"max_candidates": 1.5}, "max_candidates must be an integer"),
        ({"prompts": {"text": "a"}}, r"key\(s\) \['text'\]"),
        ({"token_dropout": 0.1}, "needs row_tokens and label_tokens"),
        ({"label_texts": ["war", None]}, "texts must be str, got NoneType at place 1"),
        ({"label_texts": {"a": "war"}}, "texts must be a list of str, got dict"),
    ],
)
def test_parts_of_a_collator_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("texts", [WORDS, tuple(WORDS), pa.chunked_array([WORDS[:5], WORDS[5:]]), pd.Series(WORDS)])
def test_label_texts_come_in_any_form(texts: object) -> None:
    assert make(label_texts=texts)(rows([5]))["candidate_ids"].tolist() == [5]


def test_prompts_are_those_of_query_and_document() -> None:
    for prompts in ({"query": "cats ", "document": "dogs "}, {"query": "cats ", "candidate": "dogs "}):
        batch = make(prompts=prompts)([{"text": "war", "label_ids": [4]}])
        words = ["[PAD]", "[UNK]", *WORDS]
        assert [words[i] for i in batch["query_input_ids"]] == ["cats", "war"]
        assert [words[i] for i in batch["candidate_input_ids"]] == ["dogs", WORDS[4]]
