"""`python -m fashion_jax.main` as users start it: what it prints, bad input, kills, signals, several processes."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from drawn_products import write_products
from drawn_weights import write_hub_folder
from fashion_jax.main import main
from fashion_jax.training.writers import read_json_lines

ROOT = Path(__file__).resolve().parent.parent
FLAGS = {
    "data.height": 32, "data.width": 24, "model.depth": 10, "model.width": 4, "train.batch_size": 16,
    "train.duration": "40 steps", "train.evaluate_every": "10 steps", "train.checkpoint_every": "3 steps",
}  # fmt: skip


def arguments_of(source: Path, workdir: Path, **changes) -> list[str]:
    flags = {"data.source": source, **FLAGS, **{k.replace("__", "."): v for k, v in changes.items()}}
    settings = [f"--config.{key}={value}" for key, value in flags.items()]
    return ["--config=base", f"--workdir={workdir}", *settings]


def command(source: Path, workdir: Path, **changes) -> list[str]:
    return [sys.executable, "-m", "fashion_jax.main", *arguments_of(source, workdir, **changes)]


def environment(devices: int = 1) -> dict[str, str]:
    return {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}


def run(arguments: list[str], devices: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, env=environment(devices), capture_output=True, text=True)


def weights(workdir: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(workdir / "package" / "weights.safetensors")


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def uninterrupted(prepared, tmp_path_factory) -> Path:
    """A finished run, which those that were killed, stopped and resumed must equal."""
    workdir = tmp_path_factory.mktemp("main") / "whole"
    first = run(command(prepared.folder, workdir))
    assert first.returncode == 0, first.stderr
    assert "test scores of step" in first.stdout and "images/s" in first.stderr
    assert "Warning" not in first.stderr and "WARNING" not in first.stderr
    return workdir


class Started:
    """A run in the background. What it says goes to a file: a pipe that nobody reads fills up and stops it."""

    def __init__(self, arguments: list[str], log: Path, devices: int = 1) -> None:
        self._log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(arguments, cwd=ROOT, env=environment(devices), stderr=file, stdout=file)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Sends a signal, if one is given, and returns the exit code and all that was said."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(120), self.said


def wait_until(holds: Callable[[], bool], runs: Sequence[Started]) -> None:
    """Returns when a condition holds; fails when a run ends before, or after four minutes."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and all(run.process.poll() is None for run in runs):
        if holds():
            return
        time.sleep(0.005)
    for run in runs:
        run.process.kill()
    raise AssertionError("\n".join(run.said for run in runs))


def last_step(workdir: Path) -> int:
    """Returns the last step that a workdir's run has logged; 0 where there is none."""
    metrics = workdir / "metrics.jsonl"
    return max((line["step"] for line in read_json_lines(metrics)), default=0) if metrics.exists() else 0


def start_and_wait(arguments: list[str], workdir: Path, steps: int) -> Started:
    """Returns a run that has logged a step of at least that number, and has not ended."""
    run = Started(arguments, workdir.with_name("log"))
    wait_until(lambda: last_step(workdir) >= steps, [run])
    return run


@pytest.mark.slow
def test_killed_three_times_is_uninterrupted(uninterrupted, prepared, tmp_path):
    # Moments are chosen by progress, not by the clock, which differs from machine to machine; the short pause after it
    # falls anywhere within steps, evaluations and saves.
    arguments, dice = command(prepared.folder, tmp_path / "w"), random.Random(0)
    for steps in (4, 12, 24):
        process = start_and_wait(arguments, tmp_path / "w", steps).process
        time.sleep(dice.uniform(0, 0.05))
        assert process.poll() is None
        process.kill()
        process.wait()
    finished = run(arguments)
    assert finished.returncode == 0, finished.stderr
    assert "resuming at step" in finished.stderr
    assert same(weights(uninterrupted), weights(tmp_path / "w"))
    steps = [line["step"] for line in read_json_lines(tmp_path / "w" / "metrics.jsonl") if "validation/loss" in line]
    assert steps == [10, 20, 30, 40]


@pytest.mark.slow
def test_signals_save_and_exit_and_the_run_goes_on(uninterrupted, prepared, tmp_path):
    workdir = tmp_path / "w"
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        steps = last_step(workdir) + 4
        found, errors = start_and_wait(command(prepared.folder, workdir), workdir, steps).end(number)
        assert found == code, errors
        assert "the same command goes on from here" in errors and "Traceback" not in errors
    resumed = run(command(prepared.folder, workdir))
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at step" in resumed.stderr
    assert same(weights(uninterrupted), weights(workdir))


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(prepared, tmp_path):
    workdir = tmp_path / "w"
    arguments = command(prepared.folder, workdir, train__duration="100000 steps")
    first = start_and_wait(arguments, workdir, 4)
    first.process.send_signal(signal.SIGINT)
    wait_until(lambda: "stopping: saving" in first.said, [first])
    code, errors = first.end(signal.SIGINT)
    assert code == 130, errors
    assert "stopped at once" in errors and "Traceback" not in errors
    # What was saved before is whole: the same command goes on from it.
    code, errors = start_and_wait(arguments, workdir, last_step(workdir) + 1).end(signal.SIGTERM)
    assert code == 143, errors
    assert "resuming at step" in errors


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_two(arguments: list[str], folder: Path) -> list[Started]:
    """Starts two processes of one run, with two devices each."""
    shared = [f"--coordinator-address=127.0.0.1:{free_port()}", "--num-processes=2"]
    return [Started([*arguments, *shared, f"--process-id={i}"], folder / f"log{i}", 2) for i in range(2)]


