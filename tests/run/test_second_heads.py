"""Second heads of whole runs: fitted after training, packaged, found again, and never in the way of the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx, traverse_util
from scipy.special import log_softmax

from drawn_products import write_products
from fashion_jax.data.photos import decode_photo
from fashion_jax.data.prepare import prepare
from fashion_jax.data.schema import MISSING
from fashion_jax.models.classifier import merge_network
from fashion_jax.models.heads import SecondHead
from fashion_jax.models.pretrained import load_pretrained
from fashion_jax.run import second_heads
from fashion_jax.run import train as experiment
from fashion_jax.run.finish import package_outputs
from fashion_jax.run.resolve import resolve
from fashion_jax.run.second_heads import empty_second_head, fit_second_head, fit_second_heads
from fashion_jax.run.session import Session
from fashion_jax.run.train import evaluate, train
from fashion_jax.run.workdir import run_name
from fashion_jax.serving.predictor import load_model
from fashion_jax.system import stored
from fashion_jax.system.errors import UserError
from fashion_jax.training.checkpoint import Checkpoints
from fashion_jax.training.losses import HeadLoss
from fashion_jax.training.placement import to_host
from fashion_jax.training.state import create_state
from forging import set_at, sign
from stepping import mesh_of

SECOND = {"model__colour_heads": ("auto",), "model__second_heads": ("colour",)}


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    """A finished run with second heads: workdir, configuration and result."""
    config = tiny_config(**SECOND, train__average_decay=0.5, data__test_time_flip=True)
    workdir = tmp_path_factory.mktemp("second") / "w"
    return workdir, config, train(config, workdir, progress=False)


@pytest.fixture
def copied(run, tmp_path) -> Path:
    """The workdir of a copy of the run, which a test may change."""
    return shutil.copytree(run[0], tmp_path / "w")


def trained(run, prepared):
    """The run's session and its best checkpoint, as training left it."""
    workdir, config, result = run
    session = Session(resolve(config, prepared), prepared, workdir, progress=False)
    folder = workdir / "checkpoints"
    with Checkpoints(folder, metric="mean/accuracy", run=run_name(workdir), read_only=True) as checkpoints:
        assert checkpoints.best_step == result.best_step
        return session, checkpoints.restore(result.best_step, session.target)[0]


def weights(workdir) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(workdir / "package/weights.safetensors")


