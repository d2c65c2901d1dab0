"""Laws of stored documents and sealed folders: what was written is read, and any change is refused by name."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from fashion_jax.system import stored
from fashion_jax.system.errors import UnreadableError, UserError

VALUE = {"format": 1, "name": "Grün", "list": [1, 2.5, None, {"a": True}], "text": "a\nb"}
REMEDY = "make it again"


def test_a_document_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "document.json"
    stored.write_document(path, VALUE)
    assert stored.read_document(path, remedy=REMEDY) == VALUE
    assert json.loads(path.read_text())["name"] == "Grün"  # other programs can read it


def test_every_changed_byte_of_a_document_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "document.json"
    stored.write_document(path, VALUE)
    data = path.read_bytes()
    for place in range(len(data)):
        for bit in (0, 5):
            changed = bytes([*data[:place], data[place] ^ 1 << bit, *data[place + 1 :]])
            path.write_bytes(changed)
            try:
                assert stored.read_document(path, remedy=REMEDY) == VALUE  # white space between the values
            except UserError as error:
                assert str(path) in str(error) and str(error).endswith(REMEDY)


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[1]", b"\xff\xfe", b'{"sha256": "00"}', b"{" * 100_000, b"[" * 100_000, b'{"a": 1}', b"1e999"],
    ids=["empty", "null", "list", "no text", "digest", "nested objects", "nested lists", "no digest", "number"],
)
def test_what_is_no_document_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "document.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"document.json is damaged .*; {REMEDY}"):
        stored.read_document(path, remedy=REMEDY)
    with pytest.raises(UserError, match=f"absent.json is missing; {REMEDY}"):
        stored.read_document(tmp_path / "absent.json", remedy=REMEDY)
    with pytest.raises(UserError, match=f"cannot be read .*; {REMEDY}"):
        stored.read_document(tmp_path, remedy=REMEDY)
    with pytest.raises(UserError, match=f"null is damaged .it is no ordinary file.; {REMEDY}"):
        stored.read_document(Path("/dev/null"), remedy=REMEDY)


def test_a_pipe_is_no_document(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe"):
        stored.read_document(tmp_path / "pipe", remedy=REMEDY)


def test_files_are_compared_with_their_listing(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    names = ("a.bin", "sub/b.bin", "manifest.json")
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * 100)
    listing = stored.list_files(tmp_path, besides=["manifest.json"])
    assert sorted(listing) == ["a.bin", "sub/b.bin"] and listing["a.bin"]["bytes"] == 500
    stored.check_files(tmp_path, listing, remedy=REMEDY)
    (tmp_path / "other").write_bytes(b"x")  # which the listing does not name
    stored.check_files(tmp_path, listing, remedy=REMEDY)

    whole = (tmp_path / "sub/b.bin").read_bytes()
    (tmp_path / "sub/b.bin").write_bytes(whole[:-1] + b"?")
    stored.check_files(tmp_path, listing, remedy=REMEDY, contents=False)
    with pytest.raises(
        UserError, match=r"b.bin is damaged \(its content was changed after it was written: .*; make it again"
    ):
        stored.check_files(tmp_path, listing, remedy=REMEDY)
    for damage in (whole[:-1], b"", whole + b"x"):
        (tmp_path / "sub/b.bin").write_bytes(damage)
        with pytest.raises(UserError, match=r"b.bin is damaged"):
            stored.check_files(tmp_path, listing, remedy=REMEDY, contents=False)
    (tmp_path / "sub/b.bin").unlink()
    with pytest.raises(UserError, match=r"b.bin is missing"):
        stored.check_files(tmp_path, listing, remedy=REMEDY)
    for odd in ([1], None, {"a.bin": 1}, {"a.bin": {"bytes": 500}}, {"../a.bin": {}}, {"/a.bin": {}}):
        with pytest.raises(UserError, match=REMEDY):
            stored.check_files(tmp_path, odd, remedy=REMEDY)


@pytest.mark.parametrize(
    "error",
    [ValueError("two\nlines"), KeyError("a"), EOFError(), RuntimeError("x"), OSError("no number"), RecursionError(),
     OverflowError("big"), struct.error("short"), Exception("bare"), OSError(errno.EISDIR, "a folder")],
    ids=repr,
)  # fmt: skip
def test_whatever_a_reader_raises_becomes_a_sentence(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(UserError) as caught, stored.reading(tmp_path / "f", REMEDY):
        raise error
    sentence = str(caught.value)
    assert str(tmp_path / "f") in sentence and sentence.endswith(REMEDY) and "\n" not in sentence


def test_sentences_that_name_the_file_and_permissions_pass() -> None:
    with pytest.raises(UserError, match=r"^f is damaged \(said\); again$"), stored.reading(Path("f"), "again"):
        raise UserError("said")
    for error in (UserError("of the file folder/f"), PermissionError(13, "no"), MemoryError(), ImportError("scann")):
        with pytest.raises(type(error)) as caught, stored.reading(Path("folder/f"), REMEDY):
            raise error
        assert caught.value is error


def test_errors_of_the_system_are_no_damage() -> None:
    for number in (errno.EMFILE, errno.EIO, errno.ENOMEM):
        outer, inner = stored.reading(Path("outer"), REMEDY), stored.reading(Path("f"), REMEDY)
        with pytest.raises(UnreadableError) as caught, outer, inner:
            raise OSError(number, os.strerror(number))
        sentence = f"f cannot be read ({os.strerror(number)}); check the disk, and run the command again"
        assert str(caught.value) == sentence


def test_an_absent_key_and_a_name_outside_are_told(tmp_path: Path) -> None:
    absent = pytest.raises(UserError, match=r"f is damaged \(the key 'files' is missing\)")
    with absent, stored.reading(Path("f"), REMEDY):
        raise KeyError("files")
    with pytest.raises(UserError, match=r"it lists the file '\.\./x', which lies outside of the folder"):
        stored.check_files(tmp_path, {"../x": {}}, remedy=REMEDY)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("write: No space left on device"), ValueError("x [No space left on device]"),
     OSError("1048576 requested and 4096 written"), OSError("Disk quota exceeded")],
    ids=repr,
)  # fmt: skip
def test_a_full_disk_is_told_by_its_number(error: Exception) -> None:
    with pytest.raises(OSError, match="No space left") as caught, stored.writing(Path("f")):
        raise error
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == "f"


def test_other_errors_of_a_writer_pass() -> None:
    for error in (OSError(errno.EIO, "I/O error"), ValueError("a shape"), np.exceptions.AxisError("axis")):
        with pytest.raises(type(error)) as caught, stored.writing(Path("f")):
            raise error
        assert caught.value is error
