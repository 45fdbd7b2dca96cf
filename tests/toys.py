"""Small encoders and data sets that tests are made with."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import datasets
import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import hf_xmc

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "recipes" / "data" / "lf-gutenberg-science-tiny"
WORDS = "the a of history war and peace science mathematics cats dogs birds medicine sea travel stories gardens"
WORDS = WORDS.split()


def word_tokenizer() -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def make_static_encoder(dimension: int = 16, seed: int = 0) -> hf_xmc.XMCEncoder:
    """Random word vectors; learns quickly."""
    torch.manual_seed(seed)
    return hf_xmc.XMCEncoder(modules=[StaticEmbedding(word_tokenizer(), embedding_dim=dimension)], device="cpu")


def make_bert_encoder(folder: Path, dropout: float = 0.0, seed: int = 0) -> hf_xmc.XMCEncoder:
    """A random one-layer BERT of width 32 over the words above."""
    torch.manual_seed(seed)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    config = BertConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = Transformer(str(folder))
    return hf_xmc.XMCEncoder(modules=[transformer, Pooling(transformer.get_embedding_dimension())], device="cpu")


@cache
def make_words_data(num_rows: int = 64) -> hf_xmc.XMCDataset:
    rng = np.random.default_rng(0)
    pairs = [sorted(rng.choice(len(WORDS), 2, replace=False).tolist()) for _ in range(num_rows + 16)]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label_ids": datasets.List(datasets.Value("int32"))}
    )

    def part(rows: list[list[int]]) -> datasets.Dataset:
        columns = {"text": [" ".join(WORDS[i] for i in row) for row in rows], "label_ids": rows}
        return datasets.Dataset.from_dict(columns, features=features)

    none = np.zeros((0, 2), dtype=np.int64)
    return hf_xmc.XMCDataset(
        train=part(pairs[:num_rows]),
        test=part(pairs[num_rows:]),
        labels=datasets.Dataset.from_dict({"text": WORDS}),
        filters={"train": np.array([[0, (pairs[0][0] + 1) % len(WORDS)]]), "test": none},
        name="words",
    )
