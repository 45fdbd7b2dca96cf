from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from toys import make_bert_encoder, make_static_encoder, make_words_data

from hf_xmc import XMCEncoder, XMCTrainer, XMCTrainingArguments
from hf_xmc.data.gandalf import label_rows
from hf_xmc.losses import LabelNeighbors, LabelTerms, UnifiedLoss
from hf_xmc.training import mining
from hf_xmc.training.mining import MiningCallback, mine_hard_negatives, nearest_labels


def slow_mine(queries: np.ndarray, labels: np.ndarray, known: set[tuple[int, int]], depth: int) -> list[list[int]]:
    """Nearest first by a loop, leaving out what is known."""
    mined = []
    for row, query in enumerate(queries):
        scored = sorted((-float(np.dot(z, query)), i) for i, z in enumerate(labels) if (row, i) not in known)
        ids = [i for _, i in scored[:depth]]
        mined.append(ids + [-1] * (depth - len(ids)))
    return mined


@pytest.mark.parametrize("depth", [1, 4, 12])
def test_mined_labels_are_the_nearest_that_are_not_known(depth: int) -> None:
    rng = np.random.default_rng(0)
    queries, labels = rng.standard_normal((9, 5), dtype=np.float32), rng.standard_normal((12, 5), dtype=np.float32)
    known = {(0, i) for i in range(12)} | {(1, 3), (1, 4), (5, 0), (8, 11)}
    matrix = np.zeros((9, 12), dtype=np.float32)
    matrix[tuple(np.array(sorted(known)).T)] = 1
    mined = mine_hard_negatives(queries, labels, sp.csr_matrix(matrix), depth)
    assert mined.tolist() == slow_mine(queries, labels, known, depth) and mined.dtype == np.int32


