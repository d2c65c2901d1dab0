"""Writes metrics to `metrics.jsonl`, and to TensorBoard where that is asked for."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fashion_jax.system import files
from fashion_jax.system.errors import missing_extra

Scalar = float | int


class MetricWriter(contextlib.AbstractContextManager["MetricWriter"]):
    """One JSON object per line: {"step": 50, "train/loss": 2.31, ...}.

    A killed run may leave lines beyond the checkpoint from which it resumes, and half a line at the end. Both are
    removed when the run resumes, so that the file has each step once.
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
            files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._events = _tensorboard_writer(workdir / "tensorboard") if tensorboard else None
        self._file = path.open("a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Writes the metrics of a step."""
        if not self._first:
            return
        # JSON has no NaN; null stands for it.
        finite = {name: value if abs(value) < float("inf") else None for name, value in scalars.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
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
    """Returns the whole lines of a metrics file; a line that a kill cut short is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(text)
            if isinstance(value, dict) and isinstance(value.get("step"), int):
                lines.append(value)
    return lines


def read_scalars(path: Path, name: str) -> list[tuple[int, float]]:
    """Returns the steps and values of a scalar in a metrics file, in their order; none where there is no file."""
    rows = read_json_lines(path) if path.exists() else []
    return [(row["step"], float(row[name])) for row in rows if isinstance(row.get(name), (int, float))]


def _tensorboard_writer(folder: Path) -> Any:
    try:
        import tensorflow as tf
        from clu import metric_writers
    except ImportError as error:
        raise missing_extra("config.runtime.tensorboard", "tensorboard") from error
    tf.config.set_visible_devices([], "GPU")  # TensorFlow must not take the accelerator's memory
    tf.config.set_visible_devices([], "TPU")
    return metric_writers.SummaryWriter(str(folder))
