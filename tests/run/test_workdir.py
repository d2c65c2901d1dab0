"""Runs whose records changed: what they may go on with, and what is forgotten then."""

from __future__ import annotations

import json
import shutil

import pytest

from drawn_products import make_tiny_config, write_products
from fashion_jax.data.records import open_prepared
from fashion_jax.run import train as experiment
from fashion_jax.run.train import evaluate, train
from fashion_jax.run.workdir import trained_on
from fashion_jax.system.errors import UserError


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A run of a table, its table and its settings."""
    folder = tmp_path_factory.mktemp("changing")
    table = write_products(folder / "shop", 90)
    settings = {"train__duration": "4 steps", "train__evaluate_every": "2 steps", "optimizer__freeze": ("backbone",)}
    train(make_tiny_config(table, **settings), folder / "run", progress=False)
    return folder / "run", table, settings


@pytest.fixture
def run(started, tmp_path):
    """A copy of them that a test may change; the table is beside the run."""
    shutil.copytree(started[0], tmp_path / "run")
    shutil.copytree(started[1].parent, tmp_path / "shop")
    return tmp_path / "run", tmp_path / "shop" / "products.csv", started[2]


def test_a_run_notes_what_it_was_trained_on(run):
    workdir, _, _ = run
    prepared = open_prepared(workdir / "records")
    ids = json.loads((workdir / "trained_on.json").read_text())["ids"]
    assert ids == sorted(map(str, prepared.ids[prepared.indices("train")])) and len(ids) > 40


def test_a_split_that_would_test_what_was_trained_on_is_refused_whatever_is_allowed(run):
    workdir, table, settings = run
    before = open_prepared(workdir / "records")
    config = make_tiny_config(table, **settings, data__split_seed=1)
    with pytest.raises(UserError, match=r"trained on \d+ products that are now in the (validation|test) split"):
        train(config, workdir, allow_config_change=True, progress=False)
    assert open_prepared(workdir / "records").fingerprint == before.fingerprint  # as they were
    evaluate(workdir, progress=False)


def test_prepared_records_are_held_to_the_same(run, tmp_path):
    workdir, table, settings = run
    train(make_tiny_config(table, **settings, data__split_seed=1), tmp_path / "other", progress=False)
    config = make_tiny_config(tmp_path / "other" / "records", **settings)
    with pytest.raises(UserError, match="whose scores would mean nothing"):
        train(config, workdir, allow_config_change=True, progress=False)


def test_new_classes_leave_the_records_as_they_were(run):
    workdir, table, settings = run
    before = open_prepared(workdir / "records")
    table.write_text(table.read_text().replace("yellow", "red"))
    with pytest.raises(UserError, match="'colour' does not match"):
        train(make_tiny_config(table, **settings), workdir, allow_config_change=True, progress=False)
    assert open_prepared(workdir / "records").fingerprint == before.fingerprint


def test_with_its_own_split_a_run_goes_on_and_older_scores_count_no_more(run):
    workdir, table, settings = run
    prepared = open_prepared(workdir / "records")
    some = str(prepared.ids[prepared.indices("validation")[0]])
    lines = table.read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith(some))
    first, _, colour = lines[place].rpartition(",")
    lines[place] = f"{first},{'red' if colour != 'red' else 'blue'}"
    table.write_text("\n".join(lines) + "\n")
    shutil.copy(workdir / "records" / "splits.csv", table.parent / "splits.csv")
    for step in (2, 4):
        metrics = workdir / "checkpoints" / f"step_{step}" / "metrics" / "metrics"
        metrics.write_text(json.dumps(dict.fromkeys(json.loads(metrics.read_text()), 99.0)))  # not to be surpassed
    longer = {**settings, "train__duration": "6 steps", "train__evaluate_every": "6 steps"}
    config = make_tiny_config(table, **longer, data__split=f"file:{table.parent / 'splits.csv'}")
    with pytest.raises(UserError, match="other records than"):
        train(config, workdir, progress=False)
    result = train(config, workdir, allow_config_change=True, progress=False)
    assert result.best_step == 6
    assert json.loads((workdir / "data.json").read_text())["record_changes"] == 1
    assert train(config, workdir, progress=False).best_step == 6
    evaluate(workdir, progress=False)


def test_a_kill_right_after_a_change_was_noted_does_not_end_the_run(run, monkeypatch):
    """A run that had stopped early goes on with more patience, also where the first try at that was killed."""
    workdir, table, settings = run
    stopped = {**settings, "train__duration": "40 steps", "optimizer__learning_rate": 1e-12}
    patient = {**stopped, "train__early_stopping_patience": 1}
    train(make_tiny_config(table, **patient), workdir, allow_config_change=True, progress=False)
    last = max(int(path.name.removeprefix("step_")) for path in (workdir / "checkpoints").glob("step_*"))
    assert last < 40
    config = make_tiny_config(table, **stopped)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config, workdir, allow_config_change=True, progress=False)
    train(config, workdir, progress=False)
    assert (workdir / "checkpoints" / "step_40").is_dir()


def test_a_run_of_an_earlier_version_is_held_to_it_too(run, tmp_path):
    workdir, table, settings = run
    (workdir / "trained_on.json").unlink()
    config = make_tiny_config(table, **settings, data__split_seed=1)
    with pytest.raises(UserError, match="whose scores would mean nothing"):
        train(config, workdir, allow_config_change=True, progress=False)
    (workdir / "trained_on.json").unlink()
    train(config, tmp_path / "other", progress=False)
    with pytest.raises(UserError, match="cannot be told"):
        config = make_tiny_config(tmp_path / "other" / "records", **settings)
        train(config, workdir, allow_config_change=True, progress=False)


def test_without_a_column_of_ids_it_is_not_known_what_a_run_was_trained_on(started, tmp_path):
    _, table, settings = started
    lines = [line.partition(",")[2] for line in table.read_text().splitlines()]
    nameless = table.with_name("nameless.csv")
    nameless.write_text("\n".join(lines) + "\n")
    train(make_tiny_config(nameless, **settings), tmp_path / "w", progress=False)
    assert open_prepared(tmp_path / "w/records").schema.id_column == ""
    assert trained_on(tmp_path / "w") is None
    # Row numbers would be found among other row numbers, and mean nothing.
    config = make_tiny_config(table, **settings, data__split_seed=1)
    with pytest.raises(UserError, match="cannot be told"):
        train(config, tmp_path / "w", allow_config_change=True, progress=False)


def test_an_attribute_that_went_leaves_the_records_as_they_were(run):
    workdir, table, settings = run
    before = open_prepared(workdir / "records")
    lines = [line.split(",") for line in table.read_text().splitlines()]
    table.write_text("\n".join(",".join([sku, file, colour]) for sku, file, _, colour in lines) + "\n")
    with pytest.raises(UserError, match="have a head 'kind', and there is no such attribute"):
        train(make_tiny_config(table, **settings), workdir, allow_config_change=True, progress=False)
    assert open_prepared(workdir / "records").fingerprint == before.fingerprint
