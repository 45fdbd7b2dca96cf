"""Damaged, hostile and half-written files: the right data set, or a ValueError that names the file."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import tarfile
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_xmc.data import XMCDataset, load_lf, save_lf
from hf_xmc.data.lf import read
from hf_xmc.data.lf.text_lines import read_truth


def contents(dataset: XMCDataset) -> dict:
    parts = {part: list(getattr(dataset, part)) for part in ("train", "test", "labels")}
    filters = {split: pairs.tolist() for split, pairs in dataset.filters.items()}
    return parts | {"filters": filters, "propensity": dataset.propensity}


def packed(path: Path, files: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, gzip.compress(content))
    return path.read_bytes()


def linked(path: Path, files: dict[str, bytes], **link: object) -> bytes:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if name == "tst.json.gz":
                for key, value in link.items():
                    setattr(member, key, value)
            member.size = 0 if member.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else len(content)
            archive.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def damaged_deflate(content: bytes) -> bytes:
    start = content.index(b"trn.json.gz") + len(b"trn.json.gz")
    return content[:start] + b"\xff" * 20 + content[start + 20 :]


def encrypted(content: bytes) -> bytes:
    """The flag of every member says that it is."""
    for mark, place in ((b"PK\x03\x04", 4), (b"PK\x01\x02", 6)):
        content = re.sub(mark + b"." * place, lambda found: found[0][:-2] + b"\x01\x00", content, flags=re.DOTALL)
    return content


# fmt: off
ARCHIVES = {
    "no archive": (".zip", lambda path, _: b"PK\x03\x04 no archive", "is damaged"),
    "cut off": (".zip", lambda path, files: packed(path, files)[:200], "is damaged"),
    "damaged deflate": (".zip", lambda path, files: damaged_deflate(packed(path, files)), "is damaged or cannot be"),
    "encrypted": (".zip", lambda path, files: encrypted(packed(path, files)), "cannot be unpacked: .*encrypted"),
    "symbolic link": (".tar", lambda *to: linked(*to, type=tarfile.SYMTYPE, linkname="trn.json.gz"), "is a link or"),
    "link to itself": (".tar", lambda *to: linked(*to, type=tarfile.SYMTYPE, linkname="tst.json.gz"), "is a link or"),
    "link to nothing": (".tar", lambda *to: linked(*to, type=tarfile.LNKTYPE, linkname="none"), "is a link or"),
    "named pipe": (".tar", lambda *to: linked(*to, type=tarfile.FIFOTYPE), "is a link or a device; expected a file"),
    "cut off tar": (".tar.gz", lambda *to: gzip.compress(linked(*to))[:100], "is damaged"),
}
# fmt: on


@pytest.mark.parametrize(("suffix", "make", "message"), ARCHIVES.values(), ids=ARCHIVES)
def test_a_damaged_archive_is_refused_and_leaves_nothing(tmp_path, toy_files, suffix, make, message):
    path = tmp_path / f"set{suffix}"
    path.write_bytes(make(tmp_path / "work", toy_files))
    with pytest.raises(ValueError, match=f"set{suffix} .*{message}"):
        load_lf(path, cache_dir=tmp_path / "cache")
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_a_line_past_all_measure_is_refused_before_it_is_held(load, toy_files, monkeypatch):
    monkeypatch.setattr(read, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(read, "BLOCK_BYTES", 100)
    for name in ("trn.json.gz", "lbl.json.gz"):
        with pytest.raises(ValueError, match=rf"{name}, line 2: the line is longer than 0 MiB"):
            load(toy_files | {name: toy_files[name].replace(b"\n", b"\n" + b" " * 2000, 1)})
    assert len(load(toy_files).train) == 3


def test_a_matrix_that_tells_more_than_it_can_hold_is_refused_unread(tmp_path, monkeypatch):
    bombs = {
        "many entries": {
            "shape": (3, 4),
            "indptr": [0, 2, 3, 3],
            "indices": np.zeros(10**6, int),
            "data": np.zeros(10**6),
        },
        "many rows": {"shape": (10**9, 4), "indptr": [0], "indices": [], "data": []},
        "a long shape": {"shape": np.ones(10**6, int), "indptr": [0], "indices": [], "data": []},
    }
    monkeypatch.setattr(sp, "load_npz", None)
    for told, arrays in bombs.items():
        np.savez_compressed(tmp_path / "Y.trn.npz", format=b"csr", **arrays)
        with pytest.raises(ValueError, match="Y.trn.npz is not a sparse matrix.*(it holds|it has|its shape)"):
            read_truth(tmp_path / "Y.trn.npz", max_rows=1000)
        assert told


@pytest.mark.parametrize("moves", range(6))
def test_a_raw_folder_killed_between_two_moves_is_old_or_new_or_refused(toy, tmp_path, monkeypatch, moves):
    other = replace(toy, train=toy.train.select([1, 0, 2]), test=toy.test.select([1, 0]))
    save_lf(toy, tmp_path / "raw")
    left, whole = iter(range(moves)), Path.replace

    def killed(path: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return whole(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt) if moves < 5 else nullcontext():
        save_lf(other, tmp_path / "raw")
    monkeypatch.undo()
    if moves < 5:
        with pytest.raises(ValueError, match="lacks lbl.json.gz"):
            load_lf(tmp_path / "raw", cache_dir=tmp_path / "cache")
    (tmp_path / ".raw-of-999999999-x").mkdir()  # of a process that is no more
    save_lf(other, tmp_path / "raw")
    assert contents(load_lf(tmp_path / "raw", cache_dir=tmp_path / "cache")) == contents(other)
    assert len(list((tmp_path / "raw").iterdir())) == 5
    assert not list(tmp_path.glob(".raw-of-*")), "nothing of a killed call stays"


@pytest.fixture
def saved(toy, tmp_path) -> Path:
    toy.save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_saved_data_set_with_any_byte_changed_is_refused_by_the_file(saved, tmp_path, data):
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    folder = shutil.copytree(saved, tmp_path / "copy")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "remove", "add"] if content else ["remove", "add"]))
    if kind == "flip":
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    content = content[: data.draw(st.integers(0, len(content) - 1))] if kind == "cut" else content
    file.write_bytes(content + b"0" if kind == "add" else content)
    if kind == "remove":
        file.unlink()
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        XMCDataset.load_from_disk(folder)


def test_a_side_file_of_another_data_set_is_refused_by_its_name(toy, saved):
    from hf_xmc.data.storage import SIDE_FILES, read_side_files

    paths = {file: saved / file for file in SIDE_FILES}
    rows = {"train": len(toy.train), "test": len(toy.test)}
    assert read_side_files(paths, rows, 4)["propensity"] == toy.propensity
    with pytest.raises(ValueError, match="filter_labels_train.txt, line 1, field 'label': label 1 is out of range"):
        read_side_files(paths, rows, 1)
    for wrong in ("[" * 100_000, "[]", "{}", '{"format_version": "x"}', '{"format_version": 1, "name": "a"}'):
        paths["xmc_dataset.json"].write_text(wrong)
        with pytest.raises(ValueError, match="xmc_dataset.json is damaged"):
            read_side_files(paths, rows, 4)


def test_a_data_set_is_saved_over_an_older_one_in_one_step(toy, saved, monkeypatch):
    other = replace(toy, train=toy.train.select([1, 0, 2]))
    whole, left = Path.replace, iter(range(2))

    def killed(path: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return whole(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        other.save_to_disk(saved)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="holds no SHA256SUMS; expected a folder that save_to_disk wrote to its end"):
        XMCDataset.load_from_disk(saved)
    other.save_to_disk(saved)
    assert contents(XMCDataset.load_from_disk(saved)) == contents(other)


def test_a_save_that_fails_leaves_the_old_data_set(toy, saved, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        replace(toy, train=toy.train.select([1, 0, 2])).save_to_disk(saved)
    monkeypatch.undo()
    assert contents(XMCDataset.load_from_disk(saved)) == contents(toy)
