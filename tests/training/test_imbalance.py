"""Weights and shifts against rare classes: their formulas, and what they are for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax.traverse_util import flatten_dict

from fashion_jax.config.fields import LossConfig
from fashion_jax.config.files import set_value
from fashion_jax.decision.trust import fit_decision
from fashion_jax.run.finish import of_rows_as_they_come
from fashion_jax.run.resolve import refuse_without_effect, resolve
from fashion_jax.run.session import Session
from fashion_jax.run.start import first_state
from fashion_jax.run.train import evaluate, train
from fashion_jax.system.errors import UserError
from fashion_jax.training.imbalance import (
    balanced_weights,
    effective_weights,
    label_aware_smoothing,
    log_frequencies,
    make_head_loss,
)
from fashion_jax.training.losses import head_cross_entropy
from fashion_jax.training.writers import read_scalars
from stepping import run, session_on

COUNTS = np.array([900, 90, 10, 0])


def test_weights_are_their_formulas_and_keep_the_scale_of_the_loss():
    balanced = balanced_weights(COUNTS)
    assert np.allclose(balanced[:3] * COUNTS[:3], balanced[0] * COUNTS[0])
    effective = effective_weights(COUNTS, 0.99)
    wanted = (1 - 0.99) / (1 - 0.99 ** COUNTS[:3])
    assert np.allclose(effective[:3] / effective[0], wanted / wanted[0], rtol=1e-5)
    for weights in (balanced, effective, effective_weights(COUNTS, 0.0)):
        assert weights[3] == 0
        assert (weights * COUNTS).sum() / COUNTS.sum() == pytest.approx(1)
    assert np.allclose(effective_weights(COUNTS, 0.0)[:3], 1)
    assert np.allclose(effective_weights(COUNTS, 1 - 1e-9)[:3], balanced[:3], rtol=1e-3)


def test_frequencies_are_logarithms_of_shares():
    shares = np.exp(log_frequencies(COUNTS))
    assert shares.sum() == pytest.approx(1)
    assert shares[0] / shares[1] == pytest.approx(10, rel=1e-4)
    assert np.isfinite(log_frequencies(COUNTS)).all()


def test_every_method_makes_its_loss():
    def of(method, **more):
        return make_head_loss("a", COUNTS, LossConfig(imbalance=method, label_smoothing=0.1, **more))

    assert of("none").class_weights is None
    assert of("balanced").class_weights is not None
    assert np.allclose(of("effective", effective_beta=0.9).class_weights, effective_weights(COUNTS, 0.9))
    assert np.allclose(of("logit_adjustment", logit_adjustment=0.5).logit_offsets, 0.5 * log_frequencies(COUNTS))
    assert np.allclose(of("prior", logit_adjustment=0.5).first_bias, 0.5 * log_frequencies(COUNTS))
    assert of("prior").logit_offsets is None and of("logit_adjustment").first_bias is None
    assert of("focal", focal_gamma=3.0).focal_gamma == 3
    assert of("balanced", head_imbalance={"a": "none"}).class_weights is None
    assert of("none").smoothing == 0.1


def test_common_classes_are_smoothed_more():
    smoothing = label_aware_smoothing(np.array([1, 51, 101]), 0.3, 0.1)
    assert smoothing == pytest.approx([0.1, 0.1 + 0.2 * np.sin(np.pi / 4), 0.3])
    assert label_aware_smoothing(np.array([5, 5]), 0.3, 0.1) == pytest.approx([0.1, 0.1])
    loss = make_head_loss("a", COUNTS, LossConfig(label_smoothing=0.2, rare_label_smoothing=0.0))
    assert loss.smoothing[0] == pytest.approx(0.2) and loss.smoothing[3] == 0
    own = LossConfig(label_smoothing=0.2, head_label_smoothing={"a": 0.4}, rare_label_smoothing=0.0)
    assert make_head_loss("a", COUNTS, own).smoothing[0] == pytest.approx(0.4)


def test_adjusted_logits_learn_the_balanced_classifier():
    """Two overlapping classes, 50 to 1: plain logits ignore the rare one, adjusted ones cut in the middle."""
    random = np.random.default_rng(0)
    labels = (random.random(5_000) < 0.02).astype(int)
    x = jnp.asarray(random.normal(size=5_000) + 2.0 * labels, jnp.float32)
    counts = np.bincount(labels)

    def cut(method: str) -> float:
        how = make_head_loss("a", counts, LossConfig(imbalance=method))

        def loss(weights):
            logits = jnp.stack([jnp.zeros_like(x), weights[0] * x + weights[1]], 1)
            return head_cross_entropy(logits, jnp.asarray(labels), how).mean()

        weights = jnp.zeros(2)
        gradient = jax.jit(jax.grad(loss))
        for _ in range(1_500):
            weights = weights - 1.0 * gradient(weights)
        return float(-weights[1] / weights[0])

    assert cut("none") > 2.2
    assert cut("logit_adjustment") == pytest.approx(1, abs=0.3)
    assert cut("balanced") == pytest.approx(1, abs=0.3)


def test_a_run_counts_the_classes_of_its_training_rows(tiny_config, prepared, tmp_path, monkeypatch):
    config = tiny_config()
    config.loss.head_imbalance = {"kind": "balanced"}
    seen = {}
    monkeypatch.setattr("fashion_jax.run.session.make_train_step", lambda *_, losses, **__: seen.update(losses))
    Session(resolve(config, prepared), prepared, tmp_path, progress=False).train_step()
    rows = prepared.indices("train")
    labels = prepared.labels[rows, prepared.attributes.index("kind")]
    assert np.allclose(seen["kind"].class_weights, balanced_weights(np.bincount(labels[labels >= 0], minlength=3)))
    assert seen["colour"].class_weights is None
    config.loss.head_imbalance = {"knid": "balanced"}
    with pytest.raises(UserError, match="did you mean 'kind'"):
        resolve(config, prepared)
    with pytest.raises(UserError, match=r"loss.imbalance"):
        tiny_config(loss__imbalance="balance")


def test_what_nothing_would_follow_is_refused(tiny_config, prepared, tmp_path):
    by_attribute = {"head_imbalance": "kind:focal", "head_weights": "kind:5", "head_label_smoothing": "kind:0.1"}
    for field, text in by_attribute.items():
        config = tiny_config(data__attributes=("colour",))
        set_value(config, f"loss.{field}", text)
        with pytest.raises(UserError, match=rf"loss\.{field} names 'kind', which is not trained"):
            train(config, tmp_path / "w", progress=False)
    config = tiny_config(data__attributes=("kind",), loss__colour_softness=0.2)
    with pytest.raises(UserError, match=r"colour_softness=0\.2 is of colours, and no attribute .* \(of kind\)"):
        train(config, tmp_path / "w", progress=False)
    config.model.colour_heads = ("kind",)
    refuse_without_effect(resolve(config, prepared))
    with pytest.raises(UserError, match=r"learnt by metric heads, and there are none; .*metric_heads=kind:128"):
        train(tiny_config(loss__metric="proxy_anchor"), tmp_path / "w", progress=False)
    refuse_without_effect(resolve(tiny_config(loss__metric="proxy_anchor", model__metric_heads={"kind": 8}), prepared))
    with pytest.raises(UserError, match=r"is of embedding\.kind=labels; with features no labels take part"):
        train(tiny_config(embedding__kind="features", embedding__attributes=("kind",)), tmp_path / "w", progress=False)


def test_a_run_that_has_begun_with_what_nothing_follows_goes_on(tiny_config, tmp_path, monkeypatch):
    """Earlier versions did not refuse it."""
    settings = {
        "data__attributes": ("colour",), "embedding__kind": "features", "embedding__attributes": ("colour",),
        "loss__metric": "proxy_anchor",
    }  # fmt: skip
    config = tiny_config(**settings)
    set_value(config, "loss.head_weights", "kind:5")
    with monkeypatch.context() as patch:
        patch.setattr("fashion_jax.run.train.refuse_without_effect", lambda config: None)
        train(config, tmp_path / "w", progress=False, finish=False)
    assert train(config, tmp_path / "w", progress=False).test is not None
    assert evaluate(tmp_path / "w", progress=False).summaries.keys() == {"colour"}


def test_a_wider_scale_gives_more_of_a_colour_to_its_likes(tiny_config, prepared, tmp_path):
    def spread(scale):
        config = tiny_config(loss__colour_softness=0.2, loss__colour_scale=scale)
        similar = session_on(config, prepared, tmp_path, 1).head_losses["colour"].similar
        return scipy.stats.entropy(np.asarray(similar), axis=1).mean()

    assert spread(2.0) < spread(20.0) < spread(200.0)


def test_a_bias_that_starts_at_the_frequencies_is_trained_as_with_shifted_logits(tiny_config, prepared, tmp_path):
    states, losses, sessions, kept = [], [], [], []
    for method in ("logit_adjustment", "prior"):
        config = tiny_config(loss__imbalance=method, loss__label_smoothing=0.1, loss__colour_softness=0.1)
        session = session_on(config, prepared, tmp_path, 1)
        sessions.append(session)
        state, said, _ = run(session, 4, state=first_state(session))
        kept.append(state)
        flat = flatten_dict(jax.device_get(state.params))
        states.append({"/".join(map(str, path)): array for path, array in flat.items()})
        losses.append([values["loss"] for values in said])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    shifts = {f"heads/{n}/output/bias": loss.first_bias for n, loss in sessions[1].head_losses.items()}
    assert len(shifts) == 2
    for name, shifted in states[0].items():
        assert np.allclose(shifted + shifts.get(name, 0), states[1][name], atol=2e-4), name
    # Checkpoints and trials are chosen by what either says of rows as they come.
    scores = [
        session.evaluator("validation")(of_rows_as_they_come(session, trained)).scalars()
        for session, trained in zip(sessions, kept, strict=True)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    raw = sessions[0].evaluator("validation")(kept[0]).scalars()
    assert abs(raw["loss"] - scores[0]["loss"]) > 0.01 and of_rows_as_they_come(sessions[1], kept[1]) is kept[1]


def test_runs_with_shifted_logits_are_chosen_as_those_whose_bias_has_the_shift(
    tiny_config, prepared, tmp_path, monkeypatch
):
    asked = []

    def keep(*rest, **how):
        asked.append(how["spared"])
        return fit_decision(*rest, **how)

    monkeypatch.setattr("fashion_jax.run.finish.fit_decision", keep)
    noted = []
    for method in ("logit_adjustment", "prior"):
        config = tiny_config(
            data__source=str(prepared.folder), loss__imbalance=method, train__duration="4 steps",
            train__evaluate_every="2 steps", trust__spared_accuracy=0.3,
        )  # fmt: skip
        train(config, tmp_path / method, progress=False)
        noted.append(read_scalars(tmp_path / method / "metrics.jsonl", "validation/loss"))
    assert [step for step, _ in noted[0]] == [2, 4]
    np.testing.assert_allclose(noted[0], noted[1], rtol=1e-3)
    assert asked == [0.3, 0.3]


@pytest.mark.parametrize("softness", [0.0, 0.3])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_what_smoothing_gives_away_lifts_no_rare_class_above_the_right_one(strength, softness):
    counts = np.array([30_000, 3_000, 20, 1, 0])
    similar = np.full((5, 5), 0.25, np.float32) * (1 - np.eye(5, dtype=np.float32))
    config = LossConfig(
        imbalance="logit_adjustment", logit_adjustment=strength, label_smoothing=0.1, colour_softness=softness
    )
    how = make_head_loss("a", counts, config, similar)
    labels = jnp.arange(5)
    gradient = jax.grad(lambda logits: head_cross_entropy(logits, labels, how).sum())(jnp.zeros((5, 5)))
    # The gradient is softmax(logits + offsets) - target, and a network that fits says log(target) - offsets.
    targets = np.asarray(jax.nn.softmax(how.logit_offsets)[None] - gradient)
    assert targets.sum(1) == pytest.approx(1, abs=1e-5)
    said = np.log(np.maximum(targets, 1e-12)) - how.logit_offsets
    assert said.argmax(1).tolist() == [0, 1, 2, 3, 4]
    if not softness:
        others = said[~np.eye(5, dtype=bool)].reshape(5, 4)[:, :3]  # the last of them are at the limit of float32
        assert np.allclose(others, others[:, :1], atol=0.05)
