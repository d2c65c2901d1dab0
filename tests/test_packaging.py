"""The wheel holds what a user needs, and works outside of the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the wheel's content, as pip would lay it out."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-P", *arguments], cwd=installed.parent, env=env, capture_output=True, text=True
    )


def test_it_holds_the_package_and_the_configurations(installed):
    names = {str(p.relative_to(installed)) for p in installed.rglob("*.py")}
    assert {"fashion_jax/main.py", "fashion_jax/cli.py"} <= names
    shipped = {p.name for p in (ROOT / "configs").glob("*.py")}
    assert {f"fashion_jax/configs/{name}" for name in shipped} <= names
    assert not any(name.startswith(("tests", "configs")) for name in names)
    (metadata,) = installed.glob("fashion_jax-*.dist-info/METADATA")
    text = metadata.read_text()
    assert "License-Expression: Apache-2.0" in text
    for extra in (
        "cuda12",
        "cuda13",
        "tpu",
        "tensorboard",
        "wandb",
        "hub",
        "demo",
        "serve",
        "export",
        "scale",
        "bench",
    ):
        assert f"Provides-Extra: {extra}" in text
    (scann,) = (line for line in text.splitlines() if line.startswith("Requires-Dist: scann"))
    assert "linux" in scann
    (entry,) = installed.glob("fashion_jax-*.dist-info/entry_points.txt")
    assert "fashion-jax = fashion_jax.cli:main" in entry.read_text()


def test_it_runs_outside_of_the_repository(installed):
    code = "import fashion_jax, sys; print(fashion_jax.__file__)"
    assert str(installed) in run(installed, "-c", code).stdout
    prepared = run(installed, "-m", "fashion_jax.cli", "prepare", "--source", "synthetic:150", "--out", "records")
    assert prepared.returncode == 0, prepared.stderr
    assert "150 rows" in prepared.stdout
    again = run(
        installed, "-m", "fashion_jax.main", "--config=demo", "--workdir=w", "--config.data.source=records",
        "--config.train.duration=2 steps", "--config.model.width=4",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert (installed.parent / "w" / "package" / "weights.safetensors").is_file()


@pytest.mark.parametrize("command", ["", "prepare", "train", "evaluate", "predict", "embed", "demo"])
def test_every_command_explains_itself(installed, command):
    done = run(installed, "-m", "fashion_jax.cli", *([command] if command else []), "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: fashion-jax" in done.stdout
