"""Archives from strangers: damage is refused or named, and what was made to fill the memory is refused early."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fashion_jax.data import archives
from fashion_jax.data.archives import open_files
from fashion_jax.system.errors import UserError

PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
CONTENT = {f"images/{i}.jpg": random.Random(i).randbytes(700) for i in range(6)}
CONTENT |= {"t.csv": b"id,file\n1,images/1.jpg\n", "photo": b"\xff\xd8\xff" + bytes(300)}


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf()


def make_tar(content: dict[str, bytes] = CONTENT) -> bytes:
    parts = [member(name, len(data)) + data + bytes(-len(data) % 512) for name, data in content.items()]
    return b"".join(parts) + bytes(1024)


def read_all(path: Path) -> dict[str, bytes]:
    files = open_files(path)
    return {name: files.read(name) for name in files.sizes()}


@pytest.fixture(params=[0, 10**9], ids=["read twice", "held in memory"])
def held_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(archives, "_IN_MEMORY_BYTES", request.param)
    return int(request.param)


@pytest.mark.parametrize("kind", PACK)
def test_damage_of_a_packed_tar_is_refused(tmp_path: Path, kind: str) -> None:
    # Programs fill up a tar with zeros, which tarfile leaves unread, and the checksum follows them.
    path, whole = tmp_path / "c.tar", PACK[kind](make_tar() + bytes(20_480))
    path.write_bytes(whole)
    assert read_all(path) == CONTENT
    refused = 0
    places = random.Random(0).sample(range(len(whole)), 150)
    damaged = [whole[:p] + bytes([whole[p] ^ 1 << p % 8]) + whole[p + 1 :] for p in places]
    for data in damaged + [whole[:end] for end in range(0, len(whole), 97)]:
        path.write_bytes(data)
        try:
            assert read_all(path) == CONTENT  # a bit of gzip's header that says nothing about the content
        except UserError as error:
            refused += str(path) in str(error)
    assert refused > len(damaged)


@pytest.mark.parametrize("kind", PACK)
def test_a_change_between_the_passes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(archives, "_IN_MEMORY_BYTES", 0)
    path, whole = tmp_path / "c.tar", PACK[kind](make_tar())
    for place in random.Random(1).sample(range(20, len(whole)), 40):
        path.write_bytes(whole)
        files = open_files(path)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        with pytest.raises(UserError, match="damaged"):
            list(files.read_many(["images/1.jpg"]))


def test_another_photo_between_the_passes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_IN_MEMORY_BYTES", 0)
    for pack in (*PACK.values(), bytes):
        path = tmp_path / "c.tar"
        path.write_bytes(pack(make_tar()))
        files, stamp = open_files(path), open_files(path).stamp("images/1.jpg")
        path.write_bytes(pack(make_tar({**CONTENT, "images/1.jpg": bytes(700)})))
        found = dict(files.read_many(["images/1.jpg", "images/2.jpg"]))
        assert "changed" in str(found["images/1.jpg"]) and found["images/2.jpg"] == CONTENT["images/2.jpg"]
        assert open_files(path).stamp("images/1.jpg") != stamp  # its time is the same


def test_parts_of_gzip_are_one_archive_and_what_follows_a_tar_is_no_part_of_it(tmp_path: Path) -> None:
    path, tar = tmp_path / "c.tar.gz", make_tar()
    for data in (gzip.compress(tar[:2000]) + gzip.compress(tar[2000:]), gzip.compress(tar) + bytes(512)):
        path.write_bytes(data)
        assert read_all(path) == CONTENT
    for data in (gzip.compress(tar) + b"garbage", gzip.compress(tar + tar), tar + b"x" * 512):
        path.write_bytes(data)
        with pytest.raises(UserError, match="damaged"):
            open_files(path)


def test_a_cut_tar_and_a_damaged_header_are_refused(tmp_path: Path) -> None:
    """tarfile takes both for the end of the archive."""
    path, tar = tmp_path / "c.tar", make_tar()
    for number in range(1, len(CONTENT)):
        cut = tar.index(list(CONTENT)[number].encode())
        for data in (tar[:cut], tar[:cut] + b"\x01" + tar[cut + 1 :], tar[:cut] + bytes(512) + tar[cut + 512 :]):
            path.write_bytes(data)
            with pytest.raises(UserError, match="damaged"):
                open_files(path)


def endless(beginning: bytes) -> bytes:
    packer = lzma.LZMACompressor(preset=0)
    return packer.compress(beginning) + b"".join(packer.compress(bytes(10**6)) for _ in range(30)) + packer.flush()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (endless(make_tar()), "unpack to"),
        (gzip.compress(member("a", 10**12)), "unpack to"),
        (gzip.compress(member("a", 10**9, tarfile.XHDTYPE) + bytes(10**6)), "a header has more"),
        (gzip.compress(member("a", 10**9, tarfile.GNUTYPE_LONGNAME) + bytes(10**6)), "a header has more"),
        (gzip.compress((member("a", 8, tarfile.XHDTYPE) + b"8 a=bcd\n" + bytes(504)) * 9000), "damaged"),
        (gzip.compress(b"".join(member(str(i)) for i in range(2000)) + bytes(1024)), "too many files for its size"),
    ],
    ids=["behind the end", "declared", "attributes", "name", "chain", "files"],
)  # fmt: skip
def test_bombs_of_every_part_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
) -> None:
    monkeypatch.setattr(archives, "FREE_BYTES", 2_000_000)
    monkeypatch.setattr(archives, "_FREE_MEMBERS", 100)
    (tmp_path / "c.tar").write_bytes(data)
    with pytest.raises(UserError, match=message):
        open_files(tmp_path / "c.tar")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_huge_photo_is_named_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, held_bytes: int
) -> None:
    monkeypatch.setattr(archives, "MAX_PHOTO_BYTES", 1000)
    path = tmp_path / "c"
    if kind == "folder":
        path.mkdir()
        (path / "small.jpg").write_bytes(b"x")
        with (path / "large.jpg").open("wb") as file:
            file.truncate(10**13)  # more than any memory; the disk holds no byte of it
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("small.jpg", b"x")
            archive.writestr("large.jpg", bytes(1001))
    else:
        path.write_bytes(make_tar({"small.jpg": b"x", "large.jpg": bytes(1001)}))
    found = dict(open_files(path).read_many(["small.jpg", "large.jpg"]))
    assert found["small.jpg"] == b"x"
    if kind != "tar" or not held_bytes:  # which normalise_photo refuses
        assert "more than 1,000 bytes" in str(found["large.jpg"])
    if kind == "folder":
        with pytest.raises(OSError, match="more than"):
            open_files(path).read("large.jpg")
