"""Second heads of whole runs: fitted after training, packaged, found again, and never in the way of the rest."""

from __future__ import annotations

import json
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from scipy.special import log_softmax

from drawn_products import write_products
from fashion_jax.data.photos import decode_photo
from fashion_jax.data.prepare import prepare
from fashion_jax.data.schema import MISSING
from fashion_jax.models.pretrained import load_pretrained
from fashion_jax.run import second_heads
from fashion_jax.run import train as experiment
from fashion_jax.run.finish import package_outputs
from fashion_jax.run.resolve import resolve
from fashion_jax.run.second_heads import choose_weight, empty_second_head, fit_second_heads, restore_second_heads
from fashion_jax.run.session import Session
from fashion_jax.run.train import evaluate, train
from fashion_jax.serving.predictor import load_model
from fashion_jax.system.errors import UserError
from fashion_jax.training.checkpoint import Checkpoints
from fashion_jax.training.placement import to_host
from fashion_jax.training.state import create_state
from stepping import mesh_of


@pytest.fixture(scope="module")
def second_config(tiny_config):
    """Makes tiny configurations with second heads."""

    def make(**changes):
        return tiny_config(**{"model__colour_heads": ("auto",), "model__second_heads": ("colour",), **changes})

    return make


@pytest.fixture(scope="module")
def run(second_config, tmp_path_factory):
    """A finished run with second heads: workdir, configuration and result."""
    config = second_config(train__average_decay=0.5, data__test_time_flip=True)
    workdir = tmp_path_factory.mktemp("second") / "w"
    return workdir, config, train(config, workdir, progress=False)


def trained(run, prepared):
    """The run's session and its best checkpoint, as training left it."""
    workdir, config, result = run
    session = Session(resolve(config, prepared), prepared, workdir, progress=False)
    with Checkpoints(
        workdir / "checkpoints", metric="mean/accuracy", lower_is_better=False, read_only=True
    ) as checkpoints:
        assert checkpoints.best_step == result.best_step
        return session, checkpoints.restore(result.best_step, session.target)[0]


def weights(workdir) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(workdir / "package/weights.safetensors")


