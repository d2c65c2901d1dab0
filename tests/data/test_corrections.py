"""Corrections: the same as editing the table by hand, and refused with the line where they do not fit."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from drawn_products import make_tiny_config
from fashion_jax.cli import main
from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.corrections import holds_decisions, read_corrections
from fashion_jax.data.prepare import PrepareOptions, prepare
from fashion_jax.data.records import open_prepared
from fashion_jax.data.schema import Attribute, Schema
from fashion_jax.run.workdir import claim_workdir, prepare_records
from fashion_jax.system import files
from fashion_jax.system.errors import UserError

SCHEMA = Schema("shop", (Attribute("kind"), Attribute("colour")), id_column="sku")


@pytest.fixture
def shop(products_csv, tmp_path) -> Path:
    """The drawn catalogue, in a folder of the test's own."""
    shutil.copytree(products_csv.parent, tmp_path / "shop")
    return tmp_path / "shop/products.csv"


def read(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = (), delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_they_are_the_table_edited_by_hand(shop, tmp_path):
    rows, before = read(shop), read(shop)
    unlabelled = next(i for i, row in enumerate(rows) if not row["kind"])
    one, two, *_ = (i for i, row in enumerate(rows) if row["kind"])
    changes = [
        {"id": rows[one]["sku"], "attribute": "kind", "corrected": "tall"},
        {"id": rows[two]["sku"], "attribute": "kind", "corrected": "NA"},
        {"id": rows[unlabelled]["sku"], "attribute": "kind", "corrected": "  round "},
        {"id": rows[5]["sku"], "attribute": "colour", "decision": "Accept", "suggested": "yellow"},
        {"id": rows[6]["sku"], "attribute": "colour", "decision": "keep", "suggested": "green"},
        {"id": rows[7]["sku"], "attribute": "colour", "suggested": "green"},
    ]
    columns = ("id", "attribute", "suggested", "decision", "corrected", "remark")
    corrections = PrepareOptions(corrections=write(tmp_path / "c.csv", changes, columns))
    corrected = prepare(shop, tmp_path / "a", corrections, progress=False)
    rows[one]["kind"], rows[two]["kind"], rows[unlabelled]["kind"], rows[5]["colour"] = "tall", "", "round", "yellow"
    by_hand = prepare(write(shop, rows), tmp_path / "b", progress=False)
    assert corrected.fingerprint == by_hand.fingerprint
    assert (tmp_path / "a/products.csv").read_bytes() == (tmp_path / "b/products.csv").read_bytes()
    changed = {n: sum(a[n] != b[n] for a, b in zip(before, rows, strict=True)) for n in ("kind", "colour")}
    assert changed["kind"] >= 2
    assert corrected.report["corrected_labels"] == {n: c for n, c in changed.items() if c}
    assert by_hand.report["corrected_labels"] == {}


def test_what_changes_labels_changes_the_stamp(shop, tmp_path):
    rows = read(shop)
    one, two = ({"id": rows[i]["sku"], "attribute": "colour", "corrected": "red"} for i in (0, 1))
    undecided = {**one, "corrected": "", "suggested": "tall", "decision": ""}

    def stamp(*changes: dict[str, str]) -> str:
        return open_catalog(shop, corrections=write(tmp_path / "c.csv", list(changes), tuple(undecided))).stamp()

    assert stamp(undecided) == stamp() == open_catalog(shop).stamp()
    assert stamp(one, two) == stamp(two, one)
    assert len({stamp(), stamp(one), stamp(two), stamp(one, two)}) == 4


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"id": "S9"}, "no product 'S9'"), ({"attribute": "color"}, "did you mean 'colour'?"),
        ({"corrected": "rde"}, "did you mean 'red'?"), ({"decision": "yes"}, "'yes'"), ({"id": ""}, "no id"),
        ({"decision": "keep"}, "'red' stands under corrected"), ({"given": "violet"}, "colour of 'S00037'"),
        ({"decision": "accept", "corrected": ""}, "suggested"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_line(shop, tmp_path, capsys, change, fault):
    good = {"id": "S00000", "attribute": "colour", "given": read(shop)[0]["colour"], "suggested": ""}
    good |= {"decision": "", "corrected": "red"}
    bad = {**good, "id": "S00037", "given": read(shop)[1]["colour"], **change}
    changes = write(tmp_path / "c.csv", [good, bad])
    command = ["prepare", "--source", str(shop), "--out", str(tmp_path / "out"), "--corrections", str(changes)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert fault in error and "line 3" in error and "line 2" not in error


def test_two_lines_that_contradict_each_other_are_refused(tmp_path):
    rows = [{"id": "1", "attribute": "kind", "corrected": label} for label in ("a", "b")]
    with pytest.raises(UserError, match="line 3: line 2 corrects kind of '1' too"):
        read_corrections(write(tmp_path / "c.csv", rows), SCHEMA)
    assert len(read_corrections(write(tmp_path / "c.csv", [rows[0]] * 2), SCHEMA).items) == 1


def test_tables_of_successive_audits_are_applied_in_their_order(shop, tmp_path):
    row = {"id": read(shop)[0]["sku"], "attribute": "colour"}
    label = read(shop)[0]["colour"]
    first, second, last = [name for name in ("red", "green", "blue", "yellow") if name != label][:3]
    both = tmp_path / "both.csv"

    def put(*changes: tuple[str, str]) -> None:  # as `cat` puts them, the header twice
        tables = [write(both, [{**row, "given": given, "corrected": to}]).read_text() for given, to in changes]
        both.write_text("".join(tables))

    put((label, first), (first, second))
    product = next(p for p in open_catalog(shop, corrections=both).records if p.id == row["id"])
    assert product.labels[1] == second
    put((label, first), (last, second))
    with pytest.raises(UserError, match=r"line 4: line 2 corrects colour of .* too"):
        open_catalog(shop, corrections=both)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "id, attribute"), (b"id,attribute\n", r"corrected \(or decision\)"), (None, "there is nothing at"),
        (b"id,attribute,corrected\n1,kind\n", "line 2: it has 2 of 3 columns"),
        (b'id,attribute,corrected\n\n"1\n2,kind,a\n', "no CSV: line 3"),
        (b"id,attribute,corrected\n1,kind,\xff\n", "not UTF-8"),
        # Lines are counted as an editor counts them.
        (b'id,attribute,corrected,reason\n1,kind,a,"two\nlines"\n\n2,sort,a,x\n', "line 5: .*'sort'"),
    ],
)  # fmt: skip
def test_files_that_are_none_are_refused(tmp_path, content, fault):
    if content is not None:
        (tmp_path / "c.csv").write_bytes(content)
    with pytest.raises(UserError, match=fault):
        read_corrections(tmp_path / "c.csv", SCHEMA)


