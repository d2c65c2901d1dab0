"""The second stage of cRT: heads trained anew, rare classes weighing more, on a network that stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.numpy

from fashion_jax.config.files import load_config
from fashion_jax.data.loader import ResidentPhotos
from fashion_jax.run.train import train
from fashion_jax.serving.predictor import load_model

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "retrain_heads.py"


def test_heads_alone_are_trained_anew_on_a_finished_run(tiny_config, prepared, tmp_path):
    first = train(
        tiny_config(model__colour_heads=("colour",), train__duration="6 steps"), tmp_path / "first", progress=False
    )
    config = load_config(CONFIG)
    config.data.source, config.model.pretrained = str(prepared.folder), str(tmp_path / "first")
    config.data.height, config.data.width = 32, 24
    config.train.duration, config.train.batch_size = "12 steps", 16
    second = train(config, tmp_path / "second", progress=False)
    before, after = (
        safetensors.numpy.load_file(tmp_path / name / "package" / "weights.safetensors") for name in ("first", "second")
    )
    kept = [name for name in before if "/backbone/" in name or name.startswith("params/colour/")]
    assert before.keys() == after.keys()
    assert len(kept) > 55 and all(np.array_equal(before[name], after[name]) for name in kept)
    for head in ("kind", "colour"):
        trained = [name for name in after if name.startswith(f"params/heads/{head}/")]
        assert trained and not any(np.array_equal(before[name], after[name]) for name in trained)
    # The network sees the same in a photo, and says something else of it.
    images = ResidentPhotos(prepared, prepared.indices("test")[:8], 32, 24, progress=False).images
    features = [load_model(tmp_path / name).predict_arrays(images).features for name in ("first", "second")]
    np.testing.assert_allclose(*features, rtol=1e-5, atol=1e-6)
    assert set(second.test.summaries) == set(first.test.summaries) == {"kind", "colour"}
