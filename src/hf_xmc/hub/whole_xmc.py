"""One save or none: files of a repo are put in place together, and what is read is of one save.

This file travels inside every published repo.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeVar

from .repo_xmc import INDEX_FILE, Files, digest_of

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
        digests = _digests(files)
        try:
            made = read()
        except (OSError, ValueError):
            if wait is None or _other(files, digests) is None:
                raise
        else:
            other = _other(files, digests)
            if other is None:
                return made
            if wait is None:
                raise ValueError(
                    f"{other} is not the file that was saved with the others: a save was cut off, or it changed; save "
                    f"the repo again, or delete {MANIFEST_FILE} if you changed the file yourself"
                )
        time.sleep(wait)
    raise AssertionError("the last wait is None")


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


def move_into(whole: Path, target: Path) -> None:
    """Move all files of a folder into another, whose other files stay.

    The manifest goes first: until the last file is in place it does not fit, and readers wait or refuse. Files are
    replaced, never cut short, so that they may be mapped by who wrote them.
    """
    files = sorted(file for file in whole.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file.name != MANIFEST_FILE):
        place = target / file.relative_to(whole)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)
