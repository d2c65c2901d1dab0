"""Work of a killed preparation: what is whole is used, and everything else is made anew."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from drawn_products import write_products
from fashion_jax.data import staging
from fashion_jax.data.archives import FolderFiles
from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.staging import Staged, stage_photos
from fashion_jax.system.errors import UnreadableError, UserError

KEY = "what the chunks depend on"


@pytest.fixture
def catalog(tmp_path):
    table = write_products(tmp_path / "shop", 40)
    (tmp_path / "shop/photos/p9.jpg").write_bytes(b"no photo")
    return open_catalog(table)


@pytest.fixture
def folder(catalog, tmp_path, monkeypatch) -> Path:
    """Four whole chunks."""
    monkeypatch.setattr(staging, "_CHUNK", 10)
    stage(catalog, tmp_path / "s")
    return tmp_path / "s"


def stage(catalog, folder: Path, key: str = KEY) -> Staged:
    return stage_photos(catalog, folder, key, max_side=256, progress=False)


def content(staged: Staged) -> tuple:
    numbers = sorted(staged.photos)
    arrays = [np.stack([found[n] for n in numbers]).tolist() for found in (staged.hashes, staged.thumbnails)]
    photos = [staged.read(number) for number in numbers]
    return numbers, photos, [staged.digests[n] for n in numbers], arrays, staged.bad, staged.repairs


def flip(path: Path, place: int) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes([*data[:place], data[place] ^ 16, *data[place + 1 :]]))


def chunk(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number:06}.bin"


def test_whole_chunks_are_used(catalog, folder, monkeypatch, capsys):
    first = content(stage(catalog, folder))
    assert len(first[0]) == 39 and list(first[4]) == [10]
    monkeypatch.setattr(FolderFiles, "read", lambda self, name: pytest.fail("a photo is read again"))
    assert content(stage(catalog, folder)) == first
    assert capsys.readouterr().err == ""


def sign(path: Path, data: bytes) -> None:
    digest = staging._new_digest(path, KEY)
    digest.update(data)
    path.write_bytes(digest.digest() + data)


DAMAGES = {
    "signed JSON of no chunk": lambda folder: sign(chunk(folder, 1), b"[" * 100_000 + b"\n"),
    "signed and cut": lambda folder: sign(chunk(folder, 1), chunk(folder, 1).read_bytes()[32:2000]),
    "cut": lambda folder: chunk(folder, 1).write_bytes(chunk(folder, 1).read_bytes()[:-1]),
    "empty": lambda folder: chunk(folder, 1).write_bytes(b""),
    "longer": lambda folder: chunk(folder, 1).write_bytes(chunk(folder, 1).read_bytes() + b"x"),
    "a copy of another chunk": lambda folder: shutil.copy(chunk(folder, 2), chunk(folder, 1)),
    "renamed": lambda folder: chunk(folder, 1).rename(chunk(folder, 7)),
    "a folder": lambda folder: (chunk(folder, 1).unlink(), (chunk(folder, 1) / "x").mkdir(parents=True)),
    "a link to nothing": lambda folder: (chunk(folder, 1).unlink(), chunk(folder, 1).symlink_to("absent")),
    "a pipe": lambda folder: (chunk(folder, 1).unlink(), os.mkfifo(chunk(folder, 1))),
    **{f"a bit at {n}/16": lambda folder, n=n: flip(chunk(folder, 1), chunk(folder, 1).stat().st_size * n // 16)
       for n in range(16)},
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_is_made_anew(catalog, folder, damage, capsys):
    whole = content(stage(catalog, folder))
    DAMAGES[damage](folder)
    assert content(stage(catalog, folder)) == whole
    assert capsys.readouterr().err.count("warning: 1 temporary files in") == 1
    assert content(stage(catalog, folder)) == whole and capsys.readouterr().err == ""


def test_a_chunk_that_the_system_cannot_read_stays(catalog, folder, monkeypatch):
    whole, failing = content(stage(catalog, folder)), chunk(folder, 1)
    opened = Path.open

    def fail(path, *args, **kwargs):
        if path == failing:
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(UnreadableError, match="Too many open files"):
        stage(catalog, folder)
    monkeypatch.undo()
    made = failing.stat().st_mtime_ns
    assert content(stage(catalog, folder)) == whole and failing.stat().st_mtime_ns == made


def test_chunks_of_another_key_are_not_used(catalog, folder, tmp_path):
    stage(catalog, tmp_path / "other", "another key")
    shutil.copy(chunk(tmp_path / "other", 1), chunk(folder, 1))
    assert content(stage(catalog, folder)) == content(stage(catalog, tmp_path / "new"))
    assert [path.name for path in folder.glob("chunk-*")] != []
    made = chunk(folder, 0).stat().st_mtime_ns
    stage(catalog, folder, "another key")
    assert chunk(folder, 0).stat().st_mtime_ns != made


def test_strange_things_in_the_folder_do_no_harm(catalog, folder, tmp_path):
    whole = content(stage(catalog, folder))
    (folder / "chunk-x.bin").write_bytes(b"x")
    (folder / "chunk-000003.npz").mkdir()
    (folder / ".chunk-000001.bin.abcd1234.part").write_bytes(b"x")
    assert content(stage(catalog, folder)) == whole
    for marker in (b"", b"\xff\xfe", KEY[:5].encode(), None):
        (folder / "key").unlink()
        (folder / "key").write_bytes(marker) if marker is not None else (folder / "key").mkdir()
        assert content(stage(catalog, folder)) == whole
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "shop")
    for path in (tmp_path / "file", tmp_path / "link"):
        assert content(stage(catalog, path)) == whole
    assert (tmp_path / "shop/products.csv").is_file()


def test_a_photo_that_changes_after_the_check_goes_nowhere(catalog, folder):
    staged = stage(catalog, folder)
    place = staged.photos[5]
    flip(place.path, place.offset + place.length // 2)
    with pytest.raises(UserError, match=r"chunk-000000\.bin was damaged while it was in use"):
        staged.read(5)
    assert staged.read(6)
