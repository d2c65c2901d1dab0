"""Mixup and CutMix: shares are shares, partners are of the same part, colours learn from whole photos alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from fashion_jax.config.fields import MixConfig
from fashion_jax.data.augment import example_keys
from fashion_jax.data.schema import MISSING
from fashion_jax.training.losses import HeadLoss, MixedTarget, head_cross_entropy, multi_head_loss
from fashion_jax.training.mixing import label_shares, mix_photos, mixing_shares, smaller_share, swap_pairs
from fashion_jax.training.placement import batch_sharding, put_batch
from fashion_jax.training.state import create_state
from stepping import mesh_of, run

KEYS = jax.random.split(jax.random.key(3), 400)
MIXUP = MixConfig(mixup_alpha=0.4, probability=1.0)
CONFIGS = {
    "mixup": MIXUP,
    "cutmix": MixConfig(cutmix_alpha=1.0, probability=1.0),
    "both": MixConfig(mixup_alpha=0.4, cutmix_alpha=1.0, probability=0.5),
}


def draw(keys, height: int, width: int, config: MixConfig) -> tuple[np.ndarray, np.ndarray]:
    share, pixels = jax.jit(lambda keys: mixing_shares(keys, height, width, config))(keys)
    return np.asarray(share), np.asarray(pixels)


@pytest.mark.parametrize("name", CONFIGS)
def test_shares(name):
    share, pixels = draw(KEYS, 20, 16, CONFIGS[name])
    assert share.min() >= 0.5 - 1e-6 and share.max() <= 1
    np.testing.assert_allclose(pixels.mean((1, 2)), share, atol=1e-6)
    whole = np.mean(share == 1)
    assert 0.4 < whole < 0.65 if name == "both" else whole < 0.15
    assert 0.6 < share.mean() < (0.98 if name != "both" else 1)
    if name == "mixup":
        assert (np.ptp(pixels, (1, 2)) == 0).all()
    if name == "cutmix":
        assert set(np.unique(pixels)) == {0.0, 1.0}
    np.testing.assert_array_equal(share, draw(KEYS, 20, 16, CONFIGS[name])[0])


def test_cut_areas_are_those_of_the_beta_distribution():
    # Beta(1, 1), its larger side: the share is uniform in [.5, 1] but for what sticks out of the photo.
    share, _ = draw(jax.random.split(jax.random.key(0), 2000), 64, 64, MixConfig(cutmix_alpha=1.0, probability=1.0))
    blend, _ = draw(jax.random.split(jax.random.key(0), 2000), 8, 8, MixConfig(mixup_alpha=1.0, probability=1.0))
    np.testing.assert_allclose(np.quantile(blend, [0.25, 0.5, 0.75]), [0.625, 0.75, 0.875], atol=0.02)
    assert np.mean(share) > np.mean(blend)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.4, 1.0, 3.0, 50.0])
def test_shares_are_scipys_quantiles(alpha):
    chances = jnp.linspace(0, 1, 5001)
    found = np.asarray(jax.jit(jax.vmap(lambda chance: smaller_share(chance, alpha)))(chances))
    wanted = scipy.stats.beta.ppf(np.asarray(chances, float) / 2, alpha, alpha)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert found[0] == 0 and found[-1] == pytest.approx(0.5, abs=1e-6) and (np.diff(found) >= 0).all()


def test_no_draw_is_repeated():
    traced = jax.jit(lambda keys: mixing_shares(keys, 20, 16, CONFIGS["both"])).trace(KEYS)
    assert "stablehlo.while" not in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_photos_are_mixed_with_the_other_of_the_pair():
    photos = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (4, 4, 5, 3)), jnp.float32)
    pixels = jnp.stack([jnp.ones((4, 5)), jnp.full((4, 5), 0.7), jnp.ones((4, 5)).at[1, 2].set(0.0), jnp.ones((4, 5))])
    mixed = np.asarray(mix_photos(photos, pixels))
    np.testing.assert_array_equal(mixed[0], photos[0])
    np.testing.assert_allclose(mixed[1], 0.7 * photos[1] + 0.3 * photos[0], rtol=1e-5)
    np.testing.assert_array_equal(mixed[2, 1, 2], photos[3, 1, 2])
    np.testing.assert_array_equal(np.delete(mixed[2].reshape(20, 3), 7, 0), np.delete(photos[2].reshape(20, 3), 7, 0))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_partners_are_rows_of_the_same_part(parts):
    labels = np.array([0, 1, MISSING, 3, 4, 5, 6, MISSING])
    share = np.array([1, 0.9, 0.8, 0.7, 0.6, 0.5, 1, 0.75], np.float32)
    target = label_shares(jnp.asarray(labels), jnp.asarray(share), parts=parts, mixable=True)
    partners = np.asarray(target.partners)
    for part in range(parts):
        swapped = labels[part::parts].reshape(-1, 2)[:, ::-1].reshape(-1)
        np.testing.assert_array_equal(partners[part::parts], swapped)
    np.testing.assert_allclose(target.own, np.where(labels != MISSING, share, 0))
    np.testing.assert_allclose(target.other, np.where(partners != MISSING, 1 - share, 0), atol=1e-7)
    colours = label_shares(jnp.asarray(labels), jnp.asarray(share), parts=parts, mixable=False)
    np.testing.assert_array_equal(colours.own, [1, 0, 0, 0, 0, 0, 1, 0])
    assert not np.asarray(colours.other).any()


def test_the_loss_is_the_shares_of_two_losses():
    logits = {"kind": jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)}
    labels, partners, how = jnp.array([0, 1, 2, MISSING]), jnp.array([2, 2, MISSING, 1]), HeadLoss(smoothing=0.1)
    target = MixedTarget(partners, jnp.array([1, 0.6, 0.7, 0]), jnp.array([0, 0.4, 0, 0.2]))
    total, _ = multi_head_loss(logits, {"kind": labels}, {"kind": jnp.array(2.9)}, {"kind": how}, {"kind": target})
    one, two = (np.asarray(head_cross_entropy(logits["kind"], rows, how)) for rows in (labels, partners))
    expected = (one[0] + 0.6 * one[1] + 0.4 * two[1] + 0.7 * one[2] + 0.2 * two[3]) / 2.9
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_mixed_steps_on_one_device_and_on_eight(session_of):
    one, eight = (run(session_of(devices, train__mix=MIXUP), 3)[1] for devices in (1, 8))
    for a, b in zip(one, eight, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["loss/kind"] > 0 and 0 <= a["accuracy/kind"] <= 1 and 0 <= a["accuracy/colour"] <= 1
        assert a["loss/colour"] == 0  # mixup leaves no photo whole


def test_mixed_parts_add_up_to_the_batch(session_of, batch_of, prepared):
    """Two parts of eight rows are two batches of eight with the same labels, partners and shares."""

    def kind_loss(batch, **changes) -> float:
        session = session_of(4, train__mix=MIXUP, **changes)
        state = create_state(session.arguments, session.optimizer, 0, session.mesh)
        return session.train_step()(state, put_batch(batch, session.mesh))[1].read()["loss/kind"]

    batch, column = batch_of(0), prepared.attributes.index("kind")
    batch["label"][::5] = MISSING
    losses, counted = [], []
    for part in range(2):
        own = {name: array[part::2] for name, array in batch.items()}
        keys = example_keys(jax.random.fold_in(jax.random.key(0), 2), jnp.int32(0), own["row"])
        share, _ = draw(keys, 32, 24, MIXUP)
        target = label_shares(jnp.asarray(own["label"][:, column]), jnp.asarray(share), parts=1, mixable=True)
        counted.append(float(jnp.sum(target.own) + jnp.sum(target.other)))
        losses.append(kind_loss(own))
    expected = np.dot(losses, counted) / np.sum(counted)
    assert kind_loss(batch, train__accumulation_steps=2) == pytest.approx(expected, rel=1e-5)


def test_whole_photos_are_whole_at_any_size():
    for size in (64, 80, 88, 176):
        share, pixels = draw(KEYS[:40], size, size, MixConfig(mixup_alpha=0.4, probability=0.5))
        np.testing.assert_array_equal(share == 1, (pixels == 1).all((1, 2)))
        assert (share == 1).any()


@pytest.mark.parametrize("parts", [1, 2])
def test_pairs_are_exchanged_without_a_word_between_devices(parts):
    mesh = mesh_of(8)
    rows = jax.device_put(jnp.arange(64.0).reshape(32, 2), batch_sharding(mesh))
    swap = jax.jit(lambda rows: swap_pairs(rows, parts), out_shardings=batch_sharding(mesh))
    text = swap.lower(rows).compile().as_text()
    assert "collective" not in text and "all-" not in text
    np.testing.assert_array_equal(swap_pairs(swap(rows), parts), rows)
