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
def installed(tmp_path_factory) -> Path:
    """The site-packages of a folder into which pip has installed the wheel, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*pip, "--prefix", str(folder / "env"), str(wheel)], check=True, capture_output=True)
    (site,) = folder.glob("env/lib/python*/site-packages")
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
    lines = re.findall(r"^Requires-Dist: ([\w.-]+)(.*)$", metadata.read_text(), re.M)
    declared = {name.lower().replace("_", "-") for name, rest in lines if not re.search("extra == .dev", rest)}
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
        "print(sorted(model.predict(photo)[0]), model.embed(photo).shape, fashion_jax.__file__)"
    )
    done = run(installed, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "'articleType', 'baseColour', 'gender'" in done.stdout and "(1, 256)" in done.stdout
    assert str(installed) in done.stdout


def test_it_runs_outside_of_the_repository(installed):
    config = ("data.source=records", "train.duration=2 steps", "model.pretrained=", "model.depth=10", "model.width=4")
    settings = [f"--config.{setting}" for setting in config]
    for arguments in (
        ("prepare", "--source", "synthetic:150", "--out", "records"),
        ("train", "--config=demo", "--workdir=w", *settings),
        ("evaluate", "--workdir", "w", "--split", "validation"),
        ("predict", "--model", "w", "--source", "synthetic:150", "--out", "p.csv"),
    ):
        done = run(installed, *arguments)
        assert done.returncode == 0, done.stderr
        assert arguments[0] != "prepare" or "150 rows" in done.stdout
    assert (installed.parents[2].parent / "w/package/weights.safetensors").is_file()
