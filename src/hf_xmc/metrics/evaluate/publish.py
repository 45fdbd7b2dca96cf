"""Publish the evaluate modules as Spaces of the Hub: each is its script, and a card and a page rendered here."""

from __future__ import annotations

import ast
import shutil
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from huggingface_hub import HfApi

HERE = Path(__file__).parent
PAGE = '''"""The page of this Space."""

from __future__ import annotations

from pathlib import Path

from hf_xmc.metrics.evaluate.space import build_page

build_page(Path(__file__).parent).launch()
'''


def module_folders() -> list[Path]:
    """The folder of each module, by name; a folder holds the script of its own name."""
    return sorted(script.parent for script in HERE.glob("*/xmc*.py"))


def write_space(folder: Path, out: Path) -> None:
    """Write all files of the Space of the module in ``folder`` into ``out``, an empty folder."""
    name, script = folder.name, folder / f"{folder.name}.py"
    shutil.copy(script, out)
    summary = ast.get_docstring(ast.parse(script.read_text(encoding="utf8")))
    template = (HERE / "card_template.md").read_text(encoding="utf8")
    said = yaml.safe_load((HERE / "cards.yaml").read_text(encoding="utf8"))[name]
    (out / "README.md").write_text(template.format(name=name, summary=summary, **said), encoding="utf8")
    (out / "app.py").write_text(PAGE, encoding="utf8")
    (out / "requirements.txt").write_text("hf_xmc[evaluate]\n", encoding="utf8")


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
