"""From the cells of a table to photos: what is found, what is a counted repair, and what is never read."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import types
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fashion_jax.cli import main
from fashion_jax.data import photo_paths
from fashion_jax.data.archives import FolderFiles, ZipFiles, open_files
from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.catalog_report import _reasons
from fashion_jax.data.photo_names import HEIC_SUFFIXES, PHOTO_SUFFIXES, is_address, without_query
from fashion_jax.data.photo_paths import ABSENT, ADDRESS, OUTSIDE, SEVERAL, Found, PhotoFinder
from fashion_jax.data.photos import decode_photo, encode_photo, normalise_photo
from fashion_jax.data.schema import Schema
from fashion_jax.system.errors import UserError

PHOTO = encode_photo(np.full((40, 30, 3), 200, np.uint8))
QUERY, PERCENT, ROOT = photo_paths._QUERY, photo_paths._PERCENT, photo_paths._FROM_ROOT
FORM, CASE, SUFFIX, FOLDER, COPY = (getattr(photo_paths, f"_{n}") for n in ("FORM", "CASE", "SUFFIX", "FOLDER", "COPY"))
NFD = unicodedata.normalize("NFD", "café")
KINDS = ("folder", "lone table", "zip", "tar")


def write(folder: Path, *names: str, data: bytes = PHOTO) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def pack(path: Path, names: list[str], data: bytes = PHOTO) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w") as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def make_finder(tmp_path: Path, names: list[str], kind: str, base: str = "") -> PhotoFinder:
    """Returns a finder over files of these names: in a folder, beside a table that is given alone, or in an archive."""
    if kind in ("zip", "tar"):
        files = open_files(pack(tmp_path / f"c.{kind}", names))
    else:
        files = FolderFiles(write(tmp_path / "shop", *names))
    return PhotoFinder(files, {} if kind == "lone table" else files.sizes(), base=base)


def find_one(finder: PhotoFinder, cell: str) -> Found:
    return finder.find([cell])[cell]


FINDABLE = [
    # files, base, cell, found, repairs
    ("images/1.jpg", "", "images/1.jpg", "images/1.jpg", ()),
    ("images/1.jpg", "", "./images//sub/../1.jpg", "images/1.jpg", ()),
    ("images/1.jpg", "", "images\\1.jpg", "images/1.jpg", ()),
    ("images/1.jpg", "labels", "../images/1.jpg", "images/1.jpg", ()),
    ("images/1.jpg", "labels", "images/1.jpg", "images/1.jpg", (ROOT,)),
    ("images/1.jpg", "", "1.jpg", "images/1.jpg", (FOLDER,)),
    ("images/1.jpg thumbs/1.jpg", "", "1.jpg", "images/1.jpg", (FOLDER,)),
    ("set/images/1.jpg set/small/1.jpg", "set", "1.jpg", "set/images/1.jpg", (FOLDER,)),
    ("images/1.jpg", "", "C:\\Users\\ann\\shop\\images\\1.jpg", "images/1.jpg", (FOLDER,)),
    ("images/1.jpg", "", "\\\\server\\share\\images\\1.jpg", "images/1.jpg", (FOLDER,)),
    ("images/1.jpg", "", "/kaggle/input/images/1.jpg", "images/1.jpg", (FOLDER,)),
    ("a/front.jpg b/front.jpg", "", "D:/x/b/front.jpg", "b/front.jpg", (FOLDER,)),
    ("images/1.jpg", "", "../elsewhere/1.jpg", "images/1.jpg", (FOLDER,)),
    ("images/1.jpg", "", "file:///C:/shop/images/1.jpg", "images/1.jpg", (FOLDER,)),
    ("images/IMG_1.JPG", "", "images/IMG_1.jpg", "images/IMG_1.JPG", (CASE,)),
    ("Images/1.jpg", "", "images/1.jpg", "Images/1.jpg", (CASE,)),
    ("images/img_1.jpg", "", "images/IMG_1.JPEG", "images/img_1.jpg", (SUFFIX,)),
    ("images/1.png", "", "images/1.jpg", "images/1.png", (SUFFIX,)),
    ("images/1.webp", "", "images/1", "images/1.webp", (SUFFIX,)),
    ("images/1.jpg", "", "images/1.jpg.jpg", "images/1.jpg", (SUFFIX,)),
    ("images/v1.2.jpg", "", "images/v1.2", "images/v1.2.jpg", (SUFFIX,)),
    ("images/1", "", "images/1.jpg", "images/1", (SUFFIX,)),  # it begins like a photo
    ("images/1", "", "images/1", "images/1", ()),
    (f"images/{NFD}.jpg", "", "images/café.jpg", f"images/{NFD}.jpg", (FORM,)),
    ("images/café.jpg", "", f"images/{NFD}.jpg", "images/café.jpg", (FORM,)),
    (f"{NFD}/1.jpg", "", "café/1.jpg", f"{NFD}/1.jpg", (FORM,)),
    ("images/straße.jpg", "", "images/STRASSE.jpg", "images/straße.jpg", (CASE,)),
    ("images/1.jpg", "", "images/1\u200b.jpg", "images/1.jpg", (CASE,)),
    ("img/1.jpg", "", "img/1.jpg?v=1605", "img/1.jpg", (QUERY,)),
    ("img/1.JPG", "", "img/1.jpg?v=1#top", "img/1.JPG", (QUERY, CASE)),
    ("img/shirt #2.jpg", "", "img/shirt #2.jpg", "img/shirt #2.jpg", ()),
    ("img/1.jpg?v=3", "", "img/1.jpg?v=3", "img/1.jpg?v=3", ()),
    ("img/my shirt.jpg", "", "img/my%20shirt.jpg", "img/my shirt.jpg", (PERCENT,)),
    ("img/50%20off.jpg img/50 off.jpg", "", "img/50%20off.jpg", "img/50%20off.jpg", ()),
    ("img/1.jpg", "", "https://cdn.shop.com/s/files/1.jpg?v=16", "img/1.jpg", (COPY,)),
    ("img/1.jpg", "", "//cdn.shop.com/s/files/1.jpg", "img/1.jpg", (COPY,)),
    ("img/1.jpg", "", "s3://bucket/1.jpg", "img/1.jpg", (COPY,)),
    ("img/1.JPG", "", "gs://bucket/a/1.jpg", "img/1.JPG", (COPY, CASE)),
    ("a/1.jpg b/1.jpg", "", "http://h.com/b/1.jpg", "b/1.jpg", (COPY,)),
    ("img/my shirt.jpg", "", "http://h.com/my%20shirt.jpg", "img/my shirt.jpg", (COPY,)),
    ("img/77.jpg", "", "http://h.com/77?width=300", "img/77.jpg", (COPY, SUFFIX)),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("names", "base", "cell", "name", "repairs"), FINDABLE, ids=lambda v: ascii(v)[:40])
def test_a_cell_leads_to_its_photo(tmp_path, kind, names, base, cell, name, repairs):
    spaced = ("img/shirt #2.jpg", "img/my shirt.jpg", "img/50%20off.jpg img/50 off.jpg")
    files = names.replace(" img/50 ", "|img/50 ").split("|") if names in spaced else names.split(" ")
    found = find_one(make_finder(tmp_path, files, kind, base), cell)
    assert (found.name, found.repairs, found.problem) == (name, repairs, "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("names", "cell", "problem_kind", "words"),
    [
        ("images/12.png.txt", "images/12.jpg", ABSENT, "no photo images/12.jpg; the nearest file is images/12.png.txt"),
        ("images/0012.jpg", "images/12.jpg", ABSENT, "nearest file is images/0012.jpg"),
        ("images/12.json", "images/12.jpg", ABSENT, "nearest file is images/12.json"),
        ("images/zebra.jpg", "images/12.jpg", ABSENT, "there is no photo images/12.jpg"),
        ("images/1.png images/1.webp", "images/1.jpg", SEVERAL, "images/1.png, images/1.webp"),
        ("images/a.JPG images/A.jpg", "images/A.JPG", SEVERAL, "images/A.jpg, images/a.JPG"),
        ("a/1.jpg b/1.jpg c/1.jpg d/1.jpg", "1.jpg", SEVERAL, "a/1.jpg, b/1.jpg, c/1.jpg, ..."),
        ("a/1.jpg", "https://h.com/2.jpg", ADDRESS, "there is no file 2.jpg; download it"),
        ("a/1.jpg", "data:image/png;base64,AAAA", ABSENT, "save it as a file"),
        ("a/1.jpg", "../../etc/passwd", OUTSIDE, "leads outside"),
        ("a/1.jpg", "/etc/passwd", OUTSIDE, "leads outside"),
        ("a/1.jpg", "C:\\secret.jpg", OUTSIDE, "leads outside"),
        ("a/1.jpg", "a/1\0.png", OUTSIDE, "leads outside"),
        ("a/1.jpg", "..", OUTSIDE, "leads outside"),
        ("a/1.jpg", "x" * 5000 + ".jpg", ABSENT, "there is no photo xxx"),
        ("a/1.jpg", "a/" * 3000 + "9.jpg", ABSENT, "there is no photo"),
        ("a/1.jpg", "a/9\n\x1b[31m.jpg", ABSENT, "there is no photo a/9"),
        ("a/1.jpg", "/", OUTSIDE, ""), ("a/1.jpg", ".", OUTSIDE, ""), ("a/1.jpg", "?", ABSENT, ""),
        ("a/1.jpg", "//", OUTSIDE, ""), ("a/1.jpg", "https://", ADDRESS, ""), ("a/1.jpg", "file:", OUTSIDE, ""),
        ("a/1.jpg", "\udce9.jpg", ABSENT, "there is no photo é.jpg"),
        ("a/1.jpg", "%2e%2e/%2e%2e/etc/passwd", ABSENT, ""),
    ],
    ids=lambda v: ascii(v)[:40],
)  # fmt: skip
def test_a_cell_without_a_photo_gets_a_reason(tmp_path, kind, names, cell, problem_kind, words):
    found = find_one(make_finder(tmp_path, names.split(" "), kind), cell)
    assert (found.name, found.kind) == ("", problem_kind)
    assert words in found.problem
    assert len(found.problem) < 600 and found.problem.isprintable() and found.problem.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_of_one_row_is_no_match_for_another(tmp_path, kind):
    names = ["A2/front.jpg", "x/only.jpg", "b/1.png", "c/2.JPG"]
    found = make_finder(tmp_path, names, kind).find(
        ["A1/front.jpg", "A2/front.jpg", "m/only.jpg", "n/only.jpg", "b/1.jpg", "b/1.png", "c/2.jpg", "C/2.JPG"]
    )
    assert {cell for cell, item in found.items() if item.name} == {"A2/front.jpg", "b/1.png", "c/2.jpg", "C/2.JPG"}
    assert "A2/front.jpg is another row's photo" in found["A1/front.jpg"].problem
    assert found["m/only.jpg"].problem.startswith("m/only.jpg and n/only.jpg both fit the file x/only.jpg")
    pages = [f"https://h.com/{i}/main.jpg" for i in range(3)]
    assert not any(item.name for item in make_finder(tmp_path, ["img/main.jpg"], kind).find(pages).values())
    versions = [f"https://h.com/main.jpg?v={i}" for i in range(3)]  # of one photo
    assert {f.name for f in make_finder(tmp_path, ["img/main.jpg"], kind).find(versions).values()} == {"img/main.jpg"}


def test_absolute_paths_inside_of_the_folder_are_fine_also_through_a_link(tmp_path):
    shop = write(tmp_path / "shop", "images/1.jpg")
    (tmp_path / "link").symlink_to(shop)
    for root in (shop, tmp_path / "link"):
        for sizes in ({}, FolderFiles(root).sizes()):
            finder = PhotoFinder(FolderFiles(root), sizes)
            for cell in (root / "images/1.jpg", shop / "images/../images/1.jpg", f"file://{shop}/images/1.jpg"):
                assert find_one(finder, str(cell)) == Found("images/1.jpg")
            sibling = write(tmp_path / "shop2", "images/2.jpg") / "images/2.jpg"  # the name begins alike
            assert find_one(finder, str(sibling)).kind == OUTSIDE


@pytest.mark.parametrize("kind", KINDS[:2])
def test_links_out_of_the_folder_are_never_followed(tmp_path, kind):
    secret = write(tmp_path / "secret", "1.jpg", "2")
    shop = write(tmp_path / "shop", "images/9.jpg")
    (shop / "photos").symlink_to(secret)
    (shop / "one.jpg").symlink_to(secret / "1.jpg")
    (shop / "two").symlink_to(secret / "2")  # without a suffix, so that its first bytes would tell what it is
    (shop / "loop.jpg").symlink_to(shop / "loop.jpg")
    (shop / "inner").symlink_to(shop / "images")
    files = FolderFiles(shop)
    finder = PhotoFinder(files, {} if kind == "lone table" else files.sizes())
    for cell in ("photos/1.jpg", "one.jpg", "two", "two.jpg", "photos/../photos/1.jpg", "ONE.jpg", "photos/1.JPG"):
        assert not find_one(finder, cell).name, cell
        assert files.head(cell) == b""
    assert "through a link; give the photos' folder with --photos" in find_one(finder, "photos/1.jpg").problem
    assert not find_one(finder, "loop.jpg").name
    assert find_one(finder, "inner/9.jpg").name == "inner/9.jpg"
    assert "secret" not in " ".join(files.sizes())


def test_nothing_outside_is_opened_or_listed(tmp_path):
    shop = write(tmp_path / "shop", "images/1.jpg", "images/2")
    write(tmp_path, "secret.jpg", "images/secret.jpg", "2")
    touched: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple) -> None:
        if watching and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | Path):
            touched.append(str(arguments[0]))

    sys.addaudithook(watch)  # hooks cannot be removed
    finder = PhotoFinder(FolderFiles(shop), {})
    cells = ["../secret.jpg", "..\\images\\secret.jpg", str(tmp_path / "secret.jpg"), "a/../../secret.jpg", "~/s.png"]
    found = finder.find([*cells, "\\\\?\\C:\\secret.jpg", "images/../../secret", "file:///etc/passwd", "../2.jpg"])
    outside = finder.folders(
        ["..", "../images", "..\\", str(tmp_path), f"{tmp_path}/images", "a/../../images/", "/", "~"]
    )
    finder.count_folders(["../images.jpg"]), finder.group(["../secret.jpg"], "usual"), finder.beside(["../secret.jpg"])
    assert not any(map(finder.holds, cells)) and not outside
    assert finder.folders(["images", "x/../images/"]) == {c: ["images/1.jpg"] for c in ("images", "x/../images/")}
    watching = False
    assert {item.name for item in found.values()} == {"", "images/2"}
    assert any("images" in path for path in touched)
    assert all(Path(path).is_relative_to(shop) for path in touched)


def test_in_a_huge_folder_only_named_folders_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(photo_paths, "_MOST_LISTED", 3)
    finder = make_finder(tmp_path, ["a/1.JPG", "images/2.jpg", "b/3.jpg", "c/4.jpg", "c/5.jpg"], "lone table")
    found = finder.find(["a/1.jpg", "2.jpg", "3.jpg"])
    assert [item.name for item in found.values()] == ["a/1.JPG", "images/2.jpg", ""]
    assert "too large" in found["3.jpg"].problem and "--photos" in found["3.jpg"].problem


@pytest.mark.parametrize("cell", ["q/{}x/front.png", "q/{}/only.jpg", "zz{}.jpg", "https://h.com/{}/only.jpg"])
def test_the_work_grows_with_the_number_of_photos_and_not_with_its_square(tmp_path, cell):
    files = ZipFiles(pack(tmp_path / "c.zip", []))
    calls: dict[int, int] = {}
    for count in (500, 2000):
        names = [*(f"p/{i}/front.jpg" for i in range(count)), *(f"z/{i}.jpg" for i in range(count)), "only.jpg"]
        finder = PhotoFinder(files, dict.fromkeys(names, 1))
        calls[count] = 0

        def add(frame, event, argument, count=count):
            calls[count] += 1

        sys.setprofile(add)
        found = finder.find([cell.format(i) for i in range(count)])
        sys.setprofile(None)
        assert len(found) == count and not any(item.name for item in found.values())
    assert calls[2000] < 6 * calls[500]


def write_table(path: Path, before: str, after: str = ".jpg") -> Path:
    rows = "".join(f"S{i},{before}{i}{after},{('red', 'blue')[i % 2]}\n" for i in range(12))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("sku,file,colour\n" + rows)
    return path


def numbered(folder: str, suffix: str = ".jpg") -> list[str]:
    return [f"{folder}/{i}{suffix}" for i in range(12)]


def test_a_table_beside_its_photos_folder_says_what_to_do_and_photos_does_it(tmp_path, capsys):
    write(tmp_path, *numbered("images"))
    path = write_table(tmp_path / "labels/train.csv", "../images/")
    with pytest.raises(UserError, match=r"lead outside.*add --photos (\S+/images) ") as error:
        open_catalog(path)
    folder = str(error.value).split("--photos ")[1].split(" ")[0]
    assert Path(folder) == tmp_path / "images"
    for root in (folder, "../images", str(tmp_path)):
        catalog = open_catalog(path, Schema("", (), image_root=root))
        assert len(catalog.records) == 12 and not catalog.repairs
        assert [data for _, data in catalog.iter_photos(catalog.records)] == [PHOTO] * 12
    assert len(open_catalog(tmp_path).records) == 12  # the folder above is the catalogue
    bare = write_table(tmp_path / "labels/bare.csv", "")
    assert (
        main(
            [
                "prepare",
                "--source",
                str(bare),
                "--photos",
                folder,
                "--split",
                "random",
                "--out",
                str(tmp_path / "records"),
            ]
        )
        == 0
    )
    assert "12 rows, 12 usable" in capsys.readouterr().out
    missing = ["prepare", "--source", str(bare), "--photos", str(tmp_path / "no"), "--out", str(tmp_path / "r")]
    assert main(missing) == 2
    assert "check --photos" in capsys.readouterr().err


def test_image_root_may_be_a_folder_of_an_archive_or_an_archive(tmp_path):
    names = [*numbered("a/large"), *numbered("a/small")]
    text = write_table(tmp_path / "t.csv", "").read_text()
    packed = pack(tmp_path / "c.zip", names)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("a/t.csv", text)
    schema = Schema("", (), image_root="small")
    assert [p.photo for p in open_catalog(packed, schema).records] == numbered("a/small")
    photos = pack(tmp_path / "photos.tar", numbered("x"))
    alone = open_catalog(tmp_path / "t.csv", Schema("", (), image_root="photos.tar"))
    assert len(alone.records) == 12 and alone.repairs == {FOLDER: 12}
    with pytest.raises(UserError, match="no folder of photos"):
        open_catalog(tmp_path / "t.csv", Schema("", (), image_root="nowhere"))
    moved = tmp_path / "moved"
    moved.mkdir()
    other = Schema("", (), image_root=str(photos.rename(moved / "photos.tar")))
    assert open_catalog(tmp_path / "t.csv", other).stamp() == alone.stamp()


def test_a_column_of_addresses_is_refused_with_what_to_do(tmp_path):
    write_table(tmp_path / "t.csv", "https://cdn.shop.com/s/", ".jpg?v=1")
    for source in (tmp_path / "t.csv", tmp_path):
        with pytest.raises(UserError, match=r"column 'file' holds addresses, .*download the photos first \(img2"):
            open_catalog(source)
    write(tmp_path, *numbered("img")[:9])
    catalog = open_catalog(tmp_path / "t.csv")
    assert len(catalog.records) == 9 and catalog.repairs == {COPY: 9}
    assert _reasons(catalog) == {ADDRESS: 3}
    rows = "".join(f"S{i},https://h.com/photo/{i},{('red', 'blue')[i % 2]}\n" for i in range(12))
    (tmp_path / "t.csv").write_text("sku,image_link,colour\n" + rows)  # addresses that end in no suffix
    assert len(open_catalog(tmp_path / "t.csv").records) == 9


def test_files_beside_the_photos_are_counted_by_kind(tmp_path):
    write(tmp_path, *numbered("images"), "images/extra.jpg", "notes.txt", "a/1.json", "a/2.json", ".hidden")
    write(tmp_path, "plain", data=b"text")
    path = write_table(tmp_path / "t.csv", "images/")
    kinds = {".json": 2, ".txt": 1, "hidden": 1, "no suffix": 1}
    assert open_catalog(tmp_path).passed_over == {**kinds, ".jpg (photos of no usable row)": 1}
    path.unlink()
    catalog = open_catalog(tmp_path, labelled=False)
    assert len(catalog.records) == 13 and catalog.passed_over == kinds


FORMATS = {
    ".jpg": "JPEG", ".JPG": "JPEG", ".jfif": "JPEG", ".jpe": "JPEG", "": "JPEG", ".avif": "AVIF", ".tif": "TIFF",
    ".tiff": "TIFF", ".webp": "WEBP", ".jp2": "JPEG2000", ".bmp": "BMP", ".ppm": "PPM", ".gif": "GIF", ".png": "PNG",
    ".qoi": "QOI", ".tga": "TGA", ".apng": "PNG", ".jpg_large": "JPEG", ".2": "TIFF",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_photos_of_all_suffixes_and_of_none_are_found(tmp_path, kind):
    names = []
    for number, (suffix, form) in enumerate(FORMATS.items()):
        buffer = io.BytesIO()
        Image.fromarray(np.full((40, 30, 3), 9 * number, np.uint8)).save(buffer, form)
        names.append(f"x/p{number}{suffix}")
        write(tmp_path / "shop", names[-1], data=buffer.getvalue())
    for suffixless in ("WEBP", "AVIF", "JPEG2000", "BMP", "GIF", "PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(buffer, suffixless)
        names.append(f"y/{suffixless}")
        write(tmp_path / "shop", names[-1], data=buffer.getvalue())
    write(tmp_path / "shop", "x/readme", "x/BM", data=b"BM is how this text begins")
    source = tmp_path / "shop"
    if kind != "folder":
        source = tmp_path / f"c.{kind}"
        every = [p for p in (tmp_path / "shop").rglob("*") if p.is_file()]
        if kind == "zip":
            with zipfile.ZipFile(source, "w") as archive:
                for p in every:
                    archive.write(p, p.relative_to(tmp_path / "shop"))
        else:
            with tarfile.open(source, "w") as archive:
                for p in every:
                    archive.add(p, p.relative_to(tmp_path / "shop"))
    catalog = open_catalog(source, labelled=False)
    assert {p.photo for p in catalog.records} == set(names)
    assert catalog.passed_over == {"no suffix": 2}
    assert all(isinstance(data, bytes) for _, data in catalog.iter_photos(catalog.records))
    if kind == "folder":
        for name in names[:8]:
            assert len(open_catalog(source / name, labelled=False).records) == 1


def test_the_suffixes_are_those_of_pillow():
    Image.init()
    assert set(PHOTO_SUFFIXES) - set(HEIC_SUFFIXES) <= set(Image.registered_extensions())
    assert len(set(PHOTO_SUFFIXES)) == len(PHOTO_SUFFIXES)
    assert {".pdf", ".eps", ".mpeg", ".h5"} & set(PHOTO_SUFFIXES) == set()  # no photos, or read by other programs


def test_heic_is_named_for_what_it_is_and_read_with_the_extra(tmp_path, monkeypatch):
    write(tmp_path, "photos/1.jpg", "photos/2.HEIC", "photos/3.heif")
    write(tmp_path, "photos/4", data=b"\0\0\0\x18ftypheic" + bytes(8))
    (tmp_path / "t.csv").write_text("sku,file,colour\n" + "".join(f"{i},photos/{i}.heic,red\n" for i in range(1, 4)))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    catalog = open_catalog(tmp_path / "photos", labelled=False)
    assert [p.id for p in catalog.records] == ["1", "4"]
    assert all("HEIC" in r.reason and "[heif]" in r.reason for r in catalog.rejected)
    assert all(r.reason.count("or convert the photos to JPEG") == 1 for r in catalog.rejected)
    listed = open_catalog(tmp_path / "t.csv", labelled=False)
    assert [p.id for p in listed.records] == ["1"] and _reasons(listed) == {"the photo is HEIC": 2}
    registered = []
    fake = types.SimpleNamespace(register_heif_opener=lambda: registered.append(1))
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    assert len(open_catalog(tmp_path / "photos", labelled=False).records) == 4
    assert registered


def test_heic_photos_are_decoded(tmp_path):
    import pillow_heif as heif

    heif.register_heif_opener()
    Image.fromarray(np.full((64, 64, 3), (200, 30, 40), np.uint8)).save(tmp_path / "a.heic")
    (tmp_path / "a.heic").rename(tmp_path / "a.jpg")  # as phones and mail programs name it
    catalog = open_catalog(tmp_path, labelled=False)
    ((_, data),) = catalog.iter_photos(catalog.records)
    pixels = decode_photo(normalise_photo(data)[0], 64, 64)
    assert np.abs(pixels.astype(int) - (200, 30, 40)).max() < 8
    without = "import sys; sys.modules['pillow_heif'] = None; from fashion_jax.data.photos import normalise_photo; "
    code = f"{without}normalise_photo(open({str(tmp_path / 'a.jpg')!r}, 'rb').read(), 64)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    (said,) = [line for line in done.stderr.splitlines() if "BadPhoto: the photo is HEIC" in line]
    assert "[heif]" in said and said.count("or convert the photos to JPEG") == 1


class Unflagged(zipfile.ZipInfo):
    """A member of a zip whose name is UTF-8, without the flag that says so."""

    def _encodeFilenameFlags(self):  # noqa: N802 - zipfile calls it
        return self.filename.encode(), self.flag_bits


def test_names_in_old_archives(tmp_path):
    """macOS packs UTF-8 without the flag that says so; old tars hold Windows-1252."""
    path = tmp_path / "mac.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (f"{NFD}.jpg", "münchen.jpg"):
            archive.writestr(Unflagged(name), PHOTO)
    files = open_files(path)
    finder = PhotoFinder(files, files.sizes())
    assert find_one(finder, "café.jpg").name == f"{NFD}.jpg"
    assert find_one(finder, "münchen.jpg") == Found("münchen.jpg")
    info = tarfile.TarInfo(b"caf\xe9.jpg".decode("utf-8", "surrogateescape"))
    info.size = len(PHOTO)
    with tarfile.open(tmp_path / "old.tar", "w") as archive:
        archive.addfile(info, io.BytesIO(PHOTO))
    files = open_files(tmp_path / "old.tar")
    found = find_one(PhotoFinder(files, files.sizes()), "café.jpg")
    assert (found.name, found.repairs) == (info.name, (FORM,))
    catalog = open_catalog(tmp_path / "old.tar", labelled=False)
    assert [p.id for p in catalog.records] == ["café"]  # a text that can be written


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://a.com/1.jpg", True), ("HTTP://a.com/1.jpg", True), ("//cdn.a.com/1.jpg", True), ("s3://b/1", True),
        ("gs://b/1.jpg", True), ("www.a.com/1.jpg", True), ("data:image/png;base64,AA", True), ("ftp://a/1.jpg", True),
        ("images/1.jpg", False), ("C:\\a\\1.jpg", False), ("C:/a/1.jpg", False), ("\\\\server\\a\\1.jpg", False),
        ("file:///a/1.jpg", False), ("/a/1.jpg", False), ("a//b.jpg", False), ("//server/share/1.jpg", False),
    ],
)  # fmt: skip
def test_addresses_are_told_from_paths(text, address):
    assert is_address(text) == address


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a.jpg?v=1", "a.jpg"), ("a.JPG#x", "a.JPG"), ("a.jpg?x=b.png?y", "a.jpg"), ("shirt #2.jpg", "shirt #2.jpg"),
        ("what?.png", "what?.png"), ("a?v=1", "a?v=1"), ("a.webp?", "a.webp"),
    ],
)  # fmt: skip
def test_what_follows_a_name_is_dropped(text, plain):
    assert without_query(text) == plain
