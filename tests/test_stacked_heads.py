"""Stacked heads of whole runs: fitted after training, packaged, found again, and never in the way of the rest."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from scipy.special import log_softmax

from drawn_products import write_products
from fashion_jax import experiment, scoring, stacked_heads
from fashion_jax.config_files import config_from_dict
from fashion_jax.data.photos import decode_photo
from fashion_jax.data.prepare import prepare
from fashion_jax.data.schema import MISSING
from fashion_jax.errors import UserError
from fashion_jax.experiment import evaluate, train
from fashion_jax.models.pretrained import load_pretrained
from fashion_jax.resolve import resolve
from fashion_jax.serving.predictor import load_model
from fashion_jax.serving.zoo import halve_package
from fashion_jax.session import Session
from fashion_jax.stacked_heads import fit_stacked_heads, restore_stacked_heads
from fashion_jax.training.checkpoint import Checkpoints
from fashion_jax.training.sharding import to_host
from fashion_jax.training.stacking import empty_stacked_head
from fashion_jax.training.state import create_state
from stepping import mesh_of


@pytest.fixture(autouse=True)
def few_photos_on_a_sheet(monkeypatch):
    monkeypatch.setattr(scoring, "_SHEET_PHOTOS", 4)


@pytest.fixture(scope="module")
def stacking_config(tiny_config):
    """Makes tiny configurations with stacking."""

    def make(**changes):
        return tiny_config(**{"model__colour_heads": ("auto",), "model__colour_stacking": True, **changes})

    return make


@pytest.fixture(scope="module")
def runs(tiny_config, tmp_path_factory):
    """The same run with and without stacking: workdir and result of each."""
    folder, found = tmp_path_factory.mktemp("stacking"), {}
    for stacked in (False, True):
        config = tiny_config(
            model__colour_heads=("auto",),
            model__colour_stacking=stacked,
            train__average_decay=0.5,
            data__test_time_flip=True,
        )
        found[stacked] = folder / str(stacked), config, train(config, folder / str(stacked), progress=False)
    return found


def weights(workdir) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(workdir / "package/weights.safetensors")


def test_the_rest_is_as_without(runs):
    plain, stacked = (weights(runs[kind][0]) for kind in (False, True))
    added = stacked.keys() - plain.keys()
    assert added and all("/stacked/colour/" in name for name in added)
    for name, tensor in plain.items():
        np.testing.assert_array_equal(tensor, stacked[name])
    before, after = (runs[kind][2].test for kind in (False, True))
    assert before.summaries["kind"] == after.summaries["kind"]
    np.testing.assert_array_equal(before.outputs.embeddings, after.outputs.embeddings)
    np.testing.assert_allclose(before.outputs.energies, after.outputs.energies, rtol=1e-5)
    assert np.abs(before.outputs.logits["colour"] - after.outputs.logits["colour"]).max() > 0.01
    assert after.summaries["colour"]["loss"] < before.summaries["colour"]["loss"]


@pytest.mark.parametrize("fitted_again", [False, True])
def test_evaluating_again_finds_the_same(runs, tmp_path, monkeypatch, fitted_again):
    shutil.copytree(runs[True][0], tmp_path / "w")
    if fitted_again:
        shutil.rmtree(tmp_path / "w/package")
    else:
        monkeypatch.setattr(stacked_heads, "fit_stacked_head", None)
    again = evaluate(tmp_path / "w", progress=False)
    assert again.summaries == runs[True][2].test.summaries


def test_running_again_leaves_the_package_as_it_is(runs, tmp_path):
    shutil.copytree(runs[True][0], tmp_path / "w")
    train(runs[True][1], tmp_path / "w", progress=False)
    before, after = weights(runs[True][0]), weights(tmp_path / "w")
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)


def test_the_package_predicts_what_was_scored(runs, prepared):
    workdir, _, result = runs[True]
    model = load_model(workdir)
    assert model.package.model["stacked_heads"] == ["colour"]
    photos = np.stack([decode_photo(prepared.read_photo(int(row)), *model.size) for row in result.test.rows])
    said = model.run_network(photos)
    for name, logits in result.test.outputs.logits.items():
        np.testing.assert_allclose(said.logits[name], logits, atol=1e-3)


def test_a_package_of_another_network_is_not_believed(runs, prepared, tmp_path):
    workdir, config, _ = runs[True]
    session = Session(resolve(config, prepared), prepared, tmp_path, progress=False)
    other = create_state(session.arguments, session.optimizer, 1, session.mesh, averaged=True)
    assert restore_stacked_heads(session, other) is None  # no package at all
    shutil.copytree(workdir / "package", tmp_path / "package")
    assert restore_stacked_heads(session, other) is None
    halve_package(workdir, tmp_path / "package")  # of this network, rounded
    with Checkpoints(
        workdir / "checkpoints", metric="mean/accuracy", lower_is_better=False, read_only=True
    ) as checkpoints:
        state, _ = checkpoints.restore(checkpoints.best_step, session.target)
    assert restore_stacked_heads(session, state) is None
    shutil.rmtree(tmp_path / "package")
    shutil.copytree(workdir / "package", tmp_path / "package")
    assert restore_stacked_heads(session, state) is not None


def fit_to_nothing(config, prepared, folder, devices: int = 1):
    """Fits second heads to a network that is not trained; returns what went in, and what comes out."""
    session = Session(resolve(config, prepared), prepared, folder, mesh=mesh_of(devices), progress=False)
    state = create_state(session.arguments, session.optimizer, 0, session.mesh)
    return session, state, *fit_stacked_heads(session, state)


def test_one_device_is_eight(stacking_config, prepared, tmp_path):
    found = []
    for devices in (1, 8):
        session, state, complete, completed = fit_to_nothing(stacking_config(), prepared, tmp_path, devices)
        assert complete.stacked_heads == ("colour",) and not session.stacked_heads
        assert int(completed.step) == int(state.step)
        found.append(to_host(completed.judged))
    for one, eight in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, eight, atol=2e-3)


@pytest.fixture
def given(monkeypatch):
    """What is fitted to: (what is seen, labels) of each head, in their order."""
    calls = []

    def fit(seen, labels, classes, *_, **__):
        calls.append((seen, labels))
        return empty_stacked_head(seen.shape[-1], classes)

    monkeypatch.setattr(stacked_heads, "fit_stacked_head", fit)
    return calls


def shop_without(tmp_path, keep) -> str:
    """A catalogue whose rows have a colour where `keep(number)` says so."""
    table = write_products(tmp_path / "shop", 120)
    lines = table.read_text().splitlines()
    kept = [line if keep(n) else line.rsplit(",", 1)[0] + "," for n, line in enumerate(lines[1:])]
    table.write_text("\n".join([lines[0], *kept]) + "\n")
    return str(table)


@pytest.mark.parametrize("most", [2**30, 0])
def test_rows_without_a_colour_are_left_out(stacking_config, tmp_path, given, monkeypatch, most):
    monkeypatch.setattr(stacked_heads, "_MOST_BYTES", most)
    source = shop_without(tmp_path, lambda number: number % 3 == 2)
    records = prepare(source, tmp_path / "records", progress=False)
    fit_to_nothing(stacking_config(data__source=str(records.folder)), records, tmp_path)
    labels = records.labels[records.indices("train"), records.attributes.index("colour")]
    ((seen, used),) = given
    assert len(seen) == len(used) == ((labels != MISSING).sum() if most else 1)
    assert (used != MISSING).all()


def test_what_is_seen_is_of_the_photo_and_its_mirror_image(stacking_config, prepared, tmp_path, given):
    session, state, *_ = fit_to_nothing(stacking_config(), prepared, tmp_path)
    ((seen, _),) = given
    photos = [decode_photo(prepared.read_photo(int(row)), 32, 24) for row in prepared.indices("train")[:3]]
    for view, images in enumerate((np.stack(photos), np.stack(photos)[:, :, ::-1].copy())):
        kind = log_softmax(session.evaluate_images(state, images).outputs.own_logits["kind"], -1)
        np.testing.assert_allclose(seen[:3, view, : kind.shape[1]], kind, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__colour_heads": ()},
        {"data__attributes": ("kind",)},
        {"model__colour_stacking": False},
    ],
)
def test_without_a_colour_head_or_a_wish_nothing_is_added(stacking_config, prepared, tmp_path, given, changes):
    session, state, complete, completed = fit_to_nothing(stacking_config(**changes), prepared, tmp_path)
    assert complete is session and completed is state and not given


def test_what_does_not_help_on_validation_rows_is_left_out(stacking_config, prepared, tmp_path, monkeypatch):
    def fit(seen, labels, classes, *_, **__):
        params, batch_stats = empty_stacked_head(seen.shape[-1], classes)
        random = np.random.default_rng(0)  # sure of what has nothing to do with the photo
        params["head"]["hidden"][0]["kernel"] = random.normal(size=params["head"]["hidden"][0]["kernel"].shape)
        params["head"]["output"]["kernel"] = random.normal(size=params["head"]["output"]["kernel"].shape)
        return jax.tree.map(np.float32, (params, batch_stats))

    monkeypatch.setattr(stacked_heads, "fit_stacked_head", fit)
    _, state, complete, completed = fit_to_nothing(stacking_config(), prepared, tmp_path)
    assert complete.stacked_heads == () and complete.arguments["stacked_heads"] == []
    for one, other in zip(*map(jax.tree.leaves, (state.judged, completed.judged)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_finished_run_can_have_them_later(runs, tmp_path, monkeypatch):
    workdir, config, _ = runs[False]
    shutil.copytree(workdir, tmp_path / "w")
    monkeypatch.setattr(experiment, "_run", None)  # no step is trained
    config = config_from_dict(config.to_dict())
    config.model.colour_stacking = True
    train(config, tmp_path / "w", progress=False)
    before, after = weights(runs[True][0]), weights(tmp_path / "w")
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)


def test_a_damaged_package_is_said_and_fitted_anew(runs, tmp_path, capsys):
    shutil.copytree(runs[True][0], tmp_path / "w")
    (tmp_path / "w/package/labels.json").write_text("{}")
    again = evaluate(tmp_path / "w", progress=True)
    assert "second heads are fitted anew" in capsys.readouterr().err
    assert again.summaries == runs[True][2].test.summaries


@pytest.mark.parametrize("value", [["kind"], ["colour", 3], "colour", None, [["colour"]]])
def test_stacked_heads_that_make_no_sense_are_refused(runs, tmp_path, value):
    shutil.copytree(runs[True][0] / "package", tmp_path / "p")
    config = json.loads((tmp_path / "p/config.json").read_text())
    config["model"]["stacked_heads"] = value
    (tmp_path / "p/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        load_model(tmp_path / "p")


def test_such_a_package_is_a_start_for_others(runs):
    loaded = load_pretrained(str(runs[True][0] / "package"))
    assert all(name.split("/")[1] == "backbone" for name in loaded.weights)
