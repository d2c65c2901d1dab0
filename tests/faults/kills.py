"""Kills writers at random moments: `python -m faults.kills`, which `python -m tests.faults` runs.

After every kill nothing that is there may be damaged, and nothing may be gone that was acknowledged. Work that is
started again until it ends gives what it gives without a kill.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from search.clustered import clustered, truth, unit

from fashion_jax.data.prepare import prepare
from fashion_jax.data.records import open_prepared
from fashion_jax.search.index import Index
from fashion_jax.serving import embed, shards
from fashion_jax.serving.predictor import load_model
from fashion_jax.system import files
from faults.forks import Child, Spare, take_request
from faults.kinds import (
    Things,
    embedding_parts,
    fingerprint,
    prepared_parts,
    record_options,
    small_chunks,
    small_config,
    train_noting_states,
)
from faults.worker import start_small_jax

_POOL = clustered(2000, 8, clusters=30)
_START = 3  # products of an index before the first step
_ENDLESS = 0.6  # seconds after which work is killed that would not end
_LONGEST = 300.0  # seconds for work that nobody kills
_MOST_PROBLEMS = 5


@dataclass
class Kills:
    """What kills of one writer gave."""

    place: str
    kills: int = 0
    ended: int = 0  # works that came to their end, after all their kills
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """Work that is killed and started again. All of it runs in children."""

    name: str
    work: Callable[[Things, Path], None]  # writes into a folder
    check: Callable[[Things, Path], None]  # raises AssertionError where the folder is damaged or something is lost
    end: Callable[[Things, Path], Any]  # what the work gave when it has ended, as JSON
    from_share: float = 0.0  # of the time of the whole work, after which kills begin
    compiles: bool = False  # whether it runs what JAX has compiled

    @property
    def is_endless(self) -> bool:
        return self.end is _endless


class Killer:
    """Runs a job in a folder, kills it, and checks what it leaves."""

    def __init__(self, job: Job, things: Things, folder: Path) -> None:
        self._job, self._things, self._folder = job, things, folder
        self._place, self._end = folder / "work", folder / "end.json"
        self._spare = Spare("faults.kills") if job.compiles else None
        self._number = 0

    def start(self, what: str) -> Child:
        """Starts the "work" or the "check" of the job."""
        self._number += 1
        output = self._folder / f"output-{self._number}.txt"
        if self._spare is not None and what != "check":
            request = [self._job.name, what, str(self._things.root), str(self._folder)]
            return self._spare.start(json.dumps(request), output)
        return Child.start(lambda: run_part(self._job, what, self._things, self._folder), output)

    def run(self, what: str) -> str:
        """Runs a part to its end; returns what went wrong, or empty text."""
        child = self.start(what)
        if child.wait(_LONGEST) is None:
            child.kill()
        return "" if child.code == 0 else f"{what} gives {child.code}: {child.said[-2000:]}"

    def end(self) -> Any:
        """Returns what the work gave that has ended."""
        return json.loads(self._end.read_text())

    def clear(self) -> None:
        shutil.rmtree(self._place, ignore_errors=True)
        self._place.mkdir(parents=True)

    def kill_often(self, count: int, seed: int) -> Kills:
        """Kills the job so many times."""
        job, found, chance = self._job, Kills(self._job.name), random.Random(f"{seed} {self._job.name}")
        seconds, wanted, share = _ENDLESS, None, 1.0
        self.clear()
        if not job.is_endless:
            for _ in range(2):  # the first one compiles
                self.clear()
                begin = time.monotonic()
                if problem := self.run("work"):
                    found.problems.append(f"without a kill: {problem}")
                    return found
                seconds = time.monotonic() - begin
            wanted = self.end()
            self.clear()
        while found.kills < count and len(found.problems) < _MOST_PROBLEMS:
            child = self.start("work")
            if child.wait(chance.uniform(job.from_share, 1.0) * share * seconds) is None and child.kill() == -9:
                found.kills += 1
                share = min(1.0, 1.2 * share)
            elif child.code != 0:
                found.problems.append(f"started again after {found.kills} kills: {child.code}: {child.said[-2000:]}")
            else:  # what was done before a kill is not done again, so that the rest takes less time
                share = max(0.2, 0.7 * share)
            if problem := self.run("check"):
                found.problems.append(f"after {found.kills} kills: {problem}")
            last = found.kills >= count
            if not job.is_endless and (child.code == 0 or last):
                if last and (problem := self.run("work")):
                    found.problems.append(f"after the last kill: {problem}")
                elif (given := self.end()) != wanted:
                    found.problems.append(f"the work that was killed gives {given}, not {wanted}")
                found.ended += 1
                self.clear()
            elif found.problems:
                self.clear()
        return found

    def close(self) -> None:
        if self._spare is not None:
            self._spare.close()


def run_part(job: Job, what: str, things: Things, folder: Path) -> None:
    """Does the "work" of a job, and notes what it gave; or does its "check"."""
    if what == "check":
        job.check(things, folder / "work")
        return
    job.work(things, folder / "work")
    files.write_json(folder / "end.json", job.end(things, folder / "work"))


def _endless(things: Things, place: Path) -> None:
    """Stands for the end of work that never ends."""


def _note(place: Path, name: str, value: Any) -> None:
    """Writes what a job or check wants to know at the next start; outside of the work's own folders."""
    descriptor = os.open(place / f"{name}.note", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(descriptor, json.dumps(value).encode() + b"\n")
    os.close(descriptor)


def _notes(place: Path, name: str) -> list[Any]:
    path = place / f"{name}.note"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def _check_kept(place: Path, folder: Path, done: Path) -> None:
    """Checks that finished files in a folder stay as they were at the check before, unless all work is done."""
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*.npz")}
    before = (_notes(place, "kept") or [{}])[-1]
    assert done.exists() or before.items() <= kept.items(), "work that was done is done again"
    _note(place, "kept", kept)


# ------------------------------------------------------------------------------------------------------- prepare


def _prepare(things: Things, place: Path) -> None:
    with small_chunks():
        prepare(things.shop(), place / "out", record_options(), progress=False)


def _check_prepare(things: Things, place: Path) -> None:
    if (place / "out").exists():
        open_prepared(place / "out").read_photo(0)
    _check_kept(place, place / ".out.staging", place / "out")


def _end_prepare(things: Things, place: Path) -> dict[str, str]:
    parts = prepared_parts(open_prepared(place / "out"))
    del parts["report"]  # it counts the seconds
    tables = {path.name: fingerprint(path.read_bytes()) for path in (place / "out").glob("*.csv")}
    left = sorted(path.name for path in place.iterdir() if path.suffix != ".note")
    return {**parts, **tables, "left": str(left)}


# --------------------------------------------------------------------------------------------------------- train


def _train(things: Things, place: Path) -> None:
    config = small_config(things, train__checkpoint_every="1 steps")
    states = train_noting_states(config, place / "run")
    known = place.with_name("states.json")  # of the first work, which nobody kills
    true = json.loads(known.read_text()) if known.exists() else {}
    wrong = [step for step, state in states.items() if true.setdefault(step, state) != state]
    assert not wrong, f"the states of the steps {wrong} are others"
    known.write_text(json.dumps(true))


def _check_train(things: Things, place: Path) -> None:
    """A step that was whole at the check before is there, or a newer one is."""
    steps = [
        int(found[1]) for path in place.glob("run/checkpoints/*") if (found := re.fullmatch(r"step_(\d+)", path.name))
    ]
    newest = max(steps, default=0)
    assert newest >= max(_notes(place, "newest"), default=0), "a checkpoint is lost"
    _note(place, "newest", newest)


def _end_train(things: Things, place: Path) -> dict[str, str]:
    """Opens the end again: the newest and the best state."""
    states = train_noting_states(small_config(things, train__checkpoint_every="1 steps"), place / "run")
    half = sorted(path.name for path in place.rglob("*tmp*"))
    return {**states, "half": str(half)}


# --------------------------------------------------------------------------------------------------------- index


def _write_index(things: Things, place: Path, rebuild_every: int) -> None:
    """Adds, changes and removes products without end; a step is acknowledged when all of it is done."""
    folder = place / "index"
    if not (folder / "manifest.json").exists():
        with Index.build(_POOL[:_START], np.arange(_START), {"step": [0] * _START}) as index:
            index.save(folder)
    with Index.load(folder) as index:
        step = max(row["step"] for row in index.attributes(index.ids))
        while True:
            step += 1
            ids = step * _START + np.arange(_START)
            index.upsert(ids, _POOL[ids % len(_POOL)], {"step": [step] * _START})
            index.update(ids, {"seen": [step] * _START})
            if step % 5 == 4:
                index.delete([int(ids[1])])
            if step % rebuild_every == 0:
                index.rebuild()
            _note(place, "acknowledged", step)


def _check_index(things: Things, place: Path) -> None:
    if not (place / "index" / "manifest.json").exists():
        assert not _notes(place, "acknowledged"), "the index is gone"
        return
    index = Index.load(place / "index")
    ids = [int(name) for name in index.ids]
    rows = index.attributes(ids)
    done = max(row["step"] for row in rows)
    acknowledged = max(_notes(place, "acknowledged"), default=0)
    assert acknowledged <= done <= acknowledged + 1, f"step {acknowledged} was acknowledged, and {done} is there"
    cut_short = set(_notes(place, "cut short"))
    if done > acknowledged:
        cut_short.add(done)
        _note(place, "cut short", done)
        _note(place, "acknowledged", done)  # the next writer goes on behind it
    whole = {name: row for name, row in zip(ids, rows, strict=True) if row["step"] not in cut_short}
    for step in set(range(1, done + 1)) - cut_short:
        names = {step * _START + n for n in range(_START)} - ({step * _START + 1} if step % 5 == 4 else set())
        assert {name for name, row in whole.items() if row["step"] == step} == names, f"step {step} is not whole"
        assert all(whole[name].get("seen") == step for name in names), f"a change of step {step} is lost"
    vectors = _POOL[np.array(ids) % len(_POOL)]
    np.testing.assert_allclose(index.vectors(ids), unit(vectors), atol=1e-5)
    queries = _POOL[-5:] + 0.01
    found = np.array(ids)[truth(vectors, queries, 1)]
    assert (index.search(queries, 1).ids == found).all(), "an answer is wrong"


# --------------------------------------------------------------------------------------------------------- embed


def _embed(things: Things, place: Path) -> None:
    model = load_model(things.of("package"))
    write = shards.Shards.write

    def slowly(self: Any, arrays: Any) -> None:
        write(self, arrays)
        time.sleep(0.05)  # a shard of a real catalogue takes longer than this

    with small_chunks(), mock.patch.object(shards.Shards, "write", slowly):
        embed.embed_source(model, things.shop(), place / "embeddings.npz", progress=False)


def _check_embed(things: Things, place: Path) -> None:
    if (place / "embeddings.npz").exists():
        embedding_parts(place / "embeddings.npz")
    _check_kept(place, place / "embeddings.npz.shards", place / "embeddings.npz")


def _end_embed(things: Things, place: Path) -> dict[str, str]:
    left = sorted(path.name for path in place.iterdir() if path.suffix != ".note")
    return {**embedding_parts(place / "embeddings.npz"), "left": str(left)}


JOBS = {
    job.name: job
    for job in (
        Job("prepare", _prepare, _check_prepare, _end_prepare),
        Job("train and checkpoints", _train, _check_train, _end_train, 0.2, True),
        Job("index update", lambda *where: _write_index(*where, 10**9), _check_index, _endless),
        Job("index rebuild and save", lambda *where: _write_index(*where, 1), _check_index, _endless),
        Job("embed in shards", _embed, _check_embed, _end_embed, 0.2, True),
    )
}


def _answer(request: str) -> None:
    name, what, root, folder = json.loads(request)
    run_part(JOBS[name], what, Things(Path(root)), Path(folder))


def main() -> int:
    """Prints a line of JSON for each job: place, kills, ended, problems, seconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spare", action="store_true", help="wait for a request")
    parser.add_argument("--things", type=Path)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", action="append", choices=sorted(JOBS))
    flags = parser.parse_args()
    start_small_jax()
    if flags.spare:
        take_request(_answer)
        return 0
    for name in flags.job or JOBS:
        begin = time.monotonic()
        killer = Killer(JOBS[name], Things(flags.things), flags.scratch / name.replace(" ", "_"))
        try:
            found = killer.kill_often(flags.count, flags.seed)
        finally:
            killer.close()
        print(json.dumps({**vars(found), "seconds": round(time.monotonic() - begin)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
