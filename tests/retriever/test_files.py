from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from toys import WORDS, make_bert_encoder, make_static_encoder, make_words_data

from hf_xmc import Retriever, XMCEncoder
from hf_xmc.encoders.static import static_embedding


def save(folder: Path) -> Retriever:
    encoder = make_static_encoder()
    encoder.add_classifier(len(WORDS), None, residual=True)
    retriever = Retriever.build(encoder, WORDS, index="hnsw")
    retriever.save_pretrained(folder)
    return retriever


def cut(name: str) -> Callable[[Path], object]:
    """Truncate the file to two thirds."""

    def damage(folder: Path) -> None:
        (file,) = folder.glob(name)
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])

    return damage


def shorten(name: str) -> Callable[[Path], object]:
    """A whole file whose tables have a row less."""

    def damage(folder: Path) -> None:
        (file,) = folder.glob(name)
        save_file({key: np.ascontiguousarray(table[:-1]) for key, table in load_file(file).items()}, file)

    return damage


def edit(folder: Path, name: str, **changes: object) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))


CLASSIFIER = "*_LabelClassifier/model.safetensors"


@pytest.mark.parametrize(
    "damage,message",
    [
        (cut(CLASSIFIER), r"LabelClassifier/model.safetensors is damaged .* fetch or save the repo again"),
        (cut("model.safetensors"), r"repo/model.safetensors is damaged .* fetch or save the repo again"),
        (cut("label_embeddings.safetensors"), "label_embeddings.safetensors is damaged .* fetch or save"),
        (cut("index.faiss"), "index.faiss is damaged.* delete .*index.faiss, and it is built anew"),
        (cut("modules.json"), "modules.json is damaged .* fetch or save the repo again"),
        (cut("xmc_config.json"), "xmc_config.json is damaged .* fetch or save the repo again"),
        (shorten("label_embeddings.safetensors"), "17 labels but label_embeddings.safetensors 16 rows"),
        (
            lambda f: (f / "labels.json").write_text(json.dumps(WORDS[:-1])),
            "labels.json has 16 labels but label_embeddings.safetensors 17 rows .* fetch or save the repo again",
        ),
        (lambda f: edit(f, "xmc_config.json", format_version=9), "format_version 9 is newer than 1, .* upgrade it"),
        (lambda f: edit(f, "xmc_config.json", format_version="1"), "format_version must be a positive integer"),
    ],
)  # fmt: skip
def test_damage_names_the_file_and_the_way_out(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    save(tmp_path / "repo")
    damage(tmp_path / "repo")
    with pytest.raises(ValueError, match=message):
        Retriever.from_pretrained(tmp_path / "repo")


def test_an_index_that_alone_is_missing_is_built_anew_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [[a["label_id"] for a in line] for line in save(tmp_path).predict(WORDS, 4)]
    for name, kind in (("index.faiss", "hnsw"), ("index.json", "exact")):
        (tmp_path / name).unlink()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            again = Retriever.from_pretrained(tmp_path, device="cpu")
        assert f"has no {name}; the index is built anew" in caplog.text
        found = again.predict(WORDS, 4)
        assert again.index.kind == kind
        assert [[a["label_id"] for a in line] for line in found] == expected


def test_a_folder_saved_over_keeps_nothing_of_the_retriever_before(tmp_path: Path) -> None:
    data = make_words_data()
    before = Retriever.build(make_static_encoder(), WORDS)
    before.remember(data.train["text"][:], data.to_csr("train"))
    before.calibrate(data.test["text"][:], data.to_csr("test"))
    before.save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert (tmp_path / "calibration.json").is_file() and (tmp_path / "memory").is_dir()
    after = Retriever.build(make_static_encoder(seed=1), WORDS[:9])
    after.save_pretrained(tmp_path)
    again = Retriever.from_pretrained(tmp_path, device="cpu")
    assert again.memory is None and again.calibration is None
    assert again.predict(WORDS, 4) == after.predict(WORDS, 4)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_table_in_its_training_form_is_not_saved(tmp_path: Path) -> None:
    encoder = XMCEncoder(modules=[static_embedding(WORDS, min_pair_count=2)], device="cpu")
    retriever = Retriever.build(encoder, WORDS)
    with pytest.raises(ValueError, match=r"training form.*fold\(\) it"):
        retriever.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    encoder.fold()
    retriever.save_pretrained(tmp_path)
    assert Retriever.from_pretrained(tmp_path, device="cpu").predict(WORDS[:3], 2) == retriever.predict(WORDS[:3], 2)


def test_nothing_that_is_saved_is_a_pickle(tmp_path: Path) -> None:
    data = make_words_data()
    encoder = make_bert_encoder(tmp_path / "bert")
    encoder.add_classifier(len(WORDS), 8, encoder_dimension=12)
    retriever = Retriever.build(encoder, WORDS)
    retriever.remember(data.train["text"][:], data.to_csr("train"))
    texts = data.test["text"][:]
    first = retriever.rank(texts, 1, memory=False).ids[:, 0]
    right = csr_matrix((np.ones(8), (np.arange(8), first[:8])), shape=(len(texts), len(WORDS)))
    retriever.calibrate(texts, right, memory=False)
    retriever.save_pretrained(tmp_path / "repo")
    files = [file for file in (tmp_path / "repo").rglob("*") if file.is_file()]
    kinds = {".json", ".safetensors", ".faiss", ".py", ".md", ".png", ".txt"}
    assert len(files) > 10 and {file.suffix for file in files} <= kinds
    for file in files:
        start = file.read_bytes()[:4]
        assert start[:2] not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and start != b"PK\x03\x04"


ODD = {
    "ten megabytes": "war and peace " * 750_000,
    "one long word": "x" * 100_000,
    "empty": "",
    "blank": " \n\t",
    "emoji": "😀 👩‍👩‍👧 🏳️‍🌈",
    "right to left": "שלום عالم \u202ewar",
    "NUL": "war\x00and\x00peace",
}


@pytest.mark.parametrize("kind", ["static", "bert"])
def test_odd_texts_are_answered_with_finite_scores(kind: str, tmp_path: Path) -> None:
    encoder = make_static_encoder() if kind == "static" else make_bert_encoder(tmp_path)
    retriever = Retriever.build(encoder, WORDS)
    assert len(ODD["ten megabytes"]) > 10_000_000
    for name, text in ODD.items():
        if kind == "bert" and not text.strip():  # its tokenizer adds no [CLS]
            with pytest.raises(ValueError, match="the text at place 0 is empty, and no token to this encoder"):
                retriever.predict([text])
            continue
        scores = [a["score"] for a in retriever.predict([text], 17)[0]]
        assert len(scores) == 17 and np.isfinite(scores).all(), name
    long, short = retriever.rank([ODD["ten megabytes"], "war and peace " * 40], 17).scores
    # The same words in the same shares, or cut at the same place; the host sums millions of vectors in float32.
    np.testing.assert_allclose(long, short, atol=1e-2)
    with pytest.raises(ValueError, match="the text at place 1 is no valid Unicode"):
        retriever.predict(["war", "half a pair \ud83d"])
