"""Shared fixtures; no test may reach for the network."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch
from toys import TINY, make_bert_encoder, make_static_encoder, make_words_data

import hf_xmc

pytest_plugins = ["fake_hub"]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """For tensors as small as those of tests a second thread costs more than it gives; recipes would take it."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_xmc.runs.config.share_cores", lambda: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def garbage_is_looked_for_in_what_is_new() -> None:
    """The trainer collects garbage at each turn, and what was imported takes longer to look through than a step."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny() -> hf_xmc.XMCDataset:
    """4,191 train rows, 1,008 test rows, 4,036 labels."""
    return hf_xmc.load_lf(TINY)


@pytest.fixture
def static_encoder() -> hf_xmc.XMCEncoder:
    return make_static_encoder()


@pytest.fixture
def bert_encoder(tmp_path: Path) -> hf_xmc.XMCEncoder:
    return make_bert_encoder(tmp_path / "bert")


@pytest.fixture(scope="session")
def words_data() -> hf_xmc.XMCDataset:
    """A learnable toy: 64 queries of two words, labelled with those words; every label is one word."""
    return make_words_data()
