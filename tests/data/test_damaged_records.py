"""Damaged and hostile records: refused by name, made again, and nothing that they name is run."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from drawn_products import write_products
from fashion_jax.data import prepare as preparation
from fashion_jax.data.builder import FashionProducts
from fashion_jax.data.columns import infer_schema
from fashion_jax.data.loader import ResidentPhotos, StreamedPhotos
from fashion_jax.data.prepare import PrepareOptions, prepare
from fashion_jax.data.records import DATA_SET, LONGEST_NAME, LONGEST_TEXT, Prepared, open_prepared
from fashion_jax.data.schema import MultiValued
from fashion_jax.data.splits import SplitOptions
from fashion_jax.data.tables import read_table
from fashion_jax.system import stored
from fashion_jax.system.errors import UserError

FOR_PEOPLE = {"schema.json", "splits.csv", "quarantine.csv"}  # nothing reads them


@pytest.fixture
def folder(prepared, tmp_path) -> Path:
    """A copy of the records, to be damaged."""
    return Path(shutil.copytree(prepared.folder, tmp_path / "out"))


def use(folder: Path) -> tuple:
    """Returns all that is read of records."""
    records = open_prepared(folder)
    photos = [records.read_photo(row) for row in range(len(records))]
    arrays = (records.ids, records.labels, records.splits, records.groups)
    return records.fingerprint, records.vocabularies, records.titles, photos, *(array.tolist() for array in arrays)


def sign(folder: Path, **changes) -> None:
    """Changes the manifest, and makes its digest and those of all files anew."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    listing = {"files": stored.list_files(folder, besides=["manifest.json"])}
    stored.write_document(folder / "manifest.json", {**manifest, **listing, **changes})


def flip(data: bytes, place: int) -> bytes:
    return bytes([*data[:place], data[place] ^ 4, *data[place + 1 :]])


