"""Tables from strangers: a right result, counted repairs or one sentence; never a hang, and never a silent change."""

from __future__ import annotations

import datetime
import decimal
import io
import json
import os
import socket
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fashion_jax.cli import main
from fashion_jax.data import table_limits, tables
from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.corrections import read_corrections
from fashion_jax.data.schema import FASHION, load_schema
from fashion_jax.data.tables import read_table
from fashion_jax.search.columns import read_columns
from fashion_jax.system.errors import UserError

DEEP = 100_000
TWICE, NO_NUMBER = "JSON objects that hold a key twice", "NaN or Infinity"


def rows(name: str, data: bytes) -> list[dict[str, object]]:
    return list(read_table(name, data).frame.to_dict("records"))


def parquet(**columns: pa.Array) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("part", ["[", '{"a":', '[{"a":', '{"a":['])
@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_deep_json_is_named(name: str, part: str) -> None:
    closing = "".join({"[": "]", "{": "}"}[sign] for sign in reversed(part) if sign in "[{")
    for text in (part * DEEP, part * DEEP + "1" + closing * DEEP):
        with pytest.raises(UserError, match="nested too deep"):
            read_table(name, text.encode())
        if name == "t.jsonl":
            table = read_table(name, text.encode() + b'\n{"a": 1}')
            assert len(table.frame) == 1 and "nested too deep" in table.rejected[0][2]
    for depth in (50, 200, 350):  # which the parser takes
        text = f'[{{"id": "1", "a": {part * depth}1{closing * depth}}}]'
        assert rows("t.json", text.encode())[0]["id"] == "1"


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_what_json_does_not_say_clearly_is_counted(name: str) -> None:
    lines = ['{"a": 1, "a": 2, "b": {"c": 1, "c": 3}, "d": NaN}', '{"a": 3, "b": {"c": 4}, "d": -Infinity}']
    text = "\n".join(lines) if name == "t.jsonl" else f"[{','.join(lines)}]"
    table = read_table(name, text.encode())
    assert table.frame.to_dict("records") == [{"a": "2", "b.c": "3", "d": ""}, {"a": "3", "b.c": "4", "d": ""}]
    counts = {key: count for key, count in table.repairs.items() if key.startswith((TWICE, NO_NUMBER))}
    assert sorted(counts.values()) == [2, 2] and len(table.repairs) == 2


def test_large_numbers_of_json_keep_their_digits() -> None:
    large = "9" * 100_000
    text = f'[{{"a": {large}, "b": 1e999, "c": -{large}.5, "d": {"9" * 17}, "e": 1e300}}]'
    row = rows("t.json", text.encode())[0]
    assert row["a"] == large and row["b"] == "1e999" and row["c"] == f"-{large}.5" and row["d"] == "9" * 17
    assert float(str(row["e"])) == 1e300


NUMBERS = pa.array([0, 2**60])
TENSOR = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 3, 4), np.float32))
ODD: dict[str, tuple[pa.Array, list[object] | None]] = {  # None: the column is left out
    "duration": (pa.array([1, 2**62], pa.duration("s")), None),
    "date beyond 9999": (pa.array([0, 2**31 - 1], pa.int32()).cast(pa.date32()), None),
    "time beyond 9999": (NUMBERS.cast(pa.timestamp("ms")), None),
    "zone": (pa.array([0, 1]).view(pa.timestamp("us", "Mars/Olympus")), None),
    "map": (pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int32())), None),
    "struct": (pa.array([{"a": {"b": 1}}, None]), None),
    "lists of lists": (pa.array([[["a"]], []]), None),
    "list of categories": (pa.array([["a"], []], pa.list_(pa.dictionary(pa.int32(), pa.string()))), None),
    "tensor": (TENSOR, None),
    "numbers for photos": (pa.array([[{"bytes": 5, "path": "a"}], []]), None),
    "no UTF-8": (pa.array([b"\xff", b"a"]).view(pa.string()), None),
    "nothing": (pa.nulls(2), ["", ""]),
    "decimals": (pa.array([decimal.Decimal("1.50"), None]), ["1.50", ""]),
    "large decimals": (pa.array([decimal.Decimal("1" * 70), None], pa.decimal256(76, 0)), ["1" * 70, ""]),
    "categories": (pa.array(["a", None]).dictionary_encode(), ["a", ""]),
    "categories of bytes": (pa.array([b"a", b"b"]).dictionary_encode(), [b"a", b"b"]),
    "views": (pa.array([b"a", b"b"], pa.binary_view()), [b"a", b"b"]),
    "uuid": (pa.array([bytes(16), bytes(16)], pa.uuid()), [str(uuid.UUID(int=0))] * 2),
    "unsigned": (pa.array([2**64 - 1, 0], pa.uint64()), [str(2**64 - 1), "0"]),
    "no numbers": (pa.array([float("nan"), float("inf")]), ["", "inf"]),
    "time of day": (pa.array([datetime.time(1, 2), None], pa.time64("ns")), ["01:02:00", ""]),
}


