"""Fine-tuning: what is frozen stays, what is trained later begins then, and runs start from weights of others."""

from __future__ import annotations

import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from drawn_products import write_products
from drawn_weights import write_hub_folder
from fashion_jax.config.fields import OptimizerConfig
from fashion_jax.config.files import load_config, set_value
from fashion_jax.data.loader import ResidentPhotos
from fashion_jax.data.records import open_prepared
from fashion_jax.run import train as experiment
from fashion_jax.run.session import Session
from fashion_jax.run.start import (
    adopt_pretrained,
    ever_trained_on,
    prepare_pretrained,
    read_weights,
    warn_of_known_products,
)
from fashion_jax.run.train import evaluate, train
from fashion_jax.run.workdir import load_run_config, trained_on
from fashion_jax.serving.predictor import load_model
from fashion_jax.system import stored
from fashion_jax.system.errors import Interrupted, UserError
from fashion_jax.training.fine_tuning import FineTuning, parameter_paths, plan_fine_tuning
from fashion_jax.training.optimizer import make_optimizer
from fashion_jax.training.placement import put_batch
from fashion_jax.training.state import create_state, initial_state
from stepping import StopAt, run

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
        ({"freeze": ("*",)}, "nothing is left to train"), ({"freeze": ("backbone/stm/*",)}, "mean 'backbone/stem"),
        ({"multipliers": {"heads": 2.0, "heads/kind": 3.0}}, "'heads/kind' matches only what an earlier pattern"),
        ({"freeze": ("backbone",), "unfreeze": {"*/kernel": "3 steps"}}, "both match backbone/stages/0/0"),
    ],
)  # fmt: skip
def test_patterns_that_say_nothing_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        plan(**changes)


def test_the_command_line_sets_patterns(tiny_config):
    config = tiny_config()
    set_value(config, "optimizer.unfreeze", "backbone/stages/*:2 epochs, backbone/*:50 percent")
    config.validate()
    assert config.optimizer.unfreeze == {"backbone/stages/*": "2 epochs", "backbone/*": "50 percent"}
    for field, text in (("multipliers", "heads/*:0"), ("unfreeze", "heads/*:later")):
        config = tiny_config()
        set_value(config, f"optimizer.{field}", text)
        with pytest.raises(UserError, match=rf"{field}\[heads/\*\]"):
            config.validate()


PARAMS = {"backbone": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "heads": {"kernel": jnp.full((2, 2), 2.0)}}
BACKBONE = frozenset({"backbone/kernel", "backbone/bias"})


def rate(step):
    return 0.1 / (1 + step)