def test_spreadsheets_may_save_it_in_their_way(tmp_path):
    path = write(tmp_path / "c.csv", [{"id": "1", "attribute": "kind", "corrected": "é"}], delimiter=";")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (item,) = read_corrections(path, SCHEMA).items
    assert (item.id, item.attribute, item.label, item.given) == ("1", "kind", "é", None)
    names = ["=1+1", "-5", "@x", "'=y", "plain", "'80s"]
    path.write_text(files.format_csv([("id", "attribute", "corrected"), *((n, "kind", n) for n in names)]))
    items = read_corrections(path, SCHEMA).items
    assert [item.id for item in items] == names == [item.label for item in items]


def test_a_row_that_the_schema_dropped_can_be_brought_back(tmp_path, shop):
    rows = read(shop)
    product, rows[3]["colour"] = rows[3]["sku"], "violet"
    write(shop, rows)
    colour = Attribute("colour", classes=("blue", "green", "red", "yellow"), on_unknown="drop")
    schema = Schema("shop", (colour,), id_column="sku", image_column="file")
    assert product not in {p.id for p in open_catalog(shop, schema).records}
    changes = write(tmp_path / "c.csv", [{"id": product, "attribute": "colour", "corrected": "blue"}])
    products = {p.id: p for p in open_catalog(shop, schema, corrections=changes).records}
    assert products[product].labels == ("blue",)


def test_prepared_records_and_photos_alone_take_none(prepared, tmp_path, shop):
    config = make_tiny_config(prepared.folder, data__corrections="c.csv")
    with pytest.raises(UserError, match="prepared already"):
        prepare_records(config, tmp_path, progress=False)
    with pytest.raises(UserError, match="no table of labels"):
        open_catalog(shop.parent / "photos", labelled=False, corrections=tmp_path / "c.csv")


def test_the_command_counts_them(shop, tmp_path, capsys):
    row = next(r for r in read(shop) if r["colour"] != "red")
    changes = write(tmp_path / "c.csv", [{"id": row["sku"], "attribute": "colour", "corrected": "red"}])
    command = ["prepare", "--source", str(shop), "--out", str(tmp_path / "out"), "--corrections", str(changes)]
    assert main(command) == 0
    assert "corrected labels: colour: 1" in capsys.readouterr().out


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_decisions_are_seen_as_spreadsheets_save_them(tmp_path, delimiter):
    path = tmp_path / "findings.csv"
    row = {"id": "1", "attribute": "kind", "given": "a", "suggested": "b", "decision": "", "corrected": ""}
    assert not holds_decisions(write(path, [row], delimiter=delimiter))
    assert holds_decisions(write(path, [{**row, "decision": "accept"}], delimiter=delimiter))
    path.write_text("something else")
    assert holds_decisions(path)


def test_the_records_of_a_run_are_not_replaced(shop, tmp_path):
    config, workdir = make_tiny_config(shop), tmp_path / "run"
    prepare_records(config, workdir, progress=False)
    claim_workdir(workdir, config, open_prepared(workdir / "records"))
    (workdir / "checkpoints/step_5").mkdir(parents=True)
    shop.touch()
    prepare_records(config, workdir, progress=False)  # the same catalogue, saved again
    rows = read(shop)
    rows[0]["colour"] = next(r["colour"] for r in rows if r["colour"] not in ("", rows[0]["colour"]))
    write(shop, rows)
    kept = (workdir / "records/products.csv").read_bytes()
    with pytest.raises(UserError, match="other records"):
        prepare_records(config, workdir, progress=False)
    assert (workdir / "records/products.csv").read_bytes() == kept
