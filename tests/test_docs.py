"""The documents: what they name exists, what they show runs."""

from __future__ import annotations

import ast
import contextlib
import io
import operator
import re
import shlex
import shutil
from pathlib import Path

import pytest

from drawn_products import draw_product, make_tiny_config, write_products
from fashion_jax import cli
from fashion_jax.commands.training import split_settings
from fashion_jax.config.fields import Config
from fashion_jax.config.files import set_value
from fashion_jax.data.drawn.catalogue import write_catalog
from fashion_jax.data.photos import encode_photo
from fashion_jax.run.train import train
from fashion_jax.search.gallery import build_index
from fashion_jax.serving.predictor import load_model
from parsing import parse

ROOT = Path(__file__).resolve().parent.parent
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*GUIDES, *(ROOT / name for name in ("BUILD.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
GUIDE = (ROOT / "docs/your-catalogue.md").read_text()
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def commands(text: str) -> list[list[str]]:
    """Returns the words behind `fashion-jax` of every command that a document shows."""
    shown = r"^ {4}[^#\n]*?(?:\.venv/bin/fashion-jax|-m fashion_jax\.main) .*$"
    found = []
    for words in map(shlex.split, re.findall(shown, text.replace("\\\n", " "), re.M)):
        place = next(i for i, word in enumerate(words) if word.endswith(("fashion-jax", "fashion_jax.main")))
        found.append((["train"] if words[place].endswith("main") else []) + words[place + 1 :])
    return found


ALL = [words for path in GUIDES for words in commands(path.read_text())]
# tests/run/test_shop.py runs the way of the shop, in its order.
ALONE = [words for words in ALL if not any("shop/" in word or word == "runs/shop" for word in words)]
# For each training a small one is run.
SMALL = {
    "model.pretrained": "", "model.depth": "10", "model.width": "2", "data.height": "16", "data.width": "16",
    "train.duration": "8 steps", "train.batch_size": "16", "train.evaluate_every": "4 steps",
}  # fmt: skip


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_what_is_named_exists(path):
    text = path.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", text) + re.findall(r"^ {4}make ([\w-]+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (path.parent / link).exists(), link
    for name in re.findall(r"(?:configs|tests/\w+|benchmarks)/\w+\.py", text):
        assert (ROOT / name).is_file(), name
    for extra in re.findall(r"'\.\[(\w+)\]'", text):
        assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(), extra
    if path.name != "CHANGELOG.md":
        for key in re.findall(r"--config\.([a-z_.]+[a-z_])", text):
            operator.attrgetter(key)(Config())
    assert not re.search(r"(?<![\w.\[/])\.\d", text), "a number without its zero"
    # Paths of one machine; put together here, so that this file holds none.
    assert not re.search("/" + "(work|root|home)/", text)


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_commands_are_understood(words):
    settings, rest = split_settings(words)
    for key, value in settings.items():
        set_value(Config(), key, value)
    cli.make_parser().parse_args(rest)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what `make demo` makes, smaller, and with a shop's catalogue."""
    folder = tmp_path_factory.mktemp("docs")
    demo = folder / "runs/demo"
    write_catalog(demo / "catalogue", 120, 0)
    train(make_tiny_config(demo / "catalogue", train__duration="2 steps"), demo, progress=False)
    build_index(load_model(demo), demo / "catalogue", demo / "index", progress=False)
    (demo / "photos").mkdir()
    for name in ("bronze-ties", "bronze-scarves"):
        (demo / "photos" / f"{name}.jpg").write_bytes(encode_photo(draw_product("round", "red", 0)))
    table = write_products(folder, 60)
    table.write_text(table.read_text().replace("kind", "category"))
    product = (demo / "catalogue/styles.csv").read_text().splitlines()[1].split(",")[0]
    sold = (demo / "catalogue/styles.csv").read_text().splitlines()[1:]
    (folder / "prices.csv").write_text(
        "id,price,stock\n" + "".join(f'{row.split(",")[0]},"9,50 €",3\n' for row in sold)
    )
    (folder / "corrections.csv").write_text(f"id,attribute,corrected\n{product},gender,Men\n")
    for name, key in (("schema.json", "name"), ("space.json", "optimizer.learning_rate")):
        (folder / name).write_text(re.search(rf'^ {{4}}(\{{"{key}".*?\}})\n\n', GUIDE, re.M | re.S)[1])
    for kind in ("zip", "xztar"):
        shutil.make_archive(folder / "fashion-product-images-small", kind, demo / "catalogue")
    shutil.copytree(demo, folder / "runs/mine")
    return folder


@pytest.mark.parametrize(
    "words", [pytest.param(w, marks=[pytest.mark.slow] * (w[0] in ("train", "sweep"))) for w in ALONE], ids=" ".join
)
def test_commands_run(words, place, tmp_path, monkeypatch, capsys):
    if "--coordinator-address=10.0.0.1:9876" in words:
        pytest.skip("tests/test_main.py starts several processes")
    # The id and the corrections are those of the small catalogues, and a training gets a workdir of its own.
    product = max(path.stem for path in (place / "runs/demo/catalogue/images").iterdir())
    other = {"--id": product, "--corrections": "corrections.csv", "--trials": "2"}
    if words[0] == "train":
        other["--workdir"] = str(tmp_path)
    given = [other.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    if words[0] in ("train", "sweep"):
        given += [f"--config.{key}={value}" for key, value in SMALL.items()]
    monkeypatch.chdir(place)
    assert cli.main(given) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", [p for p in GUIDES if "```python" in p.read_text()], ids=lambda p: p.name)
def test_python_runs(path, place, monkeypatch):
    monkeypatch.chdir(place)
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, str(path), "exec"), {})
        assert printed.getvalue().strip()


def test_nothing_is_left_to_be_filled_in():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme):
        assert (ROOT / picture).stat().st_size > 1000
    for path in [*DOCUMENTS, ROOT / "experiments/LOG.md", *CONFIGS]:
        assert not re.search(r"\b(RESULTS_TABLE|RUN\d+|TODO|FIXME|TBD)\b", path.read_text()), path


def test_configurations_say_what_they_cost_and_reach():
    for path in CONFIGS:
        text = ast.get_docstring(parse(path)) or ""
        for pattern in ("^Command: ", "^Cost", "[Ss]core"):
            assert re.search(pattern, text, re.M), f"{path.name}: {pattern}"
