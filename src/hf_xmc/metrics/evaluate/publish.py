"""Publish the evaluate modules as Spaces of the Hub."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi

from hf_xmc.metrics.evaluate.cards import render_files


def module_folders() -> list[Path]:
    """The folder of each module, by name; a folder holds the script of its own name."""
    return sorted(script.parent for script in Path(__file__).parent.glob("*/xmc*.py"))


def write_space(folder: Path, out: Path) -> None:
    """Write all files of the Space of the module in ``folder`` into ``out``, an empty folder."""
    script = folder / f"{folder.name}.py"
    shutil.copy(script, out)
    for name, content in render_files(script).items():
        (out / name).write_text(content, encoding="utf8")


def publish(namespace: str, *, private: bool = False, token: str | None = None) -> list[str]:
    """Create or update one Space per module, so that ``evaluate.load("<namespace>/xmc_precision")`` works anywhere.

    Args:
        namespace: User or organization that owns the Spaces.
        private: Whether new Spaces are private.
        token: A write token; by default the one that is logged in.

    Returns:
        The repo ids.
    """
    api = HfApi(token=token)
    repo_ids = []
    for folder in module_folders():
        repo_id = f"{namespace}/{folder.name}"
        api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        with TemporaryDirectory() as out:
            write_space(folder, Path(out))
            message = f"{folder.name} of hf_xmc {version('hf_xmc')}"
            api.upload_folder(repo_id=repo_id, repo_type="space", folder_path=out, commit_message=message)
        repo_ids.append(repo_id)
    return repo_ids
