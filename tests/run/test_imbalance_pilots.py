"""imbalance=auto: each head takes the method whose short run validated best, once, and the run is that run."""

from __future__ import annotations

import json

import pytest

from fashion_jax.config.fields import Config
from fashion_jax.run.imbalance_pilots import TRIED, choose_imbalance
from fashion_jax.run.resolve import resolve
from fashion_jax.run.train import train
from fashion_jax.system.errors import NotFiniteError, UserError

BEST = {"kind": "focal", "colour": "balanced"}


class FakeRuns:
    """Says the scores of pilots; the best method of an attribute is `BEST`."""

    def __init__(self) -> None:
        self.seen: list[Config] = []

    def __call__(self, config, folder) -> dict[str, float]:
        self.seen.append(config)
        folder.mkdir(parents=True)
        return {name: 0.8 if method == BEST[name] else 0.7 for name, method in config.loss.head_imbalance.items()}


def open_config(tiny_config, prepared, **changes) -> Config:
    config = tiny_config(loss__imbalance="auto", train__duration="40 epochs", **changes)
    config.train.early_stopping_patience = 3
    return resolve(config, prepared)


def test_each_head_takes_its_best_method(tiny_config, prepared, tmp_path, capsys):
    runs = FakeRuns()
    config = open_config(tiny_config, prepared)
    chosen = choose_imbalance(config, prepared, tmp_path, runs)
    assert chosen.loss.head_imbalance == BEST and chosen.loss.imbalance == "none"
    assert config.loss.imbalance == "auto"
    assert [set(run.loss.head_imbalance.values()) for run in runs.seen] == [{method} for method in TRIED]
    for run in runs.seen:
        assert run.train.duration == run.train.evaluate_every == "2 epochs"
        assert run.train.early_stopping_patience == 0 and run.data.source == str(prepared.folder)
    assert "0.8000" in capsys.readouterr().err
    assert choose_imbalance(config, prepared, tmp_path, runs, progress=False).loss.head_imbalance == BEST
    assert len(runs.seen) == len(TRIED)  # what is known is not tried again


def test_a_head_with_a_method_of_its_own_keeps_it(tiny_config, prepared, tmp_path):
    runs = FakeRuns()
    config = open_config(tiny_config, prepared, loss__head_imbalance={"kind": "effective"})
    chosen = choose_imbalance(config, prepared, tmp_path, runs, progress=False)
    assert chosen.loss.head_imbalance == {"kind": "effective", "colour": "balanced"}
    assert all(run.loss.head_imbalance["kind"] == "effective" for run in runs.seen)


@pytest.mark.parametrize(
    "change",
    [{"loss__pilot_duration": "7 steps"}, {"loss__focal_gamma": 1.0}, {"model__width": 16}, {"train__seed": 3}],
)
def test_other_settings_are_tried_anew(tiny_config, prepared, tmp_path, change):
    runs = FakeRuns()
    choose_imbalance(open_config(tiny_config, prepared), prepared, tmp_path, runs, progress=False)
    choose_imbalance(open_config(tiny_config, prepared, **change), prepared, tmp_path, runs, progress=False)
    assert len(runs.seen) == 2 * len(TRIED)
    logged_otherwise = open_config(tiny_config, prepared, **change, train__log_every="3 steps")
    choose_imbalance(logged_otherwise, prepared, tmp_path, runs, progress=False)
    assert len(runs.seen) == 2 * len(TRIED)


def test_durations_in_epochs_keep_their_part_of_the_run(tiny_config, prepared, tmp_path):
    runs = FakeRuns()
    config = open_config(tiny_config, prepared)
    config.optimizer.warmup, config.optimizer.unfreeze = "4 epochs", {"backbone/stem": "10 epochs"}
    config.train.mix.until, config.train.progressive_until = "20 epochs", "60 percent"
    choose_imbalance(config, prepared, tmp_path, runs, progress=False)
    for run in runs.seen:
        assert run.train.duration == "2 epochs"
        assert run.optimizer.warmup == "10 percent" and run.optimizer.unfreeze == {"backbone/stem": "25 percent"}
        assert run.train.mix.until == "50 percent" and run.train.progressive_until == "60 percent"
    assert config.optimizer.warmup == "4 epochs"


