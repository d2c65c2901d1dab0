"""Who may import whom, by the design's one direction."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from parsing import parse

PACKAGE = Path(__file__).resolve().parent.parent / "fashion_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
GROUND = {
    "fashion_jax.cielab",
    "fashion_jax.errors",
    "fashion_jax.files",
    "fashion_jax.config",
    "fashion_jax.config_augmentation",
    "fashion_jax.config_fitted",
    "fashion_jax.config_values",
    "fashion_jax.cores",
    "fashion_jax.downloads",
    "fashion_jax.pictures",
    "fashion_jax.progress",
    "fashion_jax.runtime",
}

# Folder -> what else of the package its modules may import, besides themselves and the ground.
ALLOWED = {
    "data": (),
    "models": (),
    "training": ("fashion_jax.data", "fashion_jax.models"),
    "evaluation": (
        "fashion_jax.data", "fashion_jax.models", "fashion_jax.training.step", "fashion_jax.training.sharding",
    ),
    "search": ("fashion_jax.data", "fashion_jax.models", "fashion_jax.serving", "fashion_jax.evaluation.metrics"),
    "serving": ("fashion_jax.data", "fashion_jax.models", "fashion_jax.evaluation.metrics"),
}  # fmt: skip
ALONE = {"scann": "search/scann.py", "pymilvus": "search/milvus.py", "ray": "search/embed.py", "torch": ""}


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            # `from fashion_jax import files` imports a module, `from fashion_jax.files import x` a name.
            found += [f"fashion_jax.{a.name}" for a in node.names] if node.module == "fashion_jax" else [node.module]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_keep_their_direction(path):
    folder = path.relative_to(PACKAGE).parts[0]
    for name in imports(path):
        top = name.split(".")[0]
        if top in ALONE:
            assert str(path.relative_to(PACKAGE)) == ALONE[top], f"{path} imports {top}"
        if top == "fashion_jax" and folder in ALLOWED and name not in GROUND:
            own = f"fashion_jax.{folder}"
            assert name.startswith((own, *ALLOWED[folder])), f"{path} imports {name}"
        if path.name in ("errors.py", "files.py") or (
            path.name.startswith("config") and path.name != "config_files.py"
        ):
            assert top in (*sys.stdlib_module_names, "fashion_jax"), f"{path} imports {name}"
            assert top != "fashion_jax" or name in (
                "fashion_jax.errors",
                "fashion_jax.config_augmentation",
                "fashion_jax.config_fitted",
                "fashion_jax.config_values",
            )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_small_and_well_named(path):
    assert len(path.read_text().splitlines()) <= 330
    assert path.stem not in ("utils", "helpers", "common", "misc")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_things_have_docstrings(path):
    tree = parse(path)
    if not tree.body:
        return
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node) or "synthetic_shapes" in path.name, f"{path}: {node.name}"


def test_importing_the_package_is_light_and_every_public_name_is_there():
    code = (
        "import sys, fashion_jax\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules\n"
        "assert all(getattr(fashion_jax, name) is not None for name in fashion_jax.__all__)\n"
        "import jax\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, 'a backend was started by an import'\n"
        "assert 'tensorflow' not in sys.modules and 'scann' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
