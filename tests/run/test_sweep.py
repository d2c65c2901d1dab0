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
from fashion_jax.config.values import resolve_steps, share_of
from fashion_jax.run.sweep import Range, format_trials, read_space, sweep, write_picture
from fashion_jax.run.train import Result
from fashion_jax.system import files
from fashion_jax.system.errors import Interrupted, UserError
from fashion_jax.system.pictures import render_png

SPACE = {"optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "model.drop_path": [0, 0.1]}


@pytest.fixture
def write(tmp_path):
    def save(space, name="space.json") -> Path:
        (tmp_path / name).write_text(json.dumps(space))
        return tmp_path / name

    return save


@pytest.fixture
def config(tmp_path, prepared) -> Path:
    path = tmp_path / "config.py"
    path.write_text(
        f"from drawn_products import make_tiny_config\n\n\ndef get_config():\n"
        f"    return make_tiny_config({str(prepared.folder)!r})\n"
    )
    return path


class FakeTraining:
    """Two evaluations per run; the score is better the nearer the learning rate is to .001, and rises by a tenth."""

    def __init__(self) -> None:
        self.runs, self.stop_at, self.finished, self.fails = [], None, 0, lambda runs: None
        self.steps = (1, 2)

    def __call__(self, config, workdir, *, on_evaluation, finish, **_):
        assert not finish
        if self.stop_at == len(self.runs):
            self.stop_at = None
            raise Interrupted(3, 15)
        self.runs.append((config.optimizer.learning_rate, config.model.drop_path, workdir))
        if error := self.fails(self.runs):
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


def test_trials_are_drawn_trained_and_ranked(config, write, tmp_path, training):
    trials = sweep(config, write(SPACE), tmp_path / "out", num_trials=4, progress=False)
    assert len(training.runs) == len(trials) == 4 == training.finished
    assert all(1e-4 <= rate <= 1e-2 and drop in (0, 0.1) for rate, drop, _ in training.runs)
    scores = [trial["score"] for trial in trials]
    assert scores == sorted(scores, reverse=True)
    best = min(training.runs, key=lambda run: abs(run[0] - 1e-3))
    assert trials[0]["optimizer.learning_rate"] == pytest.approx(best[0])
    assert trials[0]["score"] == pytest.approx(1.0 - abs(best[0] - 1e-3))
    with (tmp_path / "out" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["workdir"] for row in rows] == [trial["workdir"] for trial in trials]
    assert f"{scores[0]:.4f}" in format_trials(trials)
    assert (tmp_path / "out" / "trials.png").read_bytes().startswith(b"\x89PNG")


def test_trials_worse_than_the_median_are_pruned(config, write, tmp_path, training):
    trials = sweep(config, write(SPACE), tmp_path / "out", num_trials=16, progress=False)
    pruned = [trial for trial in trials if trial["state"] == "pruned"]
    assert 0 < len(pruned) == 16 - training.finished
    assert trials[-len(pruned) :] == pruned and trials[0]["state"] == "complete"


@pytest.mark.parametrize(
    ("every", "parts"),
    [("1 epochs", [333, 667, 1000]), ("2 epochs", [667, 1000]), ("25 percent", [250, 500, 750, 1000])],
)
def test_evaluations_of_batches_of_any_size_are_compared(every, parts):
    rows, duration = 26_980, "3 epochs"
    share = share_of(every, duration)
    for batch in (96, 128, 256, 512, 1000):
        total = resolve_steps(duration, num_examples=rows, batch_size=batch)
        step = resolve_steps(every, num_examples=rows, batch_size=batch, total_steps=total)
        evaluated = [*range(step, total, step), total]
        assert sorted({sweep_module._part(at, total, share) for at in evaluated}) == parts, batch
    assert share_of("100 steps", duration) is None
    assert sweep_module._part(100, 400, None) == 250


def test_trials_with_large_batches_are_pruned_by_those_with_small_ones(config, write, tmp_path, training, monkeypatch):
    totals = {8: 632, 16: 316, 32: 158}
    reached = []

    def run(config, workdir, *, on_evaluation, finish, **_):
        total, badness = totals[config.train.batch_size], 0 if len(reached) < 5 else 0.5
        reached.append(0)
        for step in (round(total / 3), 2 * round(total / 3), total):
            on_evaluation(step, total, {"mean/accuracy": 0.8 - badness})
            reached[-1] = step / total
        return Result(workdir, 2)

    monkeypatch.setattr(sweep_module, "train", run)
    space = write({"train.batch_size": [8, 16, 32]})
    trials = sweep(
        config, space, tmp_path / "out", num_trials=14, progress=False,
        overrides={"train.evaluate_every": "1 epochs", "train.duration": "3 epochs"},
    )  # fmt: skip
    assert [trial["state"] for trial in trials].count("pruned") == 9
    assert all(share < 0.5 for share in reached[5:])


def test_a_stopped_search_goes_on_with_the_same_values(config, write, tmp_path, training):
    training.stop_at = 2
    with pytest.raises(Interrupted):
        sweep(config, write(SPACE), tmp_path / "out", num_trials=4, progress=False)
    journal = (tmp_path / "out" / "study.jsonl").read_text()
    trials = sweep(config, write(SPACE), tmp_path / "out", num_trials=4, progress=False)
    assert len(trials) == 4 == len({trial["workdir"] for trial in trials})
    # What the stopped trial had drawn is what the first one afterwards has.
    assert repr(training.runs[2][0]) in journal
    assert sweep(config, write(SPACE), tmp_path / "out", num_trials=4, progress=False) == trials
    assert len(training.runs) == 4


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("the loss is nan"), "the loss is nan"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.\nMany lines"),
            "RESOURCE_EXHAUSTED: Out of memory.",
        ),
    ],
)
def test_a_trial_that_fails_is_noted_and_not_repeated(config, write, tmp_path, training, capsys, error, reason):
    training.fails = lambda runs: error if len(runs) in (1, 3) else None
    trials = sweep(config, write(SPACE), tmp_path / "out", num_trials=5)
    assert [trial["state"] for trial in trials] == ["complete"] * 3 + ["failed"] * 2
    assert [trial["reason"] for trial in trials] == [""] * 3 + [reason] * 2
    assert trials[-1]["score"] is None and len(training.runs) == 5
    assert capsys.readouterr().err.count(f"failed: {reason}") == 2
    assert "failed" in format_trials(trials)
    assert len(sweep(config, write(SPACE), tmp_path / "out", num_trials=6, progress=False)) == 6
    assert len(training.runs) == 6