def test_a_method_that_cannot_be_trained_is_not_taken(tiny_config, prepared, tmp_path, capsys):
    runs, config = FakeRuns(), open_config(tiny_config, prepared)

    def run(pilot, folder):
        if "focal" in pilot.loss.head_imbalance.values():
            raise NotFiniteError("the loss is not finite")
        return runs(pilot, folder)

    chosen = choose_imbalance(config, prepared, tmp_path, run)
    assert chosen.loss.head_imbalance == {"kind": TRIED[0], "colour": "balanced"}
    assert "'focal' is not taken: the loss is not finite" in capsys.readouterr().err

    def none_can(pilot, folder):
        raise NotFiniteError("the loss is not finite")

    for _ in range(2):  # nothing is kept of it
        with pytest.raises(UserError, match="every short run ended in what is not finite"):
            choose_imbalance(config, prepared, tmp_path / "none", none_can, progress=False)

    def disk_is_full(pilot, folder):
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="the disk is full"):
        choose_imbalance(config, prepared, tmp_path / "none", disk_is_full, progress=False)


def test_nothing_is_run_where_nothing_is_open(tiny_config, prepared, tmp_path):
    config = resolve(tiny_config(loss__imbalance="balanced"), prepared)
    assert choose_imbalance(config, prepared, tmp_path, FakeRuns()) is config
    assert not list(tmp_path.iterdir())


def test_without_validation_rows_there_is_nothing_to_choose_on(tiny_config, prepared, tmp_path, monkeypatch):
    config = open_config(tiny_config, prepared)
    monkeypatch.setattr(type(prepared), "indices", lambda self, split: [])
    with pytest.raises(UserError, match="validation split, which is empty"):
        choose_imbalance(config, prepared, tmp_path, FakeRuns())


def test_a_run_that_chooses_goes_on_with_what_it_chose(tiny_config, prepared, tmp_path, capsys):
    config = tiny_config(loss__imbalance="auto", loss__pilot_duration="2 steps", optimizer__freeze=("backbone",))
    config.data.source = str(prepared.folder)
    train(config, tmp_path, finish=False)
    resolved = json.loads((tmp_path / "config.json").read_text())["loss"]
    assert set(resolved["head_imbalance"]) == {"kind", "colour"} and resolved["imbalance"] == "none"
    assert set(resolved["head_imbalance"].values()) <= set(TRIED)
    assert capsys.readouterr().err.count("a short run with") == len(TRIED)
    (chosen,) = (tmp_path / "pilots").glob("*/imbalance.json")
    for method, scores in json.loads(chosen.read_text())["decided_macro_f1"].items():
        metrics = json.loads((chosen.parent / method / "evaluation/validation/metrics.json").read_text())
        points = {name: head["operating_points"] for name, head in metrics["trust"]["heads"].items()}
        assert scores == {name: points[name]["macro_f1"]["macro_f1"] for name in ("kind", "colour")}
        assert metrics["colours"]["colour"]["accuracy"] == points["colour"]["accuracy"]["accuracy"]
    train(config, tmp_path)  # the same command goes on
    assert "a short run" not in capsys.readouterr().err
    assert (tmp_path / "package" / "config.json").is_file()


def test_what_is_wrong_is_found_before_the_short_runs(tiny_config, prepared, tmp_path, capsys):
    config = tiny_config(loss__imbalance="auto", train__best_metric="colour/acuracy")
    config.data.source = str(prepared.folder)
    with pytest.raises(UserError, match="did you mean 'colour/accuracy'"):
        train(config, tmp_path)
    assert "a short run" not in capsys.readouterr().err


def test_a_run_that_began_without_a_choice_is_left_alone(tiny_config, prepared, tmp_path):
    config = tiny_config(train__duration="2 steps")
    config.data.source = str(prepared.folder)
    train(config, tmp_path, finish=False)
    config.loss.imbalance = "auto"
    with pytest.raises(UserError, match="began with 'none'"):
        train(config, tmp_path)
    assert not (tmp_path / "pilots").exists()