@pytest.mark.parametrize("kind", ODD)
def test_every_type_of_parquet_is_read_or_named(kind: str) -> None:
    column, wanted = ODD[kind]
    table = read_table("t.parquet", parquet(id=pa.array(["a", "b"]), odd=column))
    assert table.frame["id"].tolist() == ["a", "b"]
    if wanted is None:
        assert "odd" not in table.frame and any("'odd'" in name and "not read" in name for name in table.repairs)
    else:
        assert table.frame["odd"].tolist() == wanted and not table.repairs


def test_changed_bits_of_parquet_give_a_table_or_a_sentence() -> None:
    data = parquet(id=pa.array(["a", "b"]), n=pa.array([1, 2]))
    refused = 0
    for place in range(len(data)):
        for bit in (0, 6):
            try:
                read_table("t.parquet", data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            except UserError as error:
                refused += "t.parquet" in str(error)
    assert refused > len(data) // 2
    checked = io.BytesIO()  # Spark writes checksums
    pq.write_table(pa.table({"id": pa.array(["alpha", "beta"])}), checked, write_page_checksum=True, compression="none")
    with pytest.raises(UserError, match=r"t\.parquet is damaged"):
        read_table("t.parquet", checked.getvalue().replace(b"alpha", b"alphb", 1))


def small_bombs() -> dict[str, tuple[str, bytes]]:
    wide = ",".join(f"c{i}" for i in range(6000))
    repeated = pa.DictionaryArray.from_arrays(pa.array(np.zeros(5000, np.int32)), pa.array(["x" * 10_000]))
    return {
        "CSV of many columns": ("t.csv", f"{wide}\n{wide}\n".encode()),
        "CSV of short rows": ("t.csv", (",".join(f"c{i}" for i in range(1000)) + "\n" + "a,b\n" * 1200).encode()),
        "JSON of many columns": ("t.json", json.dumps([{f"k{i}": 1} for i in range(6000)]).encode()),
        "JSON of many cells": ("t.json", json.dumps([{f"k{i % 1000}": 1} for i in range(1200)]).encode()),
        "Parquet of many columns": ("t.parquet", parquet(**{f"c{i}": pa.array([1]) for i in range(6000)})),
        "Parquet of many rows": ("t.parquet", parquet(a=pa.nulls(1_200_000))),
        "Parquet of one text": ("t.parquet", parquet(a=repeated)),
        "text": ("t.csv", b"a,b\n" + b"1,2\n" * 10_000),
    }


@pytest.mark.parametrize("name", small_bombs())
def test_a_table_has_limits(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(table_limits, "MAX_CELLS", 1_000_000)
    monkeypatch.setattr(tables, "MAX_TEXT_BYTES", 10_000 if name == "text" else 10**9)
    monkeypatch.setattr("fashion_jax.data.hub_parquet.MAX_TABLE_BYTES", 20_000_000)
    with pytest.raises(UserError, match=r"has more than [\d,]+ (columns|cells|bytes)"):
        read_table(*small_bombs()[name])


def test_two_columns_of_a_name_are_named() -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), buffer)
    with pytest.raises(UserError, match="two columns named 'a'"):
        read_table("t.parquet", buffer.getvalue())


