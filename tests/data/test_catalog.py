"""The catalogue reader: every source reads alike, every fault has a reason, nothing leads outside."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fashion_jax.data import archives
from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.catalog_report import describe_catalog
from fashion_jax.data.photos import BadPhoto, encode_photo
from fashion_jax.data.schema import DOCUMENTED, FASHION, Attribute, Schema
from fashion_jax.data.tables import read_table
from fashion_jax.system.errors import UserError

HEADER = "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName"
PHOTO = encode_photo(np.full((80, 60, 3), 200, np.uint8))


def row(number: int, **changes: str) -> str:
    values = {
        "id": str(number), "gender": "Men", "masterCategory": "Apparel", "subCategory": "Topwear",
        "articleType": "Shirts", "baseColour": "Blue", "season": "Fall", "year": "2011", "usage": "Casual",
        "productDisplayName": f"Shirt number {number}",
    }  # fmt: skip
    return ",".join({**values, **changes}.values())


def kaggle_files(count: int = 20) -> dict[str, bytes]:
    table = "\n".join([HEADER, *(row(i) for i in range(count))]) + "\n"
    return {"styles.csv": table.encode(), **{f"images/{i}.jpg": PHOTO for i in range(count)}}


def write_folder(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, content: dict[str, bytes], mode: str) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read_all(catalog) -> dict[str, bytes]:
    return {product.id: data for product, data in catalog.iter_photos(catalog.records)}


@pytest.fixture(params=[0, 10**9], ids=["read twice", "held in memory"])
def held_bytes(request, monkeypatch) -> int:
    """Up to how large tars stay in memory."""
    monkeypatch.setattr(archives, "_IN_MEMORY_BYTES", request.param)
    return request.param


@pytest.mark.parametrize("prefix", ["", "fashion-dataset/", "myntradataset/", "fashion-dataset/fashion-dataset/"])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz", "folder"])
def test_all_containers_read_alike(tmp_path, prefix, kind, held_bytes):
    content = {prefix + name: data for name, data in kaggle_files().items()}
    content[prefix + "styles/1.json"] = b"{}"
    if kind == "folder":
        path = write_folder(tmp_path / "c", content)
    elif kind == "zip":
        path = write_zip(tmp_path / "c.zip", content)
    else:
        path = write_tar(tmp_path / f"c.{kind}", content, {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}[kind])
    catalog = open_catalog(path)
    assert [p.id for p in catalog.records] == [str(i) for i in range(20)]
    assert catalog.records[3].labels == ("Apparel", "Topwear", "Shirts", "Blue", "Men", "Fall", "Casual")
    assert catalog.schema.name == FASHION.name
    assert read_all(catalog) == {str(i): PHOTO for i in range(20)}


def test_of_two_files_of_a_name_in_a_tar_the_last_counts(tmp_path, held_bytes):
    content = kaggle_files()
    path = write_tar(tmp_path / "c.tar", content, "w")
    table = content["styles.csv"].replace(b",Blue,", b",Red,")
    write_tar(path, {"images/3.jpg": b"another", "styles.csv": table}, "a")
    catalog = open_catalog(path)
    assert {product.labels[3] for product in catalog.records} == {"Red"}
    some = catalog.records[2:5]
    assert dict((p.id, data) for p, data in catalog.iter_photos(some)) == {"2": PHOTO, "3": b"another", "4": PHOTO}
    assert read_all(catalog) == {str(i): PHOTO for i in range(20)} | {"3": b"another"}


def test_a_small_tar_is_read_once_and_of_a_large_one_what_has_gone_is_said(tmp_path, held_bytes):
    content = kaggle_files()
    path = write_tar(tmp_path / "c.tar.gz", content, "w:gz")
    catalog = open_catalog(path)
    del content["images/7.jpg"]
    write_tar(path, content, "w:gz")
    photos = read_all(catalog)
    bad = {name for name, data in photos.items() if isinstance(data, BadPhoto)}
    assert len(photos) == 20
    assert bad == (set() if held_bytes else {"7"})
    if not held_bytes:
        assert "changed" in str(photos["7"])
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(UserError, match="damaged"):
            read_all(catalog)


def test_a_map_of_holes_is_not_read_unless_it_is_asked_for(tmp_path):
    """Reading a map of many holes takes hours, and it may claim a negative size."""
    holes = ",".join(f"{2 * i},1" for i in range(500))
    for size in (1_000, -(10**12)):
        path = write_tar(tmp_path / f"{size}.tar", kaggle_files(), "w")
        with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as archive:
            info = tarfile.TarInfo("images/sparse.jpg")
            info.size = 500
            info.pax_headers = {"GNU.sparse.map": holes, "GNU.sparse.size": str(size)}
            archive.addfile(info, io.BytesIO(bytes(500)))
    catalog = open_catalog(tmp_path / "1000.tar")
    assert "images/1.jpg" in catalog.files._in_memory and "images/sparse.jpg" not in catalog.files._in_memory
    assert read_all(catalog) == {str(i): PHOTO for i in range(20)}
    with pytest.raises(UserError, match="negative"):
        open_catalog(path)


def test_the_stamp_changes_with_the_content_and_not_with_the_name(tmp_path):
    content = kaggle_files()
    folder = write_folder(tmp_path / "a", content)
    archive = write_zip(tmp_path / "b.zip", content)
    stamps = [open_catalog(path).stamp() for path in (folder, archive)]
    assert open_catalog(folder.rename(tmp_path / "moved")).stamp() == stamps[0]
    assert open_catalog(archive.rename(tmp_path / "moved.zip")).stamp() == stamps[1]
    other = bytes(reversed(PHOTO))  # of the same size
    (tmp_path / "moved/images/1.jpg").write_bytes(other)
    assert open_catalog(tmp_path / "moved").stamp() != stamps[0]
    changed = write_zip(tmp_path / "c.zip", {**content, "images/1.jpg": other})
    assert open_catalog(changed).stamp() != stamps[1]


def test_rows_leave_with_a_reason_and_keep_what_they_have(tmp_path):
    rows = [
        row(1), row(2, baseColour="NA"), row(3, subCategory="Free Gifts"), row(1, gender="Women"), row(5),
        row(0).replace("0,Men", ",Men", 1), "7,Men,Apparel", row(8, articleType="Rare"), row(9) + ", with, commas",
        *(row(i) for i in range(20, 40)),
    ]  # fmt: skip
    content = {"styles.csv": "\n".join([HEADER, *rows]).encode()}
    content |= {f"images/{i}.jpg": PHOTO for i in (1, 2, 3, 8, 9, *range(20, 40))}
    catalog = open_catalog(write_folder(tmp_path / "c", content))
    reasons = {(r.row, r.id): r.reason for r in catalog.rejected}
    expected = {
        (3, "3"): "subCategory 'Free Gifts'", (4, "1"): "row 1", (5, "5"): "no photo images/5.jpg", (6, ""): "no id",
        (7, "7"): "3 of 10 columns",
    }  # fmt: skip
    assert reasons.keys() == expected.keys()
    assert all(expected[key] in reason for key, reason in reasons.items())
    products = {p.id: p for p in catalog.records}
    assert products["2"].labels[3] is None
    assert products["2"].labels[0] == "Apparel"
    assert products["8"].labels[2] is None  # one row of the class is too few
    assert products["9"].title == "Shirt number 9, with, commas"
    assert catalog.repairs == {"surplus commas in the last column": 1}
    assert catalog.dropped == {"subCategory outside its classes": 1}
    assert catalog.num_rows == 29
    assert catalog.documented_rows == 29 - 3  # without the dropped, the short, and the one without a colour
    assert catalog.vocabularies["articleType"] == ("Shirts",)
    assert catalog.vocabularies["baseColour"] == DOCUMENTED["baseColour"]


@pytest.mark.parametrize(
    ("encode", "repair"),
    [
        (lambda t: t.encode(), None), (lambda t: t.replace("\n", "\r\n").encode(), None),
        (lambda t: t.replace(",", ";").encode(), None), (lambda t: t.replace(",", "|").encode(), None),
        (lambda t: t.replace(",", "\t").encode(), None), (lambda t: t.encode("utf-16"), "byte-order mark"),
        (lambda t: b"\xef\xbb\xbf" + t.encode(), "byte-order mark"),
        (lambda t: t.encode("cp1252"), "not UTF-8, read as Windows-1252 (Western Europe)"),
        (lambda t: t.replace("Café", "Ca\0fé").encode(), "NUL characters removed"),
    ],
)  # fmt: skip
def test_encodings_and_delimiters(encode, repair):
    table = read_table("t.csv", encode("id , name\n1,Café\n2,Zoë\n"))
    assert table.frame.to_dict("list") == {"id": ["1", "2"], "name": ["Café", "Zoë"]}
    assert list(table.repairs) == ([repair] if repair else [])


def rows_with(*changes: tuple[int, str]) -> bytes:
    rows = ["sku,title,kind", *(f'{i},"short, text {i}",k' for i in range(20))]
    for number, text in changes:
        rows[number + 1] = text
    return "\n".join(rows).encode()


def test_quoted_cells_hold_line_ends_and_leave_the_other_rows_alone():
    table = read_table("t.csv", b'id,name\n1,"a, ""b""\nc"\n2,5" wide\n')
    assert table.frame["name"].tolist() == ['a, "b"\nc', '5" wide']
    lines = [b"id,name", b'1,"never closed', *(b"%d,%s" % (i, b"x" * 30) for i in range(2, 40))]
    assert len(read_table("t.csv", b"\n".join(lines)).frame) == 39
    text = "x" * 600 + "\n" + "y, " * 300
    table = read_table("t.csv", rows_with((3, f'3,"{text}",k')))
    assert not table.repairs
    assert table.frame["sku"].tolist() == [str(i) for i in range(20)]
    assert table.frame["title"][4] == text.strip()


@pytest.mark.parametrize(
    "changes",
    [
        [(5, '5,"never closed,k')], [(5, '5,"never closed,k'), (9, '9,"nor this,k')],
        [(5, '5,"opened,k'), (9, '9,and closed",k')], [(19, '19,"the last,k')],
    ],
)  # fmt: skip
def test_stray_quotes_swallow_no_row(changes):
    table = read_table("t.csv", rows_with(*changes))
    assert table.num_rows == len(table.frame) == 20
    assert table.frame["sku"].tolist() == [str(i) for i in range(20)]
    assert (table.frame["kind"] == "k").all()
    opened = sum('"' in text and ',"' in text for _, text in changes)  # a quote inside of a cell is just a sign
    assert table.repairs == {"stray quotes, read as text": opened}
    untouched = set(range(20)) - {number for number, _ in changes}
    assert all(table.frame["title"][i + 1] == f"short, text {i}" for i in untouched)


def test_tsv_and_parquet_with_bytes_read_like_the_csv(products_csv, tmp_path):
    frame = pd.read_csv(products_csv, dtype=str, keep_default_na=False)
    folder = tmp_path / "shop"
    shutil.copytree(products_csv.parent, folder)
    frame.to_csv(folder / "products.tsv", sep="\t", index=False)
    bytes_frame = frame.assign(file=[(folder / name).read_bytes() for name in frame["file"]])
    bytes_frame.to_parquet(tmp_path / "products.parquet")
    one, two, three = (open_catalog(p) for p in (products_csv, folder / "products.tsv", tmp_path / "products.parquet"))
    assert [p.labels for p in one.records] == [p.labels for p in two.records] == [p.labels for p in three.records]
    assert read_all(one) == read_all(two) == read_all(three)


def test_hub_layout(tmp_path):
    frame = pd.DataFrame([r.split(",") for r in [row(i) for i in range(30)]], columns=HEADER.split(","))
    frame["image"] = [{"bytes": PHOTO, "path": f"{i}.jpg"} for i in range(30)]
    (tmp_path / "data").mkdir()
    # Parts of a table may differ in columns.
    frame[:18].drop(columns="season").to_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    frame[18:].to_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    catalog = open_catalog(tmp_path)
    assert [p.id for p in catalog.records] == [str(i) for i in range(30)]
    assert [p.labels[5] for p in catalog.records] == [None] * 18 + ["Fall"] * 12
    assert len({p.row for p in catalog.records}) == 30
    assert set(read_all(catalog).values()) == {PHOTO}


def test_large_binary_images_and_line_ends_in_ids_and_titles(tmp_path):
    kind = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
    image = pa.array([{"bytes": PHOTO, "path": None}] * 6, kind)
    columns = {"id": [f"a\r{i}" for i in range(6)], "title": ["x\r\ny"] * 6, "image": image, "kind": ["a", "b"] * 3}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    products = open_catalog(tmp_path / "t.parquet").records
    assert len(products) == 6
    assert (products[0].id, products[0].title) == ("a 0", "x y")


def test_usual_variations_of_the_layout(tmp_path):
    content = kaggle_files()
    hub_names = content["styles.csv"].replace(b"masterCategory", b"category1").replace(b"subCategory", b"category2")
    named = "\n".join([f"{HEADER},file", *(f"{row(i)},pics/{i}.jpg" for i in range(20))]).encode()
    litter = {"._styles.csv": b"\0\5\x16", "__MACOSX/._styles.csv": b"\0", "images/._1.jpg": b"\0"}  # by macOS
    packed = write_zip(tmp_path / "c.zip", content)
    for source in (
        write_folder(tmp_path / "hub", {**content, "styles.csv": hub_names}),
        write_folder(tmp_path / "named", {"mine.csv": named, **{f"pics/{i}.jpg": PHOTO for i in range(20)}}),
        write_zip(tmp_path / "litter.zip", {**content, **litter}),
        write_folder(tmp_path / "packed", {"data.zip": packed.read_bytes()}),
    ):
        products = open_catalog(source).records
        assert len(products) == 20
        assert products[0].labels[:2] == ("Apparel", "Topwear")


@pytest.mark.parametrize("name", ["../evil.csv", "/etc/evil.csv", "a/../../evil", "C:\\evil.csv", "..\\evil.csv"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_lead_outside_are_refused(tmp_path, name, kind):
    content = {**kaggle_files(), name: b"x"}
    path = tmp_path / f"c.{kind}"
    path = write_zip(path, content) if kind == "zip" else write_tar(path, content, "w")
    with pytest.raises(UserError, match="not safe"):
        open_catalog(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize("target", ["../../secret", "/etc/passwd"])
def test_links_that_lead_outside_are_refused(tmp_path, target):
    path = write_tar(tmp_path / "c.tar", kaggle_files(), "w")
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("images/link.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, target
        archive.addfile(info)
    with pytest.raises(UserError, match="not safe"):
        open_catalog(path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_bombs_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archives, "FREE_BYTES", 1_000_000)
    content, path = {**kaggle_files(), "bomb": bytes(30_000_000)}, tmp_path / f"c.{kind}"
    path = write_zip(path, content, zipfile.ZIP_DEFLATED) if kind == "zip" else write_tar(path, content, "w:gz")
    with pytest.raises(UserError, match="unpack to"):
        open_catalog(path)


def test_paths_of_a_table_stay_inside(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(PHOTO)
    shop = tmp_path / "shop"
    rows = [["sku", "file", "kind"], ["a", "../secret.jpg", "x"], ["b", str(tmp_path / "secret.jpg"), "x"]]
    rows += [["c", "http://h/p.jpg", "x"], ["d", "link.jpg", "x"]]
    rows += [[f"e{i}", "ok.jpg", "xy"[i % 2]] for i in range(20)]
    write_folder(shop, {"ok.jpg": PHOTO})
    (shop / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    with (shop / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for source in (shop / "t.csv", shop):
        catalog = open_catalog(source)
        assert {r.id for r in catalog.rejected} == {"a", "b", "c", "d"}
        assert len(catalog.records) == 20


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
        ("absent.zip", {}, "nothing at"), ("x.zip", {"x.zip": b"not an archive" * 100}, "not a zip or tar"),
        ("e.zip", {"e.zip": b"PK\5\6" + bytes(18)}, "no table"), ("t.csv", {"t.csv": b""}, "empty"),
        ("t.csv", {"t.csv": b"a,a\n1,2\n"}, "two columns named 'a'"), (".", {"a.csv": b"x", "b.csv": b"y"}, "several"),
        ("t.csv", {"t.csv": b"a,b\n1,2\n"}, "no column holds photo paths"), ("synthetic:ten", {}, "synthetic"),
        ("t.parquet", {"t.parquet": b"PAR1 no"}, "Parquet"),
    ],
)  # fmt: skip
def test_bad_sources_get_a_sentence(tmp_path, monkeypatch, source, files, message):
    monkeypatch.chdir(write_folder(tmp_path, files))
    with pytest.raises(UserError, match=message):
        open_catalog(source)


def write_labels(folder: Path, labels: list[str]) -> Path:
    """Writes a shop whose column `kind` holds the labels."""
    content = {f"{i}.jpg": PHOTO for i in range(len(labels))}
    with_header = [["file", "kind"], *([f"{i}.jpg", label] for i, label in enumerate(labels))]
    file = io.StringIO()
    csv.writer(file).writerows(with_header)
    return write_folder(folder, {**content, "t.csv": file.getvalue().encode()}) / "t.csv"


def test_labels_are_cleaned_merged_and_what_was_done_is_noted(tmp_path):
    labels = ["Navy Blue"] * 4 + ["navy\u00a0blue"] * 3 + ["Navy\u2013Blue", "None", "none", "n/a", "", "Red", "Red"]
    source = write_labels(tmp_path, labels * 2)
    catalog = open_catalog(source)
    assert catalog.vocabularies["kind"] == ("Navy Blue", "Navy-Blue", "Red", "navy blue")
    assert catalog.repairs == {"labels with surplus or unusual spaces": 6, "labels with another dash": 2}
    assert catalog.missing_words["kind"] == {"None": 2, "none": 2, "n/a": 2, "": 2}
    assert catalog.look_alikes["kind"] == [{"Navy Blue": 8, "navy blue": 6, "Navy-Blue": 2}]
    assert not catalog.merged
    merge = (("navy blue", "Navy Blue"), ("Navy\u2011Blue", "Navy Blue"), ("absent", "Red"))
    schema = Schema("x", (Attribute("kind", merge=merge),), "", "file", missing_values=("n/a",))
    catalog = open_catalog(source, schema)
    assert catalog.vocabularies["kind"] == ("Navy Blue", "None", "Red", "none")
    assert catalog.merged["kind"] == {"navy blue": 6, "Navy-Blue": 2, "absent": 0}
    assert catalog.look_alikes["kind"] == [{"None": 2, "none": 2}]
    assert [p.labels[0] for p in catalog.records].count("Navy Blue") == 16


def test_a_fixed_class_is_no_missing_word_and_other_values_are_noted(tmp_path):
    source = write_labels(tmp_path, ["None", "None", "Striped", "striped", "-", "Dots"])
    attribute = Attribute("kind", classes=("None", "Striped"))
    catalog = open_catalog(source, Schema("x", (attribute,), "", "file"))
    assert [p.labels[0] for p in catalog.records] == ["None", "None", "Striped", None, None, None]
    assert catalog.missing_words["kind"] == {"-": 1}
    assert catalog.masked_words["kind"] == {"striped": 1, "Dots": 1}
    assert catalog.look_alikes["kind"] == [{"Striped": 1, "striped": 1}]
    rare = open_catalog(source, Schema("x", (Attribute("kind", min_rows=2),), "", "file", missing_values=("-",)))
    assert rare.masked_words["kind"] == {"Striped": 1, "striped": 1, "Dots": 1}


def test_the_schemas_encoding_reads_the_table(tmp_path):
    source = write_labels(tmp_path, ["赤", "青"] * 5)
    source.write_bytes(source.read_text().encode("shift_jis"))
    with pytest.raises(UserError, match='the key "encoding"'):
        open_catalog(source)
    catalog = open_catalog(source, Schema("x", (Attribute("kind"),), "", "file", encoding="shift_jis"))
    assert catalog.vocabularies["kind"] == ("赤", "青")
    assert catalog.text.words == ("赤", "青")


def shop_of(folder: Path, ids: list[str], header: str = "sku;file;kind", **columns: list[str]) -> Path:
    """Writes a shop of products with the given ids, each with a photo of its own."""
    heading = ";".join([header, *columns])
    rows = [[cell, f"{i}.jpg", "ab"[i % 2], *(c[i] for c in columns.values())] for i, cell in enumerate(ids)]
    content = {f"{i}.jpg": PHOTO for i in range(len(ids))}
    table = "\n".join([heading, *map(";".join, rows)])
    return write_folder(folder, {**content, "t.csv": table.encode()}) / "t.csv"


@pytest.mark.parametrize("cell", ["1.00E+09", "1,23457E+12", "4E+12", "9.1e+15", "8.9E+9", "1,23457E12", "6.1E17"])
def test_ids_that_a_spreadsheet_has_rounded_are_refused(tmp_path, cell):
    ids = [*map(str, range(20)), cell]
    with pytest.raises(UserError, match=rf"'{re.escape(cell)}' in row 21.*rounded.*format the column as text"):
        open_catalog(shop_of(tmp_path, ids))
    assert open_catalog(shop_of(tmp_path, [*ids[:20], "0012"])).records[-1].id == "0012"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([f"{61 + i // 4}0000000000000000" for i in range(20)], "'610000000000000000' in row 1 .* 20 such rows"),
        ([f"{8712345678901230 + 10 * i}" for i in range(20)], "kept 15 digits"),
        ([*(f"A-{i}" for i in range(18)), "01-Jan", "3-May"], "'01-Jan' in row 19 .* 2 such rows.*made of an id"),
        ([f"{i:02}-Mar" for i in range(1, 21)], "'01-Mar' in row 1"),
        (["1. Mrz", "12. Okt", *"ABCDEFGHIJ"], "'1. Mrz'"),
        (["Jan-04", *(f"KIT-{i}" for i in range(20))], "'Jan-04'"), (["3-févr", *"ABCDEFGHIJ"], "'3-févr'"),
        (["2024-03-01", "01.04.2024", *"ABCDEFGHIJ"], "'2024-03-01'"),
        # These are a shop's own.
        ([f"{8712345678901234 + 7 * i}" for i in range(20)], ""), ([f"{i}-MAR" for i in range(10, 30)], ""),
        (["12-mar", "12-red", "13-mar", "14-blu", *"ABCDEF"], ""), (["4E12", "7E10", "12E3", *"ABCDEF"], ""),
        ([f"2024-03-{i:02}" for i in range(1, 21)], ""), ([f"{i}-{i}" for i in range(10, 30)], ""),
    ],
)  # fmt: skip
def test_ids_that_a_spreadsheet_has_changed_are_refused(tmp_path, ids, message):
    source = shop_of(tmp_path, ids)
    if message:
        with pytest.raises(UserError, match=message):
            open_catalog(source)
    else:
        assert [record.id for record in open_catalog(source).records] == ids


def test_ids_are_cleaned_and_that_is_counted(tmp_path):
    hidden = ["M0", "M0\u200b", "M\u20111", "M-1", "Cafe\u0301", "Café", *(f"S{i}" for i in range(14))]
    catalog = open_catalog(shop_of(tmp_path / "a", hidden))
    assert [r.id for r in catalog.records][:6] == ["M0", "M0", "M-1", "M-1", "Café", "Café"]
    assert catalog.repairs == {"ids with invisible signs, other dashes, or letters in two parts": 3}
    floats = [f"{1000 + i}.0" for i in range(19)]
    catalog = open_catalog(shop_of(tmp_path / "b", [*floats, ""]))
    assert [r.id for r in catalog.records] == [str(1000 + i) for i in range(19)]
    assert catalog.repairs == {"ids that were written as numbers with .0": 19}
    versions = [*floats[:18], "V2", "3.0"]
    assert [r.id for r in open_catalog(shop_of(tmp_path / "c", versions)).records] == versions
    # Photos that are named by their ids are found by the clean ones.
    table = "\n".join(["sku,kind", *(f"{i}.0,{'ab'[i % 2]}" for i in range(10))])
    content = {"t.csv": table.encode(), **{f"images/{i}.jpg": PHOTO for i in range(10)}}
    content |= {"t.csv": table.replace("9.0", "9.0\u200b").encode()}
    assert len(open_catalog(write_folder(tmp_path / "d", content)).records) == 10
    content = {"t.csv": table.replace(".0", "\u2013x").encode()}
    content |= {f"images/{i}" + ("-x.jpg", "\u2013x.jpg")[i % 2]: PHOTO for i in range(10)}
    assert len(open_catalog(write_folder(tmp_path / "e", content)).records) == 10


def test_rows_without_an_id_below_a_product_say_what_to_do(tmp_path):
    merged = [f"S{i}" if i % 3 == 0 else "" for i in range(21)]
    rejected = open_catalog(shop_of(tmp_path / "a", merged)).rejected
    assert len(rejected) == 14 and all("fill the ids down" in item.reason for item in rejected)
    assert {item.kind for item in rejected} == {"the row has no id"}
    one = open_catalog(shop_of(tmp_path / "b", [*(f"S{i}" for i in range(20)), ""])).rejected
    assert [item.reason for item in one] == ["the row has no id"]


def test_a_column_of_splits_is_said_to_be_there_and_contradictions_are_counted(tmp_path):
    parts = [["train", "val", "test", "train"][i // 2 % 4] for i in range(40)]
    parts[1] = "test"  # the second photo of the first product
    source = shop_of(tmp_path, [f"S{i // 2}" for i in range(40)], split=parts)
    catalog = open_catalog(source)
    assert catalog.repairs == {"products whose rows name several splits, taken from their first row": 1}
    assert {r.split for r in catalog.records[:2]} == {"train"}
    assert describe_catalog(catalog)["columns"]["split"] == "column 'split'; to use it, add --split=column"


@pytest.mark.parametrize("name", ["t.csv.gz", "t.jsonl", "t.parquet"])
def test_a_folder_with_a_table_of_another_kind(tmp_path, name):
    rows = [{"file": f"{i}.jpg", "kind": "ab"[i % 2]} for i in range(20)]
    frame = pd.DataFrame(rows)
    data = {
        "t.csv.gz": gzip.compress(frame.to_csv(index=False).encode()),
        "t.jsonl": "\n".join(map(json.dumps, rows)).encode(), "t.parquet": frame.to_parquet(),
    }  # fmt: skip
    content = {"README.txt": b"hello", "notes.json": b"{}", name: data[name], **{f"{i}.jpg": PHOTO for i in range(20)}}
    for source in (write_folder(tmp_path / "c", content), write_zip(tmp_path / "c.zip", content)):
        assert len(open_catalog(source).records) == 20
    (tmp_path / "c" / name).unlink()
    with pytest.raises(UserError, match=r"if (README.txt|notes.json) is the table, give its path"):
        open_catalog(tmp_path / "c")


def test_missing_columns_are_named(products_csv):
    schema = Schema("own", (Attribute("kind"), Attribute("fabric")), id_column="sku", image_column="picture")
    with pytest.raises(UserError, match=r"picture, fabric.*it has: sku, file, kind, colour"):
        open_catalog(products_csv, schema)


def test_a_truncated_archive_is_refused(tmp_path):
    noise = np.random.default_rng(0).bytes(100_000)
    path = write_tar(tmp_path / "c.tar.xz", {**kaggle_files(), "noise": noise}, "w:xz")
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(UserError, match="damaged"):
        open_catalog(path)


def test_a_member_damaged_in_a_zip_is_one_bad_photo(tmp_path):
    path = write_zip(tmp_path / "c.zip", kaggle_files())
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("images/7.jpg").header_offset + 60
    data = bytearray(path.read_bytes())
    data[offset : offset + 8] = bytes(8)
    path.write_bytes(data)
    photos = read_all(open_catalog(path))
    assert [name for name, photo in photos.items() if isinstance(photo, BadPhoto)] == ["7"]


def test_photos_alone_will_do_without_labels(tmp_path):
    write_folder(tmp_path / "a", {"x/1.jpg": PHOTO, "x/2.png": PHOTO, "note.txt": b""})
    catalog = open_catalog(tmp_path / "a", labelled=False)
    assert [p.id for p in catalog.records] == ["1", "2"]
    assert [p.id for p in open_catalog(tmp_path / "a/x/1.jpg", labelled=False).records] == ["1"]
    with pytest.raises(UserError, match="no table"):
        open_catalog(tmp_path / "a")


def test_mutated_tables_and_archives_never_crash(tmp_path, held_bytes):
    rng = np.random.default_rng(1)
    good = bad = 0
    archive = write_zip(tmp_path / "c.zip", kaggle_files(5)).read_bytes()
    packed = write_tar(tmp_path / "c.tar.gz", kaggle_files(5), "w:gz").read_bytes()
    samples = [("m.csv", kaggle_files(5)["styles.csv"]), ("m.zip", archive), ("m.tar.gz", packed)]
    for number in range(240):
        name, original = samples[number % 3]
        path, data = tmp_path / name, bytearray(original)
        for _ in range(int(rng.integers(1, 12))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        path.write_bytes(bytes(data[: int(rng.integers(1, len(data) + 1))]) if number % 4 == 0 else bytes(data))
        try:
            list(read_all(open_catalog(path)))
            good += 1
        except UserError as error:
            assert str(error)
            bad += 1
    assert min(good, bad) > 10
