"""What a run tells about itself, without secrets and without the folders of the machine it ran on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

HIDDEN = "<hidden>"
_CLONE = Path(__file__).resolve().parents[3]
_SECRET_NAMES = re.compile(r"(^|_)(token|secret|password|passwd|credentials?|api_key|access_key|secret_key)$", re.I)
_SECRETS = re.compile(
    r"\bhf_[A-Za-z0-9]{8,}|\bapi_org_[A-Za-z0-9]{8,}|\bgh[opsur]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\bsk-[\w-]{16,}|\bAKIA[0-9A-Z]{16}\b|\bxox[abeoprs]-[\w-]{10,}|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"
    r"|(?<=://)[^\s/@]+:[^\s/@]+(?=@)"
)
_PATHS = re.compile(
    r"""(?<![\w.:/~<>&?=%#-])(?:file://)?(?:~[\w.-]*(?=/)|(?=/\w)|[A-Za-z]:(?=[\\/])|\\\\(?=\w))[^\s"'`,;|<>(){}\[\]]*"""
    r"""|(?<==)(?:~[\w.-]*/|/\w|[A-Za-z]:[\\/])[^\s"'`,;|<>(){}\[\]]*"""
)


def portable(value: Any, name: str = "") -> Any:
    """A value of JSON, strings in it without tokens or absolute paths; of a path the end is kept.

    Args:
        value: A string, number, list or mapping.
        name: What it is the value of; that of a token is hidden, whatever it looks like.
    """
    if isinstance(value, str) and value and _SECRET_NAMES.search(name):
        return HIDDEN
    if isinstance(value, str | Path):
        return _portable_text(str(value))
    if isinstance(value, Mapping):
        return {portable(str(key)): portable(each, str(key)) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [portable(each, name) for each in value]
    return value


def portable_command(words: Sequence[str]) -> list[str]:
    """The words of a command line, ``name=value`` and ``--name value`` by the name."""
    told, flag = [], ""
    for word in words:
        name, equals, value = word.partition("=")
        if equals and re.fullmatch(r"-{0,2}\w+", name):
            told.append(f"{name}={portable(value, name.lstrip('-'))}")
        else:
            told.append(portable(word, flag))
        flag = word.lstrip("-") if word.startswith("-") and not equals else ""
    return told


def _portable_text(text: str) -> str:
    text = _SECRETS.sub(HIDDEN, text)
    if "\n" not in text and _is_absolute(text):
        return _short(text)
    return _PATHS.sub(lambda found: _short(found.group()), text)


def _is_absolute(text: str) -> bool:
    return bool(re.match(r"(file://)?(~[\w.-]*/|/\w|[A-Za-z]:[\\/]|\\\\\w)", text))


def _short(path: str) -> str:
    """Relative to the folder the run was started in, or to the clone, where it is below; else its last part."""
    path = path.removeprefix("file://")
    if "\\" in path or re.match("[A-Za-z]:", path):
        return PureWindowsPath(path).name
    found = Path(path)
    for root in (Path.cwd(), _CLONE):
        if found.is_relative_to(root) and found != root:
            return found.relative_to(root).as_posix()
    return found.name
