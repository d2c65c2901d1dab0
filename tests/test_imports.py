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
# A stage imports itself and the stages before it; stages of one line do not import each other.
STAGES = (
    ("system",), ("config", "models"), ("data",), ("training",), ("evaluation",), ("decision",), ("serving",),
    ("search",), ("run",), ("audit",), ("commands",), ("cli",), ("main",),
)  # fmt: skip
RANKS = {stage: rank for rank, stages in enumerate(STAGES) for stage in stages}
# Third-party package -> the one file that imports it.
ALONE = {
    "scann": "search/scann.py", "faiss": "search/hnsw.py", "optuna": "run/sweep.py", "torch": "",
    "onnx": "serving/onnx_graph.py", "onnxruntime": "serving/onnx_engine.py",
}  # fmt: skip
# A program of its own, which is written beside an exported model. The library does not import it.
EXAMPLE = "serving/label_photo.py"


def imports(path: Path) -> list[str]:
    """Returns the modules that a file imports, those within functions too."""
    found = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            # `from fashion_jax.system import files` imports a module, `from fashion_jax.system.files import x` a name.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            whole = node.module.startswith("fashion_jax") and (PACKAGE.parent / node.module.replace(".", "/")).is_dir()
            found += names if whole else [node.module]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_keep_their_direction(path):
    stage = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(path):
        top = name.split(".")[0]
        if top in ALONE and str(path.relative_to(PACKAGE)) != EXAMPLE:
            assert str(path.relative_to(PACKAGE)) == ALONE[top], f"{path} imports {top}"
        if top != "fashion_jax" or stage == "__init__":
            continue
        other = name.split(".")[1] if "." in name else ""
        assert other in RANKS, f"{path} imports {name}, which is no stage"
        assert not name.endswith("label_photo")
        assert other == stage or RANKS[other] < RANKS[stage], f"{path} imports {name}, which stands after it"


def test_no_file_stands_outside_the_stages():
    assert {p.name for p in PACKAGE.glob("*.py")} == {"__init__.py", "main.py", "cli.py"}
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"} <= set(RANKS)


def test_modules_import_each_other_in_no_circle():
    graph = {}
    for path in MODULES:
        module = ".".join(("fashion_jax", *path.relative_to(PACKAGE).with_suffix("").parts))
        graph[module] = {name for name in imports(path) if name.startswith("fashion_jax.")}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_well_named_and_public_things_have_docstrings(path):
    assert path.stem not in ("utils", "helpers", "common", "misc")
    tree = parse(path)
    assert ast.get_docstring(tree) or not tree.body, f"{path} has no docstring"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node) or "drawn/shapes" in str(path), f"{path}: {node.name}"


@pytest.mark.parametrize("stage", ["system.process", "system.errors", "system.files", "config.fields", "config.files"])
def test_the_ground_is_light(stage):
    code = f"import sys, fashion_jax.{stage}\nassert not {{'jax', 'numpy', 'pandas'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_is_light_and_every_public_name_is_there():
    code = (
        "import sys, fashion_jax\n"
        "assert not {'jax', 'numpy'} & set(sys.modules)\n"
        "assert all(getattr(fashion_jax, name) is not None for name in fashion_jax.__all__)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, 'a backend was started by an import'\n"
        "assert not {'tensorflow', 'scann', 'faiss'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
