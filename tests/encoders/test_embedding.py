from __future__ import annotations

from pathlib import Path

import torch
from toys import WORDS, make_bert_encoder, make_static_encoder

from hf_xmc.encoders.packing import embed


def test_vectors_and_label_rows_come_back_in_the_order_of_the_texts(tmp_path: Path) -> None:
    encoder = make_bert_encoder(tmp_path / "bert")
    encoder.add_classifier(len(WORDS), 8, dropout=0)
    encoder.double()
    texts = [" ".join(WORDS[: 1 + (i * 7) % 11]) for i in range(40)]
    runs = []
    for packed in (True, False):
        feature = encoder.preprocess(texts) | {"ids": torch.arange(40) % len(WORDS)}
        out = embed(encoder, feature) if packed else encoder(feature)
        runs.append([out[key] for key in ("sentence_embedding", "classifier_embedding", "label_weight")])
    assert runs[0][2].std(0).min() > 1e-2
    for ours, plain in zip(*runs, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-10, rtol=0)


def test_flat_tokens_run_at_once() -> None:
    encoder = make_static_encoder()
    texts = ["war", "cats and dogs"] * 20
    expected = encoder(encoder.preprocess(texts))["sentence_embedding"]
    torch.testing.assert_close(embed(encoder, encoder.preprocess(texts))["sentence_embedding"], expected)