def assert_same(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_rest_is_as_without(run, prepared):
    session, state = trained(run, prepared)
    tree = dict(zip(("params", "batch_stats"), to_host(state.scored), strict=True))
    own = {"/".join(map(str, path)): array for path, array in traverse_util.flatten_dict(tree).items()}
    packaged = weights(run[0])
    added = packaged.keys() - own.keys()
    assert added and all("/second/colour/" in name for name in added)
    assert_same(own, {name: packaged[name] for name in own})
    before, after = session.evaluator("test", keep_outputs=True)(state), run[2].test
    for name in ("accuracy", "macro_f1", "count"):
        assert before.summaries["kind"][name] == after.summaries["kind"][name]
    np.testing.assert_allclose(before.outputs.logits["kind"], after.outputs.logits["kind"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(before.outputs.features, after.outputs.features, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(before.outputs.energies, after.outputs.energies, rtol=1e-5)
    assert np.abs(before.outputs.logits["colour"] - after.outputs.logits["colour"]).max() > 0.01
    assert after.summaries["colour"]["loss"] < before.summaries["colour"]["loss"]


def test_evaluating_and_running_again_find_the_same_without_a_fit(run, copied, monkeypatch):
    monkeypatch.setattr(second_heads, "fit_second_head", None)
    assert evaluate(copied, progress=False).summaries == run[2].test.summaries
    train(run[1], copied, progress=False)
    assert_same(weights(run[0]), weights(copied))


def test_the_package_predicts_what_was_scored_and_is_a_start_for_others(run, prepared):
    workdir, _, result = run
    model = load_model(workdir)
    assert model.package.model["second_heads"] == ["colour"]
    photos = np.stack([decode_photo(prepared.read_photo(int(row)), *model.size) for row in result.test.rows])
    found = model.predict_arrays(photos).probabilities
    for name, wanted in package_outputs(result.test, model.package.decision).probabilities.items():
        np.testing.assert_allclose(found[name], wanted, atol=1e-3)
    loaded = load_pretrained(str(workdir / "package"))
    assert {name.split("/")[1] for name in loaded.weights} == {"backbone", "colour"}  # and no head


def test_a_package_of_another_network_is_not_believed(run, prepared, tmp_path):
    session, state = trained(run, prepared)
    session.workdir = tmp_path
    other = create_state(session.arguments, session.optimizer, 1, session.mesh, averaged=True)
    assert second_heads.restore_second_heads(session, state) is None  # no package at all
    shutil.copytree(run[0] / "package", tmp_path / "package")
    assert second_heads.restore_second_heads(session, other) is None
    assert second_heads.restore_second_heads(session, state) is not None
    session.config.model.second_heads = ("kind", "colour")
    assert second_heads.restore_second_heads(session, state) is None  # the other was not tried for it


def fit_to_nothing(config, prepared, folder, devices: int = 1):
    """Fits second heads to a network that is not trained; returns what went in, and what comes out."""
    session = Session(resolve(config, prepared), prepared, folder, mesh=mesh_of(devices), progress=False)
    state = create_state(session.arguments, session.optimizer, 0, session.mesh)
    return session, state, *fit_second_heads(session, state)


def test_one_device_is_eight(tiny_config, prepared, tmp_path):
    found = []
    for devices in (1, 8):
        session, state, complete, completed = fit_to_nothing(tiny_config(**SECOND), prepared, tmp_path, devices)
        assert complete.second_heads == ("colour",) and not session.second_heads
        assert int(completed.step) == int(state.step)
        found.append(to_host(completed.scored))
    jax.tree.map(lambda one, eight: np.testing.assert_allclose(one, eight, atol=2e-3), *found)


@pytest.fixture
def given(monkeypatch):
    """What is fitted to: (what is seen, labels) of each head, in their order."""
    calls = []

    def fit(seen, labels, classes, *_, **__):
        calls.append((seen, labels))
        return empty_second_head(seen.shape[-1], classes)

    monkeypatch.setattr(second_heads, "fit_second_head", fit)
    return calls


@pytest.mark.parametrize("most", [2**30, 0])
def test_rows_without_a_colour_are_left_out(tiny_config, tmp_path, given, monkeypatch, most):
    monkeypatch.setattr(second_heads, "_MOST_BYTES", most)
    table = write_products(tmp_path / "shop", 120)
    header, *lines = table.read_text().splitlines()
    kept = [line if number % 3 == 2 else line.rsplit(",", 1)[0] + "," for number, line in enumerate(lines)]
    table.write_text("\n".join([header, *kept]) + "\n")
    records = prepare(table, tmp_path / "records", progress=False)
    fit_to_nothing(tiny_config(**SECOND, data__source=str(records.folder)), records, tmp_path)
    labels = records.labels[records.indices("train"), records.attributes.index("colour")]
    ((seen, used),) = given
    assert len(seen) == len(used) == ((labels != MISSING).sum() if most else 1)
    assert (used != MISSING).all()


def test_what_is_seen_is_of_the_photo_and_its_mirror_image(tiny_config, prepared, tmp_path, given):
    session, state, *_ = fit_to_nothing(tiny_config(**SECOND), prepared, tmp_path)
    ((seen, _),) = given
    photos = np.stack([decode_photo(prepared.read_photo(int(row)), 32, 24) for row in prepared.indices("train")[:3]])
    for view, images in enumerate((photos, photos[:, :, ::-1].copy())):
        kind = log_softmax(session.evaluate_images(state, images).outputs.own_logits["kind"], -1)
        np.testing.assert_allclose(seen[:3, view, : kind.shape[1]], kind, atol=1e-3)


@pytest.mark.parametrize(
    "changes", [{"data__attributes": ("kind",), "model__second_heads": ("auto",)}, {"model__second_heads": ()}]
)
def test_without_a_colour_head_or_a_wish_nothing_is_added(tiny_config, prepared, tmp_path, given, changes):
    session, state, complete, completed = fit_to_nothing(tiny_config(**{**SECOND, **changes}), prepared, tmp_path)
    assert complete is session and completed is state and not given


def test_what_does_not_help_on_validation_rows_is_left_out(tiny_config, prepared, tmp_path, monkeypatch):
    labels = prepared.labels[prepared.indices("validation"), prepared.attributes.index("colour")]
    counts = np.bincount(labels, minlength=4)
    assert counts.min() < len(labels) / 4

    def fit(seen, labels, classes, *_, **__):
        params, batch_stats = empty_second_head(seen.shape[-1], classes)
        params["head"]["output"]["bias"][counts.argmin()] = 50.0  # sure of what is seldom so
        return params, batch_stats

    monkeypatch.setattr(second_heads, "fit_second_head", fit)
    _, state, complete, completed = fit_to_nothing(tiny_config(**SECOND), prepared, tmp_path)
    assert complete.second_heads == () and complete.arguments["second_heads"] == []
    assert_same(state.scored, completed.scored)


def test_a_second_head_weighs_what_it_knows():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 2000)
    known = np.eye(3)[labels]
    good, poor = (log_softmax(sure * known + random.normal(size=known.shape), 1) for sure in (2.0, 0.5))
    weight, losses = second_heads.choose_weight(good, poor, labels)
    assert 0 < weight < 0.5 and losses[weight] == min(losses.values()) < 0.99 * losses[0.0]
    assert second_heads.choose_weight(poor, good, labels)[0] > 0.5
    assert second_heads.choose_weight(good, log_softmax(random.normal(size=known.shape), 1), labels)[0] == 0
    assert second_heads.choose_weight(good, good, labels)[0] == 0  # what gains nothing is left out


def test_a_finished_run_can_have_them_later(run, copied, monkeypatch):
    shutil.rmtree(copied / "package")
    path = copied / "config.json"
    values = stored.read_document(path, remedy="")
    values["model"]["second_heads"] = []
    stored.write_document(path, values)
    monkeypatch.setattr(experiment, "run_loop", None)  # no step is trained
    train(run[1], copied, progress=False)
    assert_same(weights(run[0]), weights(copied))
    assert json.loads(path.read_text())["model"]["second_heads"] == ["colour"]


def test_a_damaged_package_is_said_and_fitted_anew(run, copied, capsys):
    (copied / "package/labels.json").write_text("{}")
    again = evaluate(copied, progress=True)
    assert "second heads are fitted again" in capsys.readouterr().err
    assert again.summaries == run[2].test.summaries


@pytest.mark.parametrize("value", [["kinds"], ["colour", 3], "colour", None, [["colour"]]])
def test_second_heads_that_make_no_sense_are_refused(copied, value):
    config = json.loads((copied / "package/config.json").read_text())
    set_at(config, "model.second_heads", value)
    (copied / "package/config.json").write_text(json.dumps(config))
    sign(copied / "package")
    with pytest.raises(UserError, match=r"cannot build|damaged \("):
        load_model(copied)


# One second head -------------------------------------------------------------------------------------------------


def drawn(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows in two views whose class shows in one of the inputs, of any scale; the last input says nothing."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, rows).astype(np.int32)
    seen = random.normal(size=(rows, 2, 6)).astype(np.float32)
    seen[:, :, 0] += 4 * labels[:, None]
    seen[:, :, 1] = 1000 + 50 * seen[:, :, 1]
    seen[:, :, 5] = 7.0
    return seen, labels


SMOOTHED = HeadLoss(smoothing=0.1)


def fit(seen: np.ndarray, labels: np.ndarray, loss=SMOOTHED, seed: int = 0):
    return fit_second_head(seen, labels, 3, loss, seed=seed, progress=False)


def predict(fitted, seen: np.ndarray) -> np.ndarray:
    graph = nnx.graphdef(nnx.eval_shape(lambda: SecondHead(seen.shape[-1], 3, rngs=nnx.Rngs(0))))
    return np.asarray(merge_network(graph, *fitted)(seen))


def test_it_learns_what_its_inputs_say_of_other_rows():
    fitted = fit(*drawn(600))
    seen, labels = drawn(300, seed=1)
    for view in (0, 1):
        logits = predict(fitted, seen[:, view])
        assert logits.shape == (300, 3) and logits.dtype == np.float32
        assert (logits.argmax(1) == labels).mean() > 0.9


def test_inputs_are_normalised_by_their_own_statistics():
    seen, labels = drawn(100)
    params, batch_stats = fitted = fit(seen, labels)
    np.testing.assert_allclose(batch_stats["norm"]["mean"], seen.reshape(-1, 6).mean(0), rtol=1e-4)
    np.testing.assert_allclose(batch_stats["norm"]["var"], seen.reshape(-1, 6).var(0), rtol=1e-3, atol=1e-6)
    assert (params["norm"]["scale"] == 1).all() and (params["norm"]["bias"] == 0).all()
    assert np.isfinite(predict(fitted, seen[:, 0] + 1)).all()  # an input that never changed, changed
    empty = empty_second_head(6, 3)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), fitted) == jax.tree.map(lambda a: (a.shape, a.dtype), empty)


@pytest.mark.parametrize("rows", [1, 5, 300])
def test_rows_without_a_label_teach_nothing(rows):
    seen, labels = drawn(rows)
    alone = fit(seen, labels)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(alone))
    mixed = fit(np.concatenate([seen, seen]), np.append(labels, [MISSING] * rows))
    # The statistics are of all rows, in another order.
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4), alone, mixed)


@pytest.mark.parametrize("number", range(3))
def test_the_attributes_own_loss_is_used(number):
    seen, labels = drawn(300)
    weights = np.where(np.arange(3) == number, 100.0, 0.01).astype(np.float32)
    said = predict(fit(seen, labels, HeadLoss(class_weights=weights)), seen[:, 0]).argmax(1)
    assert (said == number).mean() > (labels == number).mean() + 0.1


def test_the_seed_decides_and_every_view_counts():
    seen, labels = drawn(300)
    first, again, other = (fit(seen, labels, seed=seed) for seed in (0, 0, 1))
    assert_same(first, again)
    assert any(np.abs(a - b).max() > 0 for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True))
    # Where only one of the views shows the class, half of what is seen is of no use, and both are asked.
    seen[:, 1, 0] = seen[::-1, 1, 0]
    halved = fit(seen, labels)
    right = [(predict(halved, seen[:, view]).argmax(1) == labels).mean() for view in (0, 1)]
    assert right[0] > right[1] + 0.2
    spread = [np.ptp(predict(f, seen[:, 0]), axis=1).mean() for f in (first, halved)]
    assert spread[1] < spread[0]
