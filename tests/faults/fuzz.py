"""Coverage-guided fuzzing of what a stranger may send: tables, archives, photos, manifests and filters.

    pip install atheris
    python tests/faults/fuzz.py table --seconds 3600

A target gets any bytes. It passes where the library returns, or raises what the command line prints as a sentence
(UserError, an OSError of the system). Anything else, 10 seconds and 4 GB are findings: libFuzzer writes the input into
.cache/fuzz/. A finding that was mended goes into tests/faults/corpus/TARGET/, whose files test_fuzz.py runs.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gzip
import io
import json
import math
import shutil
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
CORPUS = Path(__file__).resolve().parent / "corpus"
CACHE = TESTS.parent / ".cache" / "fuzz"
INSTRUMENTED = (
    "fashion_jax.data", "fashion_jax.search", "fashion_jax.serving.package", "fashion_jax.decision.files",
    "json", "csv", "tarfile", "zipfile",
)  # fmt: skip
TIMEOUT_S, MEMORY_MB, MAX_BYTES = 10, 4096, 20_000

TABLES = (
    "t.csv", "t.tsv", "t.json", "t.jsonl", "t.parquet", "t.xlsx", "t.csv.gz", "t.txt", "t.jsonl.xz", "t.csv.bz2",
)  # fmt: skip
# In place of a value of a manifest.
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf, "", "a", "../..",
    "/", "\0", "\ud800", "a\nb", "1" * 5000, [], {}, [[]], [None], {"": 0}, [0] * 1000, {"a": {"b": {"c": []}}},
)  # fmt: skip


class Bytes:
    """Reads numbers from a fuzzer's bytes; zeros come after their end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def number(self, below: int) -> int:
        """Returns a number from 0 to below - 1."""
        taken = self._data[self._place : self._place + 2].ljust(2, b"\0")
        self._place += 2
        return int.from_bytes(taken, "little") % max(below, 1)

    def rest(self) -> bytes:
        return self._data[self._place :]

    def __bool__(self) -> bool:
        return self._place < len(self._data)


def allowed(error: BaseException) -> bool:
    """Whether the command line prints an error as a sentence."""
    from fashion_jax.system.errors import UserError

    return isinstance(error, UserError) or (isinstance(error, OSError) and error.errno is not None)


def run(target: str, data: bytes) -> None:
    """Runs a target on some bytes; whatever is not allowed leaves it as it is."""
    try:
        TARGETS[target](data)
    except Exception as error:
        if not allowed(error):
            raise


@cache
def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="fashion_fuzz_"))


def fuzz_table(data: bytes) -> None:
    """The first byte chooses the name; the rest is a table, which is also opened as a catalogue."""
    from fashion_jax.data.catalog import open_catalog
    from fashion_jax.data.catalog_report import describe_catalog
    from fashion_jax.data.tables import read_table

    name = TABLES[data[0] % len(TABLES)] if data else TABLES[0]
    read_table(name, data[1:])
    folder = scratch() / "shop"
    if not folder.exists():
        folder.mkdir()
        for photo in ("a.jpg", "b.jpg", "1.jpg", "2.jpg", "3.jpg"):
            (folder / photo).write_bytes(_photo())
    (folder / name).write_bytes(data[1:])
    try:
        describe_catalog(open_catalog(folder / name))
    finally:
        (folder / name).unlink()


def fuzz_archive(data: bytes) -> None:
    """The first byte chooses between the bytes as they are, a tar with right checksums, and packed tars."""
    from fashion_jax.data.archives import open_files

    mode, data = (data[0] % 6, data[1:]) if data else (0, b"")
    if mode >= 2:
        data = _with_checksums(data)
    if mode == 3:
        data = gzip.compress(data, 1)
    elif mode == 4:  # a byte of the packed tar is changed
        packed = bytearray(gzip.compress(data, 1))
        packed[zlib.crc32(data) % len(packed)] ^= 1
        data = bytes(packed)
    path = scratch() / "archive"
    path.write_bytes(data)
    opened = open_files(path)
    names = sorted(opened.sizes())
    for name in names[:20]:
        opened.stamp(name)
        opened.head(name)
    for _ in opened.read_many(names[:20]):
        pass


def fuzz_photo(data: bytes) -> None:
    from fashion_jax.data.photos import BadPhoto, decode_photo, normalise_photo

    with contextlib.suppress(BadPhoto):
        decode_photo(normalise_photo(data)[0], 80, 60)


