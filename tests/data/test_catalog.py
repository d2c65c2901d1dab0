"""The catalogue reader: every source reads alike, every fault has a reason, nothing leads outside."""

from __future__ import annotations

import csv
import io
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


def write_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
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
    return {product.id: data for product, data in catalog.iter_photos(catalog.products)}


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
    assert [p.id for p in catalog.products] == [str(i) for i in range(20)]
    assert catalog.products[3].labels == ("Apparel", "Topwear", "Shirts", "Blue", "Men", "Fall", "Casual")
    assert catalog.schema.name == FASHION.name
    assert read_all(catalog) == {str(i): PHOTO for i in range(20)}


def test_of_two_files_of_a_name_in_a_tar_the_last_counts(tmp_path, held_bytes):
    content = kaggle_files()
    path = write_tar(tmp_path / "c.tar", content, "w")
    table = content["styles.csv"].replace(b",Blue,", b",Red,")
    with tarfile.open(path, "a") as archive:
        for name, data in (("images/3.jpg", b"another"), ("styles.csv", table)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    catalog = open_catalog(path)
    assert {product.labels[3] for product in catalog.products} == {"Red"}
    some = catalog.products[2:5]
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
    path = write_tar(tmp_path / "c.tar", kaggle_files(), "w")
    holes = ",".join(f"{2 * i},1" for i in range(500))
    for size, refused in ((1_000, False), (-(10**12), True)):
        hostile = tmp_path / f"{size}.tar"
        hostile.write_bytes(path.read_bytes())
        with tarfile.open(hostile, "a", format=tarfile.PAX_FORMAT) as archive:
            info = tarfile.TarInfo("images/sparse.jpg")
            info.size = 500
            info.pax_headers = {"GNU.sparse.map": holes, "GNU.sparse.size": str(size)}
            archive.addfile(info, io.BytesIO(bytes(500)))
        if refused:
            with pytest.raises(UserError, match="negative"):
                open_catalog(hostile)
        else:
            catalog = open_catalog(hostile)
            assert "images/1.jpg" in catalog.files._in_memory
            assert "images/sparse.jpg" not in catalog.files._in_memory
            assert read_all(catalog) == {str(i): PHOTO for i in range(20)}


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
        row(1),
        row(2, baseColour="NA"),
        row(3, subCategory="Free Gifts"),
        row(1, gender="Women"),
        row(5),
        row(0).replace("0,Men", ",Men", 1),
        "7,Men,Apparel",
        row(8, articleType="Rare"),
        row(9) + ", with, commas",
        *(row(i) for i in range(20, 40)),
    ]
    content = {"styles.csv": "\n".join([HEADER, *rows]).encode()}
    content |= {f"images/{i}.jpg": PHOTO for i in (1, 2, 3, 8, 9, *range(20, 40))}
    catalog = open_catalog(write_folder(tmp_path / "c", content))
    reasons = {(r.row, r.id): r.reason for r in catalog.rejected}
    assert set(reasons) == {(3, "3"), (4, "1"), (5, "5"), (6, ""), (7, "7")}
    assert "subCategory 'Free Gifts'" in reasons[3, "3"]
    assert "row 1" in reasons[4, "1"]
    assert "no photo images/5.jpg" in reasons[5, "5"]
    assert "no id" in reasons[6, ""]
    assert "3 of 10 columns" in reasons[7, "7"]
    products = {p.id: p for p in catalog.products}
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
        (lambda t: t.encode(), None),
        (lambda t: b"\xef\xbb\xbf" + t.encode(), "byte-order mark"),
        (lambda t: t.encode("utf-16"), "byte-order mark"),
        (lambda t: t.encode("cp1252"), "not UTF-8, read as Windows-1252"),
        (lambda t: t.replace("\n", "\r\n").encode(), None),
        (lambda t: t.replace("Café", "Ca\0fé").encode(), "NUL characters removed"),
    ],
)
def test_encodings(encode, repair):
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
        [(5, '5,"never closed,k')],
        [(5, '5,"never closed,k'), (9, '9,"nor this,k')],
        [(5, '5,"opened,k'), (9, '9,and closed",k')],
        [(19, '19,"the last,k')],
    ],
)
def test_stray_quotes_swallow_no_row(changes):
    table = read_table("t.csv", rows_with(*changes))
    assert table.num_rows == len(table.frame) == 20
    assert table.frame["sku"].tolist() == [str(i) for i in range(20)]
    assert (table.frame["kind"] == "k").all()
    opened = sum('"' in text and ',"' in text for _, text in changes)  # a quote inside of a cell is just a sign
    assert table.repairs == {"stray quotes, read as text": opened}
    untouched = set(range(20)) - {number for number, _ in changes}
    assert all(table.frame["title"][i + 1] == f"short, text {i}" for i in untouched)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_delimiters(separator):
    table = read_table("t.csv", separator.join("abc").encode() + b"\n" + separator.join("123").encode())
    assert table.frame.to_dict("list") == {"a": ["1"], "b": ["2"], "c": ["3"]}