def test_where_it_runs_may_change(config, write, tmp_path, training):
    space, overrides = write(SPACE), {"runtime.cpu_devices": "4"}
    sweep(config, space, tmp_path / "out", num_trials=1, progress=False)
    assert len(sweep(config, space, tmp_path / "out", num_trials=2, overrides=overrides, progress=False)) == 2


def test_values_between_the_ends_that_the_configuration_refuses_fail(config, write, tmp_path, training):
    space = write({"model.depth": {"low": 50, "high": 101}})
    with pytest.raises(UserError, match=r"3 trials in a row failed.*model\.depth"):
        sweep(config, space, tmp_path / "out", num_trials=40, progress=False)
    assert "failed" in (tmp_path / "out" / "trials.csv").read_text()


@pytest.mark.parametrize(("steps", "state"), [((1, 2), "pruned"), ((2,), "complete")])
def test_trials_at_their_end_are_not_pruned(config, write, tmp_path, training, monkeypatch, steps, state):
    monkeypatch.setattr("optuna.trial.Trial.should_prune", lambda self: True)
    training.steps = steps
    trials = sweep(config, write(SPACE), tmp_path / "out", num_trials=2, progress=False)
    assert [trial["state"] for trial in trials] == [state] * 2


def test_one_search_at_a_time(config, write, tmp_path, training):
    with (
        files.hold_lock(tmp_path / "out" / ".lock", what="", busy=""),
        pytest.raises(UserError, match="another search"),
    ):
        sweep(config, write(SPACE), tmp_path / "out", num_trials=1, progress=False)
    assert not training.runs


def test_scores_of_a_run_that_was_stopped_count(config, write, tmp_path, training, monkeypatch):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (tmp_path / "out" / "trials").mkdir(parents=True)
    (workdir / "metrics.jsonl").write_text('{"step": 7, "validation/mean/accuracy": 0.999}\n{"step": 8, "valid')
    monkeypatch.setattr(sweep_module, "_digest", lambda values: "../../run")
    (trial,) = sweep(config, write({"train.seed": [1]}), tmp_path / "out", num_trials=1, progress=False)
    assert trial["score"] == 0.999


