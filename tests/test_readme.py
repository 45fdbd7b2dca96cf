"""The README's Python blocks, run in order, in a folder where the quickstart has been."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

import hf_xmc

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_every_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: hf_xmc.XMCDataset) -> None:
    assert len(BLOCKS) >= 2
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    encoder = hf_xmc.XMCEncoder(modules=[StaticEmbedding(*hf_xmc.wordllama_embedding())], device="cpu")
    hf_xmc.Retriever.build(encoder, tiny.labels["text"]).save_pretrained(tmp_path / "outputs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert isinstance(names["retriever"], hf_xmc.Retriever)
    assert names["metrics"]["precision@1"] > 0.25


def test_the_two_commands_stand_in_the_readme_and_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf8")
    for target in ("quickstart", "test"):
        assert f"make {target}" in README and re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_public_name_is_documented() -> None:
    documented = [hf_xmc, hf_xmc.losses, hf_xmc.metrics]
    missing = [
        f"{module.__name__}.{name}"
        for module in documented
        for name in module.__all__
        if not (getattr(module, name).__doc__ or "").strip()
    ]
    assert missing == []