def test_the_rest_is_as_without(run, prepared):
    session, state = trained(run, prepared)
    tree = dict(zip(("params", "batch_stats"), to_host(state.scored), strict=True))
    own = {"/".join(map(str, path)): array for path, array in traverse_util.flatten_dict(tree).items()}
    packaged = weights(run[0])
    added = packaged.keys() - own.keys()
    assert added and all("/second/colour/" in name for name in added)
    for name, tensor in own.items():
        np.testing.assert_array_equal(tensor, packaged[name])
    before, after = session.evaluator("test", keep_outputs=True)(state), run[2].test
    for name in ("accuracy", "macro_f1", "count"):
        assert before.summaries["kind"][name] == after.summaries["kind"][name]
    np.testing.assert_allclose(before.outputs.logits["kind"], after.outputs.logits["kind"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(before.outputs.features, after.outputs.features, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(before.outputs.energies, after.outputs.energies, rtol=1e-5)
    assert np.abs(before.outputs.logits["colour"] - after.outputs.logits["colour"]).max() > 0.01
    assert after.summaries["colour"]["loss"] < before.summaries["colour"]["loss"]


@pytest.mark.parametrize("fitted_again", [False, True])
def test_evaluating_again_finds_the_same(run, tmp_path, monkeypatch, fitted_again):
    shutil.copytree(run[0], tmp_path / "w")
    if fitted_again:
        shutil.rmtree(tmp_path / "w/package")
    else:
        monkeypatch.setattr(second_heads, "fit_second_head", None)
    again = evaluate(tmp_path / "w", progress=False)
    assert again.summaries == run[2].test.summaries


def test_running_again_leaves_the_package_as_it_is(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "w")
    train(run[1], tmp_path / "w", progress=False)
    before, after = weights(run[0]), weights(tmp_path / "w")
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)


def test_the_package_predicts_what_was_scored(run, prepared):
    workdir, _, result = run
    model = load_model(workdir)
    assert model.package.model["second_heads"] == ["colour"]
    photos = np.stack([decode_photo(prepared.read_photo(int(row)), *model.size) for row in result.test.rows])
    found = model.predict_arrays(photos).probabilities
    for name, wanted in package_outputs(result.test, model.package.decision).probabilities.items():
        np.testing.assert_allclose(found[name], wanted, atol=1e-3)


def test_a_package_of_another_network_is_not_believed(run, prepared, tmp_path):
    session, state = trained(run, prepared)
    session.workdir = tmp_path
    other = create_state(session.arguments, session.optimizer, 1, session.mesh, averaged=True)
    assert restore_second_heads(session, state) is None  # no package at all
    shutil.copytree(run[0] / "package", tmp_path / "package")
    assert restore_second_heads(session, other) is None
    assert restore_second_heads(session, state) is not None
    session.config.model.second_heads = ("kind", "colour")
    assert restore_second_heads(session, state) is None  # the other was not tried for it


def fit_to_nothing(config, prepared, folder, devices: int = 1):
    """Fits second heads to a network that is not trained; returns what went in, and what comes out."""
    session = Session(resolve(config, prepared), prepared, folder, mesh=mesh_of(devices), progress=False)
    state = create_state(session.arguments, session.optimizer, 0, session.mesh)
    return session, state, *fit_second_heads(session, state)


def test_one_device_is_eight(second_config, prepared, tmp_path):
    found = []
    for devices in (1, 8):
        session, state, complete, completed = fit_to_nothing(second_config(), prepared, tmp_path, devices)
        assert complete.second_heads == ("colour",) and not session.second_heads
        assert int(completed.step) == int(state.step)
        found.append(to_host(completed.scored))
    for one, eight in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, eight, atol=2e-3)


@pytest.fixture
def given(monkeypatch):
    """What is fitted to: (what is seen, labels) of each head, in their order."""
    calls = []

    def fit(seen, labels, classes, *_, **__):
        calls.append((seen, labels))
        return empty_second_head(seen.shape[-1], classes)

    monkeypatch.setattr(second_heads, "fit_second_head", fit)
    return calls


def shop_without(tmp_path, keep) -> str:
    """A catalogue whose rows have a colour where `keep(number)` says so."""
    table = write_products(tmp_path / "shop", 120)
    lines = table.read_text().splitlines()
    kept = [line if keep(n) else line.rsplit(",", 1)[0] + "," for n, line in enumerate(lines[1:])]
    table.write_text("\n".join([lines[0], *kept]) + "\n")
    return str(table)


@pytest.mark.parametrize("most", [2**30, 0])
def test_rows_without_a_colour_are_left_out(second_config, tmp_path, given, monkeypatch, most):
    monkeypatch.setattr(second_heads, "_MOST_BYTES", most)
    source = shop_without(tmp_path, lambda number: number % 3 == 2)
    records = prepare(source, tmp_path / "records", progress=False)
    fit_to_nothing(second_config(data__source=str(records.folder)), records, tmp_path)
    labels = records.labels[records.indices("train"), records.attributes.index("colour")]
    ((seen, used),) = given
    assert len(seen) == len(used) == ((labels != MISSING).sum() if most else 1)
    assert (used != MISSING).all()


def test_what_is_seen_is_of_the_photo_and_its_mirror_image(second_config, prepared, tmp_path, given):
    session, state, *_ = fit_to_nothing(second_config(), prepared, tmp_path)
    ((seen, _),) = given
    photos = [decode_photo(prepared.read_photo(int(row)), 32, 24) for row in prepared.indices("train")[:3]]
    for view, images in enumerate((np.stack(photos), np.stack(photos)[:, :, ::-1].copy())):
        kind = log_softmax(session.evaluate_images(state, images).outputs.own_logits["kind"], -1)
        np.testing.assert_allclose(seen[:3, view, : kind.shape[1]], kind, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"data__attributes": ("kind",), "model__second_heads": ("auto",)},
        {"model__second_heads": ()},
        {"model__second_heads": (), "model__colour_heads": ()},
    ],
)
def test_without_a_colour_head_or_a_wish_nothing_is_added(second_config, prepared, tmp_path, given, changes):
    session, state, complete, completed = fit_to_nothing(second_config(**changes), prepared, tmp_path)
    assert complete is session and completed is state and not given