def test_own_csv_is_inferred(products_csv):
    catalog = open_catalog(products_csv)
    assert catalog.schema.id_column == "sku"
    assert catalog.schema.image_column == "file"
    assert [a.name for a in catalog.schema.attributes] == ["kind", "colour"]
    assert catalog.vocabularies == {"kind": ("round", "square", "tall"), "colour": ("blue", "green", "red", "yellow")}
    assert len(catalog.products) == 120
    assert any(p.labels[0] is None for p in catalog.products)


def test_tsv_and_parquet_with_bytes_read_like_the_csv(products_csv, tmp_path):
    frame = pd.read_csv(products_csv, dtype=str, keep_default_na=False)
    folder = tmp_path / "shop"
    shutil.copytree(products_csv.parent, folder)
    frame.to_csv(folder / "products.tsv", sep="\t", index=False)
    bytes_frame = frame.assign(file=[(folder / name).read_bytes() for name in frame["file"]])
    bytes_frame.to_parquet(tmp_path / "products.parquet")
    one, two, three = (open_catalog(p) for p in (products_csv, folder / "products.tsv", tmp_path / "products.parquet"))
    assert [p.labels for p in one.products] == [p.labels for p in two.products] == [p.labels for p in three.products]
    assert read_all(one) == read_all(two) == read_all(three)


def test_hub_layout(tmp_path):
    frame = pd.DataFrame([r.split(",") for r in [row(i) for i in range(30)]], columns=HEADER.split(","))
    frame["image"] = [{"bytes": PHOTO, "path": f"{i}.jpg"} for i in range(30)]
    (tmp_path / "data").mkdir()
    frame[:18].to_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    frame[18:].to_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    catalog = open_catalog(tmp_path)
    assert [p.id for p in catalog.products] == [str(i) for i in range(30)]
    assert len({p.row for p in catalog.products}) == 30
    assert set(read_all(catalog).values()) == {PHOTO}


def test_parts_of_a_table_may_differ_in_columns(tmp_path):
    base = pd.DataFrame({"id": range(12), "image": [PHOTO] * 12, "kind": ["a", "b"] * 6})
    (tmp_path / "data").mkdir()
    base.to_parquet(tmp_path / "data/train-0.parquet")
    second = base.assign(id=range(12, 24), colour=["red", "blue", "red"] * 4)
    second.to_parquet(tmp_path / "data/train-1.parquet")
    catalog = open_catalog(tmp_path)
    assert len(catalog.products) == 24
    assert {p.labels for p in catalog.products[:12]} == {("a", None), ("b", None)}


def test_large_binary_images_of_the_hub(tmp_path):
    kind = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
    image = pa.array([{"bytes": PHOTO, "path": None}] * 6, kind)
    pq.write_table(pa.table({"id": pa.array(range(6)), "image": image, "kind": ["a", "b"] * 3}), tmp_path / "t.parquet")
    assert len(open_catalog(tmp_path / "t.parquet").products) == 6


def with_hub_names(folder: Path) -> Path:
    table = kaggle_files()["styles.csv"].replace(b"masterCategory", b"category1").replace(b"subCategory", b"category2")
    return write_folder(folder, {**kaggle_files(), "styles.csv": table})


def with_photo_paths(folder: Path) -> Path:
    """The known data set may name its photos."""
    lines = [f"{HEADER},file", *(f"{row(i)},pics/{i}.jpg" for i in range(20))]
    return write_folder(folder, {"mine.csv": "\n".join(lines).encode(), **{f"pics/{i}.jpg": PHOTO for i in range(20)}})


