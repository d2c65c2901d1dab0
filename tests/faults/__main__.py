"""Damages stored things and shows what reading them then gives: `python -m tests.faults`, or `make faults`.

The table counts the ends of every kind:

    right       the same result as before the damage
    mended      the damaged part was made anew, left out, or replaced by an earlier one, as a sentence says
    refused     one sentence that names the file or its folder, and exit code 2
    unchecked   another result, of a format without a checksum, such as the pixels of a JPEG or a cell of a CSV
    signed      another result, of an edit whose digest was made anew; its values are valid
    traceback   an error that is no sentence, or a process that died
    hang        no end within 30 seconds
    silent      another result without a word, or damage that `fashion-jax verify` does not find
    unnamed     a sentence that names neither the file nor its folder
    code        data chose a module that was imported

Then writers are killed at random moments (faults/kills.py) and put into trouble (faults/troubles.py): full disks and
such. Where an end is bad the exit code is 1, and the text names the command that repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [path for path in (str(ROOT / "tests"), str(ROOT)) if path not in sys.path]

from faults.damage import Case, Stored, apply, plan_cases  # noqa: E402
from faults.forks import with_own_disks  # noqa: E402
from faults.kills import JOBS  # noqa: E402
from faults.kinds import KINDS, NOT_VERIFIED, Kind, Things  # noqa: E402
from faults.troubles import WRITERS  # noqa: E402
from faults.worker import Worker  # noqa: E402

GOOD = ("right", "mended", "refused", "unchecked", "signed")
BAD = ("traceback", "hang", "silent", "unnamed", "code")
HANG = 30.0  # seconds
_CPP_LOG = re.compile(r"[IW]\d{4} |WARNING: All log messages before")
_MAKING = 900.0  # seconds for things that are made


@dataclass(frozen=True)
class Outcome:
    """How a damaged thing was read."""

    kind: str
    case: Case
    damage: str  # in words
    end: str  # one of GOOD or BAD
    said: str  # what the user saw

    def command(self, things: Path, seed: int) -> str:
        return f"python -m tests.faults --things {things} --seed {seed} --kind '{self.kind}' --case {self.case.number}"


@dataclass(frozen=True)
class Expected:
    """What reading an undamaged thing gives."""

    parts: dict[str, str]
    earlier: list[dict[str, str]]  # results of earlier states
    said: frozenset[str]  # lines that are no news


def judge(kind: Kind, case: Case, answer: dict[str, Any], expected: Expected, place: Path) -> str:
    """Returns one of GOOD or BAD."""
    said = answer["said"]
    if answer.get("code"):
        return "code"
    if answer["end"] == "hang":
        return "hang"
    if answer["end"] in ("raised", "died") or "Traceback (most recent call last)" in said:
        return "traceback"
    if answer["end"] == "refused":
        if NOT_VERIFIED in said and not case.signed:
            return "silent"
        sentence = re.split(r"^error: ", said, flags=re.MULTILINE)[-1]
        named = str(place) in sentence or Path(case.file).name in sentence
        # A table with other cells is another table; the sentence may be about what it says.
        return "refused" if named or kind.unchecked(case.file) else "unnamed"
    parts, news = answer["parts"], bool(lines_of(said, place) - expected.said)
    if parts == expected.parts:
        return "mended" if news else "right"
    fewer = kind.rows_may_lack and parts.items() <= expected.parts.items()
    if news and (fewer or parts in expected.earlier):
        return "mended"
    return "signed" if case.signed else "unchecked" if kind.unchecked(case.file) else "silent"


def lines_of(said: str, place: Path) -> frozenset[str]:
    """Returns lines without what differs from one reading to the next: measured times, and the copy's folder."""
    lines = (re.sub(r"\d+\.\d+|\d{6,}", "#", line.replace(str(place), "PLACE")).strip() for line in said.splitlines())
    return frozenset(line for line in lines if line and not _CPP_LOG.match(line))


class _Work:
    """The inputs that are left to try, which several threads take."""

    def __init__(self, plans: Mapping[str, Iterator[Case]], counts: Mapping[str, int], only: int | None) -> None:
        self._plans, self._left, self._only = plans, dict(counts), only
        self._lock, self._begin, self._total = threading.Lock(), time.monotonic(), sum(counts.values())
        self.outcomes: list[Outcome] = []

    def take(self) -> tuple[str, Case] | None:
        with self._lock:
            for name in [name for name, left in self._left.items() if left > 0]:
                for case in self._plans[name]:
                    if self._only in (None, case.number):
                        self._left[name] -= 1
                        return name, case
            return None

    def put(self, name: str, outcome: Outcome | None) -> None:
        with self._lock:
            if outcome is None:
                self._left[name] += 1
                return
            self.outcomes.append(outcome)
            count, seconds = len(self.outcomes), time.monotonic() - self._begin
            if outcome.end in BAD or count % 50 == 0:
                what = f"{outcome.case.way} of {outcome.case.file} ({outcome.damage:.60})"
                print(f"[{seconds:5.0f} s, {count} of {self._total}] {name}: {what}: {outcome.end}", flush=True)


