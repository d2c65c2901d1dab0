"""Tables of every kind read like the CSV they would be, and what is no table is named for what it is."""

from __future__ import annotations

import bz2
import csv
import datetime
import decimal
import gzip
import io
import json
import lzma
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.tables import join_tables, read_table
from fashion_jax.system.errors import UserError

ROWS = [{"sku": f"00{i}", "colour": ["rot", "grün"][i % 2], "price": f"{i},40 €"} for i in range(9)]
CSV = "sku;colour;price\n" + "".join(";".join(row.values()) + "\n" for row in ROWS)


def records(name: str, data: bytes | str, encoding: str = "") -> list[dict[str, str]]:
    found = read_table(name, data.encode() if isinstance(data, str) else data, encoding).frame
    return found.to_dict("records")


def write_parquet(columns: dict[str, pa.Array], features: object = None) -> bytes:
    table, file = pa.table(columns), io.BytesIO()
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", CSV), ("T.CSV.txt", CSV), ("t.txt", CSV.replace(";", "\t")), ("t.tab", CSV.replace(";", "\t")),
        ("t.psv", CSV.replace(";", "|")), ("t.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        ("t.csv", gzip.compress(CSV.encode(), mtime=0)),
        ("t.tsv.gz", gzip.compress(CSV.replace(";", "\t").encode())), ("t.csv.bz2", bz2.compress(CSV.encode())),
        ("t.csv.xz", lzma.compress(CSV.encode())), ("t.csv", "sep=;\r\n" + CSV), ("t.csv", CSV.encode("utf-16")),
        ("t.jsonl", "\n".join(map(json.dumps, ROWS))), ("t.ndjson", "\r\n\n".join(map(json.dumps, ROWS))),
        ("t.json", json.dumps(ROWS)), ("t.json", json.dumps({"count": 9, "products": ROWS})),
        ("t.parquet", write_parquet({key: pa.array([row[key] for row in ROWS]) for key in ROWS[0]})),
        ("t.csv", "sku;colour;price;\n" + CSV.split("\n", 1)[1].replace("\n", ";\n")),
        ("t.csv", "\ufeff sku ;colour\u200b;\u00a0price\n" + CSV.split("\n", 1)[1]),
    ],
)  # fmt: skip
def test_every_kind_reads_alike(name, data):
    assert records(name, data) == ROWS


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("id;Preis, netto\n1;2,5\n2;3,5\n", ["id", "Preis, netto"]), ("id,a;b\n1,x;y\n2,z\n", ["id", "a;b"]),
        ("id,text\n1,a | b\n2,c\n", ["id", "text"]), ("id\tname, first\n1\tx\n", ["id", "name, first"]),
        ("file name,Colour Name\n1,2\n", ["file name", "Colour Name"]), (",a,b\n1,2,3\n", ["column 1", "a", "b"]),
        ("only\nx\ny\n", ["only"]),
    ],
)  # fmt: skip
def test_headers_and_delimiters(text, header):
    assert list(read_table("t.csv", text.encode()).frame.columns) == header


def test_values_of_json_and_their_faults():
    lines = [
        '{"id": 7, "tags": ["a", "b"], "on": true, "x": null, "n": 1.50, "deep": {"a": 1}}', "[1]", "{broken",
        '{"id": 8.0, "more": "\\ud800"}',
    ]  # fmt: skip
    table = read_table("t.jsonl", "\n".join(lines).encode())
    assert table.frame.to_dict("index") == {
        1: {"id": "7", "tags": "a|b", "on": "yes", "x": "", "n": "1.5", "deep.a": "1", "more": ""},
        4: {"id": "8", "tags": "", "on": "", "x": "", "n": "", "deep.a": "", "more": "?"},
    }
    assert [row for row, _, _ in table.rejected] == [2, 3]
    assert table.num_rows == 4


