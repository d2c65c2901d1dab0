"""The wheel holds what a user needs, and works outside of the repository."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from parsing import parse

pytestmark = pytest.mark.slow  # a wheel is built and installed

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> Path:
    """A folder into which pip has installed the wheel, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*pip, "--prefix", str(folder / "env"), str(wheel)], check=True, capture_output=True)
    return folder / "env"


@pytest.fixture(scope="module")
def installed(prefix) -> Path:
    """Its site-packages."""
    (site,) = prefix.glob("lib/python*/site-packages")
    return site


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the installed console script, outside of the repository."""
    prefix = installed.parents[2]
    env = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1", "JAX_PLATFORMS": "cpu"}
    command = arguments if arguments[0] == sys.executable else (str(prefix / "bin/fashion-jax"), *arguments)
    return subprocess.run(command, cwd=prefix.parent, env=env, capture_output=True, text=True)


def test_it_holds_the_package_and_the_configurations(installed):
    names = {str(p.relative_to(installed)) for p in installed.rglob("*.py")}
    assert {"fashion_jax/main.py", "fashion_jax/cli.py"} <= names
    shipped = {p.name for p in (ROOT / "configs").glob("*.py")}
    assert {f"fashion_jax/configs/{name}" for name in shipped} <= names
    assert not any(name.startswith(("tests", "configs")) for name in names)
    (metadata,) = installed.glob("fashion_jax-*.dist-info/METADATA")
    text = metadata.read_text()
    assert "License-Expression: Apache-2.0" in text
    for extra in ("cuda12", "cuda13", "tpu", "tensorboard", "hub", "audit", "sweep", "bench"):
        assert f"Provides-Extra: {extra}" in text
    (scann,) = (line for line in text.splitlines() if line.startswith("Requires-Dist: scann"))
    assert "linux" in scann
    (entry,) = installed.glob("fashion_jax-*.dist-info/entry_points.txt")
    assert "fashion-jax = fashion_jax.cli:main" in entry.read_text()


def test_what_is_imported_is_declared(installed):
    """Every third-party module that the package imports comes with a dependency or an extra other than dev."""
    (metadata,) = installed.glob("fashion_jax-*.dist-info/METADATA")
    lines = [line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist: ")]
    declared = {
        re.match(r"[\w.-]+", line.removeprefix("Requires-Dist: ")).group().lower().replace("_", "-")
        for line in lines
        if "extra == 'dev'" not in line and 'extra == "dev"' not in line
    }
    owners = packages_distributions()
    for path in (ROOT / "fashion_jax").rglob("*.py"):
        for node in ast.walk(parse(path)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"fashion_jax", "tensorflow"}:
                known = {owner.lower().replace("_", "-") for owner in owners.get(top, [top])}
                assert known & declared, f"{path.name} imports {top}"


def test_the_trained_model_comes_along(installed):
    code = (
        "import fashion_jax, numpy as np; model = fashion_jax.load_model('small');"
        "photo = np.full((80, 60, 3), 255, np.uint8);"
        "print(sorted(model.predict(photo)[0]), model.embed(photo).shape)"
    )
    done = run(installed, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "'articleType', 'baseColour', 'gender'" in done.stdout and "(1, 256)" in done.stdout


def test_it_runs_outside_of_the_repository(installed):
    code = "import fashion_jax, sys; print(fashion_jax.__file__)"
    assert str(installed) in run(installed, sys.executable, "-c", code).stdout
    prepared = run(installed, "prepare", "--source", "synthetic:150", "--out", "records")
    assert prepared.returncode == 0, prepared.stderr
    assert "150 rows" in prepared.stdout
    again = run(
        installed, "train", "--config=demo", "--workdir=w", "--config.data.source=records",
        "--config.train.duration=2 steps", "--config.model.pretrained=", "--config.model.depth=10",
        "--config.model.width=4",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    package = installed.parents[2].parent / "w/package"
    assert (package / "weights.safetensors").is_file()
    assert run(installed, "evaluate", "--workdir", "w", "--split", "validation").returncode == 0
    predicted = run(installed, "predict", "--model", "w", "--source", "synthetic:150", "--out", "p.csv")
    assert predicted.returncode == 0, predicted.stderr