class Trials:
    """Tries cases on the things in a folder, in several processes."""

    def __init__(self, things: Path, seed: int, workers: int) -> None:
        self.things, self.seed = Things(things), seed
        self._workers = [Worker(things) for _ in range(workers)]
        self._expected: dict[str, Expected] = {}

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def make(self, kinds: Sequence[str]) -> None:
        """Makes the things, and notes what reading them gives."""
        for name in kinds:
            begin = time.monotonic()
            first = self._workers[0]
            if (answer := first.ask({"do": "make", "kind": name}, _MAKING))["end"] != "made":
                raise SystemExit(f"no {name} could be made: {answer}")
            whole = first.warm_up(name)
            if whole["end"] != "result":
                raise SystemExit(f"an undamaged {name} cannot be read: {whole}")
            requests = [{"do": "read", "kind": name, "place": path.name} for path in self.things.earlier(name)]
            earlier = [first.ask(request, _MAKING) for request in requests]
            self._expected[name] = Expected(
                whole["parts"],
                [answer["parts"] for answer in earlier if answer["end"] == "result"],
                lines_of(whole["said"], Path(whole["place"])),
            )
            print(f"made: {name} ({time.monotonic() - begin:.0f} s)", flush=True)

    def run(self, counts: Mapping[str, int], only: int | None = None) -> list[Outcome]:
        """Tries so many inputs of each kind, or one case alone; damage that changes nothing is passed over."""
        plans = {name: plan_cases(self.things.of(name), self.seed, KINDS[name]) for name in counts}
        work = _Work(plans, counts, only)
        threads = [threading.Thread(target=self._work, args=(worker, work)) for worker in self._workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        order = list(counts)
        return sorted(work.outcomes, key=lambda one: (order.index(one.kind), one.case.number))

    def _work(self, worker: Worker, work: _Work) -> None:
        with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
            while (following := work.take()) is not None:
                name, case = following
                work.put(name, self._try(worker, name, case, Path(scratch)))

    def _try(self, worker: Worker, name: str, case: Case, scratch: Path) -> Outcome | None:
        place = scratch / "work" / "copy"
        shutil.rmtree(place.parent, ignore_errors=True)
        shutil.copytree(self.things.of(name), place)
        twin, ends = self.things.folder(name) / "twin", self.things.boundaries(name)
        damage = apply(case, Stored(place, twin, ends), self.seed, name)
        if damage is None:
            return None
        worker.warm_up(name)
        busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # other work makes everything slower
        answer = worker.ask({"do": "read", "kind": name, "place": str(place)}, HANG * busy)
        end = judge(KINDS[name], case, answer, self._expected[name], place)
        return Outcome(name, case, damage, end, (answer["said"] + answer.get("raised", "")).strip())


def format_table(outcomes: Sequence[Outcome]) -> str:
    """Returns the table as Markdown."""
    ends = [*GOOD, *BAD]
    lines = ["| kind | tried | " + " | ".join(ends) + " |", "|---" * (len(ends) + 2) + "|"]
    total: Counter[str] = Counter()
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        counts = Counter(outcome.end for outcome in outcomes if outcome.kind == kind)
        total += counts
        lines.append(f"| {kind} | {counts.total()} | " + " | ".join(str(counts[end]) for end in ends) + " |")
    lines.append(f"| all | {total.total()} | " + " | ".join(str(total[end]) for end in ends) + " |")
    return "\n".join(lines)


def format_bad(outcomes: Sequence[Outcome], things: Path, seed: int) -> str:
    """Returns a paragraph for each bad outcome, with the command that repeats it."""
    texts = []
    for one in outcomes:
        if one.end in BAD:
            said = "\n".join(f"    {line[:300]}" for line in one.said.splitlines()[-6:])
            what = f"{one.end}: {one.kind}, {one.case.way} of {one.case.file} ({one.damage:.200})"
            texts.append(f"{what}\n{said}\n    repeat: {one.command(things, seed)}")
    return "\n\n".join(texts)


def run_kills(things: Path, scratch: Path, count: int, seed: int) -> tuple[str, str]:
    """Kills writers, two at a time; returns the table and what went wrong."""
    command = [sys.executable, "-m", "faults.kills", "--things", str(things), "--scratch", str(scratch)]
    command += ["--count", str(count), "--seed", str(seed)]
    # The first takes as long as the others together.
    parts = [["train and checkpoints"], [name for name in JOBS if name != "train and checkpoints"]]
    running = [_start([*command, *(word for name in part for word in ("--job", name))]) for part in parts]
    rows = [row for process in running for row in _rows_of(process)]
    order = list(JOBS)
    rows.sort(key=lambda row: order.index(row["place"]))
    lines = [
        "| killed while | kills | ended rightly after its kills | damaged, lost or different |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row['place']} | {row['kills']} | {row['ended'] or '-'} | {len(row['problems'])} |" for row in rows]
    bad = [
        f"kills: {row['place']}: {problem}\n    repeat: {' '.join(command)} --job '{row['place']}'"
        for row in rows
        for problem in row["problems"]
    ]
    return "\n".join(lines), "\n\n".join(bad)


def run_troubles(things: Path, scratch: Path, writers: Sequence[str]) -> tuple[str, str]:
    """Puts writers into trouble; returns the table and what went wrong."""
    command = [sys.executable, "-m", "faults.troubles", "--things", str(things), "--scratch", str(scratch)]
    command = with_own_disks([*command, *(word for name in writers for word in ("--writer", name))])
    rows = _rows_of(_start(command))
    ends = ("right", "refused", "traceback", "hang", "different")
    lines = ["| trouble of a writer | tried | " + " | ".join(ends) + " |", "|---" * (len(ends) + 2) + "|"]
    for trouble in dict.fromkeys(row["trouble"] for row in rows):
        counts = Counter(row["end"] for row in rows if row["trouble"] == trouble)
        lines.append(f"| {trouble} | {counts.total()} | " + " | ".join(str(counts[end]) for end in ends) + " |")
    if "--disks" not in command:
        lines.append("\nNo small disk could be mounted here, so a full disk was only imitated.")
    bad = [
        f"{row['end']}: {row['writer']}: {row['trouble']}\n{row['said']}\n    repeat: {' '.join(command)}"
        for row in rows
        if row["end"] not in ("right", "refused")
    ]
    return "\n".join(lines), "\n\n".join(bad)


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def _rows_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Returns the lines of JSON that a process prints, and shows each."""
    assert process.stdout is not None
    rows = []
    for line in process.stdout:
        rows.append(json.loads(line))
        print(line[:200].rstrip(), flush=True)
    if process.wait():
        raise SystemExit(f"{process.args} ended with {process.returncode}")
    return rows


def commit() -> str:
    """Returns the commit that is tried, with a plus where files have changed since; empty outside of a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        changed = git("status", "--porcelain", "fashion_jax", "tests").strip()
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if changed else "")
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tests; the exit code is 1 where an end was bad."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of places and values; another one tries others")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="try this kind alone; may be repeated")
    parser.add_argument("--limit", type=float, default=1.0, help="share of the inputs to try, such as 0.1")
    parser.add_argument("--case", type=int, help="try this case of a kind alone, and show what was said")
    parser.add_argument("--things", type=Path, help="folder of the stored things; made where it is absent, and kept")
    parser.add_argument("--workers", type=int, default=2, help="processes that read")
    parser.add_argument("--kills", type=int, help="kills of each writer: 50, or none where a kind is named")
    parser.add_argument("--troubles", action=argparse.BooleanOptionalAction, help="whether to try full disks and such")
    parser.add_argument("--out", type=Path, help="Markdown file for the tables and the bad ends")
    flags = parser.parse_args(arguments)
    kinds, every = flags.kind or list(KINDS), flags.kind is None
    kills = flags.kills if flags.kills is not None else 50 * every
    troubles = flags.troubles if flags.troubles is not None else every
    folder = (flags.things or Path(tempfile.mkdtemp(prefix="faults-things-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    trials = Trials(folder, flags.seed, 1 if flags.case is not None else flags.workers)
    begin = time.monotonic()
    try:
        trials.make(kinds)
        counts = {name: max(1, round(flags.limit * KINDS[name].share)) for name in kinds}
        if flags.case is not None:
            counts = dict.fromkeys(kinds, 1)
        outcomes = trials.run(counts, flags.case)
    finally:
        trials.close()
    tables, bad = [format_table(outcomes)], [format_bad(outcomes, folder, flags.seed)]
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        if kills:
            table, problems = run_kills(folder, Path(scratch) / "kills", kills, flags.seed)
            tables, bad = [*tables, table], [*bad, problems]
        if troubles:
            table, problems = run_troubles(folder, Path(scratch) / "troubles", list(WRITERS))
            tables, bad = [*tables, table], [*bad, problems]
    title = f"commit {commit()}, seed {flags.seed}, {(time.monotonic() - begin) / 60:.0f} minutes"
    text = "\n\n".join([title, *tables, *filter(None, bad)]) + "\n"
    print(text)
    if flags.case is not None:
        print("\n".join(f"{one.end}: {one.damage}\n{one.said}" for one in outcomes))
    if flags.out:
        flags.out.write_text(text)
    if not any(bad) and not flags.things:
        shutil.rmtree(folder)
    return int(any(bad))


if __name__ == "__main__":
    sys.exit(main())
