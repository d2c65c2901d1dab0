"""Sweeps: what is drawn is trained, what is worse is pruned, what was stopped goes on, bad spaces get a sentence."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import fashion_jax.run.sweep as sweep_module
from fashion_jax.cli import main
from fashion_jax.config.values import resolve_steps
from fashion_jax.run.sweep import Range, format_trials, read_space, sweep, write_picture
from fashion_jax.run.train import Result
from fashion_jax.system import files
from fashion_jax.system.errors import Interrupted, UserError
from fashion_jax.system.pictures import render_png
from fashion_jax.training.writers import MetricWriter, read_json_lines

SPACE = {"optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "model.drop_path": [0, 0.1]}


@pytest.fixture
def config(tmp_path, prepared) -> Path:
    make = f"from drawn_products import make_tiny_config as make\nget_config = lambda: make({str(prepared.folder)!r})\n"
    (tmp_path / "config.py").write_text(make)
    return tmp_path / "config.py"


@pytest.fixture
def search(config, tmp_path):
    """Searches a space in tmp_path/out."""

    def search(num_trials: int, space=SPACE, *, progress: bool = False, **overrides):
        (tmp_path / "space.json").write_text(json.dumps(space))
        given = {name.replace("__", "."): value for name, value in overrides.items()}
        paths = (config, tmp_path / "space.json", tmp_path / "out")
        return sweep(*paths, num_trials=num_trials, overrides=given, progress=progress)

    return search


class FakeTraining:
    """Two evaluations per run; the score is better the nearer the learning rate is to .001, and rises by a tenth."""

    def __init__(self) -> None:
        self.runs, self.steps, self.fails, self.finished = [], (1, 2), lambda run: None, 0

    def __call__(self, config, workdir, *, on_evaluation, finish, **_):
        assert not finish
        self.runs.append((config.optimizer.learning_rate, config.model.drop_path, workdir))
        if error := self.fails(len(self.runs)):
            raise error
        for step in self.steps:
            on_evaluation(step, 2, {"mean/accuracy": 0.8 - abs(config.optimizer.learning_rate - 1e-3) + step / 10})
        self.finished += 1
        return Result(workdir, 2)


@pytest.fixture
def training(monkeypatch) -> FakeTraining:
    fake = FakeTraining()
    monkeypatch.setattr(sweep_module, "train", fake)
    return fake


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_trials_are_drawn_trained_and_ranked(search, tmp_path, training):
    trials = search(4)
    assert len(training.runs) == len(trials) == 4 == training.finished
    assert all(1e-4 <= rate <= 1e-2 and drop in (0, 0.1) for rate, drop, _ in training.runs)
    scores = [trial["score"] for trial in trials]
    assert scores == sorted(scores, reverse=True)
    best = min(training.runs, key=lambda run: abs(run[0] - 1e-3))
    assert trials[0]["optimizer.learning_rate"] == pytest.approx(best[0])
    assert trials[0]["score"] == pytest.approx(1.0 - abs(best[0] - 1e-3))
    rows = table_of(tmp_path)
    assert [row["workdir"] for row in rows] == [trial["workdir"] for trial in trials]
    assert f"{scores[0]:.4f}" in format_trials(trials)
    assert (tmp_path / "out" / "trials.png").read_bytes().startswith(b"\x89PNG")


def test_trials_worse_than_the_median_are_pruned(search, training):
    trials = search(16)
    pruned = [trial for trial in trials if trial["state"] == "pruned"]
    assert 0 < len(pruned) == 16 - training.finished
    assert trials[-len(pruned) :] == pruned and trials[0]["state"] == "complete"


@pytest.mark.parametrize("every", ["1 epochs", "2 epochs", "25 percent"])
def test_trials_with_batches_of_any_size_are_compared(search, monkeypatch, every):
    passed = []

    def run(config, workdir, *, on_evaluation, **_):
        sizes = {"num_examples": 26_980, "batch_size": config.train.batch_size}
        total = resolve_steps("3 epochs", **sizes)
        step = resolve_steps(every, **sizes, total_steps=total)
        score = 0.8 if len(passed) < 5 else 0.3
        passed.append(0)
        for at in (*range(step, total, step), total):
            on_evaluation(at, total, {"mean/accuracy": score})
            passed[-1] += 1
        return Result(workdir, 2)

    monkeypatch.setattr(sweep_module, "train", run)
    space = {"train.batch_size": [96, 128, 256, 512, 1000]}
    trials = search(20, space, train__evaluate_every=every, train__duration="3 epochs")
    assert [trial["state"] for trial in trials].count("pruned") == 15
    assert passed[5:] == [0] * 15  # at the first evaluation


def test_a_stopped_search_goes_on_with_the_same_values(search, training):
    training.fails = lambda run: Interrupted(3, 15) if run == 3 else None
    with pytest.raises(Interrupted):
        search(4)
    trials = search(4)
    assert len(trials) == 4 == len({trial["workdir"] for trial in trials})
    assert training.runs[2] == training.runs[3]
    assert search(4) == trials and len(training.runs) == 5


@pytest.mark.parametrize("tail", [b"x" * 5000, b"\n[", b'{"op_code": 4}\n'])
def test_what_a_killed_search_wrote_last_does_no_harm(search, training, tmp_path, tail):
    training.fails = lambda run: Interrupted(3, 15) if run == 2 else None
    with pytest.raises(Interrupted):
        search(3)
    with (tmp_path / "out" / "study.jsonl").open("ab") as file:
        file.write(tail)
    assert len(search(3)) == 3 and training.runs[1] == training.runs[2]


@pytest.mark.parametrize("error", [UserError, jax.errors.JaxRuntimeError])
def test_a_trial_that_fails_is_noted_and_not_repeated(search, training, capsys, error):
    training.fails = lambda run: error("Out of memory.\nMany lines") if run in (1, 3) else None
    trials = search(5, progress=True)
    assert [trial["state"] for trial in trials] == ["complete"] * 3 + ["failed"] * 2
    assert [trial["reason"] for trial in trials] == [""] * 3 + ["Out of memory."] * 2
    assert trials[-1]["score"] is None and len(training.runs) == 5
    assert capsys.readouterr().err.count("failed: Out of memory.") == 2
    assert "failed" in format_trials(trials)
    assert len(search(6)) == len(training.runs) == 6


def test_values_between_the_ends_that_the_configuration_refuses_fail(search, tmp_path, training):
    with pytest.raises(UserError, match=r"3 trials in a row failed.*model\.depth"):
        search(40, {"model.depth": {"low": 50, "high": 101}})
    assert "failed" in (tmp_path / "out" / "trials.csv").read_text()


@pytest.mark.parametrize(("steps", "state"), [((1, 2), "pruned"), ((2,), "complete")])
def test_trials_at_their_end_are_not_pruned(search, training, monkeypatch, steps, state):
    monkeypatch.setattr("optuna.trial.Trial.should_prune", lambda self: True)
    training.steps = steps
    assert [trial["state"] for trial in search(2)] == [state] * 2


def test_one_search_at_a_time(search, tmp_path, training):
    lock = files.hold_lock(tmp_path / "out" / ".lock", what="", busy="")
    with lock, pytest.raises(UserError, match="another sweep"):
        search(1)
    assert not training.runs


def test_scores_of_a_run_that_was_stopped_count(search, training):
    training.fails = lambda run: Interrupted(7, 15) if run == 1 else None
    with pytest.raises(Interrupted):
        search(1)
    ((_, _, workdir),) = training.runs
    with MetricWriter(workdir, resume_step=0, tensorboard=False, is_first_process=True) as writer:
        writer.write_scalars(7, {"validation/mean/accuracy": 0.999})
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "valid')
    (trial,) = search(1)
    assert trial["score"] == 0.999


@pytest.mark.parametrize("name", ["space.json", "study.jsonl", "study.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "nested"])
def test_damaged_documents_of_a_search_are_refused(search, tmp_path, training, name, damage):
    search(2)
    path = tmp_path / "out" / name
    data = path.read_bytes()
    place = data.rindex(b"0")
    flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    path.write_bytes({"flip": flipped, "cut": data[: len(data) // 2], "nested": b"[" * 100_000, "missing": b""}[damage])
    if damage == "missing":
        path.unlink()
    with pytest.raises(UserError, match=rf"{name} (is|cannot).*choose another folder"):
        search(3)
    assert len(training.runs) == 2


def test_a_signed_journal_of_another_space_is_refused(search, tmp_path, training):
    search(2)
    path = tmp_path / "out" / "study.jsonl"
    data = path.read_bytes()
    edits = ((b"learning_rate", b"learning_race"), (b'internal":0.0', b'internal":9.0'), (b'"workdir"', b'"workdirs"'))
    for damaged in (*(data.replace(*edit) for edit in edits), data[:-1], data[:-9]):
        assert damaged != data
        path.write_bytes(damaged)
        sweep_module._seal_journal(tmp_path / "out")
        with pytest.raises(UserError, match=r"study.jsonl is damaged.*choose another folder"):
            search(3)
    assert len(training.runs) == 2


def test_a_trial_whose_scores_are_damaged_is_trained_anew(search, training, capsys):
    training.fails = lambda run: Interrupted(7, 15) if run == 1 else None
    with pytest.raises(Interrupted):
        search(1)
    ((_, _, workdir),) = training.runs
    (workdir / "checkpoints/step_4").mkdir(parents=True)
    (workdir / "metrics.jsonl").write_text('{"step": 7, "validation/mean/accuracy": 5.0, "crc32": "00000000"}\n')
    (trial,) = search(1)
    assert trial["score"] < 1 and not (workdir / "checkpoints").exists()
    kept = workdir.with_name(f"{workdir.name}.damaged")
    said = f"The trial starts again from step 0; its old files are in {kept}\n"
    assert said in capsys.readouterr().err and (kept / "checkpoints/step_4").is_dir()


def test_two_real_trials(config, tmp_path, capsys):
    (tmp_path / "space.json").write_text('{"optimizer.learning_rate": [0.001, 0.004]}')
    paths = [f"--config={config}", f"--space={tmp_path}/space.json", f"--out={tmp_path}/out"]
    assert main(["sweep", *paths, "--trials=2", "--config.train.duration=6 steps"]) == 0
    assert "complete  0." in capsys.readouterr().out
    rows = table_of(tmp_path)
    assert len(rows) == 2
    for row in rows:
        workdir = Path(row["workdir"])
        assert (workdir / "checkpoints").is_dir()
        assert not (workdir / "evaluation").exists()  # the test split is nobody's to search on
        metrics = read_json_lines(workdir / "metrics.jsonl")
        measured = [line["validation/mean/accuracy"] for line in metrics if "validation/mean/accuracy" in line]
        assert float(row["score"]) == pytest.approx(max(measured))


def test_the_picture_has_a_panel_per_field_and_a_dot_per_score(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(sweep_module, "render_png", lambda figure: figures.append(figure) or render_png(figure))
    space = {"rate": Range(1e-4, 1e-2, True), "method": ("none", "$x_"), "a": ("1", "2")}
    drawn = [("complete", 0.9, 0.001, "$x_"), ("pruned", 0.5, 0.01, "none"), ("failed", None, 0.002, "none")]
    trials = [{"state": s, "score": score, "rate": rate, "method": m, "a": "2"} for s, score, rate, m in drawn]
    write_picture(tmp_path / "trials.png", trials, space, "mean/accuracy")
    with Image.open(tmp_path / "trials.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5
    (figure,) = figures
    rate, method, other = [axes for axes in figure.axes if axes.get_visible()]
    assert rate.get_xscale() == "log" and rate.get_ylabel() == "mean/accuracy" and other.get_ylabel() == ""
    assert [dots.get_offsets().tolist() for dots in rate.collections] == [[[0.001, 0.9]], [[0.001, 0.9]], [[0.01, 0.5]]]
    assert [dots.get_offsets().tolist() for dots in method.collections] == [[[1, 0.9]], [[1, 0.9]], [[0, 0.5]]]
    assert "1 complete (filled), 1 pruned (hollow), 1 failed" in figure.get_suptitle()
    write_picture(tmp_path / "none.png", trials[2:], space, "loss")
    assert (tmp_path / "none.png").stat().st_size > 1000


def test_without_validation_rows_nothing_is_trained(search, prepared, monkeypatch):
    of_split = type(prepared).indices
    monkeypatch.setattr(
        type(prepared), "indices", lambda self, split: of_split(self, split)[: 0 if split == "validation" else None]
    )
    (trial,) = search(1, {"train.seed": [1]})
    assert trial["state"] == "failed" and "the validation split, which is empty" in trial["reason"]
    assert not (Path(trial["workdir"]) / "checkpoints").exists()


def test_spaces_are_read(tmp_path):
    given = {**SPACE, "train.batch_size": {"low": 16, "high": 64, "step": 16}, "a": [True, "x"]}
    (tmp_path / "space.json").write_text(json.dumps(given))
    space = read_space(tmp_path / "space.json")
    rate, size = Range(1e-4, 1e-2, True), Range(16, 64, step=16)
    assert space == {"optimizer.learning_rate": rate, "model.drop_path": ("0", "0.1"), "train.batch_size": size,
                     "a": ("true", "x")}  # fmt: skip
    assert [found.of_integers for found in (size, rate, Range(0, 2, step=0.5))] == [True, False, False]


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("train.seed", [], "list of values"), ("train.seed", {"low": 1}, "low"),
        ("train.seed", {"low": 1, "high": 2, "base": 2}, "low"), ("train.seed", {"low": "1", "high": 2}, "numbers"),
        ("train.seed", {"low": 3, "high": 2}, "low < high"), ("train.sed", [1], "did you mean 'seed'"),
        ("train.seed", {"low": 0, "high": 2, "log": True}, "above 0"), ("train.seed", [1, -1], "train.seed"),
        ("train.seed", {"low": 0, "high": 2, "step": 0}, "step above 0"), ("data.max_side", [128, 256], "same records"),
        ("decision.precision", [0.9, 0.99], "after training"), ("train.best_metric", ["loss"], "cannot be tried"),
        ("optimizer.learning_rate", {"low": -1.0, "high": 2.0}, "optimizer.learning_rate"),
    ],
)  # fmt: skip
def test_bad_spaces_get_a_sentence(search, training, name, entry, message):
    with pytest.raises(UserError, match=message):
        search(2, {name: entry})
    assert not training.runs


def test_a_folder_belongs_to_one_search(search, training):
    search(1)
    assert len(search(2, runtime__cpu_devices="4")) == 2  # where it runs may change
    for changes in ({"train__seed": "3"}, {"space": {"train.seed": [1, 2]}}):
        with pytest.raises(UserError, match="another configuration or space"):
            search(3, **changes)
    for trials, space, message in ((0, SPACE, "at least 1"), (2, {}, "names no setting")):
        with pytest.raises(UserError, match=message):
            search(trials, space)
