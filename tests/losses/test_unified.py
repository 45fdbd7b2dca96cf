from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data

from hf_xmc import XMCDataCollator, XMCEncoder
from hf_xmc.losses import AllLabelsLoss, UnifiedLoss
from hf_xmc.losses.functional import binary_cross_entropy, decoupled_softmax, info_nce

LABEL_IDS = [[2, 4], [8, 9, 16], [], [0, 2]]


@pytest.fixture(params=["static", "static shared", "bert"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> XMCEncoder:
    encoder = make_bert_encoder(tmp_path / "bert") if request.param == "bert" else make_static_encoder()
    shared = request.param.endswith("shared")
    encoder.add_classifier(len(WORDS), None if shared else 8, residual=True, dropout=0)
    torch.nn.init.normal_(encoder.label_classifier.rows.weight, std=0.3)
    encoder.label_classifier.double()
    return encoder.double()


def make_batch(encoder: XMCEncoder, **kwargs: object) -> tuple[list[dict], torch.Tensor]:
    data = make_words_data()
    filters = data.filter_csr("train")
    collator = XMCDataCollator(
        preprocess_fn=encoder.preprocess, label_texts=data.label_texts, filters=filters, **kwargs
    )
    texts = ["the history of war", "cats and dogs", "sea", "mathematics of birds and of the sea"]
    rows = [{"row": i, "text": t, "label_ids": ids} for i, (t, ids) in enumerate(zip(texts, LABEL_IDS, strict=True))]
    batch = collator(rows)
    prefixes = [p for p in ("query_", "candidate_") if f"{p}input_ids" in batch]
    return [{k.removeprefix(p): v for k, v in batch.items() if k.startswith(p)} for p in prefixes], batch["label"]


def test_every_term_is_the_functional_loss_of_its_score_matrix(encoder: XMCEncoder) -> None:
    features, labels = make_batch(encoder, random_negatives=5)
    ids = features[1]["ids"].tolist()
    out_q, out_l = encoder(dict(features[0])), encoder(dict(features[1]))
    relevance = torch.tensor([[i in row for i in ids] for row in LABEL_IDS])
    filtered = make_words_data().filter_csr("train")[1].tolist()
    excluded = torch.tensor([[row == 0 and i in filtered for i in ids] for row in range(4)]) & ~relevance
    cosine = 18 * F.normalize(out_q["sentence_embedding"]) @ F.normalize(out_l["sentence_embedding"]).T
    free = 18 * out_q["classifier_embedding"] @ out_l["label_weight"].T
    loss = UnifiedLoss(encoder, classifier_loss=info_nce, encoder_weight=0.3, symmetric_weight=0.25, bce_weight=0.7)
    values = loss(make_batch(encoder, random_negatives=5)[0], labels)

    def two_ways(function: object, scores: torch.Tensor) -> torch.Tensor:
        back = function(scores.T, relevance.T, excluded.T)
        return 0.75 * function(scores, relevance, excluded) + 0.25 * back

    assert set(values) == {"encoder", "classifier", "bce"}
    torch.testing.assert_close(values["encoder"], 0.3 * two_ways(decoupled_softmax, cosine))
    torch.testing.assert_close(values["classifier"], 0.7 * two_ways(info_nce, free))
    torch.testing.assert_close(values["bce"], 0.7 * 0.7 * binary_cross_entropy(free, relevance, excluded))


def test_a_pool_of_all_labels_is_the_loss_over_all_labels() -> None:
    encoder = make_static_encoder().double()
    features, labels = make_batch(encoder, random_negatives=5000)
    assert len(features[1]["ids"]) == len(WORDS)
    pool = UnifiedLoss(encoder)(features, labels)
    assert set(pool) == {"encoder"}  # no classifier: DePSL
    everything = AllLabelsLoss(encoder, WORDS, scale=18.0)(make_batch(encoder, pool=False)[0], labels)
    torch.testing.assert_close(pool["encoder"], everything)


def test_only_the_rows_of_the_pool_have_a_gradient(encoder: XMCEncoder) -> None:
    features, labels = make_batch(encoder)
    ids = features[1]["ids"].tolist()
    sum(UnifiedLoss.precision(encoder)(features, labels).values()).backward()
    gradient = encoder.label_classifier.rows.weight.grad
    assert gradient.is_sparse
    assert sorted(set(gradient.coalesce().indices()[0].tolist())) == ids and len(ids) < len(WORDS)


def test_presets_and_bad_settings() -> None:
    encoder = make_static_encoder()
    assert UnifiedLoss.precision(encoder).get_config_dict()["bce_weight"] == 1.0
    assert UnifiedLoss.tail(encoder).get_config_dict()["symmetric_weight"] == 0.5
    with pytest.raises(ValueError, match="encoder_weight must lie in"):
        UnifiedLoss(encoder, encoder_weight=2)
    with pytest.raises(ValueError, match="scale must be above 0"):
        UnifiedLoss(encoder, scale=0)
