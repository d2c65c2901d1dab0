"""Packages that come with the library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import traverse_util

from fashion_jax.models.classifier import split_network
from fashion_jax.serving import zoo
from fashion_jax.serving.package import load_package, write_package
from fashion_jax.serving.predictor import load_model
from fashion_jax.serving.zoo import ZOO, find_model, zoo_models
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
