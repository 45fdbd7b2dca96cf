"""Each evaluate module loads from its folder with no network, equals `xmc_metrics`, and is published whole."""

from __future__ import annotations

import json
import re
import runpy
import sys
import types
from pathlib import Path

import evaluate
import numpy as np
import pytest

from hf_xmc.metrics.evaluate import publish, space
from hf_xmc.metrics.functional import inverse_propensities, xmc_metrics

FOLDERS = publish.module_folders()
PREDICTIONS = [[2, 1, 0], [1, 4], [0, 1, 2], [5]]
PADDED = [[2, 1, 0], [1, 4, -1], [0, 1, 2], [5, -1, -1]]
REFERENCES = [[0, 2], [1], [], [0, 3, 5]]
TRAIN = [[0, 1], [0, 2], [0, 3], [5, 4]]
METRICS = {
    "xmc": {"precision", "ndcg", "recall", "psp", "psndcg", "coverage", "macro_f1"},
    "xmc_coverage": {"coverage"},
    "xmc_ndcg": {"ndcg"},
    "xmc_precision": {"precision"},
    "xmc_psp": {"psp", "psndcg"},
    "xmc_recall": {"recall"},
}


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def folder(request):
    return request.param


@pytest.fixture
def published(folder, tmp_path):
    """What the Space of a module holds, in a folder of the module's name."""
    out = tmp_path / folder.name
    out.mkdir()
    publish.write_space(folder, out)
    return out


def test_every_module_has_a_folder():
    assert [folder.name for folder in FOLDERS] == sorted(METRICS)


def test_a_module_returns_its_metrics_from_ragged_padded_and_array_predictions(folder):
    module = evaluate.load(str(folder))
    q = inverse_propensities(TRAIN, 0.55, 1.5)
    everything = xmc_metrics(PREDICTIONS, REFERENCES, (1, 2, 5), q)
    expected = {key: value for key, value in everything.items() if key.split("@")[0] in METRICS[folder.name]}
    assert len(expected) == 3 * len(METRICS[folder.name])
    options = {"k": (1, 2, 5), "inverse_propensities": q}
    for predictions in (PREDICTIONS, PADDED, np.array(PADDED)):
        assert module.compute(predictions=predictions, references=REFERENCES, **options) == pytest.approx(expected)
    trained = {"k": (1, 2, 5), "train_references": TRAIN, "a": 0.55, "b": 1.5}
    assert module.compute(predictions=PREDICTIONS, references=REFERENCES, **trained) == pytest.approx(expected)
    for start in (0, 2):
        module.add_batch(predictions=PREDICTIONS[start : start + 2], references=REFERENCES[start : start + 2])
    assert module.compute(**options) == pytest.approx(expected)


def test_modules_combine():
    both = evaluate.combine([str(folder) for folder in FOLDERS if folder.name in ("xmc_precision", "xmc_recall")])
    values = both.compute(predictions=PREDICTIONS, references=REFERENCES, k=1)
    assert values == {"precision@1": 0.75, "recall@1": pytest.approx(0.458333, abs=1e-6)}


def test_options_reach_the_metrics():
    module = evaluate.load(str(next(folder for folder in FOLDERS if folder.name == "xmc")))
    options = {"k": 1, "num_labels": 60, "skip_empty": True}
    values = module.compute(predictions=PREDICTIONS, references=REFERENCES, **options)
    assert values == xmc_metrics(PREDICTIONS, REFERENCES, **options)
    assert "psp@1" not in values and values["macro_f1@1"] == pytest.approx(3 / 60)


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "inverse propensities are missing"), ({"train_references": TRAIN, "a": 0.5}, "a=0.5, b=None")],
)
def test_psp_says_what_it_lacks(options, message):
    module = evaluate.load(str(next(folder for folder in FOLDERS if folder.name == "xmc_psp")))
    with pytest.raises(ValueError, match=message):
        module.compute(predictions=PREDICTIONS, references=REFERENCES, **options)