def test_class_names_and_values_of_the_hubs_parquet():
    label = {"names": ["red", "blue"], "_type": "ClassLabel"}
    data = write_parquet(
        {
            "colour": pa.array([1, 0, -1, 7, None]),
            "tags": pa.array([[0, 1], [], None, [1], [9]], pa.list_(pa.int8())),
            "old": pa.array([[1], [0], [0], [0], [0]]),
            "kind": pa.array(["a", None, "b", "a", "a"]).dictionary_encode(),
            "sale": pa.array([True, False, None, True, True]),
            "price": pa.array([decimal.Decimal("12.40")] * 5),
            "size": pa.array([0.1, 2, None, 3.5, 4], pa.float32()),
            "day": pa.array([datetime.datetime(2024, 5, 1)] * 5, pa.timestamp("ns")),
            "place": pa.array([{"x": 1}] * 5),
        },
        {"colour": label, "tags": {"_type": "Sequence", "feature": label}, "old": [label], "broken": 3},
    )
    table = read_table("t.parquet", data)
    assert {name: cells.tolist() for name, cells in table.frame.items()} == {
        "colour": ["blue", "red", "", "", ""], "tags": ["red|blue", "[]", "", "blue", ""],
        "old": ["blue", "red", "red", "red", "red"], "kind": ["a", "", "b", "a", "a"],
        "sale": ["yes", "no", "", "yes", "yes"], "price": ["12.40"] * 5, "size": ["0.1", "2", "", "3.5", "4"],
        "day": ["2024-05-01"] * 5,
    }  # fmt: skip
    assert table.repairs == {
        "class numbers without a name, read as missing": 2, "column 'place' holds nested values and was not read": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    "metadata", [b"", b"{", b"[]", b'{"info": {"features": {"a": {"_type": "ClassLabel"}}}}', b"\xff"]
)
def test_foreign_metadata_changes_nothing(metadata):
    file = io.BytesIO()
    pq.write_table(pa.table({"a": pa.array([0, 1])}).replace_schema_metadata({b"huggingface": metadata}), file)
    assert records("t.parquet", file.getvalue()) == [{"a": "0"}, {"a": "1"}]


def test_photos_of_the_hub_are_bytes_or_else_paths():
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for photo, cell in (({"bytes": b"x", "path": "a.jpg"}, b"x"), ({"bytes": None, "path": "a.jpg"}, "a.jpg")):
        assert records("t.parquet", write_parquet({"image": pa.array([photo], kind)})) == [{"image": cell}]


