"""A product has one id and one or more photos: however the table says so, the same products come out."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fashion_jax.data.catalog import Catalog, open_catalog
from fashion_jax.data.catalog_report import format_report
from fashion_jax.data.cell_lists import read_list
from fashion_jax.data.columns import more_photo_columns
from fashion_jax.data.duplicates import find_groups
from fashion_jax.data.name_groups import USUAL, group_names, looks_grouped, looks_like_folders, natural
from fashion_jax.data.photo_cells import split_photos
from fashion_jax.data.photo_names import is_address, is_litter, is_placeholder, names_photo, without_query
from fashion_jax.data.photos import encode_photo
from fashion_jax.data.prepare import PrepareOptions, prepare
from fashion_jax.data.schema import Schema
from fashion_jax.data.splits import SplitOptions, choose_splits
from fashion_jax.system.errors import UserError
from fashion_jax.system.files import read_json_object

PHOTOS = {f"P-{n:02}": [f"P-{n:02}_{view}.jpg" for view in range(1, 1 + n % 3 + 1)] for n in range(30)}
COLOURS = {name: ("red", "blue")[int(name[2:]) % 2] for name in PHOTOS}
EXPECTED = {name: [f"images/{photo}" for photo in photos] for name, photos in PHOTOS.items()}


def write_photos(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for names in PHOTOS.values():
        for name in names:
            pixels = rng.integers(0, 255, (5, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            (folder / "images" / name).write_bytes(encode_photo(pixels, 90))


def write_csv(folder: Path, header: str, rows: list[str]) -> Path:
    path = folder / "products.csv"
    path.write_text("\n".join([header, *rows]), encoding="utf-8")
    return path


def products_of(catalog: Catalog) -> dict[str, list[str]]:
    found = defaultdict(list)
    for record in catalog.records:
        found[record.id].append(record.photo)
    return dict(found)


def by_rows(folder):
    rows = [f"{name},images/{photo},{COLOURS[name]}" for name, photos in PHOTOS.items() for photo in photos]
    return open_catalog(write_csv(folder, "SKU,photo,colour", rows))


def by_columns(folder):
    cells = {name: [f"images/{p}" for p in photos] + [""] * (3 - len(photos)) for name, photos in PHOTOS.items()}
    rows = [f"{name},{c[0]},{c[1] or 'n/a'},{c[2]},{COLOURS[name]}" for name, c in cells.items()]
    return open_catalog(write_csv(folder, "SKU,Photo 1,Photo 2,Photo 3,colour", rows))


def by_cells(folder):
    rows = [f"{name},{'|'.join(f'images/{p}' for p in photos)},{COLOURS[name]}" for name, photos in PHOTOS.items()]
    return open_catalog(write_csv(folder, "SKU,photo,colour", rows))


def by_python_lists(folder):
    rows = [f'{name};"{[f"images/{p}" for p in photos]}";{COLOURS[name]}' for name, photos in PHOTOS.items()]
    return open_catalog(write_csv(folder, "SKU;photo;colour", rows))


def by_list_column(folder):
    columns = {"sku": list(PHOTOS), "photos": [[f"images/{p}" for p in photos] for photos in PHOTOS.values()]}
    pq.write_table(pa.table({**columns, "colour": list(COLOURS.values())}), folder / "t.parquet")
    return open_catalog(folder / "t.parquet")


def by_names(folder):
    rows = [f"{name},{colour}" for name, colour in COLOURS.items()]
    with pytest.raises(UserError, match=r"30 ids have no photo.*P-00_1\.jpg; to use these photos, add --group-by-name"):
        open_catalog(write_csv(folder, "sku,colour", rows))
    return open_catalog(write_csv(folder, "sku,colour", rows), Schema("", (), group_by_name=USUAL))


def by_product_column(folder):
    rows = [(name, photo) for name, photos in PHOTOS.items() for photo in photos]
    lines = [f"{n},{name},images/{photo},{COLOURS[name]}" for n, (name, photo) in enumerate(rows)]
    path = write_csv(folder, "id,parent,photo,colour", lines)
    guessed = open_catalog(path)
    assert guessed.schema.id_column == "id" and "parent" not in "".join(guessed.offers)
    path.write_text(path.read_text().replace("parent", "sku", 1))
    assert '"product_column": "sku"' in open_catalog(path).offers[-1]
    (folder / "s.json").write_text(
        json.dumps({
            "name": "shop", "attributes": [{"name": "colour"}], "id_column": "id", "product_column": "sku",
            "image_column": "photo",
        })
    )  # fmt: skip
    return open_catalog(path, Schema.from_dict(read_json_object(folder / "s.json")))


@pytest.mark.parametrize(
    "read", [by_rows, by_columns, by_cells, by_python_lists, by_list_column, by_names, by_product_column]
)
def test_every_way_to_name_several_photos_gives_the_same_products(tmp_path, read):
    write_photos(tmp_path)
    catalog = read(tmp_path)
    assert products_of(catalog) == EXPECTED
    assert not catalog.rejected
    assert len({record.number for record in catalog.records}) == len(catalog.records)
    assert {record.id: record.labels for record in catalog.records} == {n: (c,) for n, c in COLOURS.items()}


def test_photos_alone_are_grouped_when_asked_and_offered_when_not(tmp_path):
    write_photos(tmp_path)
    (tmp_path / "images/P-99.jpg").write_bytes((tmp_path / "images/P-01_1.jpg").read_bytes())
    catalog = open_catalog(tmp_path, labelled=False)
    assert catalog.num_products == len(catalog.records) and "--group-by-name" in catalog.offers[0]
    for pattern in (USUAL, "{id}_{n}"):
        catalog = open_catalog(tmp_path, Schema("", (), group_by_name=pattern), labelled=False)
        assert products_of(catalog) == {**EXPECTED, "P-99": ["images/P-99.jpg"]} and not catalog.offers


def test_an_export_of_shopify_with_a_row_for_each_photo_loses_no_row(tmp_path):
    write_photos(tmp_path)
    rows = [
        f"{name.lower()},Shirt,{name if not n else ''},images/{photo},{COLOURS[name] if not n else ''}"
        for name, photos in PHOTOS.items()
        for n, photo in enumerate(photos)
    ]
    catalog = open_catalog(write_csv(tmp_path, "Handle,Title,Variant SKU,Image Src,color", rows))
    assert products_of(catalog) == {name.lower(): photos for name, photos in EXPECTED.items()}
    assert [a.name for a in catalog.schema.attributes] == ["color"] and not catalog.rejected


def test_a_column_of_groups_is_offered_also_where_products_have_several_photos(tmp_path):
    write_photos(tmp_path)
    rows = [
        f"{name},style-{n // 3},{'|'.join(f'images/{p}' for p in photos)},{COLOURS[name]},EAN{n}"
        for n, (name, photos) in enumerate(PHOTOS.items())
    ]
    catalog = open_catalog(write_csv(tmp_path, "sku,Style No,image,colour,ean", rows))
    (offer,) = catalog.offers
    assert "'Style No' holds 10 different ids in 30 rows" in offer and offer.endswith('"product_column": "Style No"')


def test_columns_with_other_photos_are_offered_and_the_offer_works(tmp_path):
    write_photos(tmp_path)
    rows = [
        f"{name},images/{photos[0]},images/{photos[-1]},logo.jpg,{COLOURS[name]}" for name, photos in PHOTOS.items()
    ]
    source = write_csv(tmp_path, "sku,image,studio shot,brand logo,colour", rows)
    catalog = open_catalog(source)
    (offer,) = catalog.offers
    assert "'studio shot'" in offer
    schema = {**catalog.schema.to_dict(), **json.loads("{" + offer.split("schema: ")[1] + "}")}
    expected = {name: list(dict.fromkeys([photos[0], photos[-1]])) for name, photos in EXPECTED.items()}
    assert products_of(open_catalog(source, Schema.from_dict(schema))) == expected


def test_photos_of_a_list_column_of_the_hub_are_photos_of_one_product(tmp_path):
    write_photos(tmp_path)
    images = [
        [{"bytes": (tmp_path / "images" / p).read_bytes(), "path": p} for p in photos] for photos in PHOTOS.values()
    ]
    pq.write_table(
        pa.table({"sku": list(PHOTOS), "images": images, "colour": list(COLOURS.values())}), tmp_path / "t.parquet"
    )
    catalog = open_catalog(tmp_path / "t.parquet")
    assert {name: len(photos) for name, photos in products_of(catalog).items()} == {
        n: len(p) for n, p in PHOTOS.items()
    }
    assert all(isinstance(data, bytes) for _, data in catalog.iter_photos(catalog.records))


def test_a_repeat_that_is_no_other_photo_is_quarantined_and_costs_nothing(tmp_path):
    write_photos(tmp_path)
    rows = [f"{name},images/{photo},{COLOURS[name]}" for name, photos in PHOTOS.items() for photo in photos]
    # A size variant without a photo, a row twice, and one photo under two names.
    rows += ["P-01,,red", *rows[:20], "P-02,images/copy.jpg,red", ",images/P-05_1.jpg,red", "P-77,images/none.jpg,red"]
    (tmp_path / "images/copy.jpg").write_bytes((tmp_path / "images/P-02_1.jpg").read_bytes())
    source = write_csv(tmp_path, "SKU,photo,colour", rows)
    catalog = open_catalog(source)
    assert catalog.num_bad == 2 and sum(item.is_repeat for item in catalog.rejected) == 21
    prepared = prepare(source, tmp_path / "records", PrepareOptions(max_bad_fraction=0.04), progress=False)
    assert sorted(set(prepared.ids.tolist())) == sorted(PHOTOS)
    assert len(prepared) == sum(map(len, PHOTOS.values()))
    assert prepared.report["quarantine_reasons"] == {
        "an earlier row has the same id and the same photo": 20,
        "the row names no photo, and other rows of its product do": 1,
        "the photo has the same bytes as another photo of its product": 1,
        "the row has no id": 1,
        "the photo's file was not found": 1,
    }
    assert "30 usable products with 60 photos" in format_report(prepared.report)


def test_labels_that_a_products_other_rows_lack_are_filled_and_differences_are_counted(tmp_path):
    write_photos(tmp_path)
    lines = []
    for name, photos in PHOTOS.items():
        lines += [
            f"{name},images/{photo},{COLOURS[name] if not n else ''},{name} shirt" for n, photo in enumerate(photos)
        ]
    lines[2] = lines[2].replace(",,", ",green,")
    catalog = open_catalog(write_csv(tmp_path, "SKU,photo,colour,title", lines), _schema(min_rows=1))
    first = {record.id: record.labels for record in reversed(catalog.records)}
    assert first == {n: (c,) for n, c in COLOURS.items()}
    assert catalog.differing == {"colour": 1}
    assert catalog.repairs == {"labels taken from another row of the product": 29}
    assert None not in {record.labels[0] for record in catalog.records}


def _schema(**attribute) -> Schema:
    values = {"name": "colour", **attribute}
    return Schema.from_dict({
        "name": "shop", "attributes": [values], "id_column": "SKU", "image_column": "photo", "title_column": "title"
    })  # fmt: skip


@pytest.mark.parametrize("kind", ["group", "random", "column", "file"])
def test_all_photos_of_a_product_are_in_one_part(tmp_path, kind):
    write_photos(tmp_path)
    parts = ["train", "test", "validation", "train"]
    rows = [
        f"{name},images/{photo},{COLOURS[name]},{parts[(i + view) % 4]}"
        for i, (name, photos) in enumerate(PHOTOS.items())
        for view, photo in enumerate(photos)
    ]
    source = write_csv(tmp_path, "SKU,photo,colour,split", rows)
    if kind == "file":
        lines = [f"{name},{parts[i % 4]}" for i, name in enumerate(PHOTOS)]
        (tmp_path / "splits.csv").write_text("\n".join(["id,split", *lines]))
        kind = f"file:{tmp_path / 'splits.csv'}"
    prepared = prepare(source, tmp_path / "records", PrepareOptions(split=SplitOptions(kind)), progress=False)
    pairs = set(zip(prepared.ids.tolist(), prepared.splits.tolist(), strict=True))
    assert len(pairs) == len(PHOTOS) and len({split for _, split in pairs}) == 3
    said = "column 'split'" + ("" if kind == "column" else " is there and not used; to use it, add --split=column")
    assert prepared.report["columns"]["split"] == said
    several = sum(len({parts[(i + view) % 4] for view in range(len(p))}) > 1 for i, p in enumerate(PHOTOS.values()))
    counted = prepared.report["table_repairs"]["products whose rows name several splits, taken from their first row"]
    assert counted == several > 10
    groups = set(zip(prepared.ids.tolist(), prepared.groups.tolist(), strict=True))
    assert len(groups) == len(PHOTOS)
    if kind == "column":  # the first row of a product decides
        numbers = {"train": 0, "validation": 1, "test": 2}
        assert dict(pairs) == {name: numbers[parts[i % 4]] for i, name in enumerate(PHOTOS)}


def test_a_split_that_leaves_a_part_empty_is_refused_with_the_numbers():
    labels = np.zeros((4, 1), np.int32)
    ids = ["a", "a", "b", "c"]
    for kind, groups in (("random", [0, 0, 2, 3]), ("group", [0, 0, 0, 3])):
        options = SplitOptions(kind, (0.9, 0.05, 0.05))
        with pytest.raises(UserError, match=r"(train|validation|test) 0.* of 3 products.*0\.9, 0\.05, 0\.05"):
            choose_splits(options, labels, np.array(groups), ids=ids, column=None)


def test_a_photo_that_many_products_share_joins_none_of_them():
    count = 24
    ids = [f"P{n}" for n in range(count)] * 2
    digests = [f"own {n}" for n in range(count)] + ["size chart"] * count
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, (2 * count, 2)).astype(np.uint64)
    thumbnails = rng.integers(0, 255, (2 * count, 20, 15, 3)).astype(np.uint8)
    groups, shared = find_groups(ids, [""] * 2 * count, digests, hashes, thumbnails)
    assert shared == count
    assert groups.tolist() == [*range(count), *range(count)]
    # A photo of few products does join them, and so does the only photo of many products.
    few = find_groups(
        ids[:5] + ids[count : count + 5], [""] * 10, digests[:5] + digests[count:][:5], hashes[:10], thumbnails[:10]
    )
    assert few[1] == 0 and set(few[0].tolist()) == {0}
    only = find_groups(ids[count:], [""] * count, digests[count:], hashes[:count], thumbnails[:count])
    assert only[1] == 0 and set(only[0].tolist()) == {0}


@pytest.mark.parametrize(
    ("cell", "photos"),
    [
        ("a.jpg", ["a.jpg"]), ("a.jpg|b.png", ["a.jpg", "b.png"]), ("a.jpg;b.jpg ; c.jpg", ["a.jpg", "b.jpg", "c.jpg"]),
        ("red, large.jpg", ["red, large.jpg"]), ("red shoe.jpg", ["red shoe.jpg"]), ("a.jpg b.jpg", ["a.jpg", "b.jpg"]),
        ("['x/a.jpg', 'x/b.jpg']", ["x/a.jpg", "x/b.jpg"]), ('["x\\/a.jpg"]', ["x/a.jpg"]),
        ("{a.jpg,b.jpg}", ["a.jpg", "b.jpg"]),
        ("['a.jpg' 'b.jpg']", ["a.jpg", "b.jpg"]), ("a|b", ["a", "b"]), ("a.jpg\r\nb.jpg", ["a.jpg", "b.jpg"]),
        ("https://x/w_1,h_2/a.jpg", ["https://x/w_1,h_2/a.jpg"]), ("(1).jpg", ["(1).jpg"]), ("[]", []), ("  ", []),
        ("https://x/a?w=1, https://x/b?w=2", ["https://x/a?w=1", "https://x/b?w=2"]), ("[" * 5000, ["[" * 5000]),
        ("a.jpg, b.jpg; c.jpg", ["a.jpg", "b.jpg", "c.jpg"]), ("a.jpg?v=1,b.jpg?v=2", ["a.jpg?v=1", "b.jpg?v=2"]),
        ("photo (1).jpg, photo (2).jpg", ["photo (1).jpg", "photo (2).jpg"]),
        # Signs around a path.
        ("img/0a.jpg,", ["img/0a.jpg"]), ("img/3a.jpg;;", ["img/3a.jpg"]), ("|a.jpg|", ["a.jpg"]),
        ('"C:\\photos\\img\\0a.jpg"', ["C:\\photos\\img\\0a.jpg"]), ("'0.jpg'", ["0.jpg"]), ("“0.jpg”", ["0.jpg"]),
        ("0.jpg\u200b", ["0.jpg"]), ("\ufeff 0.jpg.", ["0.jpg"]), ("it's.jpg", ["it's.jpg"]), ("red, x", ["red, x"]),
        ('"C:\\a b.jpg" "C:\\c.jpg"', ["C:\\a b.jpg", "C:\\c.jpg"]), ("'a.jpg', 'b.jpg'", ["a.jpg", "b.jpg"]),
        # HTML, JSON, and what shops write behind a path.
        ('<img src="a/0.jpg" alt="x">', ["a/0.jpg"]), ("<p><img alt=y src=a.jpg?v=1&amp;w=2></p>", ["a.jpg?v=1&w=2"]),
        ('<p>See <img src="a.jpg"></p>', ['<p>See <img src="a.jpg"></p>']),
        ("a.jpg::alt=Red::x|b.jpg::alt=Back", ["a.jpg", "b.jpg"]), ("a.jpg ! alt : x | b.jpg", ["a.jpg", "b.jpg"]),
        ("a.jpg (https://dl.x.com/1)", ["a.jpg"]), ('[{"url":"0.jpg"}]', ["0.jpg"]),
        ('["caf\\u00e9.jpg"]', ["café.jpg"]),
        ("[{'url': '0.jpg', 'alt': 'x'}]", ["0.jpg"]), ('[{"id":1,"src":"https://x/7","alt":"a"}]', ["https://x/7"]),
        ('{"front":{"alt":"a","src":"a.jpg"},"back":"b.jpg"}', ["a.jpg", "b.jpg"]),
        ('{"a b.jpg",c.jpg}', ["a b.jpg", "c.jpg"]),
        ('["C:\\new\\a.jpg"]', ["C:\\new\\a.jpg"]), ("[a.jpg|b.jpg]", ["a.jpg", "b.jpg"]),
        # Addresses may hold any sign.
        ("https://x/?a=a.jpg&b=b.jpg", ["https://x/?a=a.jpg&b=b.jpg"]),
        ("https://x/a,https://x/b", ["https://x/a", "https://x/b"]),
        ("https://x/a.jpg&https://x/b.jpg", ["https://x/a.jpg", "https://x/b.jpg"]), ("x.png/a.jpg", ["x.png/a.jpg"]),
    ],
)  # fmt: skip
def test_photos_in_a_cell(cell, photos):
    assert split_photos(cell) == photos


SIGNS = [
    " / ", "&", " & ", "^", "+", ":", "、", "\uff0c", "<br>", "<BR />", "#", "~", " - ", " \\ ", "\t", ";;", " and ",
    "•",
    "; ", " ,",
]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "items"),
    [
        ('["a", 1, null, {"b": ["c"]}]', ["a", 1, None, {"b": ["c"]}]), ('{"a": "b"}', [{"a": "b"}]), ("[]", []),
        ("['a', 'it\\'s']", ["a", "it's"]), ("['a' \"b\"\n 'c']", ["a", "b", "c"]), ("('a',)", ["a"]),
        ('{"a","b"}', ["a", "b"]),
        (r"['C:\new\\x']", [r"C:\new\x"]), ("[a, b]", None), ("['a', b]", None), ("(a)", None), ("['a'", None),
        ("['a'}", None),
        ("", None), ("[", None), ("[,]", None), ("a", None),
    ],
)  # fmt: skip
def test_lists_in_a_cell(cell, items):
    assert read_list(cell) == items


@pytest.mark.parametrize("sign", SIGNS)
def test_photos_between_any_signs(tmp_path, sign):
    assert split_photos(f"img/0 a.jpg{sign}img/0b.PNG{sign}c.webp") == ["img/0 a.jpg", "img/0b.PNG", "c.webp"]


def test_a_cell_of_several_photos_is_never_one_of_them_and_a_file_with_odd_signs_stays_whole(tmp_path):
    write_photos(tmp_path)
    odd = [p[0] for p in PHOTOS.values()]
    (tmp_path / "images/a.jpg & b.jpg").write_bytes((tmp_path / "images" / odd[0]).read_bytes())
    cells = [f"images/{a}@images/{b}" for a, b in itertools.pairwise(odd)]
    cells += ["images/a.jpg & b.jpg", f"images/{odd[0]}--images/{odd[1]}"]
    cells += [f'"images/{odd[0][:-4]}{sign}images/{odd[1][:-4]}"' for sign in (", ", " ", ";", " & ")]
    rows = [f"{n},{cell},{('red', 'blue')[n % 2]}" for n, cell in enumerate([f"images/{odd[3]}", *cells])]
    for source in (write_csv(tmp_path, "sku,photo,colour", rows), tmp_path):
        catalog = open_catalog(source)
        assert [record.photo for record in catalog.records] == [f"images/{odd[3]}", "images/a.jpg & b.jpg"]
        assert all("looks like several photos; write | between them" in item.reason for item in catalog.rejected)


@pytest.mark.parametrize(
    "cell",
    [
        "a" + " " * 60_000 + "b.jpg", "a" + " " * 19_000 + "b.jpg", '["' + '\\"' * 50_000 + "]",
        '["' + '\\"' * 9_000 + "]",
        "[" * 9_000 + "]" * 9_000, "{" * 9_000 + "}" * 9_000, '"' * 19_000, ".jpg?" * 3_900,
        ".jpg," * 3_900, ".jpg::" * 3_000,
        "<img" + " src" * 4_000 + ">", "//" + "a." * 9_900, "a.jpg" + " " * 19_000 + "x",
        "a," * 9_900, "'" * 19_000 + ".jpg",
        ("a.jpg" + " " * 50) * 300, "//" + "a." * 500_000,
    ],
    ids=lambda cell: f"{cell[:9]}{len(cell)}",
)  # fmt: skip
def test_hostile_cells_end_soon(cell):
    begin = time.process_time()
    split_photos(cell)
    read_list(cell), read_list(f"[{cell}]")
    is_address(cell), without_query(cell), names_photo(cell), is_placeholder(cell), is_litter(cell)
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    "pattern", [USUAL, "*{n}*{n}*{n}*-{id}_x", "{id}_********x", "{n}{n}{n}{n}{id}x", "*a*a*{id}a*a*ax"]
)
def test_hostile_names_and_patterns_end_soon(pattern):
    names = [text * (length // len(text)) for text in ("-", "1", "1_", "a", "a-_. ") for length in (255, 30_000)]
    begin = time.process_time()
    group_names([f"x/{name}.jpg" for name in names], pattern)
    looks_grouped(names), looks_like_folders(names), list(map(natural, [*names, "9" * 5_000, "²"]))
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("columns", "more"),
    [
        ("Bild1 Bild2 Bild10", "Bild2 Bild10"), ("image image_back image_3 mask", "image_back image_3"),
        ("image_link additional_image_link image_mask", "additional_image_link"), ("写真1 写真2", "写真2"),
        ("photo thumbnail swatch_photo", ""), ("front back", "back"), ("imageUrl imageUrl2", "imageUrl2"),
    ],
)  # fmt: skip
def test_columns_with_more_photos_are_known_by_their_headings(columns, more):
    pandas = pytest.importorskip("pandas")
    names = columns.split()
    table = pandas.DataFrame({name: [f"{name}{n}.jpg" for n in range(4)] for name in names})
    assert more_photo_columns(table, names[0]) == tuple(more.split())
    table["link"] = [f"https://shop/{n}.jpg" for n in range(4)]  # the same photos by address
    assert "link" not in more_photo_columns(table, names[0])


@pytest.mark.parametrize(
    ("names", "pattern", "products"),
    [
        ("a_1 a_2 a_10 a", USUAL, {"a": "a a_1 a_2 a_10"}), ("x/a-1 y/a-1", USUAL, {"x/a": "x/a-1", "y/a": "y/a-1"}),
        ("d(1) d(2)", USUAL, {"d": "d(1) d(2)"}), ("z-front z-Back", USUAL, {"z": "z-Back z-front"}),
        ("FS-140 FS-141", USUAL, {"FS-140": "FS-140", "FS-141": "FS-141"}),
        ("IMG_0412 IMG_0413", USUAL, {"IMG_0412": "IMG_0412", "IMG_0413": "IMG_0413"}),
        ("s/A/1 s/A/2 s/B/1", "{id}/{n}", {"A": "s/A/1 s/A/2", "B": "s/B/1"}),
        ("a_1_x a_2_y b", "{id}_{n}_*", {"a": "a_1_x a_2_y", "b": "b"}),
        ("1-A 2-A", "{n}-{id}", {"A": "1-A 2-A"}), ("v1.2_1 v1.2_2", "{id}_{n}", {"v1.2": "v1.2_1 v1.2_2"}),
        ("S0_a S0_b S1-A S1-b", USUAL, {"S0": "S0_a S0_b", "S1": "S1-A S1-b"}),
        ("tee_s tee_m", USUAL, {"tee_s": "tee_s", "tee_m": "tee_m"}),
        ("x_f x_e y", USUAL, {"x_f": "x_f", "x_e": "x_e", "y": "y"}),
        ("S0_1 S0_2", "{id}_{n}.jpg", {"S0": "S0_1 S0_2"}), ("s/A/1 s/A/x", "{id}/*.JPG", {"A": "s/A/1 s/A/x"}),
        ("x_big_A_1 x_B_2", "*_{id}_{n}", {"A": "x_big_A_1", "B": "x_B_2"}), ("a_1_x_2", "{id}_*_*", {"a": "a_1_x_2"}),
    ],
)  # fmt: skip
def test_products_told_from_names(names, pattern, products):
    files = [f"{name}.jpg" for name in names.split()]
    assert group_names(files, pattern) == {k: [f"{n}.jpg" for n in v.split()] for k, v in products.items()}


def small(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PHOTO)
    return folder


PHOTO = encode_photo(np.full((40, 30, 3), 200, np.uint8))
SKUS = [f"S{n}" for n in range(24)]


def colours(cells: list[str], header: str = "sku,photo,colour") -> list[str]:
    return [
        header,
        *(f"{sku},{cell}{('red', 'blue')[n % 2]}" for n, (sku, cell) in enumerate(zip(SKUS, cells, strict=True))),
    ]


@pytest.mark.parametrize("heading", ["photo", "Bild", "写真"])
@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("images/{}", "images/{}/1.jpg images/{}/2.jpg"), ("./images/{}/", "images/{}/a.png images/{}/b.png"),
        ("{}", "images/{}/1.jpg images/{}/2.jpg"), ("images/{}", "images/{}/x/1.jpg images/{}/y/2.jpg"),
        ("IMAGES\\{}", "images/{}/2.jpg images/{}/10.jpg"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("lone", [True, False])
def test_a_cell_that_names_a_folder_means_its_photos(tmp_path, heading, cell, names, lone):
    expected = {sku: [name.format(sku) for name in names.split()] for sku in SKUS}
    small(tmp_path, *(name for found in expected.values() for name in found))
    cells = [f"{cell.format(sku)}," for sku in SKUS]
    if cell == "{}":  # the table alone cannot tell ids from folders
        cells[3] = "images/S3,"
    (tmp_path / "t.csv").write_text("\n".join(colours(cells, f"sku,{heading},colour")))
    catalog = open_catalog(tmp_path / "t.csv" if lone else tmp_path)
    assert products_of(catalog) == expected and not catalog.rejected
    assert catalog.repairs == {"folders read as their photos": 24}


def test_another_rows_folder_is_no_match_and_nothing_outside_is_read(tmp_path):
    shop = small(tmp_path / "shop", *(f"images/{sku}/1.jpg" for sku in SKUS[4:]))
    small(tmp_path, "secret/1.jpg", "S0/1.jpg")
    (shop / "images/link").symlink_to(tmp_path / "secret")
    cells = [f"images/{sku}," for sku in SKUS]
    cells[:4] = ["../secret,", "images/link,", f"{tmp_path}/secret,", "old/S9,"]
    (shop / "t.csv").write_text("\n".join(colours(cells)))
    for source in (shop, shop / "t.csv"):
        catalog = open_catalog(source)
        assert list(products_of(catalog)) == SKUS[4:] and len(catalog.rejected) == 4


def test_a_column_of_names_without_suffixes_is_known_by_its_files(tmp_path):
    small(tmp_path, *(f"img/{sku}{view}.jpg" for sku in SKUS for view in "ab"))
    (tmp_path / "t.csv").write_text("\n".join(colours([f"img/{sku}a|img/{sku}b," for sku in SKUS])))
    catalog = open_catalog(tmp_path)
    assert products_of(catalog)["S5"] == ["img/S5a.jpg", "img/S5b.jpg"] and len(catalog.records) == 48
    assert [attribute.name for attribute in catalog.schema.attributes] == ["colour"]


@pytest.mark.parametrize("suffix", ["", "; S0 lies there too"])
def test_a_folder_for_each_product_is_offered(tmp_path, suffix):
    names = [f"images/{sku}/{view}.jpg" for sku in SKUS for view in (1, 2)]
    small(tmp_path, *names, *(["images/S0.jpg"] if suffix else []))
    (tmp_path / "t.csv").write_text("\n".join(colours([""] * 24, "sku,colour")))
    said = r"2\d ids have no photo with exactly their name, .* a folder of that name, .*add --group-by-name '{id}/\*'"
    if suffix:
        assert re.search(said, "".join(open_catalog(tmp_path).offers))
    else:
        with pytest.raises(UserError, match=said):
            open_catalog(tmp_path)
    catalog = open_catalog(tmp_path, Schema("", (), group_by_name="{id}/*"))
    assert products_of(catalog)["S1"] == ["images/S1/1.jpg", "images/S1/2.jpg"] and len(products_of(catalog)) == 24
    (tmp_path / "t.csv").unlink()
    catalog = open_catalog(tmp_path, labelled=False)
    assert "S0/1.jpg and S0/2.jpg" in catalog.offers[0] and "--group-by-name '{id}/*'" in catalog.offers[0]


@pytest.mark.parametrize(
    ("names", "example"),
    [
        ([f"S{n}/{v}.jpg" for n in range(3) for v in ("front", "back")], "S0/back.jpg and S0/front.jpg"),
        ([f"x/{n}/{9 * n + v}.jpg" for n in range(12) for v in range(9)], "0/0.jpg and 0/1.jpg"),
        ([f"x/{n}/big/{v}.jpg" for n in range(12) for v in (1, 2)], "0/big/1.jpg and 0/big/2.jpg"),
        ([f"{c}/{n}.jpg" for c in ("red", "blue") for n in range(40)], ""),  # folders of classes
        ([f"{c}/{c}{n}.jpg" for c in ("red", "blue") for n in range(9)], ""),
        ([f"{n}.jpg" for n in range(40)], ""), ([f"{n}/1.jpg" for n in range(40)], ""), ([], ""),
    ],
)  # fmt: skip
def test_folders_that_look_like_products(names, example):
    found, pattern = looks_like_folders(names)
    assert found == example and pattern.count("*") == example.count("/") // 2
    if example:
        assert group_names(names, pattern)[names[0].removeprefix("x/").split("/")[0]][0] in names


@pytest.mark.parametrize("named", ["ids", "first", "cells"])
@pytest.mark.parametrize("lone", [True, False])
def test_photos_beside_those_of_the_table_are_offered_and_taken_when_asked(tmp_path, named, lone):
    first = "images/{}_1.jpg" if named == "first" else "images/{}.jpg"
    small(tmp_path, *(name.format(sku) for sku in SKUS for name in (first, "images/{}_2.jpg", "images/{}_3.jpg")))
    lines = colours([""] * 24, "sku,colour") if named == "ids" else colours([f"{first.format(sku)}," for sku in SKUS])
    (tmp_path / "t.csv").write_text("\n".join(lines))
    source = tmp_path / "t.csv" if lone else tmp_path
    offers = "".join(open_catalog(source).offers)
    assert "(48 photos such as images/S0_2.jpg are not used); if they do, add --group-by-name" in offers
    catalog = open_catalog(source, Schema("", (), group_by_name=USUAL))
    assert products_of(catalog)["S7"] == [first.format("S7"), "images/S7_2.jpg", "images/S7_3.jpg"]
    assert len(catalog.records) == 72 and not catalog.offers and not catalog.rejected


def test_an_offer_about_a_placeholder_keeps_the_offer_to_group_names(tmp_path):
    small(tmp_path, *(f"i/{sku}_{n}.jpg" for sku in SKUS for n in (1, 2)), "i/logo.jpg")
    cells = [f"i/{sku}_1.jpg," for sku in SKUS]
    cells[::4] = ["i/logo.jpg,"] * 6
    (tmp_path / "t.csv").write_text("\n".join(colours(cells)))
    placeholder, groups = open_catalog(tmp_path).offers
    assert "6 products share the photo i/logo.jpg" in placeholder and "add --group-by-name" in groups


@pytest.mark.parametrize("kind", ["photos", "ids", "column"])
def test_a_pattern_that_fits_no_name_is_an_error(tmp_path, kind):
    small(tmp_path, *(f"images/{sku}_1.jpg" for sku in SKUS))
    if kind != "photos":
        cells = [f"images/{sku}_1.jpg," for sku in SKUS] if kind == "column" else [""] * 24
        lines = colours(cells, "sku,photo,colour" if kind == "column" else "sku,colour")
        (tmp_path / "t.csv").write_text("\n".join(lines))
    for pattern in ("{id}-{n}", "{id}-{n}.jpg", "x/{id}"):
        with pytest.raises(UserError, match=r"it fits no photo's name, such as images/S0_1\.jpg; correct the pattern"):
            open_catalog(tmp_path, Schema("", (), group_by_name=pattern), labelled=kind != "photos")
    assert len(open_catalog(tmp_path, Schema("", (), group_by_name="{id}_{n}.jpg"), labelled=False).records) == 24


@pytest.mark.parametrize("cell", ["img/{0}z, img/{0}b", "see page {0}", "photo_{0}.psd"])
def test_a_column_that_is_named_like_photos_is_named_in_the_error(tmp_path, cell):
    small(tmp_path, "root.jpg", *(f"img/{n}a.jpg" for n in range(24)))
    lines = colours([f'"{cell.format(n)}",' for n in range(24)], "sku,Image,colour")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.raises(
        UserError, match=r"no photo that is named by an id.*column 'Image' is named like photos, but its"
    ):
        open_catalog(tmp_path)


def test_photos_of_shared_and_placeholder_names(tmp_path):
    small(
        tmp_path, *(f"i/{sku}.jpg" for sku in SKUS), "i/logo.jpg", "i/no-image.jpg", "i/default.jpg", "own/default.jpg"
    )
    cells = [f"i/{sku}.jpg," for sku in SKUS]
    cells[::4] = ["i/logo.jpg,"] * 6
    cells[1:4] = ["i/no-image.jpg,", "i/default.jpg,", "i/default.jpg,"]
    cells[5:7] = ["own/default.jpg,", "i/S6.jpg|i/No_Photo_Available.png,"]
    (tmp_path / "t.csv").write_text("\n".join(colours(cells)))
    catalog = open_catalog(tmp_path)
    assert [item.id for item in catalog.rejected] == ["S1", "S2", "S3"] and catalog.num_bad == 3
    assert {item.kind for item in catalog.rejected} == {"the row names a placeholder in place of a photo"}
    assert products_of(catalog)["S5"] == ["own/default.jpg"] and products_of(catalog)["S6"] == ["i/S6.jpg"]
    assert catalog.repairs == {"placeholders beside photos, left out": 1}
    offer = next(offer for offer in catalog.offers if "6 products share the photo i/logo.jpg" in offer)
    words = json.loads("{" + offer.split("schema: ")[1] + "}")["missing_values"]
    schema = dataclasses.replace(catalog.schema, missing_values=tuple(words))
    assert "logo" not in "".join(str(record.photo) for record in open_catalog(tmp_path, schema).records)


@pytest.mark.parametrize(
    ("name", "placeholder"),
    [
        ("no-image.jpg", True), ("x/NoImage.png", True), ("placeholder.svg.png", False),
        ("a\\no_photo_available.gif", True),
        ("https://h.com/image-coming-soon.jpg?v=1", True), ("woocommerce-placeholder.png", True),
        ("no-image-50-large.jpg", False),
        ("image-placeholder.png", True), ("kein-bild.jpg", True), ("noir-image.jpg", False), ("nora.jpg", False),
        ("default-image.jpg", True), ("default.jpg", False), ("images/1.jpg", False), ("photo.jpg", False), ("", False),
    ],
)  # fmt: skip
def test_names_of_placeholders(name, placeholder):
    assert is_placeholder(name) == placeholder


def test_photos_alone_whose_names_differ_in_spaces_stay_apart_and_copies_are_passed_over(tmp_path):
    names = ["red dress0.jpg", "red  dress0.jpg", "red dress0 (2).jpg", "a.jpg", "b-scaled.jpg", "c-200x200.jpg"]
    copies = ["a-150x150.jpg", "a-300x200@2x.jpg", "b-150x150.jpg", "a_100x100.jpg"]
    litter = ["@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", ".thumbnails/a.jpg", "x/#recycle/1.jpg", "__MACOSX/._a.jpg"]
    small(tmp_path, *names, *copies, *litter)
    catalog = open_catalog(tmp_path, labelled=False)
    ids = {record.photo: record.id for record in catalog.records}
    assert ids == {**{n: n.removesuffix(".jpg") for n in names}, "red  dress0.jpg": "red dress0 (3)"}
    assert catalog.repairs == {"names that differ only in spaces, told apart by a number": 1}
    assert catalog.passed_over == {"smaller copies, such as NAME-150x150.jpg": 4}


def test_a_series_of_numbers_does_not_look_grouped():
    assert not looks_grouped([f"IMG_{n:04}.jpg" for n in range(500)])
    assert not looks_grouped([f"{n}.jpg" for n in range(500)])
    assert not looks_grouped([*(f"shirt-{n}.jpg" for n in range(1, 200)), *(f"shoe-{n}.jpg" for n in range(1, 200))])
    assert looks_grouped([f"SKU{n}_{view}.jpg" for n in range(20) for view in (1, 2)]) == "SKU0_1.jpg and SKU0_2.jpg"


@pytest.mark.parametrize("pattern", ["", "x", "{id}{id}", "{id}{size}", "{n}", "{id}*", "*{id}_{n}"])
def test_a_pattern_needs_an_id(pattern):
    if pattern:
        with pytest.raises(UserError, match="group_by_name"):
            Schema("s", (), group_by_name=pattern)
    assert Schema("s", (), group_by_name="{id}/{n}").group_by_name
