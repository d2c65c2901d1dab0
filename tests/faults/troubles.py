"""Puts writers into trouble: `python -m faults.troubles`, which `python -m tests.faults` runs.

A full disk, errors of the disk with and without a number, a folder that may not be written, two writers at once, and a
clock that jumps backwards. A writer must end with one sentence or with the right result; what it left must not be in
the way of the next try, which gives the right result.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from fashion_jax.data.prepare import prepare
from fashion_jax.data.records import open_prepared
from fashion_jax.run import train as run
from fashion_jax.search.index import Index
from fashion_jax.serving import embed
from fashion_jax.serving.package import load_package
from fashion_jax.serving.predict import predict_source
from fashion_jax.serving.predictor import load_model
from faults.forks import Spare, mount_small_disk, remount, run_as_command, take_request
from faults.kinds import (
    Things,
    embedding_parts,
    fingerprint,
    prepared_parts,
    record_options,
    small_chunks,
    small_config,
)
from faults.worker import start_small_jax

_SHARES = (0.05, 0.4, 0.8)  # of the bytes that the work needs
_ROOM = 256 << 20  # bytes of a disk with room
_FLUSH, _SAVEZ, _SAVE = os.fsync, np.savez, np.save
_YEARS = 10 * 365 * 86400.0


@dataclass(frozen=True)
class Writer:
    """Work that writes into a folder, and what it gives."""

    name: str
    write: Callable[[Things, Path], None]
    give: Callable[[Things, Path], Any]  # the result, read from the folder


def _prepare(things: Things, place: Path) -> None:
    with small_chunks():
        prepare(things.shop(), place / "out", record_options(), progress=False)


def _prepared(things: Things, place: Path) -> Any:
    parts = prepared_parts(open_prepared(place / "out"))
    return {name: part for name, part in parts.items() if name != "report"}  # it counts the seconds


def _train(things: Things, place: Path) -> None:
    run.train(small_config(things), place / "run", progress=False)


def _package(things: Things, place: Path) -> Any:
    package = load_package(place / "run")
    return fingerprint([package.params, package.batch_stats, package.decision])


def _build(things: Things, place: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    with Index.build(vectors, np.arange(2000), {"n": np.arange(2000)}) as index:
        index.save(place / "index")


def _change(things: Things, place: Path) -> None:
    if not (place / "index" / "manifest.json").exists():
        _build(things, place)
    with Index.load(place / "index") as index:
        for step in range(20):
            vectors = np.random.default_rng(step).normal(size=(200, 8)).astype(np.float32)
            index.upsert(np.arange(200) + 100 * step, vectors, {"n": [step] * 200})


def _answers(things: Things, place: Path) -> Any:
    index = Index.load(place / "index")
    hits = index.search(np.eye(8, dtype=np.float32), 5)
    return fingerprint([hits.ids, sorted(index.ids.tolist()), len(index)])


def _embed(things: Things, place: Path) -> None:
    with small_chunks():
        embed.embed_source(load_model(things.of("package")), things.shop(), place / "e.npz", progress=False)


def _predict(things: Things, place: Path) -> None:
    predict_source(load_model(things.of("package")), things.shop(), place / "p.csv", progress=False)


WRITERS = {
    writer.name: writer
    for writer in (
        Writer("prepare", _prepare, _prepared),
        Writer("train", _train, _package),
        Writer("index build", _build, _answers),
        Writer("index update", _change, _answers),
        Writer("embed", _embed, lambda things, place: embedding_parts(place / "e.npz")),
        Writer("predict", _predict, lambda things, place: fingerprint((place / "p.csv").read_bytes())),
    )
}


@contextmanager
def failing_flush(number: int) -> Iterator[None]:
    """Lets the flush of so manieth file or folder fail as on a full disk, and all that follow."""
    calls = iter(range(1_000_000))

    def failing(descriptor: int) -> None:
        if next(calls) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _FLUSH(descriptor)

    with mock.patch.object(os, "fsync", failing):
        yield


@contextmanager
def failing_numpy() -> Iterator[None]:
    """Lets NumPy fail as it does on a full disk: with an error that has no number."""
    error = OSError("1048576 requested and 4096 written")
    with mock.patch.object(np, "savez", side_effect=error), mock.patch.object(np, "save", side_effect=error):
        yield


@contextmanager
def clock_jumps() -> Iterator[None]:
    """Lets the clock go back by an hour when it is looked at for the twentieth time."""
    looks, now = iter(range(1_000_000_000)), time.time
    with mock.patch.object(time, "time", lambda: now() - 3600.0 * (next(looks) >= 20)):
        yield


class Trouble:
    """One writer, tried in one process under all troubles."""

    def __init__(self, writer: Writer, things: Things, folder: Path, *, disks: bool) -> None:
        self._writer, self._things, self._folder, self._disks = writer, things, folder, disks
        self._output, self._wanted = folder / "output.txt", None
        self.rows: list[dict[str, str]] = []

    def run(self) -> None:
        place = self._new("plain")
        code, said = self._write(place)
        assert code == 0, said
        self._wanted = self._give(place)
        need = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        self._reading("files of the future", place, lambda: self._shift(place, _YEARS))
        for flushes in (0, 3):
            with failing_flush(flushes):
                self._trouble(f"flush {flushes} fails")
        with failing_numpy():
            self._trouble("NumPy fails without a number")
        with clock_jumps():
            self._trouble("the clock jumps")
        self._two_writers()
        disk = self._folder / "disk"
        if not self._disks:
            return
        mount_small_disk(disk, _ROOM)
        for share in _SHARES:
            remount(disk, f"size={max(4096, int(share * need))}")
            self._trouble(f"full disk, {share:.0%} of the room", disk / "work", lambda: remount(disk, f"size={_ROOM}"))
            shutil.rmtree(disk / "work", ignore_errors=True)
        self._write(disk / "work")
        remount(disk, "ro")
        self._reading("reading from a disk that may not be written", disk / "work", lambda: None)
        self._trouble("writing to such a disk", disk / "work" / "new", lambda: remount(disk, "rw"))

    def _trouble(self, name: str, place: Path | None = None, relief: Callable[[], Any] = lambda: None) -> None:
        """Writes, then ends the trouble and writes again."""
        place = place or self._new("trouble")
        code, said = self._write(place)
        end = self._judge(code, said)
        relief()
        if end in ("right", "refused"):
            code, again = self._write(place, calm=True)
            if code or self._give(place) != self._wanted:
                end, said = "different", f"{said}, and the next try gives {code}: {again}"
        self._note(name, said, end)

    def _reading(self, name: str, place: Path, change: Callable[[], Any]) -> None:
        change()
        code, said = self._call(lambda: self._give(place))
        same = code == 0 and self._give(place) == self._wanted
        self._note(name, said, "right" if same else self._judge(code, said) if code else "different")

    def _two_writers(self) -> None:
        """Lets two processes write the same at the same time: each ends rightly or with a sentence, one rightly."""
        place, ends = self._new("two"), []
        spares = [Spare("faults.troubles"), Spare("faults.troubles")]
        request = json.dumps([self._writer.name, str(self._things.root), str(place)])
        children = [spare.start(request, self._folder / f"two-{n}.txt") for n, spare in enumerate(spares)]
        for child in children:
            if child.wait(300) is None:
                child.kill()
            ends.append(self._judge(child.code, child.said))
        for spare in spares:
            spare.close()
        said = "\n".join(child.said for child in children)
        end = next((end for end in ends if end not in ("right", "refused")), "right")
        if "right" not in ends or (end == "right" and self._give(place) != self._wanted):
            end = "different"
        self._note("two writers", said, end)

    def _write(self, place: Path, *, calm: bool = False) -> tuple[int, str]:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            if calm:
                for owner, name, whole in ((os, "fsync", _FLUSH), (np, "savez", _SAVEZ), (np, "save", _SAVE)):
                    stack.enter_context(mock.patch.object(owner, name, whole))
            return self._call(lambda: self._writer.write(self._things, place))

    def _call(self, function: Callable[[], Any]) -> tuple[int, str]:
        saved = [os.dup(number) for number in (1, 2)]
        code = run_as_command(function, self._output)
        for number, before in zip((1, 2), saved, strict=True):
            os.dup2(before, number)
            os.close(before)
        return code, self._output.read_text(errors="replace")

    def _give(self, place: Path) -> Any:
        return self._writer.give(self._things, place)

    def _judge(self, code: int | None, said: str) -> str:
        if code not in (0, 2) or "Traceback (most recent call last)" in said:
            return "hang" if code == -9 else "traceback"
        return "refused" if code else "right"

    def _new(self, name: str) -> Path:
        place = self._folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return place

    def _shift(self, place: Path, seconds: float) -> None:
        for path in place.rglob("*"):
            os.utime(path, (time.time() + seconds,) * 2)

    def _note(self, trouble: str, said: str, end: str) -> None:
        self.rows.append({"writer": self._writer.name, "trouble": trouble, "end": end, "said": said[-1500:]})


def _answer(request: str) -> None:
    name, root, place = json.loads(request)
    WRITERS[name].write(Things(Path(root)), Path(place))


def main() -> int:
    """Prints a line of JSON for each writer and trouble: writer, trouble, end, said."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spare", action="store_true", help="wait for a request")
    parser.add_argument("--disks", action="store_true", help="mount small disks; only in a process of its own view")
    parser.add_argument("--things", type=Path)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--writer", action="append", choices=sorted(WRITERS))
    flags = parser.parse_args()
    start_small_jax()
    if flags.spare:
        take_request(_answer)
        return 0
    for name in flags.writer or WRITERS:
        trouble = Trouble(
            WRITERS[name], Things(flags.things), flags.scratch / name.replace(" ", "_"), disks=flags.disks
        )
        trouble.run()
        for row in trouble.rows:
            print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
