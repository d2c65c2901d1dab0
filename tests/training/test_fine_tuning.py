"""Fine-tuning: what is frozen stays, what is trained later begins then, and runs start from weights of others."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import types
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from drawn_products import write_products
from drawn_weights import write_hub_folder
from fashion_jax.config.fields import OptimizerConfig
from fashion_jax.config.files import config_from_dict, set_value
from fashion_jax.data.loader import StreamedPhotos, training_batches
from fashion_jax.data.records import open_prepared
from fashion_jax.run import train as experiment
from fashion_jax.run.resolve import fill_in
from fashion_jax.run.session import Session
from fashion_jax.run.start import adopt_pretrained, ever_trained_on, prepare_pretrained
from fashion_jax.run.train import evaluate, train
from fashion_jax.run.workdir import trained_on
from fashion_jax.serving.predictor import load_model
from fashion_jax.system.errors import Interrupted, UserError
from fashion_jax.training.fine_tuning import FineTuning, parameter_paths, plan_fine_tuning
from fashion_jax.training.optimizer import make_optimizer
from fashion_jax.training.placement import put_batch
from fashion_jax.training.state import create_state, initial_state
from stepping import StopAt

BLOCKS = "backbone/stages/0/0/layers/0"
PATHS = (
    "backbone/stem/0/conv/kernel", "backbone/stem/0/norm/scale", f"{BLOCKS}/conv/kernel", f"{BLOCKS}/norm/bias",
    "backbone/stages/0/1/layers/0/conv/kernel", "backbone/stages/1/0/layers/0/conv/kernel",
    "heads/colour/output/kernel", "heads/kind/output/bias",
)  # fmt: skip
NORMS = ("backbone/stem/0/norm", f"{BLOCKS}/norm")


def plan(**changes) -> FineTuning:
    config = OptimizerConfig(**changes)
    return plan_fine_tuning(config, PATHS, norms=NORMS, resolve=lambda text: int(text.split()[0]))


def test_patterns_durations_and_rates():
    assert plan() == FineTuning()
    assert plan(freeze=("backbone/stem",)).frozen == set(PATHS[:2])
    assert plan(freeze=("*/kernel",)).frozen == {p for p in PATHS if p.endswith("kernel")}
    assert plan(freeze_batch_norm=True).frozen == {PATHS[1], PATHS[3]}
    # The first pattern counts, and what starts at once is as if it had not been named.
    starts = plan(unfreeze={"backbone/stages/1": "0 steps", "backbone/stages": "2 steps", "backbone": "5 steps"}).starts
    assert starts == {PATHS[0]: 5, PATHS[1]: 5, PATHS[2]: 2, PATHS[3]: 2, PATHS[4]: 2}
    assert plan(multipliers={"heads/colour/*": 10.0, "heads": 2.0}).factors == {PATHS[6]: 10.0, PATHS[7]: 2.0}
    assert plan(multipliers={"*": 1.0}) == FineTuning()
    # timm's layers: the stem, three blocks, the heads.
    factors = plan(layer_decay=0.5, multipliers={"heads/kind": 3.0}).factors
    assert [factors.get(path, 1) for path in PATHS] == [1 / 16, 1 / 16, 1 / 8, 1 / 8, 1 / 4, 1 / 2, 1, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ("backbone/stm/*",)}, r"freeze: the pattern .* matches no parameter; did you mean 'backbone/stem"),
        ({"multipliers": {"x": 2.0}}, "multipliers: the pattern 'x' matches no parameter.*heads/kind/output/bias"),
        ({"unfreeze": {"x": "1 steps"}}, "unfreeze: the pattern 'x'"),
        ({"multipliers": {"heads": 2.0, "heads/kind": 3.0}}, "'heads/kind' matches nothing that an earlier pattern"),
        ({"freeze": ("backbone",), "unfreeze": {"*/kernel": "3 steps"}}, "both match backbone/stages/0/0"),
        ({"freeze": ("*",)}, "nothing is left to train"),
    ],
)  # fmt: skip
def test_patterns_that_say_nothing_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        plan(**changes)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("optimizer.multipliers", "heads/*:0", r"multipliers\[heads/\*\]"),
        ("optimizer.layer_decay", "1.5", "layer_decay"),
        ("optimizer.unfreeze", "backbone/*:later", r"unfreeze\[backbone/\*\]='later' is no duration"),
    ],
)
def test_values_out_of_range_get_a_sentence(tiny_config, key, text, message):
    config = tiny_config()
    with pytest.raises(UserError, match=message):
        set_value(config, key, text)
        config.validate()


def test_the_command_line_sets_patterns(tiny_config):
    config = tiny_config()
    set_value(config, "optimizer.unfreeze", "backbone/stages/*:2 epochs, backbone/*:50 percent")
    set_value(config, "optimizer.multipliers", "heads/*:10")
    set_value(config, "optimizer.freeze", "backbone/stem/*,*/norm/*")
    assert config.optimizer.unfreeze == {"backbone/stages/*": "2 epochs", "backbone/*": "50 percent"}
    assert config.optimizer.multipliers == {"heads/*": 10.0}
    assert config.optimizer.freeze == ("backbone/stem/*", "*/norm/*")


PARAMS = {"backbone": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "heads": {"kernel": jnp.full((2, 2), 2.0)}}


def follow(config: OptimizerConfig, plan: FineTuning, schedule, steps: int, params=PARAMS):
    """Returns the updates of each step, for gradients that change from step to step."""
    optimizer = make_optimizer(config, schedule, plan)
    state, found = optimizer.init(params), []
    for step in range(steps):
        rng = np.random.default_rng(step)
        gradients = jax.tree.map(lambda p, rng=rng: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
        gradients = jax.grad(lambda p, g=gradients, s=step: optax.tree.vdot(plan.hold(p, jnp.asarray(s)), g))(params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        found.append(updates)
    return found, state, params


def rate(step):
    return 0.1 / (1 + step)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_frozen_parameters_stay_and_the_rest_is_as_alone(name):
    config = OptimizerConfig(name=name, weight_decay=0.1, clip_norm=0.5)
    frozen = FineTuning(frozen=frozenset(parameter_paths(PARAMS)[:2]))
    _, state, after = follow(config, frozen, rate, 4)
    assert np.array_equal(after["backbone"]["kernel"], PARAMS["backbone"]["kernel"])
    alone = make_optimizer(config, rate)
    params = {"heads": PARAMS["heads"]}
    alone_state = alone.init(params)
    for step in range(4):
        rng = np.random.default_rng(step)
        everything = jax.tree.map(lambda p, rng=rng: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS)
        updates, alone_state = alone.update({"heads": everything["heads"]}, alone_state, params)
        params = optax.apply_updates(params, updates)
    assert np.array_equal(params["heads"]["kernel"], after["heads"]["kernel"])  # clipped by its own norm, too
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert size(state) == size(alone_state)  # no moments are kept of what is frozen


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_what_is_trained_later_is_frozen_before_and_begins_as_at_a_first_step(name):
    config = OptimizerConfig(name=name, weight_decay=0.1)
    paths = parameter_paths(PARAMS)
    later, _, _ = follow(config, FineTuning(starts=dict.fromkeys(paths[:2], 3)), rate, 6)
    frozen, _, _ = follow(config, FineTuning(frozen=frozenset(paths[:2])), rate, 6)
    for a, b in zip(later[:3], frozen[:3], strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    for a, b in zip(later, frozen, strict=True):
        assert np.array_equal(a["heads"]["kernel"], b["heads"]["kernel"])
    fresh = make_optimizer(config, lambda step: rate(step + 3))
    params = PARAMS["backbone"]
    state = fresh.init(params)
    for step in range(3, 6):
        rng = np.random.default_rng(step)
        gradients = jax.tree.map(lambda p, rng=rng: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS)
        updates, state = fresh.update(gradients["backbone"], state, params)
        params = optax.apply_updates(params, updates)
        for key in updates:
            np.testing.assert_allclose(later[step]["backbone"][key], updates[key], rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_a_multiplier_is_another_rate(name):
    config = OptimizerConfig(name=name, weight_decay=0.1)
    paths = parameter_paths(PARAMS)
    plain, _, _ = follow(config, FineTuning(), rate, 1)
    half, _, _ = follow(config, FineTuning(factors=dict.fromkeys(paths[:2], 0.5)), rate, 1)
    slow, _, _ = follow(config, FineTuning(), lambda step: 0.5 * rate(step), 1)
    assert np.array_equal(half[0]["heads"]["kernel"], plain[0]["heads"]["kernel"])
    assert np.array_equal(half[0]["backbone"]["kernel"], slow[0]["backbone"]["kernel"])
    assert not np.array_equal(slow[0]["backbone"]["kernel"], plain[0]["backbone"]["kernel"])


# Whole steps -----------------------------------------------------------------------------------------------------


def session_of(config, prepared, workdir, devices: int = 8) -> Session:
    mesh = jax.make_mesh(
        (devices,), ("data",), devices=jax.devices()[:devices], axis_types=(jax.sharding.AxisType.Auto,)
    )
    return Session(fill_in(config, prepared), prepared, workdir, mesh=mesh, progress=False)


def steps_of(session: Session, steps: int):
    """Returns the first state and the last, on the host, and the losses."""
    state = create_state(session.arguments, session.optimizer, 0, session.mesh, averaged=session.averaged)
    before, step, losses = jax.device_get(state), session.train_step(), []
    photos = StreamedPhotos(session.prepared, session.config.data.height, session.config.data.width)
    size = session.config.train.batch_size
    for batch in islice(training_batches(session.prepared, photos, batch_size=size, seed=0), steps):
        state, metrics = step(state, put_batch(batch, session.mesh))
        losses.append(float(metrics["loss"]))
    return before, jax.device_get(state), losses


def moved(before, after) -> set[str]:
    paths = parameter_paths(before)
    pairs = zip(paths, jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return {path for path, a, b in pairs if not np.array_equal(a, b)}


FINE = {
    "optimizer__freeze": ("backbone/stem/*", "backbone/stages/0"),
    "optimizer__unfreeze": {"backbone/stages/1/*": "3 steps"},
    "optimizer__multipliers": {"heads/*": 3.0},
    "optimizer__layer_decay": 0.8,
    "optimizer__freeze_batch_norm": True,
    "optimizer__warmup": "0 steps",
    "optimizer__clip_norm": 1.0,
    "train__average_decay": 0.9,
}


def test_a_step_moves_what_it_should_to_the_bit(tiny_config, prepared, tmp_path):
    config = tiny_config(**FINE)
    session = session_of(config, prepared, tmp_path)
    before, three, losses = steps_of(session, 3)
    _, four, _ = steps_of(session, 4)
    kernels = {p for p in parameter_paths(before.params) if not p.endswith(("scale", "bias")) or "heads" in p}
    later = {p for p in kernels if p.startswith("backbone/stages/1/")}
    never = {p for p in kernels if p.startswith(("backbone/stem/", "backbone/stages/0/"))}
    assert later
    assert never
    for name in ("params", "average"):
        start, third, fourth = (getattr(state, name) for state in (before, three, four))
        if name == "average":
            start, third, fourth = start["params"], third["params"], fourth["params"]
        assert moved(start, third) == kernels - later - never
        assert moved(start, fourth) == kernels - never
    assert moved(before.batch_stats, four.batch_stats) == set()
    # Up to there it is the run in which they are frozen for good.
    frozen = dataclasses.replace(
        config.optimizer, unfreeze={}, freeze=(*config.optimizer.freeze, "backbone/stages/1/*")
    )
    config.optimizer = frozen
    _, same, again = steps_of(session_of(config, prepared, tmp_path), 3)
    assert again == losses
    assert moved(three.params, same.params) == set()


def test_one_device_is_eight(tiny_config, prepared, tmp_path):
    config = tiny_config(**FINE)
    _, _, one = steps_of(session_of(config, prepared, tmp_path, 1), 4)
    _, _, eight = steps_of(session_of(config, prepared, tmp_path, 8), 4)
    assert one == pytest.approx(eight, rel=1e-5)
    assert len(set(one)) == 4


def test_without_frozen_batch_norm_statistics_move(tiny_config, prepared, tmp_path):
    config = tiny_config(optimizer__freeze=("backbone/*",), optimizer__warmup="0 steps")
    before, after, _ = steps_of(session_of(config, prepared, tmp_path), 1)
    assert {path.split("/")[0] for path in moved(before.params, after.params)} == {"heads"}
    assert moved(before.batch_stats, after.batch_stats) == set(parameter_paths(before.batch_stats))


def test_what_is_frozen_costs_no_backward_pass(tiny_config, prepared, tmp_path):
    def flops(**changes) -> float:
        session = session_of(tiny_config(**changes), prepared, tmp_path, 1)
        state = jax.eval_shape(lambda: initial_state(session.arguments, session.optimizer, 0))
        photos = StreamedPhotos(prepared, 32, 24)
        batch = put_batch(dict(next(iter(training_batches(prepared, photos, batch_size=16, seed=0)))), session.mesh)
        return session.train_step().lower(state, batch).cost_analysis()["flops"]

    whole, frozen = flops(), flops(optimizer__freeze=("backbone/*",))
    assert frozen < 0.5 * whole
    assert frozen < flops(optimizer__freeze=("backbone/stem/*", "backbone/stages/0", "backbone/stages/1")) < whole


# Whole runs ------------------------------------------------------------------------------------------------------


def weights(workdir: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(workdir / "package" / "weights.safetensors")


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def run_config(tiny_config, folder: Path, **changes):
    """`tiny_config` left at the default width, which the pretrained weights replace."""
    return tiny_config(model__pretrained=str(folder), model__width=64, **changes)


@pytest.fixture(scope="module")
def fine_tuned(tiny_config, tmp_path_factory):
    """A finished run from a folder of the Hub's layout, its configuration and the folder's state dict."""
    folder = tmp_path_factory.mktemp("fine")
    state = write_hub_folder(folder / "hub")
    config = run_config(tiny_config, folder / "hub", **FINE)
    return folder / "w", config, state, train(config, folder / "w", progress=False)


def test_a_hub_layout_folder_starts_a_run(fine_tuned, tmp_path):
    workdir, _, state, result = fine_tuned
    recorded = config_from_dict(json.loads((workdir / "config.json").read_text()))
    model, data = recorded.model, recorded.data
    assert (model.depth, model.width, model.stem) == (10, 4, "imagenet")
    assert (data.mean, data.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    found = weights(workdir)
    assert np.array_equal(found["params/backbone/stem/0/conv/kernel"], state["conv1.weight"].transpose(2, 3, 1, 0))
    later = found["params/backbone/stages/2/0/layers/0/conv/kernel"]
    assert not np.array_equal(later, state["layer3.0.conv1.weight"].transpose(2, 3, 1, 0))
    assert np.array_equal(found["batch_stats/backbone/stages/2/0/layers/0/norm/var"], state["layer3.0.bn1.running_var"])
    assert load_model(workdir).package.preprocessing["mean"] == [0.4, 0.5, 0.6]
    assert evaluate(workdir, progress=False).summaries == result.test.summaries


def test_a_folder_of_transformers_layout_starts_a_run(tiny_config, tmp_path):
    state = write_hub_folder(tmp_path / "hub", layout="transformers")
    config = run_config(tiny_config, tmp_path / "hub", train__duration="2 steps", optimizer__freeze=("backbone",))
    train(config, tmp_path / "w", progress=False)
    kernel = state["resnet.encoder.stages.3.layers.0.layer.1.convolution.weight"]
    name = "params/backbone/stages/3/0/layers/1/conv/kernel"
    assert np.array_equal(weights(tmp_path / "w")[name], kernel.transpose(2, 3, 1, 0))
    assert load_model(tmp_path / "w").package.preprocessing["std"] == [0.2, 0.3, 0.4]


@pytest.mark.parametrize("stop", [2, 5])
def test_resumed_without_the_source_is_uninterrupted(fine_tuned, tiny_config, tmp_path, monkeypatch, stop):
    write_hub_folder(tmp_path / "hub")
    config = run_config(tiny_config, tmp_path / "hub", **FINE)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "stop_on_signals", lambda **_: nullcontext(StopAt(stop)))
        with pytest.raises(Interrupted):
            train(config, tmp_path / "w", progress=False)
    shutil.rmtree(tmp_path / "hub")
    (tmp_path / "w/pretrained/backbone.safetensors").unlink()
    train(config, tmp_path / "w", progress=False)
    assert same(weights(fine_tuned[0]), weights(tmp_path / "w"))


def test_other_weights_are_refused_in_a_run_that_has_begun(fine_tuned, tiny_config, tmp_path):
    write_hub_folder(tmp_path / "other", seed=1)
    shutil.copytree(fine_tuned[0], tmp_path / "w")
    for config in (tiny_config(), run_config(tiny_config, tmp_path / "other", **FINE)):
        with pytest.raises(UserError, match=r"model\.pretrained was"):
            train(config, tmp_path / "w", progress=False)


def test_a_folder_that_is_not_of_a_run_is_left_alone(tiny_config, tmp_path):
    workdir = tmp_path / "w"
    write_hub_folder(workdir / "pretrained")
    config = run_config(tiny_config, workdir / "pretrained")
    with pytest.raises(UserError, match="is in the way"):
        train(config, workdir, progress=False)
    prepare_pretrained(tiny_config(), workdir, progress=False)
    assert sorted(path.name for path in (workdir / "pretrained").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__depth": 34}, r"model\.depth=34 does not fit .* set config\.model\.depth=10"),
        ({"model__width": 8}, r"model\.width=8 .* set config\.model\.width=4"),
        ({"model__stem": "small"}, r"set config\.model\.stem='imagenet'"),
    ],
)
def test_what_does_not_fit_the_weights_says_what_to_set(tiny_config, tmp_path, changes, message):
    write_hub_folder(tmp_path / "hub")
    config = tiny_config(model__pretrained=str(tmp_path / "hub"), **{"model__width": 64, **changes})
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "w", progress=False)
    assert not (tmp_path / "w/pretrained").exists()


def test_our_own_package_starts_a_run_on_another_catalogue(fine_tuned, tiny_config, tmp_path):
    workdir = fine_tuned[0]
    table = write_products(tmp_path / "shop", 90, seed=5)
    table.write_text(table.read_text().replace("yellow", "red").replace("kind", "shape"))
    # The workdir stands for its package; other heads, other classes, another size of the photos.
    config = run_config(tiny_config, workdir, data__source=str(table), data__height=48, data__width=40)
    config.train.duration, config.optimizer.freeze, config.optimizer.freeze_batch_norm = (
        "2 steps",
        ("backbone/*",),
        True,
    )
    result = train(config, tmp_path / "w", progress=False)
    assert set(result.test.summaries) == {"shape", "colour"}
    before, after = weights(workdir), weights(tmp_path / "w")
    backbone = [name for name in before if "/backbone/" in name]
    assert len(backbone) > 50
    assert all(np.array_equal(before[name], after[name]) for name in backbone)
    recorded = config_from_dict(json.loads((tmp_path / "w/config.json").read_text()))
    assert recorded.model.width == 4
    assert recorded.data.mean == (0.4, 0.5, 0.6)


def test_a_run_knows_what_the_network_that_it_began_with_was_trained_on(fine_tuned, tiny_config, tmp_path, capsys):
    # Weights of others know no product.
    assert ever_trained_on(fine_tuned[0]) == trained_on(fine_tuned[0]) != set()
    table = write_products(tmp_path / "shop", 90, seed=5)

    def run(name: str, begin: Path, split_seed: int) -> tuple[Path, str]:
        config = run_config(tiny_config, begin, data__source=str(table), data__split_seed=split_seed)
        config.train.duration = "2 steps"
        train(config, tmp_path / name)
        return tmp_path / name, capsys.readouterr().err

    first, _ = run("first", Path(fine_tuned[1].model.pretrained), 0)
    second, said = run("second", first, 0)
    assert ever_trained_on(second) == ever_trained_on(first) and "scores are too good" not in said
    third, said = run("third", first, 1)
    records = open_prepared(third / "records")
    known = trained_on(first).intersection(map(str, records.ids[records.indices("test")]))
    assert known and f"{len(known)} products of the test split have ids of training products of {first}" in said
    assert ever_trained_on(third) == ever_trained_on(first) | trained_on(third)
    shutil.copytree(first / "package", tmp_path / "elsewhere")  # which does not say
    last, said = run("last", tmp_path / "elsewhere", 1)
    assert ever_trained_on(last) is None and "scores are too good" not in said


def test_the_power_of_gem_comes_along_from_our_own_package(tiny_config, tmp_path):
    train(tiny_config(model__pooling="gem", train__duration="3 steps"), tmp_path / "gem", progress=False)
    config = run_config(tiny_config, tmp_path / "gem", train__duration="2 steps", optimizer__freeze=("backbone",))
    train(config, tmp_path / "w", progress=False)
    before, after = weights(tmp_path / "gem"), weights(tmp_path / "w")
    name = "params/backbone/gem/0/power"
    assert before[name] != 3 and np.array_equal(before[name], after[name])
    assert json.loads((tmp_path / "w/config.json").read_text())["model"]["pooling"] == "gem"


def test_what_colour_heads_see_comes_along_where_it_is_the_same(tiny_config, tmp_path, capsys):
    with_heads = {"model__colour_heads": ("colour",), "optimizer__freeze": ("backbone", "colour")}
    train(tiny_config(train__duration="3 steps", model__colour_heads=("colour",)), tmp_path / "seen", progress=False)
    before = weights(tmp_path / "seen")
    names = [name for name in before if name.startswith("params/colour/")]
    assert len(names) == 5
    train(run_config(tiny_config, tmp_path / "seen", train__duration="2 steps", **with_heads), tmp_path / "w")
    assert "frozen parameters are not in the pretrained" not in capsys.readouterr().err
    after = weights(tmp_path / "w")
    assert all(np.array_equal(before[name], after[name]) for name in names)
    without = run_config(tiny_config, tmp_path / "seen", train__duration="2 steps")
    train(without, tmp_path / "without", progress=False)
    assert not any("/colour/0" in name for name in weights(tmp_path / "without"))


def test_a_run_without_a_package_and_a_damaged_package(fine_tuned, tiny_config, tmp_path):
    (tmp_path / "unfinished/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="has not finished"):
        train(run_config(tiny_config, tmp_path / "unfinished"), tmp_path / "w", progress=False)
    package = tmp_path / "package"
    shutil.copytree(fine_tuned[0] / "package", package)
    path = package / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match="damaged or was changed"):
        train(run_config(tiny_config, package), tmp_path / "w", progress=False)
    (package / "config.json").unlink()
    with pytest.raises(UserError, match=r"not beside its config\.json"):
        train(run_config(tiny_config, path), tmp_path / "w", progress=False)


def test_pretrained_weights_are_the_same_on_any_mesh_and_in_the_average(tiny_config, prepared, tmp_path):
    session = session_of(tiny_config(train__average_decay=0.9), prepared, tmp_path)
    name = "params/backbone/stem/0/conv/kernel"
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
    for devices in (1, 8):
        mesh = session_of(tiny_config(), prepared, tmp_path, devices).mesh
        state = create_state(session.arguments, session.optimizer, 0, mesh, averaged=True, pretrained={name: kernel})
        drawn = create_state(session.arguments, session.optimizer, 0, mesh, averaged=True)
        for params in (state.params, state.average["params"]):
            assert np.array_equal(params["backbone"]["stem"][0]["conv"]["kernel"], kernel)
        assert moved(jax.device_get(drawn.params), jax.device_get(state.params)) == {name.removeprefix("params/")}
        assert all(len(leaf.sharding.device_set) == devices for leaf in jax.tree.leaves(state))


def test_a_model_of_the_library_is_pretrained_by_its_name(tiny_config, tmp_path, capsys):
    config = tiny_config(model__pretrained="small")
    config.model.width, config.model.depth = 32, 18
    prepare_pretrained(config, tmp_path)
    assert "ResNet-18" in capsys.readouterr().err
    born = adopt_pretrained(config, tmp_path)
    assert (born.model.depth, born.model.width, born.model.pooling) == (18, 32, "gem")
    (tmp_path / "checkpoints/step_1").mkdir(parents=True)
    prepare_pretrained(config, tmp_path, progress=False)


def test_the_hub_is_asked_at_birth_alone(tiny_config, tmp_path, monkeypatch, capsys):
    state, workdir = write_hub_folder(tmp_path / "snapshot"), tmp_path / "w"
    hub = types.SimpleNamespace(snapshot_download=lambda **_: str(tmp_path / "snapshot"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    config = tiny_config(model__pretrained="owner/name@main", model__width=64)
    prepare_pretrained(config, workdir)
    assert "owner/name@main: ResNet-10" in capsys.readouterr().err
    born = adopt_pretrained(config, workdir)
    kept = safetensors.numpy.load_file(workdir / "pretrained/backbone.safetensors")
    assert np.array_equal(kept["params/backbone/stem/0/norm/scale"], state["bn1.weight"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"fashion-jax\[hub\]"):  # nothing is saved yet: this is another birth
        prepare_pretrained(config, workdir, progress=False)
    (workdir / "checkpoints/step_1").mkdir(parents=True)
    prepare_pretrained(config, workdir, progress=False)
    assert adopt_pretrained(config, workdir) == born
    prepare_pretrained(tiny_config(), tmp_path / "other", progress=False)