def test_two_real_trials(config, write, tmp_path, capsys):
    arguments = [
        "sweep", "--config", config, "--space", write({"optimizer.learning_rate": [0.001, 0.004]}), "--out",
        tmp_path / "out", "--trials", 2, "--config.train.duration=6 steps",
    ]  # fmt: skip
    assert main([str(part) for part in arguments]) == 0
    assert "optimizer.learning_rate=0.00" in capsys.readouterr().out
    with (tmp_path / "out" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        assert (Path(row["workdir"]) / "checkpoints").is_dir()
        assert not (Path(row["workdir"]) / "evaluation").exists()  # the test split is nobody's to search on
        metrics = [json.loads(line) for line in (Path(row["workdir"]) / "metrics.jsonl").read_text().splitlines()]
        measured = [line["validation/mean/accuracy"] for line in metrics if "validation/mean/accuracy" in line]
        assert float(row["score"]) == pytest.approx(max(measured))


def test_the_picture_has_a_panel_per_field_and_a_dot_per_score(tmp_path, monkeypatch):
    figures = []

    def keep(figure):
        figures.append(figure)
        return render_png(figure)

    monkeypatch.setattr(sweep_module, "render_png", keep)
    space = {"optimizer.learning_rate": Range(1e-4, 1e-2, True), "loss.imbalance": ("none", "$x_"), "a": ("1", "2")}
    drawn = [("complete", 0.9, 0.001, "$x_"), ("pruned", 0.5, 0.01, "none"), ("failed", None, 0.002, "none")]
    trials = [
        {"state": state, "score": score, "optimizer.learning_rate": rate, "loss.imbalance": method, "a": "2"}
        for state, score, rate, method in drawn
    ]
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


def test_without_validation_rows_nothing_is_trained(config, write, tmp_path, prepared, monkeypatch):
    indices = type(prepared).indices
    monkeypatch.setattr(
        type(prepared), "indices", lambda self, split: indices(self, split)[: 0 if split == "validation" else None]
    )
    (trial,) = sweep(config, write({"train.seed": [1]}), tmp_path / "out", num_trials=1, progress=False)
    assert trial["state"] == "failed" and "the validation split, which is empty" in trial["reason"]
    assert not (Path(trial["workdir"]) / "checkpoints").exists()


def test_spaces_are_read(write):
    space = read_space(write({**SPACE, "train.batch_size": {"low": 16, "high": 64, "step": 16}, "a": [True, "x"]}))
    assert space["optimizer.learning_rate"] == Range(1e-4, 1e-2, True)
    assert space["train.batch_size"] == Range(16, 64, step=16)
    assert space["a"] == ("true", "x")
    assert space["train.batch_size"].of_integers and not space["optimizer.learning_rate"].of_integers
    assert not Range(0, 2, step=0.5).of_integers


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "no field"),
        ({"train.seed": []}, "list of values"),
        ({"train.seed": {"low": 1}}, "low"),
        ({"train.seed": {"low": 1, "high": 2, "base": 2}}, "low"),
        ({"train.seed": {"low": "1", "high": 2}}, "train.seed"),
        ({"train.seed": {"low": 3, "high": 2}}, "low < high"),
        ({"train.seed": {"low": 0, "high": 2, "log": True}}, "above 0"),
        ({"train.seed": {"low": 0, "high": 2, "step": 0}}, "step above 0"),
        ({"train.sed": [1]}, "did you mean 'seed'"),
        ({"train.seed": [1, -1]}, "train.seed"),
        ({"data.max_side": [128, 256]}, "'data.max_side' cannot be searched.*same records"),
        ({"data.split_seed": [0, 1]}, "'data.split_seed' cannot be searched"),
        ({"runtime.cpu_devices": [1, 2]}, "'runtime.cpu_devices' cannot be searched"),
        ({"train.best_metric": ["mean/accuracy", "loss"]}, "'train.best_metric' cannot be searched"),
        ({"data.attributes": ["kind", "colour"]}, "'data.attributes' cannot be searched"),
        ({"decision.precision": [0.9, 0.99]}, "'decision.precision' cannot be searched.*after training"),
        ({"embedding.size": [64, 128]}, "'embedding.size' cannot be searched"),
        ({"model.second_heads": ["auto", ""]}, "'model.second_heads' cannot be searched"),
        ({"optimizer.learning_rate": {"low": -1.0, "high": 2.0}}, "optimizer.learning_rate"),
    ],
)
def test_bad_spaces_get_a_sentence(config, write, tmp_path, training, space, message):
    with pytest.raises(UserError, match=message):
        sweep(config, write(space), tmp_path / "out", num_trials=2, progress=False)
    assert not training.runs


def test_a_folder_belongs_to_one_search(config, write, tmp_path, training):
    sweep(config, write(SPACE), tmp_path / "out", num_trials=1, progress=False)
    for changes in ({"overrides": {"train.seed": "3"}}, {"space": write({"train.seed": [1, 2]}, "other.json")}):
        with pytest.raises(UserError, match="another configuration or space"):
            sweep(config, **{"space": write(SPACE), **changes}, folder=tmp_path / "out", num_trials=2, progress=False)
    with pytest.raises(UserError, match="at least 1"):
        sweep(config, write(SPACE), tmp_path / "out", num_trials=0, progress=False)