def test_every_damaged_file_is_refused_by_its_name(folder, prepared):
    whole, random = use(prepared.folder), np.random.default_rng(0)
    assert use(folder) == whole
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert len(paths) == 12
    for path in paths:
        data = path.read_bytes()
        places = random.integers(len(data), size=12) if data else []
        for damaged in (*(flip(data, place) for place in places), data[: len(data) // 2], b"", b"{" * 100_000, None):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            try:
                assert use(folder) == whole
                assert path.name in FOR_PEOPLE or data == damaged or path.name == "manifest.json"  # its white space
            except UserError as error:
                assert str(path) in str(error) and f"restore {folder} from a backup" in str(error)
                assert path.name not in FOR_PEOPLE
            path.write_bytes(data)


@pytest.mark.parametrize("name", ["manifest.json", "products.csv", f"{DATA_SET}/features.json", "photos"])
def test_what_would_never_end_is_not_read(folder, prepared, name):
    path = folder / (next(iter(prepared.photo_files("test"))) if name == "photos" else name)
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir):
        path.unlink() if not path.is_dir() else path.rmdir()
        make(path)
        with pytest.raises(UserError, match=f"{path.name} .*restore .* from a backup"):
            use(folder)


def test_files_of_other_records_are_refused(folder, prepared, tmp_path):
    shop = write_products(tmp_path / "shop", 120)
    other = prepare(shop, tmp_path / "other", progress=False)
    for name in (*prepared.photo_files("train"), "products.csv", "manifest.json", f"{DATA_SET}/dataset_info.json"):
        kept = (folder / name).read_bytes()
        shutil.copy(other.folder / name, folder / name)
        with pytest.raises(UserError, match="is damaged"):
            use(folder)
        (folder / name).write_bytes(kept)
    train, test = (next(iter(prepared.photo_files(split))) for split in ("train", "test"))
    shutil.copy(folder / train, folder / test)
    sign(folder)  # even so, a photo must belong to its row
    with pytest.raises(UserError, match="run the command again that made it"):
        use(folder)


@pytest.mark.parametrize("name", ["manifest.json", "products.csv", "features.json", "photos"])
def test_damaged_records_are_made_again(products_csv, folder, prepared, name):
    photos = next(iter(prepared.photo_files("train")))
    path = folder / {"features.json": f"{DATA_SET}/{name}", "photos": photos}.get(name, name)
    data = path.read_bytes()
    for damaged in (flip(data, len(data) // 2), None):
        path.unlink()
        if damaged:
            path.write_bytes(damaged)
        prepare(products_csv, folder, progress=False)
        assert use(folder) == use(prepared.folder)


def test_no_code_that_features_json_names_is_run(folder, tmp_path, monkeypatch):
    mark, path = tmp_path / "mark", folder / DATA_SET / "features.json"
    (tmp_path / "code").mkdir()
    (tmp_path / "code/stranger.py").write_text(f"open({str(mark)!r}, 'w')\nclass Text: pass\n")
    monkeypatch.syspath_prepend(tmp_path / "code")
    text = path.read_text()
    path.write_text(text.replace("tensorflow_datasets.core.features.text_feature.Text", "stranger.Text"))
    assert path.read_text() != text
    for sign_again in (False, True):
        if sign_again:
            sign(folder)
        for read in (
            use,
            lambda folder: FashionProducts(data_dir=str(folder)),
            lambda folder: tfds.builder("fashion_products", data_dir=str(folder)).as_data_source("test")[0],
        ):
            with pytest.raises(UserError, match=r"features\.json is"):
                read(folder)
    assert not mark.exists() and "stranger" not in sys.modules


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": 5}, {"stamp": None}, {"report": []}, {"options": {}}, {"options": {"max_side": "256"}},
        {"options": {"max_side": True}}, {"format": 99}, {"num_records": 119}, {"num_records": 1e300},
        {"vocabularies": {}}, {"vocabularies": ["kind"]}, {"vocabularies": {"kind": "dress", "colour": ["red"]}},
        {"vocabularies": {"kind": [], "colour": []}}, {"vocabularies": {"../x": ["red"], "colour": ["red"]}},
        {"tag_vocabularies": {"../../x": ["red"]}}, {"tag_vocabularies": None}, {"schema": {}}, {"schema": 3},
        {"files": {}}, {"files": None}, {"files": {"products.csv": {}}}, {"files": {"../../etc/passwd": {"bytes": 1}}},
        {"files": {f"{DATA_SET}/../../../../dev/zero": {"bytes": 0, "sha256": ""}}},
    ],
    ids=str,
)  # fmt: skip
def test_a_signed_manifest_of_other_values_is_a_sentence(folder, changes):
    sign(folder, **changes)
    with pytest.raises(UserError):
        use(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("row,id", "id,row"), (",train,", ",trian,"), (",train,", ",test,"), (",train,", ","), ("\n", "\n,\n"),
        ("S0", "x" * (LONGEST_NAME + 1)), ("S0", "\0"), ('"', "'"), (",train,0", f",train,{10**30}"), ("red", "rde"),
        ("row", '"' + "x" * 140_000), (",train,0", ",train,0.5"),
    ],
    ids=lambda text: text[:9],
)  # fmt: skip
def test_a_signed_table_of_other_values_is_a_sentence(folder, old, new):
    path = folder / "products.csv"
    text = path.read_text().replace(old, new, 1)
    path.write_text(text)
    sign(folder)
    try:
        use(folder)
    except UserError as error:
        assert "products.csv" in str(error) or "photo" in str(error)
    else:
        assert old == '"'  # of which there is none


