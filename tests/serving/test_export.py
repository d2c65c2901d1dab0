"""Exported models label photos as `fashion-jax predict` does, in programs without this library."""

from __future__ import annotations

import dataclasses
import errno
import json
import runpy
import subprocess
import sys

import jax.export
import numpy as np
import pytest
from PIL import Image

from drawn_packages import ALL, decision_of, package_of, photos
from drawn_products import draw_product
from fashion_jax.cli import main
from fashion_jax.data.colour_spaces import _ADOBE_RGB, _matrix_profile
from fashion_jax.serving import export
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


@pytest.mark.parametrize("fitted", [True, False])
def test_the_example_gives_the_librarys_tags_marks_and_colours(tmp_path, fitted):
    package = package_of({**ALL, "second_heads": []}, decision=decision_of() if fitted else None)
    folder = export_model(package, tmp_path / "exported", kind="onnx").parent
    example = runpy.run_path(str(folder / "label_photo.py"))
    size, adobe = (package.preprocessing["width"], package.preprocessing["height"]), _matrix_profile(*_ADOBE_RGB)
    red, clear = Image.new("RGB", size, (180, 30, 60)), Image.new("RGBA", size, (180, 30, 60, 200))
    cases = {"plain.png": (red, None), "adobe.png": (red, adobe), "clear.png": (clear, adobe)}
    model = Predictor(package, engine="onnx")
    for name, (image, profile) in cases.items():
        path = tmp_path / name
        image.save(path, icc_profile=profile)
        assert np.abs(example["read"](path)[0].astype(int) - model.read(path)).max() <= 3  # the library's are JPEG
        (prediction,) = model.predict(path)
        wanted = {key: [(*one, prediction.accepted.get(key, True))] for key, one in prediction.items()}
        wanted |= {key: [(*one, True) for one in several] for key, several in prediction.tags.items()}
        found = example["label"](path)
        assert found.keys() == wanted.keys() and found["occasion"]
        for key, several in wanted.items():
            assert [(text, sure) for text, _, sure in found[key]] == [(text, sure) for text, _, sure in several]
            shares = [[share for _, share, _ in one] for one in (found[key], several)]
            np.testing.assert_allclose(*shares, atol=0.02)


def test_the_example_ignores_a_damaged_profile(exported, tmp_path):
    example = runpy.run_path(str(exported / "label_photo.py"))
    for name, profile in (("plain.png", None), ("damaged.png", b"no profile")):
        Image.new("RGB", (60, 80), "red").save(tmp_path / name, icc_profile=profile)
    assert np.array_equal(*(example["read"](tmp_path / name) for name in ("plain.png", "damaged.png")))


def test_the_example_refuses_the_description_of_another_model(exported, tmp_path):
    for name in ("model.onnx", "label_photo.py"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    about = json.loads((exported / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**about, "fingerprint": "0" * 32}))
    with pytest.raises(SystemExit, match="another model"):
        runpy.run_path(str(tmp_path / "label_photo.py"))


def test_a_folder_never_holds_files_of_two_models(tmp_path, capsys, monkeypatch):
    first = package_of({})
    second = dataclasses.replace(first, fingerprint="1" * 32)
    monkeypatch.setattr(export, "_write_stablehlo", lambda package: b"program")
    export_model(first, tmp_path, kind="onnx")
    export_model(second, tmp_path, kind="stablehlo")
    assert {path.name for path in tmp_path.iterdir()} == {"model.stablehlo", "model.json"}
    said = capsys.readouterr().err
    assert "model.onnx" in said and "label_photo.py" in said
    export_model(first, tmp_path, kind="onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "label_photo.py", "model.json"}

    def fill_the_disk(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_bytes", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        export_model(second, tmp_path, kind="onnx")
    assert not (tmp_path / "model.json").exists()  # the new model.onnx would get the old one


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
