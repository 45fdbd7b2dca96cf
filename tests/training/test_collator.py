from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from toys import WORDS, make_static_encoder

from hf_xmc import XMCDataCollator
from hf_xmc.training.sampler import XMCBatchSampler

LABELS = pa.array(WORDS)


def make(**kwargs: object) -> XMCDataCollator:
    return XMCDataCollator(preprocess_fn=make_static_encoder()[0].preprocess, label_texts=LABELS, **kwargs)


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