def test_signed_photos_that_are_none_are_a_sentence(folder, prepared, monkeypatch):
    for name in prepared.photo_files("train", "validation", "test"):
        data, path = (folder / name).read_bytes(), folder / name
        for place in range(0, len(data), max(1, len(data) // 15)):
            path.write_bytes(data[:place] + b"\xff\x00" * 200 + data[place + 400 :])
            sign(folder)
            try:
                use(folder)
            except UserError as error:
                assert "run the command again that made it" in str(error)
        path.write_bytes(data)
    sign(folder)
    monkeypatch.setattr(Prepared, "read_photo", lambda self, row: b"no photo")
    records = open_prepared(folder)
    for read in (StreamedPhotos(records, 8, 8), lambda rows: ResidentPhotos(records, rows, 8, 8, progress=False)):
        with pytest.raises(UserError, match=r"the photo of row 3 in .* cannot be decoded \(.*; restore"):
            read(np.array([3]))


@pytest.mark.parametrize("column", ["sku", "title", "kind", "colour", "styles"])
def test_rows_with_long_texts_are_left_out(tmp_path, column):
    table = write_products(tmp_path / "shop", 60)
    rows = [line.split(",") for line in table.read_text().splitlines()]
    rows = [[*row, "title" if i == 0 else f"Shirt {i}", "styles" if i == 0 else "a;b"] for i, row in enumerate(rows)]
    place = rows[0].index(column)
    most = LONGEST_TEXT if column == "title" else LONGEST_NAME
    rows[3][place], rows[5][place] = "x" * most, "y" * (most + 1)
    rows[7][place] = "z;" * 70_000 if column != "styles" else ";".join(f"tag{i:06}" for i in range(14_000))
    table.write_text("\n".join(map(",".join, rows)))
    schema, _ = infer_schema(read_table("products.csv", table.read_bytes()).frame, "shop")
    attributes = tuple(a for a in schema.attributes if a.name in ("kind", "colour"))
    schema = dataclasses.replace(
        schema, attributes=attributes, title_column="title", multi_valued=(MultiValued("styles", separator=";"),)
    )
    records = prepare(table, tmp_path / "out", PrepareOptions(schema, max_bad_fraction=0.1), progress=False)
    lines = (tmp_path / "out/quarantine.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == ["5", "7"]
    assert all("characters; at most" in line and len(line) < 300 for line in lines)
    assert len(records) == 58 and use(tmp_path / "out")
    every = [*records.vocabularies.values(), *records.tag_vocabularies.values()]
    assert max(len(label) for classes in every for label in classes) <= LONGEST_NAME


def test_what_cannot_be_opened_is_not_put_in_place(products_csv, folder, prepared, monkeypatch):
    real = preparation._write
    other = PrepareOptions(split=SplitOptions(seed=1))

    def cut_photos(aside, *args, **kwargs):
        real(aside, *args, **kwargs)
        path = next(aside.rglob("*test*array_record*"))
        path.write_bytes(path.read_bytes()[:100])
        sign(aside)

    def swap_labels(aside, *args, **kwargs):
        real(aside, *args, **kwargs)
        text = (aside / "products.csv").read_text()
        (aside / "products.csv").write_text(text.replace(",red", ",blue", 1))
        sign(aside)

    for damage in (cut_photos, swap_labels):
        monkeypatch.setattr(preparation, "_write", damage)
        with pytest.raises(UserError, match="cannot be opened after they were written"):
            prepare(products_csv, folder, other, progress=False)
        assert use(folder) == use(prepared.folder)
        assert sorted(path.name for path in folder.parent.iterdir()) == ["out"]


def test_a_preparation_killed_between_its_renames_loses_nothing(products_csv, folder, prepared):
    new = folder.parent / ".out.abcd1234.part"
    for part in (new, folder.parent / ".out.abcd5678.part"):
        part.mkdir()
    folder.rename(new.with_suffix(".old"))
    made = (new.with_suffix(".old") / "manifest.json").stat().st_mtime_ns
    prepare(products_csv, folder, progress=False)
    assert use(folder) == use(prepared.folder)
    assert (folder / "manifest.json").stat().st_mtime_ns == made  # put back, not made again
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
