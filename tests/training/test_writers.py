"""Writers: a run's metrics tell of each step once, whatever happened to the run."""

from __future__ import annotations

import json

from fashion_jax.training.writers import MetricWriter, read_json_lines

FIRST = {"tensorboard": False, "is_first_process": True}


def test_resuming_drops_what_will_come_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricWriter(tmp_path, resume_step=0, **FIRST) as writer:
        for step in (10, 20, 30):
            writer.write_scalars(step, {"loss": 1.5})
    with path.open("a") as file:
        file.write('{"step": 40, "lo')  # a kill in the middle of a line
    with MetricWriter(tmp_path, resume_step=20, **FIRST) as writer:
        writer.write_scalars(30, {"loss": 0.5})
    assert [(line["step"], line["loss"]) for line in read_json_lines(path)] == [(10, 1.5), (20, 1.5), (30, 0.5)]


def test_every_line_is_json_and_other_processes_write_nothing(tmp_path):
    for is_first in (False, True):
        assert not list(tmp_path.iterdir())
        with MetricWriter(tmp_path, resume_step=0, tensorboard=False, is_first_process=is_first) as writer:
            writer.write_scalars(1, {"a": float("nan"), "b": float("inf"), "c": 2})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "a": None, "b": None, "c": 2}]