def follow(name: str, steps: range, plan: FineTuning, *, part=("backbone", "heads"), rate=rate, clip_norm=0.0):
    """Returns the updates of each step, the last state and the last parameters, of some parts of PARAMS."""
    optimizer = make_optimizer(OptimizerConfig(name=name, weight_decay=0.1, clip_norm=clip_norm), rate, plan)
    held = jax.grad(lambda params, step, given: optax.tree.vdot(plan.stop_gradients(params, step), given))
    params, found = {key: PARAMS[key] for key in part}, []
    state = optimizer.init(params)
    for step in steps:
        rng = np.random.default_rng(step)
        drawn = jax.tree.map(lambda p, rng=rng: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS)
        gradients = held(params, jnp.asarray(step), {key: drawn[key] for key in part})
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        found.append(updates)
    return found, state, params


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_frozen_parameters_stay_and_the_rest_is_as_alone(name):
    _, state, after = follow(name, range(4), FineTuning(frozen=BACKBONE), clip_norm=0.5)
    assert np.array_equal(after["backbone"]["kernel"], PARAMS["backbone"]["kernel"])
    _, alone_state, alone = follow(name, range(4), FineTuning(), part=("heads",), clip_norm=0.5)
    assert np.array_equal(alone["heads"]["kernel"], after["heads"]["kernel"])  # clipped by its own norm, too
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state, alone_state)]
    assert sizes[0] == sizes[1]  # no moments are kept of what is frozen


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_what_is_trained_later_is_frozen_before_and_begins_as_at_a_first_step(name):
    later, _, _ = follow(name, range(6), FineTuning(starts=dict.fromkeys(BACKBONE, 3)))
    frozen, _, _ = follow(name, range(6), FineTuning(frozen=BACKBONE))
    jax.tree.map(np.testing.assert_array_equal, later[:3], frozen[:3])
    for a, b in zip(later, frozen, strict=True):
        assert np.array_equal(a["heads"]["kernel"], b["heads"]["kernel"])
    fresh, _, _ = follow(name, range(3, 6), FineTuning(), part=("backbone",), rate=lambda step: rate(step + 3))
    for a, b in zip(later[3:], fresh, strict=True):
        for key in b["backbone"]:
            np.testing.assert_allclose(a["backbone"][key], b["backbone"][key], rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_a_multiplier_is_another_rate(name):
    (plain,), _, _ = follow(name, range(1), FineTuning())
    (half,), _, _ = follow(name, range(1), FineTuning(factors=dict.fromkeys(BACKBONE, 0.5)))
    (slow,), _, _ = follow(name, range(1), FineTuning(), rate=lambda step: 0.5 * rate(step))
    assert np.array_equal(half["heads"]["kernel"], plain["heads"]["kernel"])
    assert np.array_equal(half["backbone"]["kernel"], slow["backbone"]["kernel"])
    assert not np.array_equal(slow["backbone"]["kernel"], plain["backbone"]["kernel"])


# Whole steps -----------------------------------------------------------------------------------------------------


def steps_of(session: Session, steps: int):
    """Returns the first state and the last, on the host, and the losses."""
    state = create_state(session.arguments, session.optimizer, 0, session.mesh, averaged=session.averaged)
    before = jax.device_get(state)
    after, metrics, _ = run(session, steps, state=state)
    return before, jax.device_get(after), [values["loss"] for values in metrics]


def moved(before, after) -> set[str]:
    paths = parameter_paths(before)
    pairs = zip(paths, jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return {path for path, a, b in pairs if not np.array_equal(a, b)}


FINE = {
    "optimizer__freeze": ("backbone/stem/*", "backbone/stages/0"), "optimizer__multipliers": {"heads/*": 3.0},
    "optimizer__unfreeze": {"backbone/stages/1/*": "3 steps"}, "optimizer__layer_decay": 0.8,
    "optimizer__freeze_batch_norm": True, "optimizer__warmup": "0 steps", "optimizer__clip_norm": 1.0,
    "train__average_decay": 0.9,
}  # fmt: skip


def test_a_step_moves_what_it_should_to_the_bit(session_of):
    session = session_of(8, **FINE)
    before, three, losses = steps_of(session, 3)
    _, four, _ = steps_of(session, 4)
    kernels = {p for p in parameter_paths(before.params) if not p.endswith(("scale", "bias")) or "heads" in p}
    later = {p for p in kernels if p.startswith("backbone/stages/1/")}
    never = {p for p in kernels if p.startswith(("backbone/stem/", "backbone/stages/0/"))}
    assert later and never
    for part in (lambda state: state.params, lambda state: state.average["params"]):
        assert moved(part(before), part(three)) == kernels - later - never
        assert moved(part(before), part(four)) == kernels - never
    assert moved(before.batch_stats, four.batch_stats) == set()
    # Up to there it is the run in which they are frozen for good.
    frozen = {"optimizer__unfreeze": {}, "optimizer__freeze": (*FINE["optimizer__freeze"], "backbone/stages/1/*")}
    _, same, again = steps_of(session_of(8, **{**FINE, **frozen}), 3)
    assert again == losses
    assert moved(three.params, same.params) == set()


def test_one_device_is_eight(session_of):
    one, eight = (steps_of(session_of(devices, **FINE), 4)[2] for devices in (1, 8))
    assert one == pytest.approx(eight, rel=1e-5)
    assert len(set(one)) == 4


def test_without_frozen_batch_norm_statistics_move(session_of):
    session = session_of(8, optimizer__freeze=("backbone/*",), optimizer__warmup="0 steps")
    before, after, _ = steps_of(session, 1)
    assert {path.split("/")[0] for path in moved(before.params, after.params)} == {"heads"}
    assert moved(before.batch_stats, after.batch_stats) == set(parameter_paths(before.batch_stats))


def test_what_is_frozen_costs_no_backward_pass(session_of, batch_of):
    def flops(*frozen: str) -> float:
        session = session_of(1, optimizer__freeze=frozen)
        state = jax.eval_shape(lambda: initial_state(session.arguments, session.optimizer, 0))
        lowered = session.train_step().lower(state, put_batch(batch_of(0), session.mesh))
        return lowered.cost_analysis()["flops"]

    whole, frozen = flops(), flops("backbone/*")
    assert frozen < 0.5 * whole
    assert frozen < flops("backbone/stem/*", "backbone/stages/0", "backbone/stages/1") < whole


# Whole runs ------------------------------------------------------------------------------------------------------


def weights(workdir: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(workdir / "package" / "weights.safetensors")


def assert_same(workdir: Path, other: Path, part: str = "") -> None:
    """Checks that two packages have the same weights whose names hold `part`."""
    found = ({n: a for n, a in weights(folder).items() if part in n} for folder in (workdir, other))
    jax.tree.map(np.testing.assert_array_equal, *found)


def run_config(tiny_config, source: Path | str, **changes):
    """`tiny_config` left at the default width, which the pretrained weights replace."""
    return tiny_config(model__pretrained=str(source), model__width=64, **changes)


@pytest.fixture(scope="module")
def fine_tuned(tiny_config, tmp_path_factory):
    """A finished run from a folder of the Hub's layout, its configuration and the folder's state dict."""
    folder = tmp_path_factory.mktemp("fine")
    state = write_hub_folder(folder / "hub")
    config = run_config(tiny_config, folder / "hub", **FINE)
    return folder / "w", config, state, train(config, folder / "w", progress=False)


def test_a_hub_layout_folder_starts_a_run(fine_tuned):
    workdir, _, state, result = fine_tuned
    recorded, found = load_run_config(workdir), weights(workdir)
    assert (recorded.model.depth, recorded.model.width, recorded.model.stem) == (10, 4, "imagenet")
    assert (recorded.data.mean, recorded.data.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert np.array_equal(found["params/backbone/stem/0/conv/kernel"], state["conv1.weight"].transpose(2, 3, 1, 0))
    later = found["params/backbone/stages/2/0/layers/0/conv/kernel"]
    assert not np.array_equal(later, state["layer3.0.conv1.weight"].transpose(2, 3, 1, 0))
    assert np.array_equal(found["batch_stats/backbone/stages/2/0/layers/0/norm/var"], state["layer3.0.bn1.running_var"])
    assert load_model(workdir).package.preprocessing["mean"] == [0.4, 0.5, 0.6]
    assert evaluate(workdir, progress=False).summaries == result.test.summaries


@pytest.mark.parametrize("stop", [2, 5])
def test_resumed_without_the_source_is_uninterrupted(fine_tuned, tiny_config, tmp_path, monkeypatch, stop):
    write_hub_folder(tmp_path / "hub")
    config = run_config(tiny_config, tmp_path / "hub", **FINE)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(experiment, "stop_on_signals", lambda **_: nullcontext(StopAt(stop)))
        train(config, tmp_path / "w", progress=False)
    shutil.rmtree(tmp_path / "hub")
    (tmp_path / "w/pretrained/backbone.safetensors").unlink()
    train(config, tmp_path / "w", progress=False)
    assert_same(fine_tuned[0], tmp_path / "w")


def test_other_weights_are_refused_in_a_run_that_has_begun(fine_tuned, tiny_config, tmp_path):
    write_hub_folder(tmp_path / "other", seed=1)
    workdir = shutil.copytree(fine_tuned[0], tmp_path / "w")
    for config in (tiny_config(), run_config(tiny_config, tmp_path / "other", **FINE)):
        with pytest.raises(UserError, match=r"model\.pretrained was"):
            train(config, workdir, progress=False)


def test_what_does_not_fit_says_what_to_set_and_a_folder_that_is_not_of_a_run_is_left_alone(tiny_config, tmp_path):
    workdir, folder = tmp_path / "w", tmp_path / "w/pretrained"
    write_hub_folder(tmp_path / "hub")
    with pytest.raises(UserError, match=r"model\.depth=34 does not fit .* set config\.model\.depth=10"):
        prepare_pretrained(run_config(tiny_config, tmp_path / "hub", model__depth=34), workdir)
    assert not folder.exists()
    write_hub_folder(folder)
    with pytest.raises(UserError, match="is in the way"):
        train(run_config(tiny_config, folder), workdir, progress=False)
    prepare_pretrained(tiny_config(), workdir, progress=False)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_our_own_package_starts_a_run_on_another_catalogue(fine_tuned, tiny_config, tmp_path):
    workdir = fine_tuned[0]
    table = write_products(tmp_path / "shop", 90, seed=5)
    table.write_text(table.read_text().replace("yellow", "red").replace("kind", "shape"))
    # The workdir stands for its package; other heads, other classes, another size of the photos.
    config = run_config(
        tiny_config, workdir, data__source=str(table), data__height=48, data__width=40,
        train__duration="2 steps", optimizer__freeze=("backbone/*",), optimizer__freeze_batch_norm=True,
    )  # fmt: skip
    result = train(config, tmp_path / "w", progress=False)
    assert set(result.test.summaries) == {"shape", "colour"}
    assert_same(workdir, tmp_path / "w", part="/backbone/")
    recorded = load_run_config(tmp_path / "w")
    assert recorded.model.width == 4 and recorded.data.mean == (0.4, 0.5, 0.6)


def test_a_run_knows_what_the_network_that_it_began_with_was_trained_on(fine_tuned, tiny_config, tmp_path, capsys):
    # Weights of others know no product.
    assert ever_trained_on(fine_tuned[0]) == trained_on(fine_tuned[0]) != set()
    shop = {"data__source": str(write_products(tmp_path / "shop", 90, seed=5)), "train__duration": "2 steps"}

    def run(name: str, begin: Path | str, split_seed: int) -> tuple[Path, str]:
        train(run_config(tiny_config, begin, **shop, data__split_seed=split_seed), tmp_path / name)
        return tmp_path / name, capsys.readouterr().err

    first, _ = run("first", fine_tuned[1].model.pretrained, 0)
    second, said = run("second", first, 0)
    assert ever_trained_on(second) == ever_trained_on(first) and "scores are too good" not in said
    third, said = run("third", first, 1)
    records = open_prepared(third / "records")
    known = trained_on(first).intersection(map(str, records.ids[records.indices("test")]))
    assert known and f"{len(known)} products of the test split have the ids of products on which {first} was" in said
    assert ever_trained_on(third) == ever_trained_on(first) | trained_on(third)
    elsewhere = shutil.copytree(first / "package", tmp_path / "elsewhere")  # which does not say
    last, said = run("last", elsewhere, 1)
    assert ever_trained_on(last) is None and "scores are too good" not in said


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-90] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        flip, Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"[1]"),
        lambda path: stored.write_document(path, {"ids": ["1"], "mean": 3, "files": []}),  # with a digest of its own
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["info.json", "trained_on.json", "backbone.safetensors"])
def test_damaged_pretrained_files_are_refused(fine_tuned, prepared, tmp_path, name, damage):
    workdir = shutil.copytree(fine_tuned[0], tmp_path / "w")
    damage(workdir / "pretrained" / name)
    of_ids = [ever_trained_on, lambda folder: warn_of_known_products(prepared, folder)]
    of_weights = [lambda folder: read_weights(folder, {"colour_heads": ()})]
    of_all = [*of_ids, *of_weights, lambda folder: adopt_pretrained(fine_tuned[1], folder)]
    for read in {"info.json": of_all, "trained_on.json": of_ids, "backbone.safetensors": of_weights}[name]:
        with pytest.raises(UserError, match=rf"pretrained/{name} is "):
            read(workdir)


@pytest.mark.parametrize("changed", [{"width": "4"}, {"depth": 1.5}, {"source": None}, {"colour": 1}, {"mean": "abc"}])
def test_values_of_other_types_are_refused(fine_tuned, tmp_path, changed):
    workdir = shutil.copytree(fine_tuned[0], tmp_path / "w")
    info = workdir / "pretrained/info.json"
    stored.write_document(info, {**stored.read_document(info, remedy=""), **changed})
    with pytest.raises(UserError, match=r"pretrained/info.json is "):
        adopt_pretrained(fine_tuned[1], workdir)


def test_pretrained_files_that_are_gone_are_missed(fine_tuned, tmp_path):
    workdir = shutil.copytree(fine_tuned[0], tmp_path / "w")
    shutil.rmtree(workdir / "pretrained")
    with pytest.raises(UserError, match="pretrained is missing"):
        ever_trained_on(workdir)


def test_heads_are_trained_anew_and_gem_and_colour_features_come_along(tiny_config, prepared, tmp_path, capsys):
    """The second stage of cRT: heads trained anew, rare classes weighing more, on a network that stays as it is."""
    first = tiny_config(model__colour_heads=("colour",), model__pooling="gem", train__duration="6 steps")
    scored = train(first, tmp_path / "first", progress=False)
    config = load_config(Path(__file__).resolve().parents[2] / "configs/retrain_heads.py")
    config.data.source, config.model.pretrained = str(prepared.folder), str(tmp_path / "first")
    config.data.height, config.data.width = 32, 24
    config.train.duration, config.train.batch_size = "12 steps", 16
    again = train(config, tmp_path / "second")
    assert "frozen parameters are not in the pretrained" not in capsys.readouterr().err
    before, after = (weights(tmp_path / name) for name in ("first", "second"))
    kept = [name for name in before if "/backbone/" in name or name.startswith("params/colour/")]
    assert before.keys() == after.keys() and before["params/backbone/gem/0/power"] != 3
    assert len(kept) > 55 and all(np.array_equal(before[name], after[name]) for name in kept)
    for head in ("kind", "colour"):
        trained = [name for name in after if name.startswith(f"params/heads/{head}/")]
        assert trained and not any(np.array_equal(before[name], after[name]) for name in trained)
    # The network sees the same in a photo, and says something else of it.
    images = ResidentPhotos(prepared, prepared.indices("test")[:8], 32, 24, progress=False).images
    features = [load_model(tmp_path / name).predict_arrays(images).features for name in ("first", "second")]
    np.testing.assert_allclose(*features, rtol=1e-5, atol=1e-6)
    assert set(again.test.summaries) == set(scored.test.summaries) == {"kind", "colour"}
    without = run_config(tiny_config, tmp_path / "first", train__duration="2 steps")
    train(without, tmp_path / "without", progress=False)
    assert not any("/colour/0" in name for name in weights(tmp_path / "without"))


def test_a_run_without_a_package_and_a_damaged_package(fine_tuned, tiny_config, tmp_path):
    def refused(source: Path, message: str) -> None:
        with pytest.raises(UserError, match=message):
            train(run_config(tiny_config, source), tmp_path / "w", progress=False)

    (tmp_path / "unfinished/checkpoints").mkdir(parents=True)
    refused(tmp_path / "unfinished", "has not finished")
    package = shutil.copytree(fine_tuned[0] / "package", tmp_path / "package")
    path = package / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    refused(package, r"is damaged \(its content was changed")
    (package / "config.json").unlink()
    refused(path, r"is not beside it")


@pytest.mark.parametrize("devices", [1, 8])
def test_pretrained_weights_are_the_same_on_any_mesh_and_in_the_average(session_of, devices):
    path = "backbone/stem/0/conv/kernel"
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
    session = session_of(devices, train__average_decay=0.9)
    given = (session.arguments, session.optimizer, 0, session.mesh)
    state = create_state(*given, averaged=True, pretrained={f"params/{path}": kernel})
    drawn = create_state(*given, averaged=True)
    for params in (state.params, state.average["params"]):
        assert np.array_equal(params["backbone"]["stem"][0]["conv"]["kernel"], kernel)
    assert moved(jax.device_get(drawn.params), jax.device_get(state.params)) == {path}
    assert all(len(leaf.sharding.device_set) == devices for leaf in jax.tree.leaves(state))


def test_a_model_of_the_library_is_pretrained_by_its_name(tiny_config, tmp_path, capsys):
    config = tiny_config(model__pretrained="small", model__width=32, model__depth=18)
    prepare_pretrained(config, tmp_path)
    assert "ResNet-18" in capsys.readouterr().err
    born = adopt_pretrained(config, tmp_path)
    assert (born.model.depth, born.model.width, born.model.pooling) == (18, 32, "gem")
    (tmp_path / "checkpoints/step_1").mkdir(parents=True)
    prepare_pretrained(config, tmp_path, progress=False)


def test_the_hub_is_asked_at_birth_alone(tiny_config, tmp_path, monkeypatch, capsys):
    state, workdir = write_hub_folder(tmp_path / "snapshot"), tmp_path / "w"
    hub = Mock(snapshot_download=Mock(return_value=str(tmp_path / "snapshot")))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    config = run_config(tiny_config, "owner/name@main")
    prepare_pretrained(config, workdir)
    assert "owner/name@main: ResNet-10" in capsys.readouterr().err
    born = adopt_pretrained(config, workdir)
    kept = safetensors.numpy.load_file(workdir / "pretrained/backbone.safetensors")
    assert np.array_equal(kept["params/backbone/stem/0/norm/scale"], state["bn1.weight"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"\[hub\]"):  # nothing is saved yet: this is another birth
        prepare_pretrained(config, workdir, progress=False)
    (workdir / "checkpoints/step_1").mkdir(parents=True)
    prepare_pretrained(config, workdir, progress=False)
    assert adopt_pretrained(config, workdir) == born
    prepare_pretrained(tiny_config(), tmp_path / "other", progress=False)
