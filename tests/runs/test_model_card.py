"""The card of a run: true to its metrics.json, readable by the Hub's own classes, without a path of the machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load, parse_eval_result_entries
from toys import TINY

import hf_xmc
from hf_xmc.runs.baselines import tfidf_knn, tfidf_zero_shot
from hf_xmc.runs.model_card import write_model_card
from hf_xmc.runs.record import RunRecord


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: hf_xmc.XMCDataset) -> Path:
    folder = tmp_path_factory.mktemp("run")
    evaluator = hf_xmc.XMCEvaluator(tiny)
    record = RunRecord(
        {
            "encoder": "static",
            "hold_out": 0.1,
            "learning_rate": 0.01,
            "seed": 3,
            "data_dir": str(TINY),
            "push_to_hub": 0,
        }
    )
    record.describe(tiny, TINY)
    record.citations = ['\n@article{one,\n    title = "One",\n}\n']
    metrics = record.test("by words", evaluator, tfidf_zero_shot(tiny))
    record.test("by neighbors", evaluator, tfidf_knn(tiny))
    record.write(folder / "metrics.json", metrics)
    write_model_card(folder, "TF-IDF", repo_id="me/books", licence="mit")
    return folder


def test_the_metadata_is_read_back_with_the_metrics_of_the_run(run: Path) -> None:
    data = ModelCard.load(run / "README.md").data
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert (data.license, data.library_name, data.datasets) == ("mit", "sentence-transformers", [TINY.name])
    assert "xmc-retrieval" in data.tags and data.base_model is None
    read = {result.metric_type: result.metric_value for result in data.eval_results}
    assert len(read) == 9 and read == {name: pytest.approx(metrics[name], abs=5e-5) for name in read}
    assert {r.dataset_split for r in data.eval_results} == {"test"}
    assert "model-index" in metadata_load(run / "README.md")

    entries = parse_eval_result_entries(yaml.safe_load((run / ".eval_results" / f"{TINY.name}.yaml").read_text()))
    assert {e.task_id: e.value for e in entries} == {name.replace("@", "_at_"): value for name, value in read.items()}
    assert all(e.dataset_id == TINY.name for e in entries)


def test_the_text_shows_results_pictures_settings_and_how_to_use(run: Path) -> None:
    text = (run / "README.md").read_text()
    tests = json.loads((run / "metrics.json").read_text())["tests"]
    value, low, high = (f"{100 * v:.2f}" for v in tests["by words"]["metrics"]["precision@1"])
    assert f"| by words | {value} [{low}, {high}] |" in text and "| by neighbors |" in text
    assert "![Head to tail](head_to_tail.png)" in text and (run / "head_to_tail.png").read_bytes()[:4] == b"\x89PNG"
    assert "| learning_rate | 0.01 |" in text and "push_to_hub" not in text and str(TINY) not in text
    assert "public domain" in text and "@article{one," in text and "Reliability" not in text
    assert "a held-out part of train" in text and "{{" not in text and "None" not in text
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, "card", "exec")
    for door in ("pipeline(", "SentenceTransformer(", "XMCEncoder(", "AutoModel.", "Retriever."):
        assert f'{door}from_pretrained("me/books"' in text or f'{door}"' in text


def test_a_reliability_picture_in_the_folder_is_shown(run: Path) -> None:
    (run / "reliability.png").write_bytes((run / "head_to_tail.png").read_bytes())
    card = write_model_card(run, "TF-IDF")
    assert "![Reliability](reliability.png)" in card.text and "no probabilities" not in card.text
    (run / "reliability.png").unlink()


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no metrics.json"):
        write_model_card(tmp_path, "x")
    (tmp_path / "metrics.json").write_text('{"metrics": {}}')
    with pytest.raises(ValueError, match="no results of the test split"):
        write_model_card(tmp_path, "x")


EVIL = [
    "x: y\n---\nlicense: mit",
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "<javascript:alert(1)>",
    "![x](http://example.org/x.png)",
    "# A heading",
    "a | b | c",
    "```\nimport os\n```",
    "../../outside",
    "/absolute/path",
    "a/b",
    "{{ 7 * 7 }}",
    "- item\n\n## Heading",
]


@pytest.mark.parametrize("evil", EVIL)
def test_names_and_texts_of_a_run_are_shown_and_do_nothing(evil: str, run: Path, tmp_path: Path) -> None:
    """In the name of the data set, its texts, lines of the results, settings, notes, method and licence."""
    record = json.loads((run / "metrics.json").read_text())
    record["data"] |= {"name": evil, "example": evil, "source": evil, "licence": evil}
    record["tests"] = {evil if line == "by words" else line: test for line, test in record["tests"].items()}
    record["all_metrics"] = {evil if line == "by words" else line: m for line, m in record["all_metrics"].items()}
    record |= {"notes": [evil], "hardware": evil, "citations": [evil]}
    record["config"] |= {"encoder": "static", "labels": evil, evil: "value"}
    folder = tmp_path / "card" / "inner"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(record))
    write_model_card(folder, evil, licence="mit")
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert all(path.parts[:2] == ("card", "inner") for path in written) and len(written) == 4
    assert not Path("/absolute").exists()
    data = ModelCard.load(folder / "README.md").data
    assert data.license == "mit" and data.datasets == [" ".join(evil.split())]
    body = (folder / "README.md").read_text().split("\n---\n", 1)[1]
    outside = re.sub(r"```\w*\n.*?\n```", "", body, flags=re.DOTALL)
    assert (
        "<script" not in outside and "<javascript" not in outside and "](javascript" not in outside.replace("\\]", "")
    )
    assert "](http://example" not in outside.replace("\\]", "") and "import os\n" not in outside
    assert [line for line in outside.splitlines() if line.startswith("## ")] == [
        "## Use", "## Results", "## Training", "## Limits", "## Licence", "## Citation",
    ]  # fmt: skip
    titles = [line for line in outside.splitlines() if line.startswith("# ")]
    assert len(titles) == 1 and outside.count("- # ") == 0
    rows = [line for line in outside.splitlines() if line.startswith("| ") and " [" in line]
    assert rows and all(len(re.findall(r"(?<!\\)\|", line)) == 11 for line in rows)
    for block in re.findall(r"```python\n(.*?)\n```$", body, re.DOTALL | re.MULTILINE):
        compile(block, "card", "exec")


def test_a_name_that_no_repo_can_have_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="Repo id must"):
        write_model_card(run, "x", repo_id='me/books"); import os; ("')