def fuzz_where(data: bytes) -> None:
    from fashion_jax.search.where import parse_where

    where = parse_where(data.decode("utf-8", "surrogateescape"))
    where.evaluate(_attributes())
    where.hints(_attributes())


def fuzz_manifest(data: bytes) -> None:
    """Changes values of a stored document, signs it anew, and opens what it belongs to."""
    given = Bytes(data)
    kinds = _stored()
    kind = sorted(kinds)[given.number(len(kinds))]
    folder, name, opened = kinds[kind]
    path = folder / name
    whole = path.read_bytes()
    try:
        if given.number(4) == 0:
            path.write_bytes(given.rest())
        else:
            path.write_bytes(_edit(json.loads(whole), given))
        opened(folder)
    finally:
        path.write_bytes(whole)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "table": fuzz_table,
    "archive": fuzz_archive,
    "photo": fuzz_photo,
    "where": fuzz_where,
    "manifest": fuzz_manifest,
}


def _edit(value: dict[str, Any], given: Bytes) -> bytes:
    from fashion_jax.system import files

    signed = value.pop("sha256", None) is not None
    for _ in range(1 + given.number(3)):
        places = list(_places(value))
        if not places:
            break
        parent, key = places[given.number(len(places))]
        how = given.number(len(ODD) + 3)
        if how < len(ODD):
            parent[key] = copy.deepcopy(ODD[how])
        elif how == len(ODD):
            del parent[key]
        elif how == len(ODD) + 1 and isinstance(parent, dict):
            parent["another"] = copy.deepcopy(ODD[given.number(len(ODD))])
        else:
            other, place = places[given.number(len(places))]
            parent[key] = json.loads(json.dumps(other[place]))
    if signed:
        value["sha256"] = files.digest(json.dumps(value, sort_keys=True).encode())
    return json.dumps(value).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields (parent, key) of every value in nested lists and objects; of long lists the first values."""
    keys = list(value) if isinstance(value, dict) else range(min(len(value), 8))
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


@cache
def _stored() -> dict[str, tuple[Path, str, Callable[[Path], Any]]]:
    """Returns small stored things: kind -> its folder, its document, and what opens it."""
    import numpy as np

    from drawn_products import write_products
    from fashion_jax.data.prepare import prepare
    from fashion_jax.data.records import open_prepared
    from fashion_jax.data.schema import load_schema, save_schema
    from fashion_jax.search.index import Index
    from fashion_jax.serving.package import ZOO, load_package

    root = scratch()
    prepare(write_products(root / "products", 40), root / "records", progress=False)
    vectors = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    with Index.build(vectors, list("abcdefghij") * 3, {"colour": ["red", "blue", "green"] * 10}) as index:
        index.save(root / "index")
    package = root / "package"
    shutil.copytree(ZOO / "small", package)
    (root / "schema").mkdir()
    save_schema(open_prepared(root / "records").schema, root / "schema" / "schema.json")

    def read_records(folder: Path) -> None:
        prepared = open_prepared(folder)
        prepared.read_photo(0)
        prepared.read_photo(len(prepared) - 1)

    def read_index(folder: Path) -> None:
        with Index.load(folder) as index:
            index.search(vectors[:2], k=3, where="colour == 'red'")

    return {
        "records": (root / "records", "manifest.json", read_records),
        "index": (root / "index", "manifest.json", read_index),
        "package": (package, "config.json", load_package),
        "decision": (package, "decision.json", load_package),
        "embedding": (package, "embedding.json", load_package),
        "schema": (root / "schema", "schema.json", lambda folder: load_schema(folder / "schema.json")),
    }


@cache
def _photo() -> bytes:
    from drawn_products import draw_product
    from fashion_jax.data.photos import encode_photo

    return encode_photo(draw_product("round", "red", 0))


@cache
def _attributes() -> Any:
    from fashion_jax.search.attributes import make_table

    columns = {
        "gender": ["Women", "Men", None], "year": [2012, 2015, None], "in stock": [True, False, True],
        "price": ["5", "12 EUR", ""], "tags": ["Casual|Summer", None, "Party"], "colour": ["Red", "It's", ""],
    }  # fmt: skip
    return make_table(columns, 3)


def _with_checksums(data: bytes) -> bytes:
    """Returns a tar's bytes in which the checksum of every header is right, so that the fuzzer gets behind it."""
    tar, place = bytearray(data), 0
    while place + 512 <= len(tar):
        header = tar[place : place + 512]
        if any(header):
            header[148:156] = b" " * 8
            tar[place + 148 : place + 156] = b"%06o\0 " % sum(header)
        size = bytes(header[124:136]).strip(b"\0 ")
        skip = int(size, 8) if size.isdigit() and not set(size) & set(b"89") else 0
        place += 512 + min(-(-skip // 512) * 512, len(tar))
    return bytes(tar)


def seeds(target: str) -> Iterator[bytes]:
    """Yields sound inputs, from which the fuzzer goes on."""
    if target == "table":
        yield from _seed_tables()
    elif target == "archive":
        yield from _seed_archives()
    elif target == "photo":
        yield from _seed_photos()
    elif target == "where":
        yield from (
            b"gender == 'Women' and (year < 2015 or price >= 5)", b"not tags has 'Summer' and `in stock` == yes",
            b"colour in ['Red', \"It's\"] or year != none", b"year not in [2012, 1e3] and price > -0.5",
        )  # fmt: skip
    else:
        yield from (
            struct.pack("<6H", *numbers) for numbers in ((0, 1, 0, 3, 5, 0), (1, 2, 1, 9, 2, 7), (2, 3, 2, 1, 30, 1))
        )
        yield b'\0\0\0\0{"format": 1}'


def _seed_tables() -> Iterator[bytes]:
    import pandas as pd

    text = "id;photo;Farbe;Preis;tags\n1;a.jpg;Rot;12,40 €;x|y\n2;b.jpg;Blau;7,00 €;-\n3;1.jpg;n/a;;x\n"
    frame = pd.DataFrame(
        {"id": ["1", "2", "3"], "photo": ["a.jpg", "b.jpg", "1.jpg"], "colour": ["Red", "Blue", "Red"]}
    )
    yield b"\0" + text.encode()
    yield b"\0" + text.encode("utf-16")
    yield b"\0" + text.encode("cp1252")
    yield b"\1" + frame.to_csv(sep="\t", index=False).encode()
    yield b"\2" + frame.to_json(orient="records").encode()
    yield (
        b"\2" + json.dumps({"products": [{"id": 1, "images": [{"src": "a.jpg"}], "attrs": {"colour": "Red"}}]}).encode()
    )
    yield b"\3" + frame.to_json(orient="records", lines=True).encode()
    parquet, excel = io.BytesIO(), io.BytesIO()
    frame.to_parquet(parquet)
    frame.to_excel(excel, index=False)
    yield b"\4" + parquet.getvalue()
    yield b"\5" + excel.getvalue()
    yield b"\6" + gzip.compress(text.encode())


def _seed_archives() -> Iterator[bytes]:
    packed, plain = io.BytesIO(), io.BytesIO()
    contents = {"styles.csv": b"id,photo\n1,a.jpg\n", "images/a.jpg": _photo(), "note": b"x" * 30}
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("images/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        tar.addfile(link)
    yield b"\0" + packed.getvalue()
    yield b"\0" + gzip.compress(plain.getvalue())
    yield from (bytes([mode]) + plain.getvalue() for mode in (1, 2, 3, 4))


def _seed_photos() -> Iterator[bytes]:
    from PIL import Image

    image = Image.open(io.BytesIO(_photo()))
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "AVIF"):
        file = io.BytesIO()
        image.save(file, kind)
        yield file.getvalue()
    file = io.BytesIO()
    image.convert("P").save(file, "PNG", transparency=1, icc_profile=b"0" * 200)
    yield file.getvalue()
    file = io.BytesIO()
    image.save(file, "JPEG", progressive=True)
    yield file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzzes one target with atheris.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=3600, help="how long to fuzz")
    flags = parser.parse_args()
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        import fashion_jax.data.archives
        import fashion_jax.data.catalog
        import fashion_jax.data.catalog_report
        import fashion_jax.data.photos
        import fashion_jax.data.prepare
        import fashion_jax.search.index
        import fashion_jax.serving.package  # noqa: F401
    found, given = CACHE / flags.target, CACHE / f"{flags.target}_seeds"
    shutil.rmtree(given, ignore_errors=True)
    for folder in (found, given):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(flags.target)):
        (given / str(number)).write_bytes(data)
    kept = [str(CORPUS / flags.target)] if (CORPUS / flags.target).is_dir() else []
    options = [
        f"-max_total_time={flags.seconds}", f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MB}",
        f"-max_len={MAX_BYTES}", f"-artifact_prefix={CACHE}/{flags.target}_finding_", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], str(found), str(given), *kept, *options], lambda data: run(flags.target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