def with_litter(folder: Path) -> Path:
    """Files that macOS adds are no tables."""
    litter = {"._styles.csv": b"\0\5\x16", "__MACOSX/._styles.csv": b"\0", "images/._1.jpg": b"\0"}
    return write_zip(folder / "c.zip", {**kaggle_files(), **litter})


def not_unpacked(folder: Path) -> Path:
    """A folder that holds nothing but an archive."""
    return write_zip(folder / "data.zip", kaggle_files()).parent


@pytest.mark.parametrize("write", [with_hub_names, with_photo_paths, with_litter, not_unpacked])
def test_usual_variations_of_the_layout(tmp_path, write):
    products = open_catalog(write(tmp_path)).products
    assert len(products) == 20
    assert products[0].labels[:2] == ("Apparel", "Topwear")


def test_line_ends_in_ids_and_titles_become_spaces(tmp_path):
    table = pd.DataFrame({"id": [f"a\r{i}" for i in range(6)], "title": ["x\r\ny"] * 6, "kind": ["a", "b"] * 3})
    table.assign(image=[PHOTO] * 6).to_parquet(tmp_path / "t.parquet")
    product = open_catalog(tmp_path / "t.parquet").products[0]
    assert (product.id, product.title) == ("a 0", "x y")


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
    content = {**kaggle_files(), "bomb": bytes(30_000_000)}
    path = tmp_path / f"c.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    else:
        write_tar(path, content, "w:gz")
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
        assert len(catalog.products) == 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: t / "absent.zip", "nothing at"),
        (lambda t: write_folder(t, {"x.zip": b"not an archive" * 100}) / "x.zip", "not a zip or tar"),
        (lambda t: write_zip(t / "e.zip", {}), "no table"),
        (lambda t: write_zip(t / "p.zip", {"images/1.jpg": PHOTO}), "no table"),
        (lambda t: write_folder(t, {"t.csv": b""}) / "t.csv", "empty"),
        (lambda t: write_folder(t, {"t.csv": b"a,a\n1,2\n"}) / "t.csv", "two columns named 'a'"),
        (lambda t: write_folder(t, {"t.csv": b"a,b\n1,2\n"}) / "t.csv", "no column holds photo paths"),
        (lambda t: write_folder(t, {"t.parquet": b"PAR1 no"}) / "t.parquet", "Parquet"),
        (lambda t: write_folder(t, {"a.csv": b"x", "b.csv": b"y"}), "several tables"),
        (lambda t: "synthetic:ten", "synthetic"),
    ],
)
def test_bad_sources_get_a_sentence(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        open_catalog(make(tmp_path))


def test_missing_columns_are_named(products_csv):
    schema = Schema("own", (Attribute("kind"), Attribute("fabric")), id_column="sku", image_column="picture")
    with pytest.raises(UserError, match=r"picture, fabric.*it has: sku, file, kind, colour"):
        open_catalog(products_csv, schema)


def test_a_truncated_archive_is_refused(tmp_path):
    path = write_tar(
        tmp_path / "c.tar.xz", {**kaggle_files(), "noise": np.random.default_rng(0).bytes(100_000)}, "w:xz"
    )
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
    catalog = open_catalog(path)
    photos = read_all(catalog)
    assert isinstance(photos["7"], BadPhoto)
    assert sum(isinstance(p, BadPhoto) for p in photos.values()) == 1


def test_photos_alone_will_do_without_labels(tmp_path):
    write_folder(tmp_path / "a", {"x/1.jpg": PHOTO, "x/2.png": PHOTO, "note.txt": b""})
    catalog = open_catalog(tmp_path / "a", labelled=False)
    assert [p.id for p in catalog.products] == ["1", "2"]
    assert [p.id for p in open_catalog(tmp_path / "a/x/1.jpg", labelled=False).products] == ["1"]
    with pytest.raises(UserError, match="no table"):
        open_catalog(tmp_path / "a")


def test_mutated_tables_and_archives_never_crash(tmp_path, held_bytes):
    rng = np.random.default_rng(1)
    outcomes = {"good": 0, "bad": 0}
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
            outcomes["good"] += 1
        except UserError as error:
            assert str(error)
            outcomes["bad"] += 1
    assert min(outcomes.values()) > 10
