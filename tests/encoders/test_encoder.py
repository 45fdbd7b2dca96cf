from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from toys import WORDS, make_bert_encoder, make_static_encoder

from hf_xmc import LabelClassifier, SearchForm, XMCEncoder


@pytest.fixture(params=["static", "bert"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> XMCEncoder:
    return make_static_encoder() if request.param == "static" else make_bert_encoder(tmp_path / "bert")


def test_vectors_have_unit_length_even_where_the_encoder_has_no_normalize_module(encoder: XMCEncoder) -> None:
    vectors = encoder.query_vectors(["cats and dogs", "war"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_plain_sentence_transformer_opens_the_folder_without_a_flag_with_the_same_vectors(
    encoder: XMCEncoder, tmp_path: Path
) -> None:
    encoder.add_classifier(len(WORDS), 8, encoder_dimension=12)
    encoder.save_pretrained(str(tmp_path / "saved"))
    texts = ["cats and dogs", "the history of war", ""]
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(plain.encode(texts), encoder.encode_halves(texts)[0], atol=1e-6)
    assert plain.get_embedding_dimension() == 12


def test_classifier_and_search_form_survive_a_round_trip(encoder: XMCEncoder, tmp_path: Path) -> None:
    encoder.add_classifier(len(WORDS), 8, residual=True)
    assert encoder.label_classifier is not None
    encoder.label_classifier.initialize(torch.randn(len(WORDS), 8))
    encoder.search_form = SearchForm(classifier_weight=0.3, normalize_classifier=False)
    encoder.save_pretrained(str(tmp_path / "saved"))
    again = XMCEncoder(str(tmp_path / "saved"), device="cpu")
    assert again.search_form == encoder.search_form
    assert again.label_classifier is not None and again.label_classifier.residual
    # Not to the bit: a transformer's products may be summed otherwise where its weights lie otherwise in memory.
    np.testing.assert_allclose(again.label_vectors(WORDS), encoder.label_vectors(WORDS), atol=1e-6)
    np.testing.assert_allclose(again.query_vectors(["war"]), encoder.query_vectors(["war"]), atol=1e-6)
    assert [name for name, _ in again.named_children()] == [name for name, _ in encoder.named_children()]


def test_joint_score_is_the_weighted_sum_of_the_halves(encoder: XMCEncoder) -> None:
    encoder.add_classifier(len(WORDS), 8)
    texts = ["cats and dogs", "the history of war"]
    (e_q, c_q), (e_l, w_l) = encoder.encode_halves(texts), encoder.label_halves(WORDS)
    cosine = (c_q / np.linalg.norm(c_q, axis=1, keepdims=True)) @ (w_l / np.linalg.norm(w_l, axis=1, keepdims=True)).T
    for weight in (0.0, 0.5, 0.8, 1.0):
        encoder.search_form = SearchForm(classifier_weight=weight)
        joint = encoder.query_vectors(texts) @ encoder.label_vectors(WORDS).T
        np.testing.assert_allclose(joint, (1 - weight) * e_q @ e_l.T + weight * cosine, atol=1e-5)
    encoder.search_form = SearchForm(classifier_weight=1.0, normalize_classifier=False)
    joint = encoder.query_vectors(texts) @ encoder.label_vectors(WORDS).T
    np.testing.assert_allclose(joint, c_q @ w_l.T, atol=1e-5)


def test_rows_that_meet_the_encoders_own_vector_make_one_index_vector(encoder: XMCEncoder, tmp_path: Path) -> None:
    encoder.add_classifier(len(WORDS), None, residual=True)
    torch.nn.init.normal_(encoder.label_classifier.rows.weight)
    encoder.search_form = SearchForm(classifier_weight=0.3, normalize_classifier=False)
    encoder.save_pretrained(str(tmp_path / "saved"))
    encoder = XMCEncoder(str(tmp_path / "saved"), device="cpu")
    texts = ["cats and dogs", "the history of war"]
    (e_q, c_q), (e_l, w_l) = encoder.encode_halves(texts), encoder.label_halves(WORDS)
    np.testing.assert_array_equal(e_q, c_q)
    np.testing.assert_allclose(w_l - e_l, encoder.label_classifier.rows.weight.detach().numpy(), atol=1e-6)
    assert encoder.label_vectors(WORDS).shape == e_l.shape
    joint = encoder.query_vectors(texts) @ encoder.label_vectors(WORDS).T
    np.testing.assert_allclose(joint, 0.7 * e_q @ e_l.T + 0.3 * c_q @ w_l.T, atol=1e-5)


def test_residual_rows_start_as_the_vectors_of_the_label_texts(encoder: XMCEncoder) -> None:
    encoder.add_classifier(len(WORDS), 8, residual=True)
    _, head = encoder.encode_halves(WORDS)
    np.testing.assert_array_equal(encoder.label_halves(WORDS)[1], head)


def test_equal_texts_have_equal_vectors_and_keep_their_places(encoder: XMCEncoder) -> None:
    texts = ["war", "cats", "war", "sea", "cats"]
    vectors = encoder.query_vectors(texts)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_array_equal(vectors[1], vectors[4])
    np.testing.assert_allclose(vectors[3], encoder.encode("sea"), atol=1e-6)


@pytest.mark.parametrize("heads", [None, (None, None), (8, 12)])
def test_a_static_encoder_gives_the_vectors_of_encode_without_calling_it(
    monkeypatch: pytest.MonkeyPatch, heads: tuple[int | None, int | None] | None
) -> None:
    encoder = make_static_encoder()
    if heads is not None:
        encoder.add_classifier(len(WORDS), heads[0], encoder_dimension=heads[1])
    encoder.prompts = {"query": "war ", "document": "sea "}
    monkeypatch.setattr("hf_xmc.encoders.encoder._STATIC_TEXTS_AT_ONCE", 3)
    texts = ["cats and dogs", "", "the history of war", "cats and dogs"]
    encoder.train()
    one = encoder.encode_halves(texts, prompt="war ", convert_to_tensor=True)  # an option of encode alone
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "encode", None)
        encoder.train()
        other = encoder.encode_halves(texts, prompt="war ", batch_size=2)
        np.testing.assert_array_equal(encoder.query_vectors(texts), encoder.join_queries(*other))
        assert not np.allclose(other[0], encoder.encode_halves(texts, prompt="sea ")[0])
    for vectors, expected in zip(other, one, strict=True):
        assert (vectors is None) == (expected is None)
        if expected is not None:
            assert vectors.dtype == np.float32 and np.abs(expected).max() > 0.1
            np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_a_newer_format_is_refused_by_name(encoder: XMCEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "xmc_config.json").read_text())
    (tmp_path / "xmc_config.json").write_text(json.dumps(config | {"format_version": 99}))
    with pytest.raises(ValueError, match=r"xmc_config.json: format_version 99 is newer than 1"):
        XMCEncoder(str(tmp_path))


def test_an_announced_classifier_that_is_missing_is_an_error_not_a_silent_loss(
    encoder: XMCEncoder, tmp_path: Path
) -> None:
    encoder.add_classifier(len(WORDS), 8)
    encoder.save_pretrained(str(tmp_path))
    (tmp_path / "xmc_config.json").unlink()
    with pytest.raises(ValueError, match="announces a classifier but xmc_config.json is missing"):
        XMCEncoder(str(tmp_path))


def test_classifier_rows_keep_float32_under_a_half_precision_backbone(tmp_path: Path) -> None:
    encoder = make_bert_encoder(tmp_path / "bert")
    encoder.add_classifier(len(WORDS), 8)
    assert encoder.label_classifier is not None
    encoder.label_classifier.to(torch.bfloat16)
    assert encoder.label_classifier.rows.weight.dtype == torch.float32


def test_wrong_numbers_of_labels_are_refused(encoder: XMCEncoder) -> None:
    encoder.add_classifier(len(WORDS), 8)
    with pytest.raises(ValueError, match=f"the classifier has {len(WORDS)} rows, got 2 label texts"):
        encoder.label_vectors(["war", "peace"])
    with pytest.raises(ValueError, match="has a classifier already"):
        encoder.add_classifier(3, 8)
    with pytest.raises(ValueError, match="at least one label"):
        LabelClassifier(0, 8)


def test_the_private_hooks_of_the_host_are_still_there() -> None:
    for name in ("_module_classes", "_load_config_modules", "_get_model_config", "_parse_model_config"):
        assert hasattr(BaseModel, name), name
