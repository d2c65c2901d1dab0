"""What the documents name exists; what they show compiles."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drawn_products import draw_product, make_tiny_config
from fashion_jax import cli
from fashion_jax.commands.training import split_settings
from fashion_jax.config.fields import Config
from fashion_jax.config.files import set_value
from fashion_jax.data.photos import encode_photo
from fashion_jax.run.train import train
from fashion_jax.search.gallery import build_index
from fashion_jax.search.index import Index
from fashion_jax.serving.predictor import load_model
from parsing import parse

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "BUILD.md", "CONTRIBUTING.md", "CHANGELOG.md")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_what_is_named_exists(path):
    text = path.read_text()
    targets = re.findall(r"`make (\w+)`|^ {4}make (\w+)", text, re.M)
    makefile = (ROOT / "Makefile").read_text()
    for target in {a or b for a, b in targets}:
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (ROOT / link).exists(), link
    for name in re.findall(r"configs/\w+\.py", text):
        assert (ROOT / name).is_file(), name
    for extra in re.findall(r"'\.\[(\w+)\]'", text):
        assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(), extra
    # Paths of one machine; put together here, so that this file holds none.
    assert not re.search("/" + "(work|root|home)/", text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_commands_take_the_flags_that_are_shown(path, capsys):
    text = path.read_text().replace("\\\n", " ")
    for line in re.findall(r"^ {4}.*(?:fashion-jax|fashion_jax\.main) .*$", text, re.M):
        overrides, words = split_settings([w.strip('"') for w in line.split()])
        for key, value in overrides.items():
            set_value(Config(), key, value)
        flags = [w.partition("=")[0] for w in words if w.startswith("--")]
        command = words[words.index(".venv/bin/fashion-jax") + 1 :] if ".venv/bin/fashion-jax" in words else []
        command = command[: 2 if command[:1] == ["index"] else 1]
        with pytest.raises(SystemExit):
            cli.main([*command, "--help"]) if command else __import__("fashion_jax.main").main.main(["--help"])
        shown = capsys.readouterr().out
        for flag in flags:
            assert flag in shown, f"{line}: {flag}"


def test_fields_that_are_named_exist():
    for path in DOCUMENTS:
        for key in re.findall(r"--config\.([a-z_.]+[a-z_])", path.read_text()):
            target = Config()
            for part in key.split("."):
                assert hasattr(target, part), f"{path.name}: {key}"
                target = getattr(target, part)


def test_python_in_the_readme_runs(tmp_path, trained):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) == 2
    (path,) = set(re.findall(r'load_model\("(.+?)"\)', "".join(blocks)))
    (tmp_path / path).parent.mkdir(parents=True)
    shutil.copytree(trained, tmp_path / path)
    (tmp_path / "photo.jpg").write_bytes(encode_photo(draw_product("round", "red", 0)))
    checks = "assert set(labels) == set(model.attributes) and vectors.shape == (1, model.embedding_size)\n"
    checks += f"assert hits.ids.shape == (1, 5) and len(index) == {len(Index.load(trained / 'index'))}\n"
    checks += "assert 900001 not in index"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*blocks, checks])], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A workdir of a run of one step, with an index."""
    workdir = tmp_path_factory.mktemp("docs") / "w"
    train(make_tiny_config("synthetic:150", train__duration="1 steps"), workdir, progress=False)
    build_index(load_model(workdir), "synthetic:150", workdir / "index", progress=False)
    return workdir


def test_nothing_is_left_to_be_filled_in():
    text = (ROOT / "README.md").read_text()
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (ROOT / picture).stat().st_size > 1000
    written = [*DOCUMENTS, ROOT / "experiments/LOG.md", *(ROOT / "configs").glob("*.py")]
    for path in written:
        assert not re.search(r"\b(RESULTS_TABLE|RUN\d+|TODO|FIXME|TBD)\b", path.read_text()), path


def test_configurations_say_what_they_cost_and_reach():
    for path in (ROOT / "configs").glob("*.py"):
        text = ast.get_docstring(parse(path)) or ""
        assert all(re.search(rf"^{word}", text, re.M) for word in ("Command: ", "Cost")), path.name
        assert re.search(r"[Ss]core", text), path.name
