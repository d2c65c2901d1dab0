"""Whole runs in this process: what is written, resumed, refused, and stopped."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from scipy.special import softmax

from fashion_jax.data.photos import decode_photo
from fashion_jax.run import session as session_module
from fashion_jax.run import train as experiment
from fashion_jax.run.train import evaluate, train
from fashion_jax.run.workdir import load_run_config
from fashion_jax.serving.predictor import Predictor, load_model
from fashion_jax.system import stored
from fashion_jax.system.errors import Interrupted, UserError
from fashion_jax.training import loop
from fashion_jax.training.placement import put_batch
from fashion_jax.training.writers import read_json_lines
from stepping import StopAt, run, session_on


def weights(workdir) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(workdir / "package" / "weights.safetensors")


def assert_same(workdir, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, weights(workdir), weights(other))


def test_a_run_leaves_what_it_promises(finished, prepared):
    workdir, config, result = finished
    assert sorted(p.name for p in workdir.iterdir()) == [
        ".lock", "checkpoints", "config.json", "evaluation", "metrics.jsonl", "package", "trained_on.json",
    ]  # fmt: skip
    resolved = load_run_config(workdir)
    assert resolved.data.attributes == ("kind", "colour")
    assert (resolved.model.stem, resolved.model.dtype, resolved.train) == ("small", "float32", config.train)
    lines = read_json_lines(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines if "train/loss" in line] == [12]  # the last step
    assert [line["step"] for line in lines if "validation/loss" in line] == [6, 12]
    rows = prepared.indices("test")
    assert sorted(result.test.rows) == rows.tolist()
    for column, name in enumerate(prepared.attributes):
        labels = prepared.labels[result.test.rows, column]
        known = labels >= 0
        accuracy = (result.test.predictions[name] == labels)[known].mean()
        assert result.test.summaries[name]["accuracy"] == pytest.approx(accuracy)
        assert result.test.summaries[name]["count"] == known.sum()
    predictions = (workdir / "evaluation/test/predictions.csv").read_text().splitlines()
    heads = "kind,kind_confidence,kind_accepted,colour,colour_confidence,colour_accepted"
    assert predictions[0] == f"id,{heads},out_of_catalogue,is_out_of_catalogue,num_photos,photos_disagree"
    assert len(predictions) == len(rows) + 1
    colours = json.loads((workdir / "evaluation/test/metrics.json").read_text())["colours"]
    assert colours == {"colour": result.test.colours["colour"]}
    assert 0 <= colours["colour"]["accuracy"] <= colours["colour"]["tolerant_accuracy"] <= 1
    assert "by colour family" in experiment.format_scores(result.test)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "over 16 photos on 8 devices"),
        ({"model__norm_group": 4}, "over 4 photos on 2 devices"),
        ({"model__norm_group": 1}, "over 1 photos on 1 devices"),
        ({"optimizer__freeze_batch_norm": True}, "frozen"),
    ],
)
def test_a_run_says_over_which_photos_batch_norm_takes_its_statistics(tiny_config, prepared, tmp_path, changes, said):
    session = session_on(tiny_config(**changes), prepared, tmp_path, 8)
    assert experiment._describe(session, session.target).splitlines()[-1] == f"batch norm: {said}"


@pytest.mark.parametrize("stop", [1, 6, 12])
def test_resumed_is_uninterrupted_bit_for_bit(finished, tmp_path, monkeypatch, stop):
    workdir, config, _ = finished
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        patch.setattr(experiment, "stop_on_signals", lambda **_: nullcontext(StopAt(stop)))
        train(config, tmp_path / "w", progress=False)
    assert caught.value.exit_code == 143
    assert not (tmp_path / "w/package").exists()  # also when the last step was done
    train(config, tmp_path / "w", progress=False)
    assert_same(workdir, tmp_path / "w")
    whole, resumed = (
        [{k: v for k, v in line.items() if k == "step" or k.startswith("validation/")} for line in lines]
        for lines in (read_json_lines(folder / "metrics.jsonl") for folder in (workdir, tmp_path / "w"))
    )
    assert whole == resumed


def test_a_finished_run_goes_on_to_the_same_whatever_is_free(finished, tiny_config, tmp_path):
    workdir = shutil.copytree(finished.workdir, tmp_path / "w")
    config = tiny_config(train__average_decay=0.5, train__checkpoint_every="2 steps")
    train(config, workdir, progress=False)
    assert_same(finished.workdir, workdir)
    config.train.duration = "14 steps"
    with pytest.raises(UserError, match="duration"):
        train(config, workdir, progress=False)


def test_evaluating_again_finds_the_same(finished, tmp_path):
    # A run of one device may be scored on eight devices, over which its batches do not divide.
    workdir = shutil.copytree(finished.workdir, tmp_path / "w")
    path, scores = workdir / "config.json", workdir / "evaluation/test/metrics.json"
    values = stored.read_document(path, remedy="")
    values["train"]["batch_size"] = 12
    stored.write_document(path, values)
    before = scores.read_text()
    assert evaluate(workdir, progress=False).summaries == finished.result.test.summaries
    assert scores.read_text() == before


def damage(step: Path) -> None:
    for path in (step / "ocdbt.process_0/d").iterdir():
        path.write_bytes(path.read_bytes()[:-1])


def test_a_run_goes_on_from_the_newest_whole_checkpoint_to_the_same(finished, tmp_path, capsys):
    workdir = shutil.copytree(finished.workdir, tmp_path / "w")
    damage(workdir / "checkpoints/step_12")
    shutil.rmtree(workdir / "package")
    train(finished.config, workdir, progress=False)
    said = capsys.readouterr().err
    assert "step_12/ocdbt" in said and "the run goes on from the checkpoint of step 8" in said
    assert_same(finished.workdir, workdir)
    before, after = (
        [(line["step"], line.get("validation/loss")) for line in read_json_lines(folder / "metrics.jsonl")]
        for folder in (finished.workdir, workdir)
    )
    assert before == after
    documents = [folder / "checkpoints/step_12/checkpoint.json" for folder in (finished.workdir, workdir)]
    one, other = (stored.read_document(path, remedy="") for path in documents)
    assert {**one, "files": 0} == {**other, "files": 0}  # what early stopping counts, too


def test_another_best_checkpoint_is_told(finished, tmp_path, capsys):
    workdir, best = shutil.copytree(finished.workdir, tmp_path / "w"), finished.result.best_step
    damage(workdir / f"checkpoints/step_{best}")
    evaluate(workdir, progress=False)
    other = 8 if best == 12 else 12
    assert f"the best undamaged checkpoint is that of step {other}" in capsys.readouterr().err
    assert json.loads((workdir / "evaluation/test/metrics.json").read_text())["step"] == other
    for step in (8, 12):
        damage(workdir / f"checkpoints/step_{step}")
    for command in (lambda: evaluate(workdir, progress=False), lambda: train(finished.config, workdir, progress=False)):
        with pytest.raises(UserError, match="all checkpoints in"):
            command()


@pytest.mark.parametrize(
    "changes", [{"best": "x"}, {"more": 1}, {"metric": "loss"}, {"stopped": None}, {"evaluations_without_gain": 1e3}]
)
def test_what_early_stopping_cannot_count_is_refused(finished, tmp_path, changes):
    workdir = shutil.copytree(finished.workdir, tmp_path / "w")
    path = workdir / "checkpoints/step_12/checkpoint.json"
    values = stored.read_document(path, remedy="")
    values["early_stopping"] |= changes
    stored.write_document(path, values)
    with pytest.raises(UserError, match="checkpoints is damaged"):
        train(finished.config, workdir, progress=False)


def test_where_photos_are_kept_does_not_matter(tiny_config, prepared, tmp_path):
    kept = []
    for storage in ("stream", "host", "device"):
        session = session_on(tiny_config(data__storage=storage), prepared, tmp_path, 8)
        parts = (session.batches.training(3), session.batches.split("validation")())
        kept.append([np.asarray(add(put_batch(dict(next(batches)), session.mesh))["image"]) for batches, add in parts])
    for images in kept[1:]:
        assert all(map(np.array_equal, images, kept[0]))


def test_scores_by_photos_and_their_mirror_images_are_the_packages_predictions(tiny_config, prepared, tmp_path):
    config = tiny_config(data__test_time_flip=True, data__attributes=("colour",), train__duration="2 steps")
    test = train(config, tmp_path / "w", progress=False).test
    # The network's own probabilities: calibrated ones are no means.
    model = Predictor(dataclasses.replace(load_model(tmp_path / "w").package, decision=None))
    images = np.stack([decode_photo(prepared.read_photo(row), *model.size) for row in test.rows])
    outputs = model.predict_arrays(images)
    plain, mirrored = (model.predict_arrays(some, flip=False) for some in (images, images[:, :, ::-1]))
    first = plain.probabilities["colour"]
    mean = (first + mirrored.probabilities["colour"]) / 2
    assert np.allclose(outputs.probabilities["colour"], mean, atol=1e-5)
    assert not np.allclose(mean, first, atol=1e-5)
    np.testing.assert_allclose(outputs.embeddings, plain.embeddings, rtol=1e-4, atol=1e-6)
    own = softmax(test.outputs.own_logits["colour"], axis=1)  # of which embeddings are made
    assert np.allclose(own, first, atol=1e-5)
    assert list(test.summaries) == ["colour"]
    assert np.allclose(softmax(test.outputs.logits["colour"], axis=1), mean, atol=1e-5)
    assert (test.predictions["colour"] == mean.argmax(1)).mean() > 0.9  # nearly untrained: ties turn over


def test_a_loss_that_is_not_finite_stops_the_run(finished, prepared, tiny_config, tmp_path, monkeypatch):
    workdir, real = tmp_path / "w", session_module.training_batches
    config = tiny_config(train__average_decay=0.5, train__checkpoint_every="1 steps", data__storage="host")

    def poisoned(*args, **kwargs):
        for number, batch in enumerate(real(*args, **kwargs)):
            poison = {"image": batch["image"] * np.float32("nan")} if number == 5 and args[1] is not None else {}
            yield {**batch, **poison}

    with monkeypatch.context() as patch, pytest.raises(UserError, match="NaN or infinite at step 5") as caught:
        patch.setattr(session_module, "training_batches", poisoned)
        train(config, workdir, progress=False)
    record = json.loads((workdir / "non_finite_batch.json").read_text())
    assert record["step"] == 5 and len(record["ids"]) == 16 and set(record["ids"]) <= set(prepared.ids)
    assert record["ids"][0] in str(caught.value)
    # Step 6 would be of the fault. Without it the run goes on, and ends as one that was never harmed.
    assert sorted(p.name for p in (workdir / "checkpoints").glob("step_*")) == ["step_4", "step_5"]
    train(config, workdir, progress=False)
    assert_same(finished.workdir, workdir)


def test_early_stopping_stops_at_the_step_it_must(tiny_config, tmp_path):
    # Frozen batch norms and a vanishing learning rate: no evaluation is better than the first.
    config = tiny_config(
        train__duration="100 steps", train__evaluate_every="2 steps", train__early_stopping_patience=3,
        optimizer__learning_rate=1e-12, optimizer__freeze=("backbone",),
    )  # fmt: skip
    for _ in range(2):  # the second time nothing is trained
        result = train(config, tmp_path / "w", progress=False)
        lines = read_json_lines(tmp_path / "w/metrics.jsonl")
        accuracies = [line["validation/mean/accuracy"] for line in lines if "validation/loss" in line]
        best = int(np.argmax(accuracies))
        assert len(accuracies) == best + 1 + 3 and lines[-1]["step"] == 2 * len(accuracies)
        assert accuracies[result.best_step // 2 - 1] == max(accuracies)


@pytest.mark.parametrize(("lower", "metrics"), [(False, (0.5, 0.6, 0.6, 0.4)), (True, (0.5, 0.4, 0.4, 0.6))])
def test_patience_counts_evaluations_without_gain(lower, metrics):
    early, stopped = loop.EarlyStopping("metric"), []
    for metric in metrics:
        early.record(metric, lower_is_better=lower, patience=2)
        stopped.append(early.stopped)
    assert stopped == [False, False, False, True] and early.best == metrics[1]


def test_a_metric_that_is_not_finite_is_no_gain():
    """A checkpoint stores the best metric as JSON, which has no NaN."""
    early = loop.EarlyStopping("metric")
    for metric in (float("nan"), float("inf"), 0.5, float("nan")):
        early.record(metric, lower_is_better=False, patience=0)
    assert early.best == 0.5 and early.evaluations_without_gain == 1


@pytest.mark.parametrize(("name", "rate"), [("adamw", 4e-3), ("sgd", 0.1), ("lamb", 0.03)])
def test_every_optimizer_learns(tiny_config, prepared, tmp_path, name, rate):
    config = tiny_config(
        train__duration="60 steps", data__attributes=("colour",), model__width=8,
        optimizer__name=name, optimizer__learning_rate=rate, optimizer__weight_decay=1e-4,
    )  # fmt: skip
    losses = [step["loss"] for step in run(session_on(config, prepared, tmp_path, 1), 60)[1]]
    assert np.median(losses[-9:]) < 0.6 * losses[0]