def zip_of(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.xls", b"\xd0\xcf\x11\xe0" + bytes(99), "Excel workbook of the old kind"), ("t.csv", b"%PDF-1.7", "PDF"),
        ("t.ods", zip_of(mimetype=b"application/vnd.oasis.opendocument.spreadsheet"), "OpenDocument"),
        ("t.numbers", zip_of(Index=b"x"), "Apple Numbers"), ("t.xlsb", zip_of(x=b"x"), "binary Excel"),
        ("t.xls", b"<html><table>", "web page"), ("t.csv", b"\xef\xbb\xbf\n<!DOCTYPE html>", "web page"),
        ("t.csv", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        ("t.csv", b"SQLite format 3\0", "SQLite"),
        ("t.feather", b"ARROW1\0\0", "Feather"), ("t.xls", b"<?xml version='1.0'?>", "XML"),
        ("t.ods", b"a,b\n1,2\n", "ending"),
        ("t.csv.gz", gzip.compress(CSV.encode(), mtime=0)[:40], "damaged"), ("t.csv.xz", b"no", "damaged"),
        ("t.gz", b"no", "damaged"),
        ("t.json", b"[]", "no JSON objects"), ("t.json", b'{"a": {"0": 1}}', "object with parts"),
        ("t.json", b'{"columns": ["a"], "data": [[1]]}', "object with parts"),
        ("t.jsonl", b"nothing\n", "no JSON objects"),
        ("t.json", b"[" * 200_000, "no JSON objects"), ("t.csv", b"a,A\xcc\x81,\xc3\x81\n1,2,3\n", "two columns named"),
        ("t.csv", b"sep=;\n", "empty"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_named(name, data, message):
    with pytest.raises(UserError, match=message):
        read_table(name, data)


def test_a_packed_table_cannot_fill_the_memory(monkeypatch):
    monkeypatch.setattr("fashion_jax.data.tables.MAX_TABLE_BYTES", 1000)
    with pytest.raises(UserError, match="unpacked, it has more"):
        read_table("t.csv.gz", gzip.compress(bytes(2000)))


def workbook(**sheets: list[list[object]]) -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book, file = openpyxl.Workbook(), io.BytesIO()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for cells in rows:
            sheet.append(cells)
        if title == "hidden":
            sheet.sheet_state = "hidden"
        for cell in sheet["A"]:
            cell.number_format = "00000" if isinstance(cell.value, int) else "General"
    book.save(file)
    return file.getvalue()


def test_excel_reads_like_the_csv():
    day = datetime.datetime(2024, 5, 1)
    rows = [[None] * 3, ["sku", "price", "day"], [123, 12.5, day], [None, None, None], [99999, 3, None]]
    table = read_table("t.xlsx", workbook(products=rows, empty=[], hidden=[["x"]]))
    assert table.frame.to_dict("index") == {
        1: {"sku": "00123", "price": "12.5", "day": "2024-05-01"}, 3: {"sku": "99999", "price": "3", "day": ""}
    }  # fmt: skip
    assert table.repairs == {"read the sheet 'products'": 1}
    with pytest.raises(UserError, match="2 sheets with cells"):
        read_table("t.xlsx", workbook(one=rows, two=rows))
    with pytest.raises(UserError, match="no sheet with cells"):
        read_table("t.xlsx", workbook(one=[]))
    with pytest.raises(UserError, match=r"t\.xlsx is damaged"):
        read_table("t.xlsx", zip_of(x=b"x"))


def test_without_the_extra_a_workbook_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"\[excel\]"):
        read_table("t.xlsx", zip_of(x=b"x"))


def test_mutated_tables_never_crash():
    rng = np.random.default_rng(3)
    parquet = write_parquet(
        {"a": pa.array([1, 2]), "b": pa.array(["x", "y"])}, {"a": {"_type": "ClassLabel", "names": ["u"]}}
    )
    samples = [
        ("t.parquet", parquet),
        ("t.jsonl", json.dumps(ROWS[0]).encode()),
        ("t.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
    ]
    samples += [("t.csv", CSV.encode(encoding)) for encoding in ("utf-8", "cp1252", "utf-16-le")]
    read = 0
    for number in range(300):
        name, original = samples[number % len(samples)]
        data = bytearray(original)
        for _ in range(int(rng.integers(1, 8))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            read_table(name, bytes(data))
            read += 1
        except UserError:
            pass
    assert 10 < read < 300


def lines_of(*rows: str) -> bytes:
    return ("\n".join(rows) + "\n").encode()


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    ("text", "every"),
    [("Soft shirt\nMachine wash\nCotton", 1), ("one\n\ntwo; three | four, five\t\nsix", 3),
     ("<p>a</p>\n<p>b</p>, c", 2), ("\n".join(["a line, of many"] * 3000), 7)],
)  # fmt: skip
def test_cells_hold_line_ends(sign, text, every):
    rows = [[f"S{i}", text if i % every == 0 else "plain", f"img/{i}.jpg", "red"] for i in range(40)]
    written = [sign.join([row[0], f'"{row[1]}"', *row[2:]]) for row in rows]
    table = read_table("t.csv", lines_of(sign.join(["sku", "description", "image", "color"]), *written))
    assert table.frame.to_numpy().tolist() == rows
    assert not table.repairs and not table.rejected


def test_a_heading_holds_a_line_end():
    assert records("t.csv", 'sku,"Photo\n(path)",color\n1,a.jpg,red\n') == [
        {"sku": "1", "Photo (path)": "a.jpg", "color": "red"}
    ]


@pytest.mark.parametrize("text", ["<p>x</p>" * 20_000, "x, y\n" * 50_000, 'a ""b"" ' * 30_000])
def test_a_long_cell_stays_whole(text):
    table = read_table("t.csv", lines_of("sku,description,color", "1,short,red", f'2,"{text}",blue', "3,,red"))
    assert table.frame["color"].tolist() == ["red", "blue", "red"]
    assert table.frame["description"][2] == text.replace('""', '"').strip()
    assert not table.repairs
    assert csv.field_size_limit() == 131_072


@pytest.mark.parametrize(
    ("lengths", "padded"),
    [
        ([4] * 16 + [2] * 32, 32), ([4] * 10 + [3] * 3 + [4], 3), ([4, 2, 4, 3] * 5, 10),
        ([7] * 8 + [4] * 16, 16),
        ([4] * 10 + [2] + [4] * 10, 0), ([4, 2, 3] * 8, 0), ([5, 3, 3] * 8, 0),  # damaged rows
    ],
)  # fmt: skip
def test_empty_cells_that_were_left_out_come_back(lengths, padded):
    width = max(lengths)
    written = [",".join(f"{c}{i}" for c in "abcdefg"[:count]) for i, count in enumerate(lengths)]
    table = read_table("t.csv", lines_of(",".join(f"name {c}" for c in "abcdefg"[:width]), *written))
    assert len(table.frame) == lengths.count(width) + padded
    assert table.repairs == ({"rows without the empty cells at their end": padded} if padded else {})
    assert len(table.rejected) == len(lengths) - len(table.frame)
    assert all(cells[-1] == "" for row, cells in zip(table.frame.index, table.frame.to_numpy(), strict=True)
               if lengths[row - 1] < width)  # fmt: skip


HEADED = ["sku,image,color", *(f"M{i},img/{i}.jpg,{['red', 'blue'][i % 2]}" for i in range(40))]


@pytest.mark.parametrize(
    "above",
    [
        ["Spring catalogue 2024", ""], ["# exported by shop"], ["", "Title"], ["# exported on 2024-05-01, 10:30"],
        ["Product,,Labels"], ["Stammdaten,Stammdaten,Merkmale"],
        ["TemplateType=fptcustom,Version=2024.1", "SKU,Photo,Colour"], ["Report,", "Date:,2024-05-01", ""],
    ],
)  # fmt: skip
@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_rows_above_the_header_are_left_out(above, sign):
    expected = records("t.csv", lines_of(*HEADED))
    keep = lambda row: row if row.startswith("#") else row.replace(",", sign)  # noqa: E731
    table = read_table("t.csv", lines_of(*map(keep, [*above, *HEADED])))
    assert table.frame.to_dict("records") == expected
    count = sum(map(bool, above))
    assert table.repairs == {"rows above the header, left out": count}
    assert not table.rejected and table.num_rows == 40
    rows = [row.split(",") for row in [*above, *HEADED]]
    table = read_table("t.xlsx", workbook(products=rows))
    assert table.frame.to_dict("records") == expected
    assert table.repairs == {"read the sheet 'products'": 1, "rows above the header, left out": count}


def test_a_header_without_usual_words_below_a_title():
    rows = ["Kollektion", "Nr;Ansicht;Ton;Schnitt", *(f"{i};a/{i}.jpg;rot;weit" for i in range(9))]
    assert list(read_table("t.csv", lines_of(*rows)).frame.columns) == ["Nr", "Ansicht", "Ton", "Schnitt"]
    with pytest.raises(UserError, match=r"'Kollektion'.*does not look like a header"):
        read_table("t.csv", lines_of(rows[0], *rows[2:]))


@pytest.mark.parametrize(
    "rows",
    [
        ["nr,kind,what", "a,photo,color", "b,title,size"], ["sku", "image", "x"], ["id,text", *["1,a, b, c, d, e"] * 2],
        ["a,b,c,d,e,f", ",,,,,", "1,2,3,4,5,6"], ["id,title", "1,name; color; size", "2,x; y; z"],
    ],
)  # fmt: skip
def test_the_first_row_stays_the_header(rows):
    table = read_table("t.csv", lines_of(*rows))
    assert list(table.frame.columns) == rows[0].split(",")
    assert "rows above the header, left out" not in table.repairs


def test_cells_of_spreadsheets_are_unwrapped():
    text = 'sku,"=""colour""",note\n="001","=""0020""","a = ""b"""\n="", ="x" ,=1+1\n'
    table = read_table("t.csv", text.encode())
    assert table.frame.to_dict("records") == [
        {"sku": "001", "colour": "0020", "note": 'a = "b"'}, {"sku": "", "colour": "x", "note": "=1+1"}
    ]  # fmt: skip
    assert table.repairs == {'cells such as ="001", read as 001': 5}


@pytest.mark.parametrize(
    ("item", "row", "unread"),
    [
        ({"image": {"url": "0.jpg"}, "attrs": {"color": "red"}, "kind": "a"},
         {"image.url": "0.jpg", "attrs.color": "red", "kind": "a"}, ""),
        ({"images": [{"src": "0.jpg", "id": 1}, {"src": "1.jpg"}]}, {"images": "0.jpg|1.jpg"}, ""),
        ({"media": {"photos": [{"path": "a.png"}]}, "n": {"m": {"color": "red"}}},
         {"media.photos": "a.png", "n.m.color": "red"}, ""),
        ({"id": 1, "variants": [{"sku": "x", "price": 3}]}, {"id": "1"}, "variants"),
        ({"id": 1, "images": [{"url": "a.jpg"}, {"alt": "x"}]}, {"id": "1"}, "images"),
        ({"id": 1, "a": {"b": {"c": {"d": 1}}}, "grid": [[1, 2]]}, {"id": "1"}, "a.b.c"),
        ({"a.b": "x", "a": {"b": "y"}}, {"a.b": "x"}, "a.b"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "wrap", [lambda i: [i], lambda i: {"products": [i]}, lambda i: {"data": {"items": [i]}, "n": 1}]
)
def test_objects_in_json_become_columns(item, row, unread, wrap):
    table = read_table("t.json", json.dumps(wrap(item)).encode())
    assert table.frame.to_dict("records") == [row]
    assert any(repr(unread) in repair for repair in table.repairs) == bool(unread)


def test_a_refusal_names_the_columns_that_were_not_read(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps([{"id": i, "variants": [{"sku": "x"}]} for i in range(9)]))
    with pytest.raises(UserError, match="cells of 'variants' that hold objects, not read"):
        open_catalog(tmp_path / "t.json")


def test_keys_of_json_that_are_values_are_not_read():
    items = [{"id": i, "stock": {f"shop {i} {j}": 1 for j in range(9)}} for i in range(30)]
    table = read_table("t.json", json.dumps(items).encode())
    assert list(table.frame.columns) == ["id"]
    assert table.repairs == {"cells of 'stock' that hold objects, not read": 270}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"], ["train", "validation"]),
        (["train/0000.parquet", "test/0000.parquet"], ["train", "test"]),
        (["my_train.parquet", "my_val.parquet"], ["train", "val"]),
        (["test-set/train-0.parquet", "test-set/dev-0.parquet"], ["train", "dev"]),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], None), (["0.parquet", "test.parquet"], None),
        (["trainers.parquet", "tests.parquet"], None),
    ],
)  # fmt: skip
def test_the_splits_of_files_become_a_column(names, splits):
    data = lines_of("id,color", "1,red", "2,blue")
    joined = join_tables([read_table("t.csv", data) for _ in names], names)
    assert len(joined.frame) == joined.num_rows == 4
    if splits:
        assert joined.frame["split"].tolist() == [splits[0]] * 2 + [splits[1]] * 2
        assert [rows for what, rows in joined.repairs.items() if "split" in what] == [4]
    else:
        assert "split" not in joined.frame and not joined.repairs
    own = read_table("t.csv", lines_of("id,color,split", "1,red,test"))
    assert set(join_tables([own, own], names).frame["split"]) == {"test"}


def test_different_tables_are_not_joined():
    one, two = (read_table("t.csv", lines_of(header, "1,2,3")) for header in ("id,color,image", "order,customer,id"))
    with pytest.raises(UserError, match=r"a.parquet and b.parquet hold different columns.*color.*customer"):
        join_tables([one, two], ["a.parquet", "b.parquet"])