def test_the_code_of_a_card_runs(published, monkeypatch):
    card = (published / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert "assert " in code
    monkeypatch.chdir(published.parent)
    exec(compile(code, f"{published.name}/README.md", "exec"), {})


def test_a_card_and_its_page_are_those_of_a_metric_space(folder, published, monkeypatch):
    front = (published / "README.md").read_text(encoding="utf-8").split("---")[1]
    assert f"title: {folder.name}\n" in front and "sdk: gradio\n" in front
    assert "tags:\n- evaluate\n- metric\n" in front
    assert "hf_xmc" in (published / "requirements.txt").read_text()
    built = {}

    class Interface:
        def __init__(self, **options):
            built.update(options)

        def launch(self):
            built["launched"] = True

    class Error(Exception):
        pass

    box = lambda **options: options  # noqa: E731
    stub = types.SimpleNamespace(Interface=Interface, Error=Error, Textbox=box, JSON=box)
    monkeypatch.setitem(sys.modules, "gradio", stub)
    runpy.run_path(str(published / "app.py"), run_name="__main__")
    assert built["launched"] and built["title"] == folder.name
    values = built["fn"](*(each["value"] for each in built["inputs"]))
    assert {key.split("@")[0] for key in values} == METRICS[folder.name]
    with pytest.raises(Error, match="k is 0"):
        built["fn"]("[[0]]", "[[0]]", '{"k": 0, "inverse_propensities": [1]}')


def test_a_space_runs_in_a_folder_of_another_name(folder, tmp_path):
    script = tmp_path / "app" / f"{folder.name}.py"
    script.parent.mkdir()
    script.write_bytes((folder / script.name).read_bytes())
    values = space.answer(space.load_module(script.parent), "[[0]]", "[[0]]", '{"k": 1, "inverse_propensities": [2]}')
    assert set(values.values()) == {1.0}


def test_publish_makes_one_space_per_module_with_all_its_files(monkeypatch):
    calls = []

    class Api:
        def __init__(self, token):
            assert token == "secret"

        def create_repo(self, repo_id, **options):
            calls.append(("create", repo_id, options))

        def upload_folder(self, repo_id, folder_path, **options):
            calls.append(("upload", repo_id, options | {"files": {path.name for path in Path(folder_path).iterdir()}}))

    monkeypatch.setattr(publish, "HfApi", Api)
    names = [f"someone/{name}" for name in sorted(METRICS)]
    assert publish.publish("someone", private=True, token="secret") == names
    assert [call[:2] for call in calls] == [(verb, name) for name in names for verb in ("create", "upload")]
    for verb, name, options in calls:
        assert options["repo_type"] == "space"
        if verb == "create":
            assert options["space_sdk"] == "gradio" and options["private"] and options["exist_ok"]
        else:
            script = name.split("/")[1] + ".py"
            assert options["files"] == {script, "app.py", "README.md", "requirements.txt"}


PUBLISH_AND_LOAD = """
import json, sys
import evaluate
from hf_xmc.metrics.evaluate import publish
data, options = json.loads(sys.argv[1]), json.loads(sys.argv[2])
names = publish.publish("user")
print(json.dumps({name: evaluate.load(name).compute(**data, **options) for name in names}))
"""


def test_spaces_published_over_http_are_loaded_by_name(fake_hub):
    data = {"predictions": PREDICTIONS, "references": REFERENCES}
    options = {"k": [1, 2, 5], "train_references": TRAIN, "a": 0.55, "b": 1.5}
    values = json.loads(fake_hub.run(PUBLISH_AND_LOAD, json.dumps(data), json.dumps(options)).splitlines()[-1])
    assert values.keys() == {f"user/{name}" for name in METRICS}
    everything = xmc_metrics(PREDICTIONS, REFERENCES, (1, 2, 5), inverse_propensities(TRAIN, 0.55, 1.5))
    for name, metrics in METRICS.items():
        expected = {key: value for key, value in everything.items() if key.split("@")[0] in metrics}
        assert values[f"user/{name}"] == pytest.approx(expected)
        files = fake_hub.files(f"user/{name}", "space")
        assert {f"{name}.py", "app.py", "README.md", "requirements.txt"} <= set(files)
