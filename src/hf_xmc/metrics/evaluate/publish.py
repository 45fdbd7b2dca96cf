"""Publish the evaluate modules as Spaces of the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from hf_xmc import __version__


def module_folders() -> list[Path]:
    """The folder of each module, by name; a folder holds the script of its own name."""
    return sorted(script.parent for script in Path(__file__).parent.glob("*/xmc*.py"))


def publish(namespace: str, *, private: bool = False, token: str | None = None) -> list[str]:
    """
    Create or update one Space per module, so that `evaluate.load("<namespace>/xmc_precision")` works anywhere.

    Args:
        namespace: user or organisation that owns the Spaces.
        private: whether new Spaces are private.
        token: a write token; by default the one that is logged in.

    Returns:
        The repo ids.
    """
    api = HfApi(token=token)
    repo_ids = []
    for folder in module_folders():
        repo_id = f"{namespace}/{folder.name}"
        api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="space",
            folder_path=folder,
            ignore_patterns=["__pycache__/*", "*.pyc"],
            commit_message=f"{folder.name} of hf_xmc {__version__}",
        )
        repo_ids.append(repo_id)
    return repo_ids
