"""The layer rule: a module imports from lower layers, or from its own where that makes no cycle."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "hf_xmc"

LAYERS: dict[str, int] = {
    "data.dataset": 0,
    "data.catalog": 0,
    "data.splitting": 0,
    "data.columns": 0,
    "data.cooccurrence": 0,
    "data.storage": 0,
    "data.tables": 0,
    "data.report": 0,
    "data.tokens": 0,
    "data.lf_files": 0,
    "losses.functional": 0,
    "losses.triton_kernels": 0,
    "losses.blockwise": 0,
    "losses.streaming": 0,
    "losses.top_scores": 0,
    "classifier": 0,
    "optim": 0,
    "metrics.functional": 0,
    "metrics.inputs": 0,
    "metrics.ranking": 0,
    "metrics.judged": 0,
    "metrics.bootstrap": 0,
    "metrics.frequency": 0,
    "training_args": 0,
    "index_kinds": 0,
    "index_faiss": 0,
    "index_files": 0,
    "index": 0,
    "packing": 0,
    "pretrained": 0,
    "hub.pipeline_xmc": 0,
    "hub.memory_xmc": 0,
    "hub.search_xmc": 0,
    "hub.server_xmc": 0,
    "data": 1,
    "losses": 1,
    "metrics": 1,
    "hub": 1,
    "encoder": 1,
    "lora": 1,
    "memory": 1,
    "memory_fit": 1,
    "memory_evidence": 1,
    "memory_files": 1,
    "memory_form": 1,
    "memory_search": 1,
    "memory_votes": 1,
    "reliability": 0,
    "calibration": 1,
    "plots": 1,
    "recipe_config": 1,
    "recipe_encoder": 2,
    "baselines": 1,
    "static": 1,
    "mining": 2,
    "evaluation": 2,
    "retriever": 2,
    "retriever_answers": 2,
    "recipe_calibration": 3,
    "recipe_memory": 3,
    "row_lengths": 3,
    "retriever_files": 2,
    "prediction_files": 2,
    "ranking": 1,
    "run_record": 3,
    "trainer": 3,
    "pipeline": 3,
    "serving": 3,
    "serving_int8": 3,
    "": 4,
    "cli": 4,
}


def layer_of(module: str) -> int:
    """The layer of the longest listed prefix."""
    parts = module.split(".") if module else []
    while parts and ".".join(parts) not in LAYERS:
        parts.pop()
    return LAYERS[".".join(parts)]


def modules() -> dict[str, Path]:
    names = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def imports_of(file: Path, known: set[str], top_level_only: bool = False) -> set[str]:
    """Our own modules that a file imports, anywhere in it or at its top level only."""
    found = set()
    tree = ast.parse(file.read_text(encoding="utf8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_xmc":
            base = (node.module or "").removeprefix("hf_xmc").lstrip(".")
            for alias in (a for a in node.names if a.name != "__version__"):
                name = f"{base}.{alias.name}".lstrip(".")
                found.add(name if name in known else base)
        elif isinstance(node, ast.Import):
            found |= {
                a.name.removeprefix("hf_xmc").lstrip(".") for a in node.names if a.name.split(".")[0] == "hf_xmc"
            }
    return found


def test_every_module_has_a_layer() -> None:
    unknown = [name for name in modules() if name and name.split(".")[0] not in {k.split(".")[0] for k in LAYERS}]
    assert unknown == []


def test_no_module_imports_from_a_higher_layer() -> None:
    known = modules()
    assert len(known) > 15
    # Package files such as losses/__init__.py only gather names.
    wrong = [
        f"{name} (layer {layer_of(name)}) imports {other} (layer {layer_of(other)})"
        for name, file in known.items()
        if file.name != "__init__.py"
        for other in imports_of(file, set(known))
        if layer_of(other) > layer_of(name)
    ]
    assert wrong == []


def test_modules_import_each_other_without_a_cycle() -> None:
    known = modules()
    edges = {
        n: imports_of(f, set(known), top_level_only=True) & set(known) - {n}
        for n, f in known.items()
        if f.name != "__init__.py"
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join([*path, name])}"
        if name in done:
            return
        for other in edges.get(name, ()):
            visit(other, (*path, name))
        done.add(name)

    for name in edges:
        visit(name, ())
    assert len(done) > 15


def test_the_published_pipeline_imports_nothing_of_ours() -> None:
    assert imports_of(PACKAGE / "hub" / "pipeline_xmc.py", set(modules())) == set()


def test_recipes_import_public_names_only() -> None:
    recipes = sorted((ROOT / "recipes").glob("*.py"))
    assert recipes
    for recipe in recipes:
        for node in ast.walk(ast.parse(recipe.read_text(encoding="utf8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_xmc"):
                private = [a.name for a in node.names if a.name.startswith("_")]
                assert not private and "._" not in (node.module or ""), (
                    f"{recipe.name} imports {private or node.module}"
                )
