"""Fills a small disk and lets every writer meet its end. Prints one JSON row for each try; `test_full_disk` reads them.

Arguments: an empty folder, on which a small disk is mounted that may be filled.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np

from fashion_jax.data.splits import write_splits
from fashion_jax.search.index import Index
from fashion_jax.serving.package import load_package, write_package
from fashion_jax.serving.shards import Shards
from fashion_jax.system import files, stored
from fashion_jax.system.errors import exit_on_user_error
from fashion_jax.system.pictures import CaptionedPhoto, write_photo_grid

ROOMS = (0, 28, 220, 300, 700, 6_000)  # KiB; ScaNN's last file meets the end at 220
COUNT, SIZE = 3_000, 16
rng = np.random.default_rng(0)
vectors = rng.normal(size=(COUNT, SIZE)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
ids = [f"i{n}" for n in range(COUNT)]


def fill(place: Path, room: int) -> None:
    """Leaves so many KiB of the disk."""
    disk = os.statvfs(place)
    (place / "filler").write_bytes(bytes(max(0, disk.f_bavail * disk.f_frsize - room * 1024)))


def writers(place: Path) -> dict[str, tuple[Path, Callable[[], object]]]:
    """Returns name -> what it writes, and how."""
    out = place / "out"
    exact, scann = (Index.build(vectors, ids, {"a": ids}, backend=backend) for backend in ("exact", "scann"))
    searcher = scann.snapshot.base.index
    small = load_package("fashion_jax/serving/packages/small")
    package = {
        "weights": {"params/x": vectors}, "model": small.model, "vocabularies": small.vocabularies,
        "preprocessing": small.preprocessing, "extra": {}, "embedding": small.embedding,
    }  # fmt: skip
    photo = rng.integers(0, 255, (80, 60, 3), np.uint8)

    def update() -> None:
        Index.load(out).upsert([f"new {n}" for n in range(500)], vectors[:500])

    def save_scann() -> None:
        with files.replace_directory(out) as aside:
            searcher.save(aside)

    return {
        "text": (out, lambda: files.write_text(out, "x" * 100_000)),
        "document": (out, lambda: stored.write_document(out, {"ids": ids})),
        "splits": (out, lambda: write_splits(out, ids, np.zeros(COUNT, np.int8), np.arange(COUNT))),
        "shard": (out / "000000.shard", lambda: Shards(out, "key").write({"vectors": vectors})),
        "package": (out, lambda: write_package(out, **package)),
        "picture": (out, lambda: write_photo_grid(out, [[CaptionedPhoto(photo, [("text", "black")])] * 4] * 2)),
        "exact index": (out, lambda: exact.save(out)),
        "scann index": (out, lambda: scann.save(out)),
        "scann": (out, save_scann),
        "update": (out, update),
    }


def main(place: Path) -> None:
    for name, (target, write) in writers(place).items():
        for room in ROOMS:
            if name == "update":
                Index.build(vectors, ids, {}, backend="exact").save(target)
            before = names(place)
            fill(place, room)
            errors = io.StringIO()
            with contextlib.redirect_stderr(errors):
                code = exit_on_user_error(lambda write=write: write() and None)
            left = sorted(names(place) - before - {"filler", "out", "out/.lock"})
            (place / "filler").unlink()
            if name == "update":
                assert len(Index.load(target)) == COUNT + (0 if code else 500)
            if code:
                write()  # there is room now
            if name.endswith("index"):
                assert list(Index.load(target).ids) == ids
            print(json.dumps({"name": name, "room": room, "code": code, "said": errors.getvalue(), "left": left}))
            assert target.exists()
            shutil.rmtree(place / "out") if (place / "out").is_dir() else target.unlink()


def names(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*")}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
