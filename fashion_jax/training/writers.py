"""Writes metrics to `metrics.jsonl`, and to TensorBoard where that is asked for."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fashion_jax.system import files, stored
from fashion_jax.system.errors import missing_extra
from fashion_jax.system.progress import say

Scalar = float | int
_CHECKSUM = "crc32"  # the key of a line's checksum


class MetricWriter(contextlib.AbstractContextManager["MetricWriter"]):
    """One JSON object per line: {"step": 50, "train/loss": 2.31, ..., "crc32": "9ae0daaf"}.

    The last value is the checksum of the others. A killed run may leave lines beyond the checkpoint from which it
    resumes, and half a line at the end. Both are removed when the run resumes, so that the file has each step once.
    """

    def __init__(self, workdir: Path, *, resume_step: int, tensorboard: bool, is_first_process: bool) -> None:
        """Opens the files; only the first process writes.

        Raises:
            UserError: TensorBoard is asked for and its extra is not installed.
        """
        self._first = is_first_process
        if not self._first:
            return
        path = workdir / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [line for line in read_json_lines(path) if line["step"] <= resume_step]
            files.write_text(path, "".join(map(_format_line, kept)))
        elif resume_step:
            say(f"warning: {path} is missing, and with it the metrics until step {resume_step}")
        self._events = _tensorboard_writer(workdir / "tensorboard") if tensorboard else None
        self._file = path.open("a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Writes the metrics of a step."""
        if not self._first:
            return
        # JSON has no NaN; null stands for it.
        finite = {name: value if abs(value) < float("inf") else None for name, value in scalars.items()}
        self._file.write(_format_line({"step": step, **finite}))
        self._file.flush()
        if self._events is not None:
            self._events.write_scalars(step, scalars)

    def flush(self) -> None:
        """Returns when all is on the disk."""
        if self._first:
            self._file.flush()
            os.fsync(self._file.fileno())
            if self._events is not None:
                self._events.flush()

    def __exit__(self, *_: object) -> None:
        self.flush()
        if self._first:
            self._file.close()
            if self._events is not None:
                self._events.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a metrics file.

    Damaged lines are left out, and counted on standard error. A line that a kill cut short is left out too.

    Raises:
        UserError: the file cannot be read.
    """
    lines, damaged = _read_lines(path)
    if damaged:
        say(f"warning: {path} has damaged lines ({damaged}); they are left out, and their metrics are lost")
    return lines


def is_whole(path: Path) -> bool:
    """Returns whether there is a metrics file without damaged lines."""
    return path.exists() and not _read_lines(path)[1]


def read_scalars(path: Path, name: str) -> list[tuple[int, float]]:
    """Returns the steps and values of a scalar in a metrics file, in their order; none where there is no file."""
    rows = [(row["step"], row.get(name)) for row in (read_json_lines(path) if path.exists() else [])]
    return [(step, value) for step, value in rows if isinstance(value, float)]


def _format_line(values: Mapping[str, Any]) -> str:
    return json.dumps({**values, _CHECKSUM: _checksum(values)}) + "\n"


def _checksum(values: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values).encode()):08x}"


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns the whole lines, and the number of damaged ones."""
    with stored.reading(path, "move it away; the run goes on without its earlier metrics"):
        *texts, _ = path.read_bytes().split(b"\n")  # a line that was cut short has no end
    lines = []
    for text in texts:
        with contextlib.suppress(ValueError, RecursionError):
            values = json.loads(text)
            if isinstance(values, dict) and values.pop(_CHECKSUM, None) == _checksum(values):
                lines.append(values)
    return lines, len(texts) - len(lines)


def _tensorboard_writer(folder: Path) -> Any:
    try:
        import tensorflow as tf
        from clu import metric_writers
    except ImportError as error:
        raise missing_extra("config.runtime.tensorboard", "tensorboard") from error
    tf.config.set_visible_devices([], "GPU")  # TensorFlow must not take the accelerator's memory
    tf.config.set_visible_devices([], "TPU")
    return metric_writers.SummaryWriter(str(folder))
