"""The static preset of lf-gutenberg-titles for benchmarks that ask something of its model: trained once, then read."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import hf_xmc
from benchmarks import RECIPES
from hf_xmc.encoders.static import static_embedding
from hf_xmc.runs.config import load_data, read_recipe_config
from recipes.unidec import UniDEC, make_model

CONFIG = RECIPES / "configs" / "lf-gutenberg-titles" / "unidec.yaml"
# That of recipes/unidec.py.
FORM = hf_xmc.SearchForm(0.5, normalize_classifier=False)
# Of the host's training arguments, by which the recipe draws its held-out part.
SEED = 42


def load(folder: str | Path) -> hf_xmc.XMCDataset:
    """The data set, by the fields that its benchmark names."""
    return load_data(folder, [], [])[0]


def start(data: hf_xmc.XMCDataset) -> hf_xmc.XMCEncoder:
    """The encoder before training: the vocabulary of ``data.train`` and its labels, searched by label text alone."""
    texts = data.train["text"][:] + data.labels["text"][:]
    encoder = hf_xmc.XMCEncoder(modules=[static_embedding(texts)], device="cpu")
    encoder.search_form = hf_xmc.SearchForm(0.0)
    return encoder


def trained(data: hf_xmc.XMCDataset, folder: Path | None, *overrides: str) -> hf_xmc.Retriever:
    """A retriever that is trained on ``data.train`` with the settings of the YAML file.

    Args:
        data: Its ``test`` part is not looked at.
        folder: Where the retriever is kept; one that lies there already is read in place of training. None keeps
            nothing.
        overrides: Any ``field=value`` of the recipe.
    """
    if folder is not None and folder.exists():
        return hf_xmc.Retriever.from_pretrained(folder, device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        words = ["--config", str(CONFIG), "--output_dir", scratch, "use_cpu=true", "report_to=none", *overrides]
        config, arguments = read_recipe_config(UniDEC, "", words)
        torch.set_num_threads(1)
        encoder, loss, rows = make_model(config, data)
        hf_xmc.XMCTrainer(model=encoder, args=arguments, train_dataset=rows, loss=loss).train()
    encoder.search_form = FORM
    retriever = hf_xmc.Retriever.build(encoder, data.labels["text"][:], index="exact")
    if folder is not None:
        retriever.save_pretrained(folder)
    return retriever
