"""Packages in half precision, and those that come with the library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from fashion_jax.models.classifier import split_network
from fashion_jax.serving import zoo
from fashion_jax.serving.package import load_package, write_package
from fashion_jax.serving.predictor import load_model
from fashion_jax.serving.zoo import ZOO, find_model, halve_package, zoo_models
from fashion_jax.system.errors import UserError
from small_models import BASE, model_of


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "package"
    _, params, batch_stats = split_network(model_of(BASE))
    flat = traverse_util.flatten_dict({"params": params, "batch_stats": batch_stats})
    write_package(
        folder,
        weights={"/".join(map(str, path)): np.asarray(array) for path, array in flat.items()},
        model=BASE,
        vocabularies={"kind": ("a", "b", "c"), "colour": ("1", "2", "3", "4", "5")},
        preprocessing={
            "height": 20,
            "width": 16,
            "max_side": 64,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "test_time_flip": False,
        },
        extra={"note": "drawn"},
    )  # fmt: skip
    return folder


def test_half_a_package_says_nearly_the_same(package, tmp_path):
    size = halve_package(package, tmp_path / "half")
    assert size < 0.6 * (package / "weights.safetensors").stat().st_size
    stored = safetensors.numpy.load_file(tmp_path / "half" / "weights.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {"float16", "float32"}
    assert all(tensor.dtype == np.float32 for name, tensor in stored.items() if name.startswith("batch_stats"))
    half, whole = load_model(tmp_path / "half"), load_model(package)
    assert half.package.extra == {"note": "drawn"} and half.fingerprint != whole.fingerprint
    photos = np.random.default_rng(0).integers(0, 255, (6, 20, 16, 3)).astype(np.uint8)
    a, b = half.predict_arrays(photos), whole.predict_arrays(photos)
    np.testing.assert_allclose(a.probabilities["colour"], b.probabilities["colour"], atol=2e-3)
    np.testing.assert_allclose(a.embeddings, b.embeddings, rtol=0.02, atol=0.02)
    halve_package(tmp_path / "half", tmp_path / "again")
    assert (tmp_path / "again" / "weights.safetensors").read_bytes() == (
        tmp_path / "half" / "weights.safetensors"
    ).read_bytes()


def test_nothing_but_a_package_is_replaced(package, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="no model package"):
        halve_package(package, tmp_path / "photos")
    assert (tmp_path / "photos").is_dir()


def test_what_float16_does_not_hold_stays_as_it_is():
    large = np.full((2, 2), 1e5, np.float32)
    assert zoo._halve(large) is large
    assert zoo._halve(large / 10).dtype == np.float16


def test_names_stand_for_the_librarys_own(package, tmp_path, monkeypatch):
    shutil.copytree(package, tmp_path / "zoo" / "drawn")
    monkeypatch.setattr(zoo, "ZOO", tmp_path / "zoo")
    monkeypatch.chdir(tmp_path)
    assert zoo_models() == ("drawn",)
    assert find_model("drawn") == tmp_path / "zoo" / "drawn"
    assert load_model("drawn").package.extra == {"note": "drawn"}
    assert find_model("./elsewhere/drawn") == Path("elsewhere/drawn")
    (tmp_path / "drawn").mkdir()  # a path that is there is the user's
    assert find_model("drawn") == Path("drawn")
    with pytest.raises(UserError, match="no model package"):
        load_model("nothing")


def test_the_model_of_the_quick_start_is_there():
    assert "small" in zoo_models()


@pytest.mark.parametrize("name", zoo_models())
def test_models_of_the_library_are_sound_and_small(name):
    folder = ZOO / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 25 * 2**20
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("Command", "Data", "Scores", "Limits"))
    model = load_model(name)
    photo = np.full((80, 60, 3), 200, np.uint8)
    (prediction,) = model.predict([photo])
    assert prediction.keys() == model.classes.keys()
    assert model.embed([photo]).shape == (1, model.embedding_size)
    assert json.loads((folder / "config.json").read_text())["extra"]["test"]
    assert load_package(folder).decision is not None and model.embedding_size <= 256
