from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from reference.label_terms import slow_label_terms, slow_mixed_targets
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data

from hf_xmc import XMCDataCollator, XMCEncoder, XMCTrainer, XMCTrainingArguments
from hf_xmc.data.gandalf import label_rows, self_label_rows
from hf_xmc.losses import LabelNeighbors, LabelTerms, UnifiedLoss
from hf_xmc.losses.functional import decoupled_softmax

# Labels 3 and 5 have one text; label 16 co-occurs with nothing.
TEXTS = [*WORDS[:5], WORDS[3], *WORDS[6:]]
ROWS = [[0, 1, 2], [1, 2], [2, 3], [4, 5, 6], [6, 7], [7, 8, 9, 10], [3, 11], [12, 13, 14], [14, 15, 0], [2, 8]]


def truth() -> sp.csr_matrix:
    rows = [(i, j) for i, row in enumerate(ROWS) for j in row]
    return sp.csr_matrix(
        (np.ones(len(rows), np.float32), tuple(zip(*rows, strict=True))), shape=(len(ROWS), len(WORDS))
    )


@pytest.fixture(params=["static", "static shared", "static residual", "bert"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> XMCEncoder:
    encoder = make_bert_encoder(tmp_path / "bert") if request.param == "bert" else make_static_encoder()
    shared = request.param == "static shared"
    encoder.add_classifier(len(WORDS), None if shared else 8, residual=request.param != "bert", dropout=0)
    torch.nn.init.normal_(encoder.label_classifier.rows.weight, std=0.3)
    encoder.label_classifier.double()
    return encoder.double()


def make_batch(encoder: XMCEncoder, filters: bool = True) -> tuple[list[dict], torch.Tensor]:
    import pyarrow as pa

    pairs = (np.array([0, 1, 1, 1, 1]), np.array([3])) if filters else None
    collator = XMCDataCollator(
        preprocess_fn=encoder.preprocess, label_texts=pa.array(TEXTS), filters=pairs, random_negatives=6
    )
    texts = ["the history of war", "cats and dogs", "sea", "mathematics of birds and of the sea"]
    labels = [[2, 4], [3, 5, 16], [], [0, 2]]
    batch = collator(
        [{"row": i, "text": t, "label_ids": x} for i, (t, x) in enumerate(zip(texts, labels, strict=True))]
    )
    columns = [{k.removeprefix(p): v for k, v in batch.items() if k.startswith(p)} for p in ("query_", "candidate_")]
    return columns, batch["label"]


def neighbors_of_each_label() -> tuple[LabelNeighbors, list[dict[int, float]]]:
    neighbors = LabelNeighbors(len(WORDS), 3, min_cosine=0.4)
    rng = np.random.default_rng(1)
    ids = np.stack([rng.choice([i for i in range(len(WORDS)) if i != j], 3, replace=False) for j in range(len(WORDS))])
    ids[4, 1:] = -1
    cosines = rng.uniform(0.2, 1, ids.shape).astype(np.float32)
    neighbors.write(ids, cosines)
    kept = [
        {int(i): float(c) for i, c in zip(a, b, strict=True) if i >= 0 and c >= 0.4}
        for a, b in zip(ids, cosines, strict=True)
    ]
    assert 0 < sum(map(len, kept)) < 3 * len(WORDS) - 2  # some, and some below the least cosine
    return neighbors, kept


@pytest.mark.parametrize("similarity", [None, 0.0, 0.3, 1.0])
def test_terms_equal_the_loops_in_value_and_gradient(encoder: XMCEncoder, similarity: float | None) -> None:
    features, labels = make_batch(encoder)
    ids = features[1]["ids"].tolist()
    assert {3, 5} <= set(ids) and 8 < len(ids) < len(WORDS)
    counts = label_rows(truth())
    expected, neighbors = counts.toarray().tolist(), None
    if similarity is not None:
        neighbors, kept = neighbors_of_each_label()
        expected = slow_mixed_targets(expected, kept, similarity)
    terms = LabelTerms(counts, 0.5, 2.0, neighbors, 0.5 if similarity is None else similarity)
    loss = UnifiedLoss(encoder, scale=5.0, encoder_weight=0.3, label_terms=terms)
    values = loss(features, labels)
    names = [n for n, p in encoder.named_parameters() if p.requires_grad]
    parameters = [p for _, p in encoder.named_parameters()]

    out = encoder(dict(make_batch(encoder)[0][1]))
    vectors = F.normalize(out["sentence_embedding"], dim=-1)
    heads = out.get("classifier_embedding", vectors)
    slow = slow_label_terms(ids, [TEXTS[i] for i in ids], vectors, heads, out["label_weight"], expected, 5.0)
    tolerance = 1e-6 if similarity == 0.3 else 1e-9  # mixed targets are rounded to float32
    for name, twin, weight in zip(("label_encoder", "label_classifier"), slow, (0.3 * 0.5, 0.7 * 2.0), strict=True):
        assert twin.item() > 0.05
        torch.testing.assert_close(values[name], weight * twin, atol=tolerance, rtol=0)
        ours, theirs = (
            torch.autograd.grad(v, parameters, retain_graph=True, allow_unused=True)
            for v in (values[name], weight * twin)
        )
        moved = 0
        for parameter, mine, other in zip(names, ours, theirs, strict=True):
            if other is None:
                assert mine is None or mine.to_dense().abs().max() == 0, parameter
                continue
            moved += other.to_dense().abs().max() > 1e-3
            torch.testing.assert_close(mine.to_dense(), other.to_dense(), atol=tolerance, rtol=0)
        assert moved


def test_terms_need_no_further_text_and_leave_the_other_terms_alone(encoder: XMCEncoder) -> None:
    encoded = []
    encoder.register_forward_hook(lambda module, inputs, output: encoded.append(len(output["sentence_embedding"])))
    features, labels = make_batch(encoder)
    without = UnifiedLoss(encoder)(features, labels)
    num_texts = sum(encoded)
    assert num_texts == 4 + len(features[1]["ids"])
    encoded.clear()
    with_terms = UnifiedLoss(encoder, label_terms=LabelTerms(label_rows(truth())))(*make_batch(encoder))
    assert sum(encoded) == num_texts
    assert set(with_terms) - set(without) == {"label_encoder", "label_classifier"}
    for name, value in without.items():
        torch.testing.assert_close(with_terms[name], value)


def test_filter_pairs_of_rows_do_not_touch_the_label_terms(encoder: XMCEncoder) -> None:
    loss = UnifiedLoss(encoder, label_terms=LabelTerms(label_rows(truth())))
    filtered, free = (loss(*make_batch(encoder, filters)) for filters in (True, False))
    assert filtered["encoder"] != free["encoder"]
    assert filtered["label_encoder"] == free["label_encoder"] > 0
    assert filtered["label_classifier"] == free["label_classifier"] > 0


def test_either_term_can_be_left_out_and_a_dual_encoder_has_one(encoder: XMCEncoder) -> None:
    counts = label_rows(truth())
    values = UnifiedLoss(encoder, label_terms=LabelTerms(counts, 0.0, 1.0))(*make_batch(encoder))
    assert "label_encoder" not in values and values["label_classifier"] > 0
    values = UnifiedLoss(encoder, label_terms=LabelTerms(counts, 1.0, 0.0))(*make_batch(encoder))
    assert "label_classifier" not in values and values["label_encoder"] > 0
    alone = make_static_encoder()
    values = UnifiedLoss(alone, encoder_weight=0.2, label_terms=LabelTerms(counts))(*make_batch(alone))
    assert set(values) == {"encoder", "label_encoder"} and values["label_encoder"] > 0


def test_labels_that_never_co_occur_give_the_dual_encoder_nothing_to_learn(encoder: XMCEncoder) -> None:
    values = UnifiedLoss(encoder, label_terms=LabelTerms(self_label_rows(truth())))(*make_batch(encoder))
    assert values["label_encoder"] == 0 and values["label_classifier"] > 0
    values["label_encoder"].backward()


def test_relevance_mixes_counts_and_cosines_and_keeps_a_diagonal_of_1() -> None:
    counts = label_rows(truth())
    neighbors = LabelNeighbors(len(WORDS), 2)
    terms = LabelTerms(counts, neighbors=neighbors, similarity_weight=0.25)
    own, pool = torch.tensor([2, 16]), torch.tensor([1, 2, 3, 16])
    before = [[0.5, 1, 0.25, 0], [0, 0, 0, 1]]
    assert terms.relevance(own, pool).tolist() == before  # counts alone until the first refresh
    ids, cosines = np.full((len(WORDS), 2), -1), np.zeros((len(WORDS), 2))
    ids[2], cosines[2], ids[16], cosines[16] = [3, 16], [0.8, 0.49], [0, 1], [0.9, 0.6]
    neighbors.write(ids, cosines)
    expected = torch.tensor([[0.375, 1, 0.75 * 0.25 + 0.25 * 0.8, 0], [0.25 * 0.6, 0, 0, 1]])
    torch.testing.assert_close(terms.relevance(own, pool), expected)


def test_the_term_draws_labels_of_the_same_rows_together() -> None:
    encoder = make_static_encoder()
    data = make_words_data()
    targets = label_rows(data.to_csr("train"), 0.1)
    loss = UnifiedLoss(encoder, label_terms=LabelTerms(targets))

    def mean_cosines() -> tuple[float, float]:
        vectors = torch.from_numpy(encoder.label_vectors(WORDS))
        together = torch.from_numpy(targets.toarray() > 0) & ~torch.eye(len(WORDS), dtype=torch.bool)
        cosines = vectors @ vectors.T
        return float(cosines[together].mean()), float(cosines[torch.from_numpy(targets.toarray() == 0)].mean())

    before = mean_cosines()
    collator = XMCDataCollator(preprocess_fn=encoder.preprocess, label_texts=data.label_texts, random_negatives=100)
    optimizer = torch.optim.Adam(encoder.parameters(), 1e-2)
    for _ in range(60):
        batch = collator(list(data.training_rows())[:8])
        columns = [
            {k.removeprefix(p): v for k, v in batch.items() if k.startswith(p)} for p in ("query_", "candidate_")
        ]
        optimizer.zero_grad()
        loss(columns, batch["label"])["label_encoder"].backward()
        optimizer.step()
    after = mean_cosines()
    assert after[0] - after[1] > before[0] - before[1] + 0.2


def test_the_trainer_refreshes_neighbors_and_counts_stay_until_then(tmp_path: Path) -> None:
    encoder = make_static_encoder()
    data = make_words_data()
    neighbors = LabelNeighbors(len(WORDS), 4, min_cosine=0.05)
    terms = LabelTerms(label_rows(data.to_csr("train")), neighbors=neighbors)
    args = XMCTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, num_train_epochs=3,
        per_device_train_batch_size=16, refresh_epochs=2, save_strategy="no", learning_rate=1e-9,
    )  # fmt: skip
    trainer = XMCTrainer(encoder, args, data, UnifiedLoss(encoder, label_terms=terms))
    assert neighbors.is_empty
    trainer.train()
    vectors = encoder.label_vectors(WORDS)
    for j, (ids, cosines) in enumerate(zip(neighbors.ids.tolist(), neighbors.cosines.tolist(), strict=True)):
        scored = sorted(((float(vectors[j] @ z), i) for i, z in enumerate(vectors) if i != j), reverse=True)[:4]
        kept = [(c, i) for c, i in scored if c >= 0.05]
        assert [i for i in ids if i >= 0] == [i for _, i in kept]
        np.testing.assert_allclose(cosines[: len(kept)], [c for c, _ in kept], atol=1e-5)
    assert not neighbors.is_empty


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelTerms(sp.csr_matrix((2, 3))), r"targets is \(2, 3\)"),
        (lambda: LabelTerms(2 * self_label_rows(sp.csr_matrix((1, 3)))), r"outside \(0, 1\]"),
        (lambda: LabelTerms(self_label_rows(sp.csr_matrix((1, 3))), -1.0), "encoder_weight -1"),
        (lambda: LabelTerms(self_label_rows(sp.csr_matrix((1, 3))), similarity_weight=1.5), "similarity_weight 1.5"),
        (
            lambda: LabelTerms(self_label_rows(sp.csr_matrix((1, 3))), neighbors=LabelNeighbors(4)),
            "beside neighbors of 4 labels",
        ),
        (lambda: LabelNeighbors(3, min_cosine=1.0), "min_cosine 1.0"),
        (
            lambda: LabelTerms(self_label_rows(sp.csr_matrix((1, 3)))).relevance(
                torch.tensor([0]), torch.tensor([0, 3])
            ),
            "label id 3",
        ),
    ],
)
def test_bad_input_is_an_error(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_settings_reach_the_card() -> None:
    terms = LabelTerms(self_label_rows(sp.csr_matrix((1, 3))), 0.5, 0.0, LabelNeighbors(3, 7, 0.6), 0.25)
    config = UnifiedLoss(make_static_encoder(), encoder_loss=decoupled_softmax, label_terms=terms).get_config_dict()
    assert config["label_terms"] == {
        "encoder_weight": 0.5,
        "classifier_weight": 0.0,
        "similarity_weight": 0.25,
        "num_neighbors": 7,
        "min_cosine": 0.6,
    }
