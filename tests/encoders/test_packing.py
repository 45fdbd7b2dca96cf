from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from toys import WORDS, make_static_encoder, word_tokenizer
from transformers import PreTrainedTokenizerFast

from hf_xmc import XMCEncoder
from hf_xmc.encoders import packing
from hf_xmc.encoders.packing import embed

TEXTS = [" ".join(WORDS[: 1 + (i * 7) % 11]) for i in range(20)] + [""]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def make_encoder(folder: Path, architecture: str, pooling: str = "mean", **config: object) -> XMCEncoder:
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    sizes = {"vocab_size": len(WORDS) + 2, "max_position_embeddings": 20, "pad_token_id": 0} | SIZES | config
    if architecture == "DistilBert":
        sizes |= {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    model = getattr(transformers, f"{architecture}Model")(getattr(transformers, f"{architecture}Config")(**sizes))
    with torch.no_grad():  # at their start positions and attention hardly count
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = Transformer(str(folder))
    return XMCEncoder(modules=[transformer, Pooling(32, pooling_mode=pooling)], device="cpu").double().eval()


def vectors_and_gradient(encoder: XMCEncoder, packed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    feature = encoder.preprocess(TEXTS)
    vectors = (embed(encoder, feature) if packed else encoder(dict(feature)))["sentence_embedding"]
    encoder.zero_grad()
    vectors.mul(torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
    used = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    return vectors, torch.cat([gradient.flatten() for gradient in used])


@pytest.mark.parametrize("attention", ["in runs", "padded"])
@pytest.mark.parametrize("architecture", ["Bert", "DistilBert", "Roberta", "XLMRoberta", "Electra", "Camembert"])
def test_flat_texts_have_the_vectors_and_gradients_of_padded_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, attention: str
) -> None:
    if attention == "padded":  # what a GPU runs
        monkeypatch.setattr(packing, "_in_runs", packing._padded)
    encoder = make_encoder(tmp_path, architecture)
    assert packing.can_pack(encoder, encoder.preprocess(TEXTS))
    expected = vectors_and_gradient(encoder, packed=False)
    seen: list[torch.Size] = []
    encoder[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]["input_ids"].shape))
    ours = vectors_and_gradient(encoder, packed=True)
    assert seen == [(1, sum(len(text.split()) for text in TEXTS))]
    assert expected[1].abs().max() > 1e-2
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


@pytest.mark.parametrize("pooling", ["max", "mean_sqrt_len_tokens", "lasttoken"])
def test_every_pooling_of_the_host_reads_flat_texts(tmp_path: Path, pooling: str) -> None:
    encoder = make_encoder(tmp_path, "Bert", pooling)
    feature = encoder.preprocess(TEXTS[:-1])
    expected = encoder(dict(feature))["sentence_embedding"]
    torch.testing.assert_close(embed(encoder, feature)["sentence_embedding"], expected, atol=1e-10, rtol=0)


def test_padded_texts_and_saved_files_stay_as_they_were(tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path / "start", "Bert")
    before = encoder.encode(TEXTS)
    embed(encoder, encoder.preprocess(TEXTS))
    assert encoder[0].model.config._attn_implementation == packing.ATTENTION
    assert (encoder.encode(TEXTS) == before).all()
    encoder.save_pretrained(str(tmp_path / "saved"))
    assert packing.ATTENTION not in (tmp_path / "saved" / "config.json").read_text()


def test_dropout_of_attention_weights_is_on_in_training_alone(tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path, "Bert", attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    feature = encoder.preprocess(TEXTS[:5])
    for training in (True, False):
        encoder.train(training)
        first, second = (embed(encoder, dict(feature))["sentence_embedding"] for _ in range(2))
        assert torch.equal(first, second) != training


def test_other_encoders_run_padded(tmp_path: Path) -> None:
    static = make_static_encoder()
    assert not packing.can_pack(static, static.preprocess(TEXTS))
    mpnet = make_encoder(tmp_path / "mpnet", "MPNet")  # its attention knows relative positions
    feature = mpnet.preprocess(TEXTS)
    assert not packing.can_pack(mpnet, feature)
    torch.testing.assert_close(embed(mpnet, feature)["sentence_embedding"], mpnet(feature)["sentence_embedding"])
    eager = make_encoder(tmp_path / "eager", "Bert")
    eager[0].model.set_attn_implementation("eager")
    assert not packing.can_pack(eager, eager.preprocess(TEXTS))
