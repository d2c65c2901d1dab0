"""`embedding.kind` through whole runs: packages embed pooled features where that was asked for."""

from __future__ import annotations

import json

import jax
import numpy as np

from fashion_jax.data.augment import normalize
from fashion_jax.data.photos import decode_photo
from fashion_jax.data.records import open_prepared
from fashion_jax.models.classifier import abstract_classifier, merge_network
from fashion_jax.run.train import train
from fashion_jax.serving.predictor import load_model


def run(tiny_config, workdir, kind, **changes):
    config = tiny_config(train__duration="4 steps", embedding__kind=kind, **changes)
    train(config, workdir, progress=False)
    model, prepared = load_model(workdir), open_prepared(config.data.source)
    rows = prepared.indices("test")
    images = np.stack([decode_photo(prepared.read_photo(int(row)), *model.size) for row in rows])
    package = model.package
    graph, _, _ = abstract_classifier({**package.model, "dtype": model.dtype})

    def forward(params, batch_stats, pixels):
        outputs = merge_network(graph, params, batch_stats)(pixels, train=False)
        return outputs.features

    values = package.preprocessing
    pixels = normalize(images, tuple(values["mean"]), tuple(values["std"]), model.dtype)
    return model, images, jax.jit(forward)(package.params, package.batch_stats, pixels)


def test_features_are_embedded_as_they_are(tiny_config, prepared, tmp_path):
    model, images, features = run(
        tiny_config, tmp_path / "w", "features", trust__precision=0.9, trust__label_set_coverage=0.8
    )  # fmt: skip
    assert model.subspaces == {}
    vectors = model.embed(list(images))
    assert vectors.shape == (len(images), model.num_features)
    np.testing.assert_allclose(vectors, features, rtol=1e-4, atol=1e-4)
    # What was asked of trust is what the package promises, and what its report is about.
    report = json.loads((tmp_path / "w" / "evaluation" / "test" / "metrics.json").read_text())["decisions"]
    decision = model.package.decision
    assert (decision.precision, decision.coverage) == (0.9, 0.8)
    assert report["precision"] == 0.9
    assert {head["label_sets"]["asked"] for head in report["heads"].values()} == {0.8}
