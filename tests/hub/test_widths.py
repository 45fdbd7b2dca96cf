"""truncate_dim, as Matryoshka models are served with: one answer through every door, or a refusal that says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Normalize
from toys import WORDS, make_bert_encoder, make_static_encoder

import hf_xmc
from hf_xmc import Retriever, XMCEncoder
from hf_xmc.hub.server_xmc import OnnxServer, OpenVinoServer, StaticServer
from hf_xmc.serving import export_onnx

TEXTS = ["cats and dogs", "the history of war", "mathematics of the sea", "peace"]


def make_encoder(name: str, folder: Path) -> XMCEncoder:
    encoder = make_static_encoder(24) if name.startswith("static") else make_bert_encoder(folder / "bert")
    if name.endswith("two"):
        encoder.add_classifier(len(WORDS), 12, encoder_dimension=16)
        torch.nn.init.normal_(encoder.label_classifier.rows.weight, std=0.3)
    elif name.endswith("normalized"):
        encoder.append(Normalize())
    encoder.truncate_dim = 8
    return encoder


@pytest.mark.parametrize("name", ["static", "static normalized", "static two", "bert", "bert normalized", "bert two"])
def test_every_door_cuts_vectors_to_the_same_width(name: str, tmp_path: Path) -> None:
    encoder = make_encoder(name, tmp_path)
    retriever = Retriever.build(encoder, WORDS)
    assert retriever.embedding.shape == (len(WORDS), 8)
    np.testing.assert_allclose(np.linalg.norm(retriever.embedding, axis=1), 1, atol=1e-5)
    whole = encoder.encode(WORDS, truncate_dim=None, normalize_embeddings=False)
    first = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(retriever.embedding, first, atol=1e-5)
    retriever.save_pretrained(tmp_path / "repo")
    doors = {
        "loaded": Retriever.from_pretrained(tmp_path / "repo", device="cpu").predict,
        "pipeline": hf_xmc.pipeline(model=str(tmp_path / "repo"), device="cpu"),
    }
    if name.startswith("static"):
        doors["StaticServer"] = StaticServer(tmp_path / "repo")
    else:
        export_onnx(tmp_path / "repo")
        doors |= {"OnnxServer": OnnxServer(tmp_path / "repo"), "OpenVinoServer": OpenVinoServer(tmp_path / "repo")}
    expected = retriever.rank(TEXTS, len(WORDS))
    for door, ask in doors.items():
        for ours, ids, scores in zip(ask(TEXTS, top_k=len(WORDS)), expected.ids, expected.scores, strict=True):
            theirs = {label["label_id"]: label["score"] for label in ours}
            np.testing.assert_allclose([theirs[i] for i in ids.tolist()], scores, atol=1e-5, err_msg=door)


def test_a_width_that_cuts_what_classifier_rows_meet_is_refused_with_the_way_out(tmp_path: Path) -> None:
    encoder = make_static_encoder(24)
    encoder.add_classifier(len(WORDS), None)
    encoder.truncate_dim = 8
    with pytest.raises(
        ValueError, match=r"truncate_dim=8 cuts .* rows of 24 numbers.*add_classifier\(dimension=...\)"
    ):
        Retriever.build(encoder, WORDS)
    encoder.truncate_dim = 24
    assert Retriever.build(encoder, WORDS).embedding.shape == (len(WORDS), 24)
