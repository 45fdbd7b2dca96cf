from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from toys import WORDS, make_bert_encoder, make_static_encoder

from hf_xmc import XMCDataCollator, XMCEncoder
from hf_xmc.encoders.tokens import TokenizedTexts

TEXTS = [" ".join(WORDS[: 1 + i % 5]) for i in range(9)]


@pytest.fixture(params=["static", "bert"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> XMCEncoder:
    return make_static_encoder() if request.param == "static" else make_bert_encoder(tmp_path)


@pytest.mark.parametrize("prompt", [None, "war: "])
def test_any_selection_is_what_tokenising_it_gives(encoder: XMCEncoder, prompt: str | None) -> None:
    encoder.prompts["document"] = prompt
    tokens = TokenizedTexts.of_model(encoder, pa.array(TEXTS))
    assert len(tokens) == len(TEXTS)
    for rows in ([4, 0, 8, 4], [2], list(range(9))):
        expected = encoder[0].preprocess([TEXTS[i] for i in rows], prompt=prompt, task="document")
        ours = tokens.features(torch.tensor(rows))
        assert {"input_ids"} < set(ours) <= set(expected)
        for key, value in ours.items():
            assert torch.equal(value, expected[key]) if isinstance(value, torch.Tensor) else value == expected[key]


def test_dropout_leaves_out_its_share_but_no_whole_text_and_no_special_token(encoder: XMCEncoder) -> None:
    texts = [" ".join(WORDS[:8])] * 500 + [WORDS[3]] * 100
    first_word = int(encoder[0].preprocess([WORDS[0]])["input_ids"].view(-1)[0])
    tokens = TokenizedTexts(encoder[0].preprocess, texts, special_ids=[first_word])
    features = tokens.features(torch.arange(600), 0.3, np.random.default_rng(0))
    if tokens.is_flat:
        lengths = torch.diff(features["offsets"], append=torch.tensor([len(features["input_ids"])]))
    else:
        lengths = features["attention_mask"].sum(1)
    assert int((features["input_ids"] == first_word).sum()) == 500
    assert abs(float((lengths[:500] - 1).float().mean()) / 7 - 0.7) < 0.03
    assert (lengths[500:] == 1).all(), "a text of one word keeps it"


def test_an_encoder_with_other_inputs_is_refused() -> None:
    def preprocess(texts: list[str], **kwargs: object) -> dict[str, torch.Tensor]:
        ones = torch.ones(len(texts), 1)
        return {"input_ids": ones, "attention_mask": ones, "pixel_values": ones}

    with pytest.raises(ValueError, match="pixel_values"):
        TokenizedTexts(preprocess, TEXTS)


def test_a_batch_of_kept_tokens_is_the_batch_of_texts(encoder: XMCEncoder) -> None:
    common = {"preprocess_fn": encoder[0].preprocess, "label_texts": pa.array(WORDS), "random_negatives": 4}
    kept = {
        "label_tokens": TokenizedTexts.of_model(encoder, WORDS),
        "row_tokens": TokenizedTexts.of_model(encoder, TEXTS),
    }
    rows = [{"row": row, "text": TEXTS[row], "label_ids": [row]} for row in (7, 3, 0)]
    expected, ours = XMCDataCollator(**common)(rows), XMCDataCollator(**common, **kept)(rows)
    for key, value in ours.items():
        assert torch.equal(value, expected[key]) if isinstance(value, torch.Tensor) else value == expected[key]
    with pytest.raises(ValueError, match="token_dropout=0.5 needs"):
        XMCDataCollator(**common, token_dropout=0.5)
    dropped = XMCDataCollator(**common, **kept, token_dropout=0.5)
    first, again = dropped(rows), dropped(rows)
    assert torch.equal(first["query_input_ids"], again["query_input_ids"])
