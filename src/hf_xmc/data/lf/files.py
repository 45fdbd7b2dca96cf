"""Where the raw files of a data set lie: in a folder, in an archive or on the Hub, under any of the names in use."""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import datasets
from huggingface_hub import hf_hub_download, snapshot_download

from hf_xmc.data.catalog import Benchmark

ARCHIVE_SUFFIXES = (".zip", ".tar.gz", ".tgz", ".tar")

# What each role may be called; the first name is the one an error asks for.
_JSON_NAMES = {
    "train": ("trn.json.gz", "trn.json"),
    "test": ("tst.json.gz", "tst.json"),
    "labels": ("lbl.json.gz", "lbl.json"),
}
_TEXT_NAMES = {
    "train": ("trn_X.txt", "X.trn.txt"),
    "test": ("tst_X.txt", "X.tst.txt"),
    "labels": ("Y.txt", "output-items.txt"),
    "train truth": ("trn_X_Y.txt", "Y.trn.npz"),
    "test truth": ("tst_X_Y.txt", "Y.tst.npz"),
}
_FILTER_NAMES = {
    "train": ("filter_labels_train.txt", "trn_filter_labels.txt"),
    "test": ("filter_labels_test.txt", "tst_filter_labels.txt"),
}
_ALL_NAMES = {
    name + suffix
    for names in (_JSON_NAMES, _TEXT_NAMES, _FILTER_NAMES)
    for options in names.values()
    for name in options
    for suffix in ("", ".gz")
}


@dataclass(frozen=True)
class LFFiles:
    """The files of one data set: each split and the labels as (file,) or (texts, truth); filter files or None."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]
    labels: tuple[Path, ...]
    filters: dict[str, Path | None]


def find_files(folder: Path, benchmark: Benchmark | None = None) -> LFFiles:
    """The raw files in ``folder`` or in its sub-folder ``raw``, in the format of which more are there.

    Raises:
        ValueError: If files are missing; says where the set is published if ``benchmark`` is given.
    """
    found = max((_found(folder, names) for names in (_JSON_NAMES, _TEXT_NAMES)), key=_completeness)
    filters = _found(folder, _FILTER_NAMES)
    missing = [role for role, path in found.items() if path is None]
    names = _JSON_NAMES if found.keys() == _JSON_NAMES.keys() else _TEXT_NAMES
    if not missing and benchmark and benchmark.has_filters:
        names, missing = _FILTER_NAMES, [split for split, path in filters.items() if path is None]
    if missing:
        raise _missing(folder, [names[role][0] for role in missing], benchmark)
    parts = {
        role: tuple(path for name, path in found.items() if path and name.startswith(role)) for role in _JSON_NAMES
    }
    return LFFiles(**parts, filters=filters)


def _found(folder: Path, names: Mapping[str, tuple[str, ...]]) -> dict[str, Path | None]:
    """Role -> file, None where there is none."""
    return {role: _first_existing(folder, options) for role, options in names.items()}


def _completeness(found: dict[str, Path | None]) -> tuple[bool, int]:
    return None not in found.values(), sum(path is not None for path in found.values())


def _first_existing(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((path for name in names for path in _places(folder, name) if path.is_file()), None)


def _places(folder: Path, name: str) -> Iterator[Path]:
    for parent in (folder, folder / "raw"):
        yield parent / name
        yield parent / f"{name}.gz"


def _missing(folder: Path, names: list[str], benchmark: Benchmark | None) -> ValueError:
    told = f"{folder} lacks {', '.join(names)}"
    if benchmark:
        files = ", ".join(benchmark.files)
        return ValueError(f"{told}. {benchmark.published_as} is published at {benchmark.url}: {files}")
    return ValueError(
        f"{told}. A data set is {', '.join(names[0] for names in _JSON_NAMES.values())}, or "
        f"{', '.join(names[0] for names in _TEXT_NAMES.values())}; filter files are optional"
    )


def locate(source: str | Path, cache_dir: str | Path | None = None, benchmark: Benchmark | None = None) -> Path:
    """The folder with the raw files of a folder, an archive (unpacked into the cache once) or a Hub data set id."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _inner_folder(path)
    if path.is_file() and path.name.endswith(ARCHIVE_SUFFIXES):
        cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser()
        return _inner_folder(_unpack(path, cache / "hf_xmc_unpacked"))
    if path.exists():
        raise ValueError(f"{path} is neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)})")
    if not is_hub_id(source):
        published = f". {benchmark.published_as} is published at {benchmark.url}" if benchmark else ""
        raise ValueError(
            f"{source} does not exist; expected a folder, an archive or a Hub id like 'user/name'{published}"
        )
    patterns = [f"{prefix}{name}" for name in sorted(_ALL_NAMES) for prefix in ("", "*/")]
    try:
        return _inner_folder(Path(snapshot_download(str(source), repo_type="dataset", allow_patterns=patterns)))
    except OSError as error:
        raise ValueError(f"{source} is not on this disk, and cannot be had from the Hub: {error}") from error


def is_hub_id(source: str | Path) -> bool:
    """Whether ``source`` can only be the id of a Hub repo: nothing on this disk, and of the form user/name."""
    return (
        isinstance(source, str) and not Path(source).exists() and bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source))
    )


def is_on_hub(repo_id: str, file: str) -> bool:
    """Whether a Hub data set, or the copy of it in the cache, has a file; False if the repo cannot be reached."""
    try:
        hf_hub_download(repo_id, file, repo_type="dataset")
    except OSError:  # every error of the Hub is one
        return False
    return True


def _inner_folder(folder: Path) -> Path:
    """The first folder on the way down that holds more than one sub-folder."""
    children = [child for child in folder.iterdir() if not child.name.startswith((".", "__"))]
    if len(children) == 1 and children[0].is_dir() and children[0].name != "raw":
        return _inner_folder(children[0])
    return folder


def _unpack(archive: Path, cache: Path) -> Path:
    """Unpack the files known here, again only if the archive changed; a damaged archive leaves nothing behind."""
    stat = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    target = cache / key
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    half_made = Path(tempfile.mkdtemp(dir=cache))
    try:
        for name, file in _members(archive):
            place = half_made.joinpath(*(part for part in PurePosixPath(name).parts if part not in ("/", "..")))
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as copy:
                shutil.copyfileobj(file, copy)
        try:
            half_made.rename(target)
        except OSError:
            if not target.is_dir():  # unless another process was faster
                raise
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        RuntimeError,
    ) as error:
        raise ValueError(f"{archive} is damaged or cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(half_made, ignore_errors=True)
    return target


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                if PurePosixPath(name).name in _ALL_NAMES:
                    with packed.open(name) as file:
                        yield name, file
    else:
        with tarfile.open(archive) as tar:
            for member in tar:
                if PurePosixPath(member.name).name not in _ALL_NAMES or member.isdir():
                    continue
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise tarfile.TarError(f"{member.name} is a link or a device; expected a file")
                yield member.name, content
