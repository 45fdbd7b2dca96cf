from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toys import WORDS, make_bert_encoder, make_static_encoder

from hf_xmc import Retriever
from hf_xmc.hub.server_xmc import OnnxServer, OpenVinoServer
from hf_xmc.serving.onnx import export_onnx

TEXTS = ["cats and dogs", "the history of war", "", "mathematics of the sea " * 30, "😀 birds שלום", "Peace"]


@pytest.mark.slow
def test_an_exported_retriever_answers_the_same_by_onnx_runtime_and_openvino(tmp_path: Path) -> None:
    encoder = make_bert_encoder(tmp_path / "bert")
    encoder.prompts["query"] = "history of"
    encoder.add_classifier(len(WORDS), 8, encoder_dimension=12)
    torch.nn.init.normal_(encoder.label_classifier.rows.weight, std=0.3)
    retriever = Retriever.build(encoder, WORDS)
    retriever.save_pretrained(tmp_path / "repo")
    with pytest.raises(ValueError, match=r"has no onnx/model.onnx; make it"):
        OnnxServer(tmp_path / "repo")
    export_onnx(tmp_path / "repo")
    for server in (OnnxServer, OpenVinoServer):
        for batch_size in (1, 32):
            answers = server(tmp_path / "repo", num_threads=1)(TEXTS, top_k=4, batch_size=batch_size)
            for ours, theirs in zip(retriever.predict(TEXTS, top_k=4), answers, strict=True):
                assert [a["label_id"] for a in ours] == [a["label_id"] for a in theirs]
                assert [a["score"] for a in ours] == pytest.approx([a["score"] for a in theirs], abs=1e-5)


def test_a_static_encoder_needs_no_export(tmp_path: Path) -> None:
    Retriever.build(make_static_encoder(), WORDS).save_pretrained(tmp_path / "repo")
    with pytest.raises(ValueError, match="serve it with hf_xmc.hub.server_xmc.StaticServer"):
        export_onnx(tmp_path / "repo")
