"""Exported models label photos as `fashion-jax predict` does, in programs without this library."""

from __future__ import annotations

import json
import subprocess
import sys

import jax.export
import numpy as np
import pytest
from PIL import Image

from drawn_packages import ALL, decision_of, package_of, photos
from drawn_products import draw_product
from fashion_jax.cli import main
from fashion_jax.serving.export import export_model
from fashion_jax.serving.predictor import Predictor, load_model
from fashion_jax.system import files, stored

# The example runs with its own three packages, and what they import.
ALONE = """
import importlib.abc, runpy, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in {"numpy", "PIL", "onnxruntime", "google", "flatbuffers", "packaging"} | sys.stdlib_module_names:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    assert main(["export", "--model", "small", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Photos as people have them: JPEG, PNG with transparency, turned by Exif, larger and smaller."""
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for place, (kind, colour) in enumerate([("round", "red"), ("tall", "blue"), ("square", "green"), ("tall", "red")]):
        image = Image.fromarray(draw_product(kind, colour, place)).resize((60, 80) if place < 2 else (240, 200 + place))
        exif = Image.Exif()
        if place == 2:
            exif[0x0112] = 6
        if place == 1:
            image = image.convert("RGBA")
            image.putalpha(Image.fromarray((np.asarray(image)[..., :3].mean(-1) < 240).astype(np.uint8) * 255))
        found.append(folder / f"{place}.{'png' if place == 1 else 'jpg'}")
        image.save(found[-1], exif=exif, **({} if place == 1 else {"quality": 95}))
    return found


def test_the_example_labels_photos_as_the_library_does(exported, pictures):
    command = [sys.executable, "-c", ALONE, str(exported / "label_photo.py"), *map(str, pictures)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout.splitlines()
    predictions = load_model("small").predict(pictures)
    for place, (line, path, prediction) in enumerate(zip(lines, pictures, predictions, strict=True)):
        assert line.startswith(f"{path} ")
        for name, (label, share) in prediction.items():
            # Only the first photo needs no repair and no scaling, which the library and Pillow do slightly differently.
            if place and share < 0.7:
                continue
            shown = f"{line} ".partition(f" {name}={label} ")[2].split()[0]
            assert float(shown.strip("?%")) / 100 == pytest.approx(share, abs=0.25 if place else 0.006)
            if not place:
                assert shown.endswith("?") == (not prediction.accepted[name])


def test_what_stands_beside_a_model_belongs_to_it(exported):
    about = stored.read_document(exported / "model.json", remedy="export again")
    content = (exported / "model.onnx").read_bytes()
    assert about["file"] == {"name": "model.onnx", "bytes": len(content), "sha256": files.digest(content)}
    assert (about["height"], about["width"], about["opset"]) == (80, 60, 17)
    model = load_model("small")
    assert about["fingerprint"] == model.fingerprint
    assert {name: tuple(one["classes"]) for name, one in about["attributes"].items()} == model.classes


@pytest.mark.parametrize("changes", [{}, ALL])
def test_stablehlo_is_loaded_and_run_again(tmp_path, changes):
    package = package_of(changes, decision=decision_of() if changes else None)
    path = export_model(package, tmp_path, kind="stablehlo")
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    model, images = Predictor(package, engine="onnx"), photos(package)
    for count in (1, 3):
        found, wanted = exported.call(images[:count]), model.predict_arrays(images[:count])
        for name, values in {**wanted.probabilities, **wanted.tag_probabilities}.items():
            np.testing.assert_allclose(found[f"probabilities/{name}"], values, atol=1e-4)
        np.testing.assert_allclose(found["embedding"], wanted.embeddings, atol=1e-4)
        if changes:
            np.testing.assert_allclose(found["out_of_catalogue"], wanted.out_of_catalogue, atol=1e-3)
    assert json.loads((tmp_path / "model.json").read_text())["platforms"] == ["cpu", "cuda", "tpu"]


def test_bad_requests_get_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for model, out, message in (("nothing", "new", "no model package"), ("small", "file", "is a file")):
        assert main(["export", "--model", model, "--out", str(tmp_path / out)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
