from __future__ import annotations

from pathlib import Path

import torch
from conftest import WORDS, make_bert_encoder, make_static_encoder

from hf_xmc.losses.embedding import embed


def test_groups_of_like_length_give_the_vectors_and_gradients_of_one_run(tmp_path: Path) -> None:
    encoder = make_bert_encoder(tmp_path / "bert")
    encoder.add_classifier(len(WORDS), 8, dropout=0)
    encoder.double()
    texts = [" ".join(WORDS[: 1 + (i * 7) % 11]) for i in range(40)]
    runs = []
    for grouped in (True, False):
        feature = encoder.preprocess(texts) | {"ids": torch.arange(40) % len(WORDS)}
        widths: list[int] = []
        hook = encoder[0].register_forward_pre_hook(lambda _, args, w=widths: w.append(args[0]["input_ids"].size(1)))
        out = embed(encoder, feature) if grouped else encoder(feature)
        hook.remove()
        assert (len(set(widths)) > 1) == grouped
        encoder.zero_grad()
        (out["sentence_embedding"] ** 3).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in encoder[0].parameters() if p.grad is not None])
        runs.append((out["sentence_embedding"], out["label_weight"], gradient))
    assert runs[0][2].abs().max() > 1e-3
    for ours, plain in zip(*runs, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-10, rtol=0)


def test_flat_tokens_run_at_once() -> None:
    encoder = make_static_encoder()
    texts = ["war", "cats and dogs"] * 20
    expected = encoder(encoder.preprocess(texts))["sentence_embedding"]
    torch.testing.assert_close(embed(encoder, encoder.preprocess(texts))["sentence_embedding"], expected)
