"""A process that reads damaged things, one after the other, and the other end of the line to it.

The process lives as long as nothing hangs or ends it, because starting JAX takes longer than reading a thing.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
_MEMORY = 16 << 30  # bytes that a worker may ask for; a value read from a file must not take the machine with it
_SLOW = 300.0  # seconds for a first reading, which compiles


class Worker:
    """A worker process, started when it is first asked."""

    def __init__(self, root: Path) -> None:
        self.root = root  # of the things
        self._process: subprocess.Popen[bytes] | None = None
        self._warm: dict[str, Any] = {}  # kind -> what its undamaged thing gave

    def warm_up(self, kind: str) -> dict[str, Any]:
        """Returns what reading the undamaged thing gives, and makes sure that this process has compiled it."""
        if kind not in self._warm:
            self._warm[kind] = self.ask({"do": "read", "kind": kind, "place": "thing"}, _SLOW)
        found: dict[str, Any] = self._warm[kind]
        return found

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Returns the answer of the process. One that takes longer is ended; "end" is then "hang", or "died"."""
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # its end is seen below
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        line = process.stdout.readline() if ready else b""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.close(kill=True)
        return {"end": "died" if ready else "hang", "said": f"exit code {process.returncode}", "parts": {}}

    def close(self, *, kill: bool = False) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        self._warm.clear()
        if process is not None:
            if kill:
                process.kill()
            process.communicate()

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
        command = [sys.executable, "-m", "faults.worker", str(self.root)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=self.root
        )


def start_small_jax() -> None:
    """Gets JAX ready as the tests do, with one device: small networks are slow on many."""
    import conftest  # noqa: F401 - quick compilation, and a cache of what was compiled
    import jax

    jax.config.update("jax_num_cpu_devices", 1)
    jax.devices()  # a command that runs in this process sets flags for JAX, which must not change the numbers any more


@contextlib.contextmanager
def caught_output(into: list[str]) -> Iterator[None]:
    """Collects what is written to standard output and error, by libraries in C++ too."""
    with tempfile.TemporaryFile() as file:
        saved = [os.dup(number) for number in (1, 2)]
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, before in zip((1, 2), saved, strict=True):
                os.dup2(before, number)
                os.close(before)
            file.seek(0)
            into.append(file.read().decode(errors="replace"))


def _read(things: Any, kind: Any, place: Path) -> dict[str, Any]:
    """Reads a thing as a command would, and says how that ended: "result", "refused" or "raised"."""
    from fashion_jax.system.errors import EXIT_BAD_INPUT, exit_on_user_error

    parts: dict[str, str] = {}
    said: list[str] = []
    raised = ""
    code: int | None = None
    with caught_output(said):
        try:
            code = exit_on_user_error(lambda: parts.update(kind.read(things, place)))
        except BaseException:  # whatever a command would show as a traceback
            raised = traceback.format_exc()
    end = "raised" if raised or code not in (0, EXIT_BAD_INPUT) else "refused" if code else "result"
    canary = "faults.canary" in sys.modules
    return {"end": end, "parts": parts, "said": said[0], "raised": raised, "code": canary, "place": str(place)}


def main() -> None:
    """Answers requests, a line of JSON each, until standard input ends."""
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    with os.fdopen(os.dup(1), "w", buffering=1) as answers, open(os.devnull, "w") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 1)
        start_small_jax()
        from faults.kinds import KINDS, Things

        things = Things(Path(sys.argv[1]))
        with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
            for line in sys.stdin:
                request = json.loads(line)
                kind = KINDS[request["kind"]]
                if request["do"] == "make":
                    with caught_output([]):
                        for which in ("thing", "twin"):
                            things.of(kind.name, which)
                    print(json.dumps({"end": "made"}), file=answers)
                    continue
                place = Path(request["place"])
                if not place.is_absolute():  # of an undamaged thing, which stays as it is
                    place = Path(scratch) / "copy" / place.name
                    shutil.rmtree(place.parent, ignore_errors=True)
                    shutil.copytree(things.folder(kind.name) / place.name, place)
                print(json.dumps(_read(things, kind, place)), file=answers)


if __name__ == "__main__":
    main()
