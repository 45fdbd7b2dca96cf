"""The rule of the folders: what a module imports stands in its own folder or in one before it, without a cycle."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "hf_xmc"

# A module imports from its own folder and from those before it.
ORDER = (
    "distributed",
    "hub",
    "data",
    "metrics",
    "encoders",
    "index",
    "memory",
    "ranker",
    "evaluation",
    "losses",
    "training",
    "retriever",
    "serving",
    "runs",
    "cli",
    "",
)


def place_of(module: str) -> int:
    return ORDER.index(module.split(".")[0])


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


def test_every_folder_has_its_place() -> None:
    assert {name.split(".")[0] for name in modules()} == set(ORDER)


def test_no_module_imports_from_a_later_folder() -> None:
    known = modules()
    assert len(known) > 15
    wrong = [
        f"{name} imports {other}"
        for name, file in known.items()
        for other in imports_of(file, set(known))
        if place_of(other) > place_of(name)
    ]
    assert wrong == []


def test_folders_are_small() -> None:
    """Sixteen entries at the root, about ten in a folder, no file past one reading."""
    for folder in [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__")]:
        entries = [path.name for path in folder.iterdir() if path.name not in ("__pycache__", "__init__.py")]
        most = {PACKAGE: 16, PACKAGE / "hub": 13}.get(folder, 11)  # of hub/ all files lie beside each other in a repo
        assert len(entries) <= most, f"{folder.name} has {len(entries)} entries"
    long = {name: count for name, file in modules().items() if (count := len(file.read_text().splitlines())) > 400}
    assert long == {}


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


def test_what_travels_imports_nothing_of_ours() -> None:
    files = sorted((PACKAGE / "hub").glob("*_xmc.py"))
    assert files
    for file in files:
        assert imports_of(file, set(modules())) == set(), file.name


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