def test_what_does_not_help_on_validation_rows_is_left_out(second_config, prepared, tmp_path, monkeypatch):
    labels = prepared.labels[prepared.indices("validation"), prepared.attributes.index("colour")]
    counts = np.bincount(labels, minlength=4)
    assert counts.min() < len(labels) / 4

    def fit(seen, labels, classes, *_, **__):
        params, batch_stats = empty_second_head(seen.shape[-1], classes)
        params["head"]["output"]["bias"][counts.argmin()] = 50.0  # sure of what is seldom so
        return params, batch_stats

    monkeypatch.setattr(second_heads, "fit_second_head", fit)
    _, state, complete, completed = fit_to_nothing(second_config(), prepared, tmp_path)
    assert complete.second_heads == () and complete.arguments["second_heads"] == []
    for one, other in zip(*map(jax.tree.leaves, (state.scored, completed.scored)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_second_head_weighs_what_it_knows():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 2000)
    known = np.eye(3)[labels]
    good, poor = (log_softmax(sure * known + random.normal(size=known.shape), 1) for sure in (2.0, 0.5))
    weight, losses = choose_weight(good, poor, labels)
    assert 0 < weight < 0.5 and losses[weight] == min(losses.values()) < 0.99 * losses[0.0]
    assert choose_weight(poor, good, labels)[0] > 0.5
    assert choose_weight(good, log_softmax(random.normal(size=known.shape), 1), labels)[0] == 0
    assert choose_weight(good, good, labels)[0] == 0  # what gains nothing is left out


def test_a_finished_run_can_have_them_later(run, tmp_path, monkeypatch):
    shutil.copytree(run[0], tmp_path / "w")
    shutil.rmtree(tmp_path / "w/package")
    path = tmp_path / "w/config.json"
    path.write_text(re.sub(r'"second_heads": \[[^]]*\]', '"second_heads": []', path.read_text()))
    monkeypatch.setattr(experiment, "run_loop", None)  # no step is trained
    train(run[1], tmp_path / "w", progress=False)
    before, after = weights(run[0]), weights(tmp_path / "w")
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    assert json.loads(path.read_text())["model"]["second_heads"] == ["colour"]


def test_a_damaged_package_is_said_and_fitted_anew(run, tmp_path, capsys):
    shutil.copytree(run[0], tmp_path / "w")
    (tmp_path / "w/package/labels.json").write_text("{}")
    again = evaluate(tmp_path / "w", progress=True)
    assert "second heads are fitted again" in capsys.readouterr().err
    assert again.summaries == run[2].test.summaries


@pytest.mark.parametrize("value", [["kinds"], ["colour", 3], "colour", None, [["colour"]]])
def test_second_heads_that_make_no_sense_are_refused(run, tmp_path, value):
    shutil.copytree(run[0] / "package", tmp_path / "p")
    config = json.loads((tmp_path / "p/config.json").read_text())
    config["model"]["second_heads"] = value
    (tmp_path / "p/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        load_model(tmp_path / "p")


def test_such_a_package_is_a_start_for_others(run):
    loaded = load_pretrained(str(run[0] / "package"))
    assert {name.split("/")[1] for name in loaded.weights} == {"backbone", "colour"}  # and no head
