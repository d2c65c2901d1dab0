"""Tables that the library writes: no cell is a formula to a spreadsheet, and ids come back as they were."""

from __future__ import annotations

import csv
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import fashion_jax
from drawn_products import make_tiny_config, write_products
from fashion_jax.cli import main
from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.records import open_prepared
from fashion_jax.data.schema import Attribute, MultiValued, Schema, save_schema
from fashion_jax.data.splits import read_splits
from fashion_jax.run import sweep
from fashion_jax.run.train import train
from fashion_jax.search.index import Index
from fashion_jax.system import files

IDS = ["-12", "+A", "=1+1", "@b", "'-13", "'80s", "\uff1dc", "\u3164=d", "''e", "-0.5", "+\uff0bf", "'=g"]
LABELS = {
    "round": "=round",
    "square": "\uff0bsquare",
    "tall": "\u200b@tall",
    "red": "-red",
    "blue": "+cmd|'/c calc'!A1",
}
SCHEMA = Schema(
    "shop",
    (Attribute("=kind"), Attribute("+colour")),
    id_column="@sku",
    image_column="file",
    title_column="-title",
    multi_valued=(MultiValued("@tags"),),
    carry=("-price", "=brand"),
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A folder with a hostile catalogue, and all tables that the commands write for it."""
    folder = tmp_path_factory.mktemp("hostile")
    table = write_products(folder / "source", 120)
    rows = list(csv.DictReader(table.open(newline="")))
    lines: list[list[object]] = [["@sku", "file", "=kind", "+colour", "-title", "@tags", "-price", "=brand"]]
    for i, row in enumerate(rows):
        name = IDS[i] if i < len(IDS) else f"{IDS[i % len(IDS)]}{i}"
        kind, colour = (LABELS.get(row[n], row[n]) for n in ("kind", "colour"))
        lines.append([name, row["file"], kind, colour, f"=title{i}", f"-{kind[-1]}|+b", -i - 0.5, f"@brand{i % 3}"])
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    (table.parent / rows[50]["file"]).write_bytes(b"no photo")
    save_schema(SCHEMA, folder / "schema.json")
    train(
        make_tiny_config(table, data__schema=str(folder / "schema.json"), train__duration="24 steps"),
        folder / "run",
        progress=False,
    )
    source = ["--source", str(table), "--schema", str(folder / "schema.json")]
    model = ["--model", str(folder / "run")]
    for command in (
        ["prepare", *source, "--out", folder / "records"],
        ["predict", *model, *source, "--out", folder / "products.csv"],
        ["predict", *model, *source, "--out", folder / "photos.csv", "--per-photo"],
        ["index", "build", *model, *source, "--out", folder / "index"],
        ["search", "--index", folder / "index", "--id=-12", "-k", 118, "--csv", folder / "hits.csv"],
        ["audit", *model, *source, "--out", folder / "audit", "--folds", 4],
    ):
        assert main([str(part) for part in command]) == 0, command
    return folder


def cells_of(path: Path) -> list[str]:
    return [cell for row in csv.reader(path.open(newline="", encoding="utf-8")) for cell in row]


def is_formula(cell: str) -> bool:
    """By the text of a cell alone; numbers are none."""
    seen = "".join(c for c in cell if unicodedata.category(c)[0] not in "CMZ" and c not in "\u3164\u2800")
    odd = unicodedata.normalize("NFKC", seen)[:1] in tuple("=+-@") or cell[:1] in tuple("\t\r\n")
    return odd and not re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?", cell)


def test_no_table_holds_a_formula(shop):
    tables = {path.relative_to(shop).as_posix() for path in shop.rglob("*.csv")} - {"source/products.csv"}
    written = {
        "records/products.csv", "records/splits.csv", "records/quarantine.csv", "products.csv", "photos.csv",
        "hits.csv", "products.csv.quarantine.csv", "audit/findings.csv", "audit/quarantine.csv",
        "run/evaluation/test/predictions.csv",
        "run/evaluation/test/confusion/=kind.csv", "run/evaluation/test/per_class/+colour.csv",
        "run/evaluation/test/per_class/@tags.csv",
    }  # fmt: skip
    assert written <= tables
    for name in sorted(tables):
        cells = cells_of(shop / name)
        assert not [cell for cell in cells if is_formula(cell)], name
        assert any(cell.startswith("'") for cell in cells), name  # something hostile stands in every one of them


def test_trials_hold_no_formula(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    study, space = optuna.create_study(), {"model.pretrained": ["=a", "+b"]}
    choices = {name: optuna.distributions.CategoricalDistribution(values) for name, values in space.items()}
    for value in ("=a", "+b"):
        notes = {"workdir": "-dir", "reason": "@reason"}
        state = optuna.trial.TrialState.FAIL
        study.add_trial(
            optuna.trial.create_trial(
                state=state, params={"model.pretrained": value}, distributions=choices, user_attrs=notes
            )
        )
    sweep._write_trials(study, space, tmp_path, make_tiny_config(tmp_path))
    assert not [cell for cell in cells_of(tmp_path / "trials.csv") if is_formula(cell)]
    assert [row["model.pretrained"] for row in files.read_csv(tmp_path / "trials.csv")] == ["=a", "+b"]


def test_ids_labels_and_titles_come_back_everywhere(shop):
    catalog = open_catalog(shop / "source/products.csv", SCHEMA)
    known = {record.id: record for record in catalog.records}
    assert set(IDS) <= set(known)
    prepared = open_prepared(shop / "records")
    assert sorted(prepared.ids) == sorted(set(known) - {f"{IDS[50 % len(IDS)]}50"})
    for row, name in enumerate(prepared.ids):
        labels = zip(prepared.vocabularies.values(), prepared.labels[row], strict=True)
        assert (prepared.titles[row], tuple(c[label] for c, label in labels)) == (known[name].title, known[name].labels)
    index = Index.load(shop / "index")
    assert set(index.ids) == set(prepared.ids)
    for name in ("products.csv", "photos.csv", "run/evaluation/test/predictions.csv", "hits.csv"):
        rows = files.read_csv(shop / name)
        assert {row["id"] for row in rows} <= set(known) and len(rows) > 10, name
    prices = {row["id"]: row["-price"] for row in files.read_csv(shop / "products.csv")}
    assert prices["-12"] == "-0.5" and len(prices) == len(prepared.ids)
    (first,) = {row["query"] for row in files.read_csv(shop / "hits.csv")}
    assert first == "-12"


def test_a_list_of_splits_gives_the_same_splits(shop):
    prepared = open_prepared(shop / "records")
    assert np.array_equal(read_splits(shop / "records/splits.csv", prepared.ids.tolist()), prepared.splits)


def test_one_place_writes_tables():
    package = Path(fashion_jax.__file__).parent
    writers = re.compile(r"csv\.(Dict)?[wW]riter\(|\.to_csv\(")
    found = {p.relative_to(package).as_posix() for p in package.rglob("*.py") if writers.search(p.read_text())}
    assert found == {
        "system/files.py",
        "data/drawn/catalogue.py",
        "data/drawn/tagged.py",
    }  # drawn sources are no output
