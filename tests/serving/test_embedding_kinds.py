"""`embedding.kind` through whole runs: what metric heads learnt, and pooled features, are what packages embed."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from fashion_jax.data.augment import normalize
from fashion_jax.data.photos import decode_photo
from fashion_jax.data.records import open_prepared
from fashion_jax.models.classifier import abstract_classifier, merge_network
from fashion_jax.run.train import train
from fashion_jax.serving.predictor import load_model
from fashion_jax.system.errors import UserError


def run(tiny_config, workdir, kind, **changes):
    config = tiny_config(train__duration="4 steps", embedding__kind=kind, **changes)
    config.trust.not_products_per_kind = 2
    train(config, workdir, progress=False)
    model, prepared = load_model(workdir), open_prepared(config.data.source)
    rows = prepared.indices("test")
    images = np.stack([decode_photo(prepared.read_photo(int(row)), *model.size) for row in rows])
    package = model.package
    graph, _, _ = abstract_classifier({**package.model, "dtype": model.dtype})

    def forward(params, batch_stats, pixels):
        outputs = merge_network(graph, params, batch_stats)(pixels, train=False)
        return outputs.embedding, outputs.metric

    values = package.preprocessing
    pixels = normalize(images, tuple(values["mean"]), tuple(values["std"]), model.dtype)
    return model, images, *jax.jit(forward)(package.params, package.batch_stats, pixels)


def test_learned_embeddings_are_the_metric_heads_and_appearance(tiny_config, tmp_path):
    placed = {"kind": 8, "colour": 4}
    model, images, _, metric = run(tiny_config, tmp_path / "w", "learned", model__metric_heads=placed)
    assert list(model.subspaces.items())[:2] == list(placed.items())
    assert list(model.subspaces)[2:] == ["appearance"]
    vectors = model.embed(list(images))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    shares = np.sqrt((1 - 0.15) / 2)
    np.testing.assert_allclose(vectors[:, :8], shares * np.asarray(metric["kind"]), atol=1e-4)
    np.testing.assert_allclose(vectors[:, 8:12], shares * np.asarray(metric["colour"]), atol=1e-4)
    assert np.std(vectors[:, :12], axis=0).min() > 0


def test_features_are_embedded_as_they_are(tiny_config, prepared, tmp_path):
    model, images, features, _ = run(
        tiny_config, tmp_path / "w", "features", trust__precision=0.9, trust__label_set_coverage=0.8,
        trust__flagged_share=0.2,
    )  # fmt: skip
    assert model.subspaces == {}
    vectors = model.embed(list(images))
    assert vectors.shape == (len(images), model.num_features)
    np.testing.assert_allclose(vectors, features, rtol=1e-4, atol=1e-4)
    # What was asked of trust is what the package promises, and what its report is about.
    report = json.loads((tmp_path / "w" / "evaluation" / "test" / "metrics.json").read_text())["trust"]
    decision = model.package.decision
    assert (decision.precision, decision.coverage) == (0.9, 0.8)
    assert report["precision"] == 0.9
    assert {head["label_sets"]["asked"] for head in report["heads"].values()} == {0.8}
    photos = [prepared.read_photo(int(row)) for row in prepared.indices("validation")]
    flagged = np.mean([said.is_out_of_catalogue for said in model.predict(photos)])
    assert 0.2 - 2 / len(photos) <= flagged <= 0.2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "takes what metric heads learn, and there are none"),
        ({"model__metric_heads": {"kind": 8}, "embedding__size": 4}, "8 features together, more than"),
    ],
)
def test_what_cannot_be_learnt_is_refused_before_training(tiny_config, tmp_path, changes, reason):
    with pytest.raises(UserError, match=reason):
        train(tiny_config(embedding__kind="learned", **changes), tmp_path / "w", progress=False)
    assert not (tmp_path / "w" / "checkpoints").exists()


def test_without_validation_rows_nothing_is_put_together(tiny_config, prepared, products_csv, tmp_path):
    table = (prepared.folder / "splits.csv").read_text().replace(",validation,", ",test,")
    (tmp_path / "splits.csv").write_text(table)
    placed = {"data__source": str(products_csv), "data__split": f"file:{tmp_path / 'splits.csv'}"}
    config = tiny_config(embedding__kind="learned", model__metric_heads={"kind": 8}, **placed)
    with pytest.raises(UserError, match="put together after training on validation rows, and there are none"):
        train(config, tmp_path / "w", progress=False)
