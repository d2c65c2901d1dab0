"""Preparation: whole or absent, resumable, reusable, and readable as a TFDS data set."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from drawn_products import write_products
from fashion_jax.cli import main
from fashion_jax.data import archives, builder
from fashion_jax.data.builder import FashionProducts
from fashion_jax.data.catalog import Rejected, open_catalog
from fashion_jax.data.catalog_report import format_report
from fashion_jax.data.photos import decode_photo
from fashion_jax.data.prepare import PrepareOptions, format_quarantine, prepare
from fashion_jax.data.records import open_prepared
from fashion_jax.data.schema import load_schema, save_schema
from fashion_jax.data.splits import SplitOptions
from fashion_jax.data.staging import stage_photos
from fashion_jax.system.errors import UserError


def photos_of(records) -> list[bytes]:
    return [records.read_photo(row) for row in range(len(records))]


def test_records_hold_what_the_table_says(prepared, products_csv):
    with products_csv.open() as file:
        table = {row["sku"]: row for row in csv.DictReader(file)}
    assert sorted(prepared.ids) == sorted(table)
    assert prepared.attributes == ("kind", "colour")
    for number, product in enumerate(prepared.ids):
        for column, name in enumerate(prepared.attributes):
            label = prepared.labels[number, column]
            assert (prepared.vocabularies[name][label] if label >= 0 else "") == table[product][name]
        assert prepared.read_photo(number) == (products_csv.parent / table[product]["file"]).read_bytes()
    parts = [prepared.indices(name) for name in ("train", "validation", "test")]
    assert np.array_equal(np.concatenate(parts), np.arange(len(prepared)))
    assert [len(p) for p in parts] == pytest.approx([84, 12, 24], abs=3)


def test_the_report_says_how_the_words_were_read(tmp_path):
    folder = tmp_path / "shop"
    source = write_products(folder, 60)
    lines = source.read_text().splitlines()
    kinds = ("None", "Écru", "écru", "striped")
    lines = [f"{line},{kinds[i % 4] if i else 'pattern'},{i},9 €" for i, line in enumerate(lines)]
    source.write_text("\n".join([f"{lines[0].removesuffix(',0,9 €')},rank,price", *lines[1:]]), encoding="cp1252")
    report = prepare(source, tmp_path / "out", progress=False).report
    assert report["encoding"]["name"].startswith("Windows-1252")
    words = report["words"]["pattern"]
    assert words["missing"] == words["maybe_classes"] == {"None": 15}
    assert words["look_alikes"] == [{"Écru": 15, "écru": 15}]
    assert report["carried_columns"] == {"rank": "numbers", "price": "numbers, in EUR"} and not report["unused_columns"]
    text = format_report(report)
    for part in (
        "Écru",
        '"missing_values": ["", "-"',
        '{"name": "pattern", "merge": {"écru": "Écru"}}',
        "'rank' (numbers), 'price' (numbers, in EUR)",
    ):
        assert part in text


def test_it_is_a_tfds_data_set(prepared):
    data_set = tfds.builder("fashion_products", data_dir=str(prepared.folder))
    assert isinstance(data_set, FashionProducts)
    source, rows = data_set.as_data_source("test"), prepared.indices("test")
    assert len(source) == len(rows)
    for place in (0, len(rows) - 1):
        example, row = source[place], rows[place]
        assert example["id"].decode() == prepared.ids[row]
        assert example["label_colour"] == prepared.labels[row, 1]
        ours = decode_photo(prepared.read_photo(row), *example["image"].shape[:2])
        assert np.abs(example["image"].astype(int) - ours).mean() < 2
    assert data_set.info.features["label_colour"].names == list(prepared.vocabularies["colour"])


def test_tensorflow_is_not_needed(prepared):
    code = (
        "import sys; from fashion_jax.data.records import open_prepared\n"
        "assert open_prepared(sys.argv[1]).read_photo(0)[:2] == b'\\xff\\xd8'; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(prepared.folder)], check=True)


def test_a_split_may_take_several_files_and_nothing_is_left_in_the_temporary_folder(
    products_csv, prepared, tmp_path, monkeypatch
):
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    monkeypatch.setattr(builder, "_SHARD_ROWS", 25)
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)  # beyond it, TFDS's own writer needs TensorFlow
    records = prepare(products_csv, tmp_path / "out", progress=False)
    assert len(list((tmp_path / "out").rglob("*train*array_record*"))) == 4
    assert records.fingerprint == prepared.fingerprint
    assert photos_of(records) == photos_of(prepared)
    assert list((tmp_path / "temp").iterdir()) == []


def test_what_is_there_is_used_and_other_options_replace_it(products_csv, tmp_path):
    out, neighbour = tmp_path / "out", tmp_path / ".out.v2.abcd1234.part"
    for folder in (neighbour, tmp_path / ".out.abcd1234.part"):  # another folder's unfinished work, and our own
        folder.mkdir()
    for source in ("synthetic:150:3", products_csv):  # the drawn catalogue, too, is known again
        first = prepare(source, out, progress=False)
        made = (out / "manifest.json").stat().st_mtime_ns
        again = prepare(source, out, progress=False)
        assert (again.fingerprint, again.stamp) == (first.fingerprint, first.stamp)
        assert (out / "manifest.json").stat().st_mtime_ns == made
    other = prepare(products_csv, out, PrepareOptions(split=SplitOptions(seed=1)), progress=False)
    assert other.fingerprint != first.fingerprint
    assert not np.array_equal(other.ids, first.ids)
    assert sorted(p.name for p in tmp_path.iterdir()) == [neighbour.name, "out"]
    (out / "notes.txt").write_text("x")  # somebody has put the folder to another use
    with pytest.raises(UserError, match=r"such as notes\.txt"):
        prepare(products_csv, out, progress=False)
    assert (out / "notes.txt").exists()


def test_lists_of_a_split_can_be_given(products_csv, prepared, tmp_path):
    split = SplitOptions(f"file:{prepared.folder / 'splits.csv'}", seed=9)
    again = prepare(products_csv, tmp_path / "b", PrepareOptions(split=split), progress=False)
    assert np.array_equal(again.ids, prepared.ids)
    assert np.array_equal(again.splits, prepared.splits)


def test_a_split_column(tmp_path):
    table = write_products(tmp_path / "shop", 60)
    splits = ["split", *["train", "test", "val"] * 20]
    table.write_text("\n".join(map(",".join, zip(table.read_text().splitlines(), splits, strict=True))))
    records = prepare(table, tmp_path / "out", PrepareOptions(split=SplitOptions("column")), progress=False)
    assert records.schema.split_column == "split"
    assert [int((records.splits == s).sum()) for s in range(3)] == [20, 20, 20]


def test_an_edited_schema_is_obeyed(products_csv, prepared, tmp_path):
    schema, edited = load_schema(prepared.folder / "schema.json"), tmp_path / "schema.json"
    save_schema(dataclasses.replace(schema, attributes=schema.attributes[1:]), edited)
    assert main(["prepare", "--source", str(products_csv), "--out", str(tmp_path / "o"), "--schema", str(edited)]) == 0
    assert open_prepared(tmp_path / "o").attributes == ("colour",)


def test_bad_photos_go_to_quarantine_and_the_rest_goes_on(tmp_path, capsys):
    table = write_products(tmp_path / "shop", 60)
    (tmp_path / "shop/photos/p7.jpg").write_bytes(b"")
    (tmp_path / "shop/photos/p9.jpg").unlink()
    assert main(["prepare", "--source", str(table), "--out", str(tmp_path / "out")]) == 0
    records = open_prepared(tmp_path / "out")
    with (tmp_path / "out/quarantine.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["row"], r["id"]) for r in rows] == [("8", "S00259"), ("10", "S00333")]
    assert "empty" in rows[0]["reason"] and "no photo" in rows[1]["reason"]
    assert len(records) == 58 and records.report["quarantined"] == 2
    assert "58 usable products" in capsys.readouterr().out


def test_too_many_bad_rows_stop_with_examples(tmp_path):
    table = write_products(tmp_path / "shop", 60)
    for i in range(10):
        (tmp_path / f"shop/photos/p{i}.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"10 of 60 rows .*row 1 \(id 'S00000'\)"):
        prepare(table, tmp_path / "out", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["shop"]


def test_what_was_left_out_is_no_formula_to_a_spreadsheet():
    text = format_quarantine([Rejected(3, "=1+1", "@bad"), Rejected(4, "a-7", "no photo")])
    assert text.splitlines() == ["row,id,reason", "3,'=1+1,'@bad", "4,a-7,no photo"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--source absent.csv", "absent.csv"), (f"--source {'x' * 300}", "name too long"),
        ("--source {csv} --split grop", "--split=grop"), ("--source {csv} --split column", "split_column"),
        ("--source {csv} --split file:absent", "list of splits"), ("--source {csv} --split-seed -1", "--split-seed=-1"),
        ("--source {csv} --schema absent.json", "absent.json"), ("--source {csv} --max-side 0", "--max-side=0"),
        ("--source {csv} --split-fractions 0.5,0.2,0.2", "--split-fractions"),
        ("--source {csv} --max-bad-fraction nan", "--max-bad-fraction=nan"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(products_csv, tmp_path, capsys, arguments, message):
    given = [word.format(csv=products_csv) for word in arguments.split()]
    assert main(["prepare", "--out", str(tmp_path / "out"), *given]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_things_is_left_alone(products_csv, tmp_path, monkeypatch):
    for name, text in (("thesis.txt", "x"), ("manifest.json", '{"name": "my app"}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="something else"):
            prepare(products_csv, tmp_path, progress=False)
        (tmp_path / name).unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="current folder or a mount point"):
        prepare(products_csv, ".", progress=False)


def test_a_full_disk_is_a_sentence_and_finished_work_is_kept(products_csv, tmp_path, monkeypatch, capsys):
    def full(self):
        raise RuntimeError("RESOURCE_EXHAUSTED: write() failed: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FashionProducts, "download_and_prepare", full)
        assert main(["prepare", "--source", str(products_csv), "--out", str(tmp_path / "out")]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == [".out.staging"]
    prepare(products_csv, tmp_path / "out", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_photo_that_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    catalog, real = open_catalog(write_products(tmp_path / "shop", 60)), archives._read_file

    def refuse(path, most):
        if path.name.endswith("p3.jpg"):
            raise PermissionError(13, "Permission denied")
        return real(path, most)

    with monkeypatch.context() as patch:
        patch.setattr(archives, "_read_file", refuse)
        first = stage_photos(catalog, tmp_path / "s", "key", max_side=256, progress=False)
    assert "Permission denied" in first.bad[4]
    again = stage_photos(catalog, tmp_path / "s", "key", max_side=256, progress=False)
    assert not again.bad and len(again.photos) == 60


def test_a_changed_photo_of_equal_size_makes_other_records(tmp_path):
    table, photo = write_products(tmp_path / "shop", 60), tmp_path / "shop/photos/p0.jpg"
    first = prepare(table, tmp_path / "out", progress=False)
    data = photo.read_bytes()
    os.utime(photo, (1, 1))
    touched = prepare(table, tmp_path / "out", progress=False)
    assert touched.fingerprint == first.fingerprint and touched.stamp != first.stamp
    comment = data[:2] + b"\xff\xfe\x00\x04ab" + data[2:]
    fingerprints = {first.fingerprint}
    for changed in (comment, comment.replace(b"\x04ab", b"\x04cd")):
        photo.write_bytes(changed)
        fingerprints.add(prepare(table, tmp_path / "out", progress=False).fingerprint)
    assert len(fingerprints) == 3


def test_damaged_records_are_named_and_made_again(products_csv, prepared, tmp_path):
    out = shutil.copytree(prepared.folder, tmp_path / "out")
    lines = (out / "products.csv").read_text().splitlines()
    (out / "products.csv").write_text("\n".join(lines[:-5]))
    with pytest.raises(UserError, match=r"products\.csv is damaged"):
        open_prepared(out)
    assert len(prepare(products_csv, out, progress=False)) == 120


def test_report_counts_duplicates(tmp_path):
    table, photos = write_products(tmp_path / "shop", 60), tmp_path / "shop/photos"
    shutil.copy(photos / "p0.jpg", photos / "p1.jpg")
    shutil.copy(photos / "p2.jpg", photos / "p3.jpg")
    rows = [line.split(",") for line in table.read_text().splitlines()]
    rows[2][3] = "red" if rows[1][3] != "red" else "blue"
    rows[4][2:] = rows[3][2:]
    table.write_text("\n".join(map(",".join, rows)))
    report = prepare(table, tmp_path / "out", progress=False).report
    assert (report["identical"]["groups"], report["identical"]["products"]) == (2, 4)
    assert report["identical"]["disagreement"]["colour"] == 0.5
    assert "identical photos: 4 products in 2 groups" in format_report(report)
    assert "colour 50.0%" in format_report(report)


@pytest.mark.slow
def test_the_real_catalogue(real_data, tmp_path):
    records = prepare(real_data / "fashion-product-images-small.tar.xz", tmp_path / "out", progress=False)
    report = records.report
    assert (report["rows"], report["documented_rows"], report["products"]) == (38_723, 38_535, 38_530)
    assert (sum(report["dropped"].values()), report["quarantined"]) == (188, 5)
    assert [c["present"] for c in report["classes"].values()] == [4, 32, 94, 44, 5, 4, 7]
    pairs = np.unique(np.stack([records.groups, records.splits], 1), axis=0)
    assert len(pairs) == len(np.unique(records.groups))  # every group lies in one split
    assert [report["splits"][s] / len(records) for s in ("train", "validation", "test")] == pytest.approx(
        [0.7, 0.1, 0.2], abs=0.002
    )
