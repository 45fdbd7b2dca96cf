"""Cards in model_cards/ are copies of what runs wrote, readable by the Hub's own class."""

from __future__ import annotations

import json
from pathlib import Path

import cards
import pytest
from huggingface_hub import ModelCard


def test_a_card_and_its_pictures_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "CARDS", tmp_path / "cards")
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ValueError, match="has no README.md and metrics.json"):
        cards.main([str(run)])
    (run / "README.md").write_text("a card")
    (run / "head_to_tail.png").write_bytes(b"a picture")
    (run / "model.safetensors").write_bytes(b"weights")
    record = {"command": ["recipes/dexml.py"], "data": {"name": "books"}, "config": {"encoder": "some/encoder"}}
    (run / "metrics.json").write_text(json.dumps(record))
    folder = cards.main([str(run)])
    assert folder == tmp_path / "cards" / "books-dexml-encoder"
    assert {f.name: f.read_text() for f in folder.iterdir()} == {
        "README.md": "a card",
        "head_to_tail.png": "a picture",
    }
    assert cards.main([str(run), "mine"]).name == "mine"


def test_committed_cards_are_read_with_results_and_have_their_pictures() -> None:
    committed = sorted(cards.CARDS.glob("*/README.md"))
    assert committed
    for file in committed:
        card = ModelCard.load(file)
        assert card.data.eval_results and "xmc-retrieval" in card.data.tags, file.parent.name
        assert (file.parent / "head_to_tail.png").is_file(), file.parent.name
        assert "/home/" not in card.content and "/tmp" not in card.content
