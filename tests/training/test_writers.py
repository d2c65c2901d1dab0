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
    assert lines == [{"step": 1, "a": None, "b": None, "c": 2, "crc32": lines[0]["crc32"]}]


def test_damaged_lines_are_left_out_and_counted(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    with MetricWriter(tmp_path, resume_step=0, **FIRST) as writer:
        for step in (10, 20, 30):
            writer.write_scalars(step, {"loss": 1.5})
    first, second, third = path.read_bytes().splitlines(keepends=True)
    for place in range(len(second)):
        for bit in (0, 3):
            path.write_bytes(first + second[:place] + bytes([second[place] ^ 1 << bit]) + second[place + 1 :] + third)
            lines = read_json_lines(path)
            assert [(line["step"], line["loss"]) for line in lines if line["step"] != 20] in (
                [(10, 1.5), (30, 1.5)],
                [(10, 1.5)],  # where the end of the line has gone
            )
            assert all(line == {"step": 20, "loss": 1.5} for line in lines if line["step"] == 20)
    capsys.readouterr()
    for odd in (b"[1]", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 9999, b"\xff", b'{"step": 20}', b""):
        path.write_bytes(first + odd + b"\n" + third)
        assert [line["step"] for line in read_json_lines(path)] == [10, 30]
        assert f"{path} has damaged lines (1)" in capsys.readouterr().err


def test_metrics_that_are_gone_are_told(tmp_path, capsys):
    with MetricWriter(tmp_path, resume_step=20, **FIRST):
        pass
    assert "metrics.jsonl is missing, and with it the metrics until step 20" in capsys.readouterr().err