def workbook(change: Callable[[bytes], bytes]) -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book, whole, changed = openpyxl.Workbook(), io.BytesIO(), io.BytesIO()
    for row in (["sku", "kind", "n"], *([f"s{i}", "x", i] for i in range(3))):
        book.active.append(row)
    book.save(whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as out:
        for name in archive.namelist():
            data = archive.read(name)
            out.writestr(name, change(data) if name.endswith("sheet1.xml") else data)
    return changed.getvalue()


ENTITIES = b"<!DOCTYPE x [<!ENTITY a0 'lollol'>" + b"".join(
    b"<!ENTITY a%d '%s'>" % (i, b"&a%d;" % (i - 1) * 10) for i in range(1, 12)
)
WIDE = b"".join(b'<row r="%d"><c r="XFD%d"/></row>' % (number, number) for number in range(5, 1300))
SHEETS: dict[str, Callable[[bytes], bytes]] = {
    "entities": lambda data: ENTITIES + b"]>" + data.replace(b">s1<", b">&a11;<"),
    "file": lambda data: b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>" + data.replace(b">s1<", b">&a;<"),
    "zeros": lambda data: data.replace(b">s1<", b">" + bytes(200_000_000).replace(b"\0", b"x") + b"<"),
    "row 999999999": lambda data: data.replace(b'<row r="4"', b'<row r="999999999"'),
    "column XFD": lambda data: data.replace(b'r="C2"', b'r="XFD2"'),
    "large number": lambda data: data.replace(b"<v>1</v>", b"<v>" + b"9" * 10_000 + b"</v>"),
    "wide rows": lambda data: data.replace(b"</sheetData>", WIDE + b"</sheetData>"),
}


@pytest.mark.parametrize("kind", SHEETS)
def test_a_workbook_that_is_a_trap_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    data = workbook(SHEETS[kind])
    monkeypatch.setattr("fashion_jax.data.excel._MOST_CELLS", 2_000_000)  # a tenth, for a tenth of the time
    start = time.thread_time()
    with pytest.raises(UserError, match=r"t\.xlsx"):
        read_table("t.xlsx", data)
    assert time.thread_time() - start < 10


@pytest.mark.parametrize("encoding", ["zip", "hex", "rot13", "undefined", "a\0b", "idna", "punycode", "no such"])
def test_an_encoding_that_is_none_is_named(encoding: str) -> None:
    with pytest.raises(UserError, match="encoding"):
        read_table("t.csv", "a,b\nü,1\n".encode(), encoding)


@pytest.fixture
def strange(tmp_path: Path) -> dict[str, Path]:
    os.mkfifo(tmp_path / "fifo.csv")
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(tmp_path, os.O_RDONLY)  # the path of a socket must be short
        server.bind(f"/proc/self/fd/{folder}/socket")
        os.close(folder)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    names = ("fifo.csv", "socket", "circle", "zero.jpg")
    return {"/dev/zero": Path("/dev/zero"), **{name: tmp_path / name for name in names}}


@pytest.mark.parametrize("name", ["/dev/zero", "fifo.csv", "socket", "circle", "zero.jpg"])
@pytest.mark.parametrize("reader", ["source", "photos", "schema", "table", "corrections"])
def test_what_is_no_ordinary_file_is_named_and_not_opened(strange: dict[str, Path], reader: str, name: str) -> None:
    readers: dict[str, Callable[[Path], object]] = {
        "source": open_catalog, "photos": lambda path: open_catalog(path, labelled=False), "schema": load_schema,
        "table": read_columns, "corrections": lambda path: read_corrections(path, FASHION),
    }  # fmt: skip
    with pytest.raises(UserError, match=r"device, pipe or socket|in a circle"):
        readers[reader](strange[name])


def test_a_schema_that_says_a_thing_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    for text, reason in (
        ('{"name": "a", "name": "b"}', "'name' comes twice"), ("[" * DEEP, "not JSON"), ('{"a":' * DEEP, "not JSON"),
        ('{"name": %s}' % ("9" * 10_000), "not JSON"), (f'{{"name": {"[" * 900 + "]" * 900}}}', "name"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError, match=reason):
            load_schema(path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare", "--source", "", "--out", "x"], ["prepare", "--source", "t.csv", "--out="],
        ["predict", "--model", "", "--source", "x"], ["search", "--index", " ", "--id", "1"],
        ["train", "--config", "c", "--workdir="], ["evaluate", "--workdir", ""], ["schema", "--source=", "--out", "x"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    (tmp_path / "t.csv").write_text("sku,file,kind\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    following = [*arguments[1:], "x"]
    flag = next(a.rstrip("=") for a, b in zip(arguments, following, strict=True) if a[-1:] == "=" or not b.strip())
    assert stopped.value.code == 2 and f"{flag} has an empty value" in capsys.readouterr().err
    with pytest.raises(UserError, match="empty text"):
        open_catalog("")
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