def test_mining_in_parts_finds_the_same_in_memory_that_does_not_grow_with_the_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    queries, labels = rng.standard_normal((6000, 8), dtype=np.float32), rng.standard_normal((300, 8), dtype=np.float32)
    known = sp.random(6000, 300, density=0.02, format="csr", dtype=np.float32, rng=rng)
    whole, neighbors = mine_hard_negatives(queries, labels, known, 20), nearest_labels(labels, 10, 290, 5)
    monkeypatch.setattr(mining, "_ROWS_AT_ONCE", 100)
    assert (mine_hard_negatives(queries, labels, known, 20) == whole).all()
    for ours, theirs in zip(nearest_labels(labels, 10, 290, 5), neighbors, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    peaks = []
    for num_rows in (600, 6000):
        part = queries[:num_rows], labels, known[:num_rows]
        tracemalloc.start()
        mine_hard_negatives(*part, 20)
        peaks.append(tracemalloc.get_traced_memory()[1] - 4 * 20 * num_rows)  # what is returned grows
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize(("start", "stop"), [(0, 12), (5, 8), (3, 3)])
def test_the_nearest_labels_of_a_share_are_others_and_ordered(start: int, stop: int) -> None:
    labels = np.random.default_rng(0).standard_normal((12, 5), dtype=np.float32)
    labels /= np.linalg.norm(labels, axis=1, keepdims=True)
    ids, cosines = nearest_labels(labels, start, stop, 4)
    own = {(j - start, j) for j in range(start, stop)}
    assert ids.tolist() == slow_mine(labels[start:stop], labels, own, 4) and ids.shape == (stop - start, 4)
    np.testing.assert_allclose(cosines, np.einsum("nd,nkd->nk", labels[start:stop], labels[ids]), atol=1e-6)


def test_the_callback_mines_for_the_dual_encoder_and_never_a_positive_or_a_filtered_label() -> None:
    data, encoder = make_words_data(), make_static_encoder()
    mined = torch.full((64, 5), -1, dtype=torch.int32)
    order = torch.full((64,), -1)
    MiningCallback(data, 5, mined=mined, row_order=order, batch_size=8).refresh(encoder)
    queries = encoder.query_vectors(data.train["text"][:])
    known = {(r, i) for r, ids in enumerate(data.train["label_ids"][:]) for i in ids}
    known |= set(map(tuple, data.filters["train"].tolist()))
    assert mined.tolist() == slow_mine(queries, encoder.label_vectors(data.labels["text"][:]), known, 5)
    assert sorted(order.tolist()) == list(range(64))


def make_trainer(encoder: XMCEncoder, out: Path, **kwargs: object) -> XMCTrainer:
    args = XMCTrainingArguments(
        output_dir=str(out), use_cpu=True, report_to="none", disable_tqdm=True, num_train_epochs=4,
        per_device_train_batch_size=16, learning_rate=1e-3, classifier_learning_rate=1e-2, positives_per_row=1,
        hard_negatives=2, mining_depth=4, cluster_batches=True, refresh_epochs=2, save_strategy="steps", save_steps=5,
        logging_steps=1, weight_decay=0.01, **kwargs,
    )  # fmt: skip
    data = make_words_data()
    terms = LabelTerms(label_rows(data.to_csr("train")), neighbors=LabelNeighbors(17, 3, min_cosine=0.1))
    loss = UnifiedLoss(encoder, symmetric_weight=0.5, bce_weight=1.0, label_terms=terms)
    return XMCTrainer(encoder, args, data, loss)


def unidec_encoder(folder: Path, seed: int = 0) -> XMCEncoder:
    encoder = make_bert_encoder(folder, dropout=0.1, seed=seed)
    encoder.add_classifier(17, 8, encoder_dimension=12, dropout=0.1)
    return encoder


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 10], ids=["before mining", "after mining"])
def test_a_run_killed_in_mid_epoch_resumes_to_the_numbers_of_an_uninterrupted_one(step: int, tmp_path: Path) -> None:
    """Encoder, heads, classifier rows, optimizer rows, mined negatives and the order of batches."""
    whole = make_trainer(unidec_encoder(tmp_path / "a"), tmp_path / "whole")
    whole.train()
    assert whole.state.global_step == 16 and int(whole.miner.mined.max()) >= 0
    assert sorted(whole.miner.row_order.tolist()) == list(range(64))

    shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / "resumed" / f"checkpoint-{step}")
    again = make_trainer(unidec_encoder(tmp_path / "b", seed=5), tmp_path / "resumed")
    again.train(resume_from_checkpoint=str(tmp_path / "resumed" / f"checkpoint-{step}"))
    assert again.state.global_step == 16
    for (name, ours), theirs in zip(again.model.named_parameters(), whole.model.parameters(), strict=True):
        np.testing.assert_array_equal(ours.detach().numpy(), theirs.detach().numpy(), err_msg=name)
    assert torch.equal(again.miner.mined, whole.miner.mined)
    assert torch.equal(again.miner.neighbors.ids, whole.miner.neighbors.ids)
    assert torch.equal(again.miner.neighbors.cosines, whole.miner.neighbors.cosines)
    assert not whole.miner.neighbors.is_empty
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, again)]
    assert losses[0] == losses[1]


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    data = make_words_data()
    callback = MiningCallback(data, 2, mined=torch.zeros(64, 3, dtype=torch.int32))
    from safetensors.torch import save_file

    save_file({"mined": torch.zeros(64, 5, dtype=torch.int32)}, tmp_path / "mining.safetensors")
    with pytest.raises(ValueError, match=r"mining.safetensors holds \{'mined': \(64, 5\)\}"):
        callback.load(tmp_path)


def test_the_classifier_is_trained_by_the_row_sparse_optimizer_with_its_own_rate(tmp_path: Path) -> None:
    from hf_xmc.training.optim import RowSparseAdamW

    trainer = make_trainer(unidec_encoder(tmp_path / "a"), tmp_path / "run", max_steps=9)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, RowSparseAdamW)
    rows = trainer.model.label_classifier.rows.weight
    (group,) = [g for g in optimizer.param_groups if any(p is rows for p in g["params"])]
    assert group["initial_lr"] == 1e-2
    with pytest.raises(ValueError, match="a classifier is trained with AdamW"):
        make_trainer(unidec_encoder(tmp_path / "b"), tmp_path / "run2", optim="sgd").create_optimizer()
