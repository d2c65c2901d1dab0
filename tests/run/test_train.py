"""Whole runs in this process: what is written, resumed, refused, and stopped."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import nullcontext

import jax
import numpy as np
import pytest
import safetensors.numpy
from scipy.special import softmax

from drawn_products import write_products
from fashion_jax.config.files import config_from_dict
from fashion_jax.data.photos import decode_photo
from fashion_jax.run import finish as scoring
from fashion_jax.run import session as session_module
from fashion_jax.run import train as experiment
from fashion_jax.run.train import evaluate, train
from fashion_jax.run.workdir import lock_workdir
from fashion_jax.serving.predictor import Predictor, load_model
from fashion_jax.system.errors import UserError
from fashion_jax.system.interrupt import Interrupted
from fashion_jax.training import loop
from fashion_jax.training.writers import read_json_lines
from stepping import StopAt


def weights(workdir) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(workdir / "package" / "weights.safetensors")


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(autouse=True)
def few_photos_on_a_sheet(monkeypatch):
    """Drawing 48 of them takes as long as training does here."""
    monkeypatch.setattr(scoring, "_SHEET_PHOTOS", 4)


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    """A finished run and its configuration."""
    config = tiny_config()
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    return workdir, config, train(config, workdir, progress=False)


def test_a_run_leaves_what_it_promises(finished, prepared):
    workdir, config, result = finished
    assert sorted(p.name for p in workdir.iterdir()) == [
        ".lock", "checkpoints", "config.json", "evaluation", "metrics.jsonl", "package", "trained_on.json",
    ]  # fmt: skip
    resolved = config_from_dict(json.loads((workdir / "config.json").read_text()))
    assert resolved.data.attributes == ("kind", "colour")
    assert resolved.model.stem == "small"
    assert resolved.model.dtype == "float32"
    assert resolved.train == config.train
    lines = read_json_lines(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines if "train/loss" in line] == [4, 8, 12]
    assert [line["step"] for line in lines if "validation/loss" in line] == [6, 12]
    rows = prepared.indices("test")
    assert result.test is not None
    assert sorted(result.test.rows) == rows.tolist()
    for column, name in enumerate(prepared.attributes):
        labels = prepared.labels[result.test.rows, column]
        known = labels >= 0
        accuracy = (result.test.predictions[name] == labels)[known].mean()
        assert result.test.summaries[name]["accuracy"] == pytest.approx(accuracy)
        assert result.test.summaries[name]["count"] == known.sum()
    predictions = (workdir / "evaluation/test/predictions.csv").read_text().splitlines()
    heads = "kind,kind_confidence,kind_accepted,colour,colour_confidence,colour_accepted"
    assert predictions[0] == f"id,{heads},out_of_catalogue,is_out_of_catalogue"
    assert len(predictions) == len(rows) + 1
    colours = json.loads((workdir / "evaluation/test/metrics.json").read_text())["colours"]
    assert colours.keys() == {"colour"} and colours["colour"] == result.test.colours["colour"]
    assert 0 <= colours["colour"]["accuracy"] <= colours["colour"]["tolerant_accuracy"] <= 1
    assert "by colour family" in experiment.format_scores(result.test)


def test_evaluating_again_finds_the_same(finished):
    workdir, _, result = finished
    before = (workdir / "evaluation/test/metrics.json").read_text()
    again = evaluate(workdir, progress=False)
    assert again.summaries == result.test.summaries
    assert (workdir / "evaluation/test/metrics.json").read_text() == before


def test_running_a_finished_run_again_changes_nothing(finished):
    workdir, config, _ = finished
    before = weights(workdir)
    train(config, workdir, progress=False)
    assert same(before, weights(workdir))


@pytest.mark.parametrize("stop", [1, 5, 6, 12])
def test_resumed_is_uninterrupted_bit_for_bit(finished, tmp_path, monkeypatch, stop):
    workdir, config, _ = finished
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "stop_on_signals", lambda **_: nullcontext(StopAt(stop)))
        with pytest.raises(Interrupted) as caught:
            train(config, tmp_path / "w", progress=False)
    assert caught.value.exit_code == 143
    assert not (tmp_path / "w/package").exists()  # also when the last step was done
    train(config, tmp_path / "w", progress=False)
    assert same(weights(workdir), weights(tmp_path / "w"))
    whole, resumed = (read_json_lines(w / "metrics.jsonl") for w in (workdir, tmp_path / "w"))
    assert [line["step"] for line in whole] == [line["step"] for line in resumed]
    validation = [[v for k, v in line.items() if k.startswith("validation/")] for line in whole]
    assert validation == [[v for k, v in line.items() if k.startswith("validation/")] for line in resumed]


def test_averaged_weights_are_kept_scored_and_resumed(finished, tiny_config, tmp_path, monkeypatch):
    config = tiny_config(train__average_decay=0.5)
    train(config, tmp_path / "whole", progress=False)
    assert not same(weights(finished[0]), weights(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "stop_on_signals", lambda **_: nullcontext(StopAt(5)))
        with pytest.raises(Interrupted):
            train(config, tmp_path / "w", progress=False)
    train(config, tmp_path / "w", progress=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "w"))


@pytest.mark.parametrize("storage", ["device", "stream"])
def test_where_photos_live_does_not_matter(finished, tiny_config, tmp_path, storage):
    train(tiny_config(data__storage=storage), tmp_path / "w", progress=False)
    assert same(weights(finished[0]), weights(tmp_path / "w"))


def test_another_configuration_is_refused_and_free_fields_may_change(finished, tiny_config, tmp_path):
    shutil.copytree(finished[0], tmp_path / "w")
    for change in ({"optimizer__learning_rate": 1e-3}, {"train__duration": "14 steps"}, {"model__width": 8}):
        (name, value), *_ = change.items()
        with pytest.raises(UserError, match=rf"{name.replace('__', '.')} was .*, now {value!r}.*model\.pretrained="):
            train(tiny_config(**change), tmp_path / "w", progress=False)
    free = {"train__checkpoint_every": "2 steps", "trust__precision": 0.9}
    train(tiny_config(**free), tmp_path / "w", progress=False)
    assert same(weights(finished[0]), weights(tmp_path / "w"))


def test_other_records_are_refused_and_the_runs_own_stay(finished, tiny_config, tmp_path):
    shutil.copytree(finished[0], tmp_path / "w")
    table = write_products(tmp_path / "shop", 90)
    with pytest.raises(UserError, match="on other records"):
        train(tiny_config(data__source=str(table)), tmp_path / "w", progress=False)
    evaluate(tmp_path / "w", progress=False)


def test_evaluation_does_not_mind_the_batch_size(finished, tmp_path):
    # A run of one device may be scored on eight, where its batches could not be trained.
    shutil.copytree(finished[0], tmp_path / "w")
    path = tmp_path / "w/config.json"
    path.write_text(path.read_text().replace('"batch_size": 16', '"batch_size": 12'))
    assert evaluate(tmp_path / "w", progress=False).summaries == finished[2].test.summaries


def test_photos_larger_than_the_records_are_refused(tiny_config, tmp_path):
    config = tiny_config(data__height=300, data__max_side=400)
    with pytest.raises(UserError, match="scaled down to 256 pixels"):
        train(config, tmp_path / "w", progress=False)


def test_an_attribute_that_is_not_there_is_named(tiny_config, tmp_path):
    with pytest.raises(UserError, match=r"no attribute 'color'; did you mean 'colour'\?"):
        train(tiny_config(data__attributes=("color",)), tmp_path / "w", progress=False)


def test_one_attribute_alone(tiny_config, tmp_path):
    result = train(tiny_config(data__attributes=("colour",), train__duration="2 steps"), tmp_path / "w", progress=False)
    assert list(result.test.summaries) == ["colour"]


def test_scores_by_photos_and_their_mirror_images_are_the_packages_predictions(tiny_config, prepared, tmp_path):
    config = tiny_config(data__test_time_flip=True, data__attributes=("colour",), train__duration="2 steps")
    result = train(config, tmp_path / "w", progress=False)
    # The network's own probabilities: calibrated ones are no means.
    model = Predictor(dataclasses.replace(load_model(tmp_path / "w").package, decision=None))
    images = np.stack([decode_photo(prepared.read_photo(row), *model.size) for row in result.test.rows])
    outputs = model.predict_arrays(images)
    plain = [model.predict_arrays(some, flip=False) for some in (images, images[:, :, ::-1])]
    mean = (plain[0].probabilities["colour"] + plain[1].probabilities["colour"]) / 2
    assert np.allclose(outputs.probabilities["colour"], mean, atol=1e-5)
    assert not np.allclose(mean, plain[0].probabilities["colour"], atol=1e-5)
    np.testing.assert_allclose(outputs.embeddings, plain[0].embeddings, rtol=1e-4, atol=1e-6)
    own = softmax(result.test.outputs.own_logits["colour"], axis=1)  # of which embeddings are made
    assert np.allclose(own, plain[0].probabilities["colour"], atol=1e-5)
    assert np.allclose(result.test.confidences["colour"], mean.max(1), atol=1e-5)
    assert (result.test.predictions["colour"] == mean.argmax(1)).mean() > 0.9  # nearly untrained: ties turn over


def test_a_loss_that_is_not_finite_stops_the_run(tiny_config, prepared, tmp_path, monkeypatch):
    config = tiny_config(optimizer__learning_rate=1e30, optimizer__warmup="0 steps", optimizer__name="sgd")
    with pytest.raises(UserError, match=r"not finite at step \d+") as caught:
        train(config, tmp_path / "w", progress=False)
    record = json.loads((tmp_path / "w/non_finite_batch.json").read_text())
    assert f"step {record['step']} " in str(caught.value)
    assert len(record["ids"]) == 16
    assert set(record["ids"]) <= set(prepared.ids)
    assert record["ids"][0] in str(caught.value)
    assert not list((tmp_path / "w/checkpoints").glob("step_*"))
    # What stopped the run can be changed, since nothing was saved under the old configuration.
    train(tiny_config(), tmp_path / "w", progress=False)


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint_untouched(finished, tiny_config, tmp_path, monkeypatch):
    workdir, config = tmp_path / "w", tiny_config(data__storage="host", train__checkpoint_every="1 steps")
    real = session_module.training_batches

    def poisoned(*args, **kwargs):
        for number, batch in enumerate(real(*args, **kwargs)):
            yield {**batch, "image": batch["image"] * np.float32("nan")} if number == 5 else batch

    with monkeypatch.context() as patch:
        patch.setattr(session_module, "training_batches", poisoned)
        with pytest.raises(UserError, match="not finite at step 5"):
            train(config, workdir, progress=False)
    # Step 6 would be of the fault. Without it the run goes on, and ends as one that was never harmed.
    assert sorted(p.name for p in (workdir / "checkpoints").glob("step_*")) == ["step_4", "step_5"]
    train(config, workdir, progress=False)
    assert same(weights(finished[0]), weights(workdir))


def test_early_stopping_stops_at_the_step_it_must(tiny_config, tmp_path):
    # Frozen batch norms and a vanishing learning rate: no evaluation is better than the first.
    config = tiny_config(
        train__duration="100 steps",
        train__evaluate_every="2 steps",
        train__early_stopping_patience=3,
        optimizer__learning_rate=1e-12,
        optimizer__freeze=("backbone",),
    )
    for _ in range(2):  # the second time nothing is trained
        result = train(config, tmp_path / "w", progress=False)
        lines = read_json_lines(tmp_path / "w/metrics.jsonl")
        accuracies = [line["validation/mean/accuracy"] for line in lines if "validation/loss" in line]
        best = int(np.argmax(accuracies))
        assert len(accuracies) == best + 1 + 3 and lines[-1]["step"] == 2 * len(accuracies)
        assert accuracies[result.best_step // 2 - 1] == max(accuracies)


def test_patience_counts_evaluations_without_gain():
    facts = loop.Facts("accuracy")
    for metric, stopped in ((0.5, False), (0.6, False), (0.6, False), (0.4, True)):
        facts.record(metric, lower_is_better=False, patience=2)
        assert facts.stopped_early == stopped
    facts = loop.Facts("loss")
    for metric in (0.5, 0.4, 0.3):
        facts.record(metric, lower_is_better=True, patience=1)
        assert not facts.stopped_early
    assert facts.best_metric == 0.3
    assert loop.Facts(**json.loads(json.dumps(facts.to_dict()))) == facts


def test_an_unknown_metric_is_named(tiny_config, tmp_path):
    with pytest.raises(UserError, match=r"best_metric='accuracy' is not among .*mean/accuracy"):
        train(tiny_config(train__best_metric="accuracy"), tmp_path / "w", progress=False)
    assert not (tmp_path / "w/metrics.jsonl").exists()  # found before the first step, not after the first epoch
    config = tiny_config(train__best_metric="kind/macro_f1", train__duration="1 steps", train__evaluate_every="1 steps")
    assert train(config, tmp_path / "w", progress=False).best_step == 1


def test_two_runs_in_one_workdir_are_refused(tiny_config, tmp_path):
    with lock_workdir(tmp_path / "w"), pytest.raises(UserError, match="another run is using"):
        train(tiny_config(), tmp_path / "w", progress=False)


@pytest.mark.parametrize("name", ["sgd", "lamb"])
def test_it_learns(tiny_config, tmp_path, name):
    config = tiny_config(
        train__duration="60 steps",
        optimizer__name=name,
        optimizer__learning_rate={"sgd": 0.1, "lamb": 0.1}[name],
        optimizer__weight_decay=1e-4,
        model__width=8,
        data__attributes=("colour",),
        train__evaluate_every="60 steps",
        train__checkpoint_every="60 steps",
    )
    result = train(config, tmp_path / "w", progress=False)
    losses = [line["train/loss"] for line in read_json_lines(tmp_path / "w/metrics.jsonl") if "train/loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert result.test.summaries["colour"]["accuracy"] > 0.5


def test_eight_devices_are_there():
    assert jax.device_count() == 8