@pytest.mark.slow
def test_two_processes_with_two_devices_are_one_with_one(prepared, tmp_path):
    write_hub_folder(tmp_path / "hub")
    changes = {"train__duration": "6 steps", "train__evaluate_every": "6 steps", "model__width": 64}
    changes |= {"model__colour_heads": "auto", "model__second_heads": "auto", "model__pretrained": tmp_path / "hub"}
    alone = run(command(prepared.folder, tmp_path / "one", **changes))
    assert alone.returncode == 0, alone.stderr
    outputs = [run.end() for run in start_two(command(prepared.folder, tmp_path / "two", **changes), tmp_path)]
    assert [code for code, _ in outputs] == [0, 0], outputs
    assert "4 cpu devices in 2 processes" in outputs[0][1]
    assert "ResNet-10 in timm's and torchvision's layout, width 4" in outputs[0][1]
    one, two = (read_json_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a["step"] == b["step"]
        for name in a:
            if "loss" in name:
                assert a[name] == pytest.approx(b[name], rel=1e-5), (a["step"], name)
    for name, array in weights(tmp_path / "one").items():
        # Second heads take fifteen steps more, of Adam, from what differs in the last digits.
        atol = 5e-3 if "/second/" in name else 1e-4
        np.testing.assert_allclose(array, weights(tmp_path / "two")[name], rtol=1e-2, atol=atol)
    one, two = (tmp_path / name / "evaluation/test" for name in ("one", "two"))
    first, second = ((folder / "predictions.csv").read_text().splitlines() for folder in (one, two))
    assert [line.split(",")[0] for line in first] == [line.split(",")[0] for line in second]
    assert (two / "contact_sheet.png").stat().st_size > 1000
    # What is fitted and judged over two processes is over every row once, as with one.
    found = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    for name, head in found[0]["decisions"]["heads"].items():
        other = found[1]["decisions"]["heads"][name]
        assert other["rows"] == head["rows"] == found[0]["attributes"][name]["count"]
        assert other["temperature"] == pytest.approx(head["temperature"], rel=0.05)
        assert other["nll"]["before"] == pytest.approx(head["nll"]["before"], rel=1e-2)
    strange = [f["decisions"]["out_of_catalogue"]["others"]["all"]["auroc"] for f in found]
    assert strange[0] == pytest.approx(strange[1], abs=0.02)
    assert (tmp_path / "two/package/decision.json").is_file()


@pytest.mark.slow
def test_two_processes_prepare_once_and_stop_together(tmp_path):
    table = write_products(tmp_path / "shop", 100)
    for attempt in range(2):  # the second time the run resumes
        runs = start_two(command(table, tmp_path / "w", train__duration="100000 steps"), tmp_path)
        steps = last_step(tmp_path / "w") + 4
        wait_until(lambda steps=steps: last_step(tmp_path / "w") >= steps, runs)
        # A scheduler's SIGTERM on the one, Ctrl-C on the other.
        runs[attempt].process.send_signal((signal.SIGTERM, signal.SIGINT)[attempt])
        outputs = [run.end() for run in runs]
        assert [code for code, _ in outputs] == [143, 143], outputs
        assert all("and saved; the same command goes on from here" in said for _, said in outputs)
        assert ("resuming at step" in outputs[0][1]) == bool(attempt)


@pytest.mark.slow
def test_bad_input_ends_every_process(tmp_path):
    outputs = [run.end() for run in start_two(command(tmp_path / "absent.zip", tmp_path / "w"), tmp_path)]
    assert [code for code, _ in outputs] == [2, 2], outputs
    assert all("there is nothing at" in said and "Traceback" not in said for _, said in outputs)


def test_it_prepares_a_users_csv_by_itself_and_uses_it_again(tmp_path, capsys):
    table = write_products(tmp_path / "shop", 100)
    changes = {"train__duration": "2 steps", "train__evaluate_every": "2 steps"}
    stamps = []
    for _ in range(2):
        assert main(arguments_of(table, tmp_path / "w", **changes)) == 0
        stamps.append((tmp_path / "w/records/manifest.json").stat().st_mtime_ns)
    output, errors = capsys.readouterr()
    assert stamps[0] == stamps[1] and "heads: kind (3), colour (4)" in errors
    assert output.count("test scores of step 2:") == 2 and str(tmp_path / "w/package") in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--config=configs/smal_cpu.py", "did you mean 'small_cpu'?"),
        ("--config=base --config.data.source=absent.zip", "nothing at absent.zip"),
        ("--config=base --config.data.source={prepared} --config.train.batch_size=12", "over 8 devices"),
        ("--config=base --config.data.source={prepared} --workdir={prepared}/manifest.json/w", "cannot be written"),
        ("--config=base --num-processes=1 --process-id=0 --coordinator-address=localhost", "form HOST:PORT"),
        ("--config=base --num-processes=1 --process-id=0 --coordinator-address=:1", "form HOST:PORT"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(prepared, tmp_path, capsys, arguments, message):
    assert main([f"--workdir={tmp_path}/w", *arguments.format(prepared=prepared.folder).split()]) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
    assert errors.count("error:") == 1
