"""Packages that come with the library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fashion_jax.serving import zoo
from fashion_jax.serving.package import load_package
from fashion_jax.serving.predictor import load_model
from fashion_jax.serving.zoo import ZOO, find_model, zoo_models
from fashion_jax.system.errors import UserError


def test_names_stand_for_the_librarys_own(tmp_path, monkeypatch):
    assert "small" in zoo_models()  # of the quick start
    shutil.copytree(ZOO / "small", tmp_path / "zoo" / "drawn")
    monkeypatch.setattr(zoo, "ZOO", tmp_path / "zoo")
    monkeypatch.chdir(tmp_path)
    assert zoo_models() == ("drawn",)
    assert find_model("drawn") == load_model("drawn").package.folder == tmp_path / "zoo" / "drawn"
    assert find_model("./elsewhere/drawn") == Path("elsewhere/drawn")
    (tmp_path / "drawn").mkdir()  # a path that is there is the user's
    assert find_model("drawn") == Path("drawn")
    with pytest.raises(UserError, match="no model package"):
        load_model("nothing")


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
