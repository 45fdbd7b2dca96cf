"""One save or none: files of a repo are put in place together, and what is read is of one save.

This file travels inside every published repo.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeVar

from .repo_xmc import INDEX_FILE, Files, Folder, digest_of

MANIFEST_FILE = "xmc_files.json"
# Seconds that a reader waits for a save that is under way.
_WAITS = (0.05, 0.2, 0.5)
T = TypeVar("T")


def write_manifest(folder: Path, names: list[str]) -> None:
    """Write down the digests of the files that must be of one save."""
    digests = {name: digest_of(folder / name) for name in names if (folder / name).is_file()}
    (folder / MANIFEST_FILE).write_text(json.dumps({"format_version": 1, "files": digests}, indent=2), "utf8")


def read_whole(files: Files, read: Callable[[], T]) -> T:
    """What ``read`` makes of the files, all of one save; of a repo without a manifest whatever is there.

    Raises:
        ValueError: If the files are of different saves, and stay so; or whatever ``read`` raises of damaged ones.
    """
    for wait in (*_WAITS, None):
        digests, failed = _digests(files), None
        before = _stamps(files, digests)
        try:
            made = read()
        except (OSError, ValueError) as error:
            failed = error
        other = _other(files, digests)
        if other is None and _stamps(files, digests) == before:
            if failed is not None:
                raise failed
            return made
        if wait is None:
            raise ValueError(
                (f"{failed}; " if failed is not None else "")
                + f"{other or MANIFEST_FILE} is not the file that was saved with the others: a save was cut off, or "
                f"it changed; save the repo again, or delete {MANIFEST_FILE} if you changed the file yourself"
            ) from failed
        time.sleep(wait)
    raise AssertionError("the last wait is None")


def _stamps(files: Files, digests: dict[str, str]) -> list[tuple[int, ...] | None]:
    """What is another number after a file was replaced, also by one of the same content."""
    stamps: list[tuple[int, ...] | None] = []
    for name in (MANIFEST_FILE, *digests):
        try:
            stat = os.stat(files(name) or "")
            stamps.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except OSError:
            stamps.append(None)
    return stamps


def _digests(files: Files) -> dict[str, str]:
    path = files(MANIFEST_FILE)
    if path is None:
        return {}
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf8"))["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); save the repo again") from error


def _other(files: Files, digests: dict[str, str]) -> str | None:
    """A file that is not the one of the digests."""
    for name, digest in digests.items():
        path = files(name)
        if path is None and PurePosixPath(name).stem == PurePosixPath(INDEX_FILE).stem:
            continue  # it is made anew
        try:
            if path is None or digest_of(Path(path)) != digest:
                return name
        except OSError:
            return name
    return None


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """An empty folder on the same disk, removed at the end; those of processes that were killed are removed too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_left(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{scratch_name(path)}-") as scratch:
        yield Path(scratch)


def scratch_name(path: Path) -> str:
    """The name under which this process writes a file or folder before it is put in place."""
    return f".{path.name}-of-{os.getpid()}"


def clear_left(path: Path) -> None:
    """Remove what processes that were killed left of a file or folder under :func:`scratch_name`."""
    for left in path.parent.glob(f".{path.name}-of-*"):
        pid = left.name.rpartition("-of-")[2].partition("-")[0]
        try:
            os.kill(int(pid), 0)
        except (ValueError, ProcessLookupError):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        except OSError:  # a process of somebody else
            continue


def move_into(whole: Path, target: Path, stale: Iterable[str] = ()) -> None:
    """Move all files of a folder into another, whose other files stay, but for those named ``stale``.

    The manifest goes first and the files that it lists last: until all are in place it does not fit, and readers wait
    or refuse. Files are replaced, never cut short, so that they may be mapped by who wrote them.
    """
    listed = _digests(Folder(whole))
    names = sorted(file.relative_to(whole).as_posix() for file in whole.rglob("*") if file.is_file())
    first = [name for name in names if name not in listed]
    for name in sorted(first, key=lambda name: name != MANIFEST_FILE):
        _move(whole, target, name)
    for name in stale:
        if (target / name).is_dir():
            shutil.rmtree(target / name)
        else:
            (target / name).unlink(missing_ok=True)
    for name in names:
        if name in listed:
            _move(whole, target, name)


def _move(whole: Path, target: Path, name: str) -> None:
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    os.replace(whole / name, target / name)
