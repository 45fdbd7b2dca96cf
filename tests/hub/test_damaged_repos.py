"""A repo with a file that is damaged, or of a stranger: every door names the file, none answers with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from toys import WORDS, make_static_encoder, make_words_data

import hf_xmc
from hf_xmc import Retriever
from hf_xmc.hub.server_xmc import StaticServer
from hf_xmc.hub.whole_xmc import MANIFEST_FILE

DOORS: dict[str, Callable[[Path], Any]] = {
    "package": lambda folder: Retriever.from_pretrained(folder, device="cpu").predict,
    "pipeline": lambda folder: hf_xmc.pipeline(model=str(folder), device="cpu"),
    "server": StaticServer,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder, data = make_static_encoder(), make_words_data()
    encoder.add_classifier(len(WORDS), 8, encoder_dimension=12)
    retriever = Retriever.build(encoder, WORDS)
    retriever.remember(data.train["text"], data.to_csr("train") * 0.5)
    retriever.remove_labels([3])
    retriever.calibrate(data.test["text"], data.to_csr("test"))
    folder = tmp_path_factory.mktemp("saved") / "repo"
    retriever.save_pretrained(folder)
    return folder


def text(name: str, content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(content)


def cut(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


def edit(name: str, **changes: Any) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))


def tables(name: str, change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        arrays = {key: np.array(array) for key, array in load_file(folder / name).items()}
        change(arrays)
        save_file(arrays, folder / name)

    return damage


def missing(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def set_entry(key: str, place: Any, value: Any) -> Callable[[dict[str, np.ndarray]], Any]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[key][place] = value

    return change


VECTORS, MEMORY = "label_embeddings.safetensors", "memory/memory.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "labels are no list": (text("labels.json", '{"a": 1}'), "labels.json"),
    "labels are cut": (cut("labels.json"), "labels.json"),
    "a label is a number": (text("labels.json", json.dumps([*WORDS[:-1], 7])), "labels.json"),
    "a label less": (text("labels.json", json.dumps(WORDS[:-1])), "labels.json"),
    "no labels": (missing("labels.json"), "labels.json"),
    "vectors are cut": (cut(VECTORS), VECTORS),
    "vectors under other names": (tables(VECTORS, lambda a: a.update(other=a.pop("embedding"))), VECTORS),
    "a flat vector": (tables(VECTORS, lambda a: a.update(embedding=a["embedding"].ravel())), VECTORS),
    "a vector of nan": (tables(VECTORS, set_entry("embedding", 3, np.nan)), "index.json tells of other vectors"),
    "no vectors": (missing(VECTORS), VECTORS),
    "memory is cut": (cut(MEMORY), MEMORY),
    "a key of nan": (tables(MEMORY, set_entry("keys", 3, np.nan)), MEMORY),
    "a vote for no label": (tables(MEMORY, set_entry("indices", 0, 99)), MEMORY),
    "rows that go back": (tables(MEMORY, set_entry("indptr", 1, 999)), MEMORY),
    "a vote of less than nothing": (tables(MEMORY, set_entry("votes", 0, -1)), MEMORY),
    "a vote of nan": (tables(MEMORY, set_entry("votes", 0, np.nan)), MEMORY),
    "a text of memory less": (text("memory/texts.json", json.dumps(["war"])), "memory/texts.json"),
    "no texts of memory": (missing("memory/texts.json"), "memory/texts.json"),
    "calibration is cut": (cut("calibration.json"), "calibration.json"),
    "calibration is newer": (edit("calibration.json", format_version=99), "calibration.json.* 99 is newer"),
    "calibration is a list": (text("calibration.json", "[]"), "calibration.json"),
    "removed ids that are none": (edit("xmc_config.json", removed_ids=[99]), "xmc_config.json"),
    "removed ids that are words": (edit("xmc_config.json", removed_ids=["a"]), "xmc_config.json"),
    "config is a list": (text("xmc_config.json", "[]"), "xmc_config.json"),
    "modules are cut": (cut("modules.json"), "modules.json"),
    "a module out of the repo": (
        lambda folder: (folder / "modules.json").write_text(
            (folder / "modules.json").read_text().replace('"path": ""', '"path": "../elsewhere"')
        ),
        "modules.json|elsewhere",
    ),
    "the manifest is cut": (cut(MANIFEST_FILE), MANIFEST_FILE),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_door_names_the_file_that_is_damaged(name: str, saved: Path, tmp_path: Path) -> None:
    damage, message = DAMAGES[name]
    shutil.copytree(saved, tmp_path / "repo")
    damage(tmp_path / "repo")
    if MANIFEST_FILE not in message:
        (tmp_path / "repo" / MANIFEST_FILE).unlink()  # which would notice each of them
    for door, opened in DOORS.items():
        with pytest.raises(ValueError, match=message):
            ask = opened(tmp_path / "repo")
            ask("war", top_k=1, return_evidence=True)  # texts of a memory are read when shown
            pytest.fail(f"{door} opened it")


def test_a_file_of_another_save_is_noticed_by_every_door(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "repo")
    text("labels.json", json.dumps(WORDS[::-1]))(tmp_path / "repo")
    for opened in DOORS.values():
        with pytest.raises(ValueError, match="labels.json is not the file that was saved with the others"):
            opened(tmp_path / "repo")
    (tmp_path / "repo" / MANIFEST_FILE).unlink()  # as the error says, of who changed it themselves
    for opened in DOORS.values():
        opened(tmp_path / "repo")
