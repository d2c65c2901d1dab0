"""The ONNX graph computes what JAX does, for every network that we build; and who computes is chosen without JAX."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import traverse_util

from drawn_packages import ALL, CLASSES, COLOUR, PLAIN, TAGS, decision_of, package_of, photos
from fashion_jax.models.architecture import DEPTHS, parameter_shapes
from fashion_jax.models.classifier import abstract_classifier
from fashion_jax.serving import onnx_graph, predictor
from fashion_jax.serving.export import describe, export_model
from fashion_jax.serving.jax_engine import make_forward
from fashion_jax.serving.onnx_graph import OPSET, write_graph
from fashion_jax.serving.outputs import decide
from fashion_jax.serving.package import Package, find_model, load_package
from fashion_jax.serving.predictor import Predictor, load_model
from fashion_jax.system.errors import UserError

CASES = {
    "plain": {},
    "imagenet": {"stem": "imagenet"},
    "deep": {"stem": "deep"},
    "resnet_d": {"stem": "resnet_d"},
    "gem": {"pooling": "gem"},
    "tags": {"tags": {"occasion": 3}, "colour_heads": ["occasion"]},
    "colour": {**COLOUR, "mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.25]},
    "bottlenecks": {**ALL, "depth": 50},
    "all": ALL,
    "all, large stem": {**ALL, "stem": "resnet_d"},
}
DEEP = [depth for depth in DEPTHS if depth not in (10, 50)]


def run_onnx(graph: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"photos": images}), strict=True))


def run_jax(package: Package, images: np.ndarray, flip: bool) -> dict[str, np.ndarray]:
    forward = jax.jit(make_forward(package, "float32"), static_argnums=3)
    found = jax.device_get(forward(*package.trees(), images, flip))
    names = {"features": "features", "energies": "energies", "embeddings": "embedding"}
    outputs = {f"logits/{name}": values for name, values in {**found["logits"], **found["tags"]}.items()}
    outputs |= {name: found[key] for key, name in names.items()}
    return outputs | ({"colour_features": found["colour_features"]} if package.num_colour_features else {})


@pytest.mark.parametrize("changes", [*CASES.values(), *({"depth": depth} for depth in (18, 34))])
def test_parameters_have_the_names_and_shapes_of_the_network(changes):
    _, params, batch_stats = abstract_classifier({**PLAIN, **changes})
    flat = traverse_util.flatten_dict({"params": params, "batch_stats": batch_stats})
    wanted = {"/".join(map(str, path)): leaf.shape for path, leaf in flat.items()}
    assert parameter_shapes({**PLAIN, **changes}) == wanted
    assert {str(leaf.dtype) for leaf in flat.values()} == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("depth", DEEP)
def test_parameters_of_deeper_networks_too(depth):
    test_parameters_have_the_names_and_shapes_of_the_network({**ALL, "depth": depth})


def check_parity(package: Package, flip: bool) -> None:
    images = photos(package)
    graph = write_graph(package, flip=flip)
    found, wanted = run_onnx(graph, images), run_jax(package, images, flip)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4, err_msg=name)
    onnx.checker.check_model(graph, full_check=True)
    (opset,) = onnx.load_from_string(graph).opset_import
    assert (opset.domain, opset.version) == ("", OPSET)


@pytest.mark.parametrize("case", CASES)
def test_the_graph_computes_what_jax_does(case):
    check_parity(package_of(CASES[case]), flip="all" in case or case == "tags")


@pytest.mark.slow
@pytest.mark.parametrize("depth", DEEP)
def test_deeper_graphs_compute_what_jax_does(depth):
    check_parity(package_of({**ALL, "depth": depth}), flip=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 48), (65, 31), (33, 97)])
def test_sizes_of_photos_change_nothing(size):
    check_parity(package_of({**ALL, "stem": "resnet_d"}, height=size[0], width=size[1], planned=False), flip=False)


def test_the_librarys_model_is_computed_alike_by_both_engines():
    """Labels of both operating points, probabilities and embeddings, for drawn photos and noise."""
    models = [load_model("small", engine=engine) for engine in ("onnx", "jax")]
    assert [model.engine for model in models] == ["onnx", "jax"]
    rng = np.random.default_rng(0)
    images = np.concatenate([photos(models[0].package), rng.integers(0, 256, (5, 80, 60, 3)).astype(np.uint8)])
    for point in ("accuracy", "macro_f1"):
        found, wanted = (model.predict_arrays(images, operating_point=point) for model in models)
        for name in models[0].attributes:
            assert np.array_equal(found.labels[name], wanted.labels[name])
            assert np.array_equal(found.accepted[name], wanted.accepted[name])
            np.testing.assert_allclose(found.probabilities[name], wanted.probabilities[name], atol=1e-4)
        for name in ("features", "embeddings", "out_of_catalogue", "colour_features"):
            np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=2e-4, err_msg=name)


@pytest.mark.parametrize(("pooling", "weight"), [("linear", 0.4), ("log", 0.4), ("linear", 0.0), ("log", 1.0)])
def test_a_finished_graph_returns_what_predictions_have(pooling, weight):
    package = package_of(ALL, decision=decision_of(pooling, weight))
    images = photos(package)
    raw, found = (run_onnx(write_graph(package, flip=True, finished=one), images) for one in (False, True))
    logits = {name: raw[f"logits/{name}"] for name in CLASSES}
    tags = {name: raw[f"logits/{name}"] for name in TAGS}
    wanted = decide(package.decision, logits, raw["features"], raw["energies"], tags=tags)
    for name, values in {**wanted.probabilities, **wanted.tag_probabilities}.items():
        np.testing.assert_allclose(found[f"probabilities/{name}"], values, atol=1e-5)
    np.testing.assert_allclose(found["out_of_catalogue"], wanted.out_of_catalogue, atol=1e-3)
    assert set(found) - set(raw) == {*(f"probabilities/{name}" for name in (*CLASSES, *TAGS)), "out_of_catalogue"}


@pytest.mark.slow
def test_both_engines_label_real_photos_alike(real_data):
    models = [load_model("small", engine=engine) for engine in ("onnx", "jax")]
    images = []
    with tarfile.open(real_data / "fashion-product-images-small.tar.xz", "r|xz") as archive:
        for member in archive:
            if member.name.endswith(".jpg"):
                content = archive.extractfile(member)
                assert content is not None
                images.append(models[0].read(content.read()))
            if len(images) == 500:
                break
    found, wanted = (model.predict_arrays(np.stack(images)) for model in models)
    for name in models[0].attributes:
        assert (found.labels[name] == wanted.labels[name]).mean() >= 0.999
        np.testing.assert_allclose(found.probabilities[name], wanted.probabilities[name], atol=1e-4)
    np.testing.assert_allclose(found.embeddings, wanted.embeddings, atol=1e-4)


def test_a_batch_may_have_any_size():
    package = package_of(ALL)
    model, images = Predictor(package, engine="onnx"), photos(package, 9)
    together = model.predict_arrays(images, flip=True)
    for count in (0, 1, 9):
        alone = model.predict_arrays(images[:count], flip=True)
        assert alone.embeddings.shape == (count, 13)
        np.testing.assert_allclose(alone.embeddings, together.embeddings[:count], atol=1e-5)
        np.testing.assert_allclose(alone.tag_probabilities["occasion"], together.tag_probabilities["occasion"][:count])


def test_an_engine_is_named_or_found(monkeypatch, capsys):
    package = package_of({})
    with pytest.raises(UserError, match=r"no engine 'onxx'.*did you mean 'onnx'"):
        Predictor(package, engine="onxx")
    for accelerator, engine in ((False, "onnx"), (True, "jax")):
        monkeypatch.setattr(predictor, "has_accelerator", lambda found=accelerator: found)
        assert Predictor(package).engine == engine
    monkeypatch.setattr(predictor, "has_accelerator", lambda: False)
    monkeypatch.setattr(onnx_graph, "_MAX_BYTES", 1000)
    assert Predictor(package).engine == "jax"
    for refused in (lambda: Predictor(package, engine="onnx"), lambda: export_model(package, "unused", kind="onnx")):
        with pytest.raises(UserError, match=r"drawn.*too large for ONNX"):
            refused()
    monkeypatch.setitem(sys.modules, "fashion_jax.serving.onnx_engine", None)
    assert Predictor(package).engine == "jax" and "note: onnxruntime cannot be imported" in capsys.readouterr().err
    with pytest.raises(UserError, match="use engine='jax'"):
        Predictor(package, engine="onnx")


def test_jax_predicts_whatever_the_import_of_onnxruntime_raises(monkeypatch, capsys):
    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name == "fashion_jax.serving.onnx_engine":
                raise TypeError("Descriptors cannot be created directly.\nIf this call came from ...")

    monkeypatch.setattr(predictor, "has_accelerator", lambda: False)
    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "fashion_jax.serving.onnx_engine", raising=False)
    assert Predictor(package_of({})).engine == "jax"
    assert "cannot be imported (Descriptors cannot be created directly.), so JAX" in capsys.readouterr().err


def test_the_embedding_counts_for_the_size_of_a_graph(monkeypatch):
    package = package_of({})
    weights = sum(4 * array.size for array in package.weights.values())
    for room, fits in ((1, False), (4 * package.embedding.components.size + 1, True)):
        monkeypatch.setattr(onnx_graph, "_MAX_BYTES", weights + room)
        assert onnx_graph.fits(package) == fits


FORK = """
import os, signal
import numpy as np
from fashion_jax.serving.predictor import load_model
model, images = load_model("small", engine="onnx"), np.zeros((4, 80, 60, 3), np.uint8)
found = model.predict_arrays(images)
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(0 if np.array_equal(model.predict_arrays(images).embeddings, found.embeddings) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_predicts():
    subprocess.run([sys.executable, "-c", FORK], check=True)


@pytest.mark.parametrize(
    ("environment", "found", "imported"),
    [
        ({"JAX_PLATFORMS": "cpu"}, False, False), ({"JAX_PLATFORMS": ""}, False, False),
        ({"JAX_PLATFORMS": "", "TPU_LIBRARY_PATH": "/nothing"}, False, True),
    ],
)  # fmt: skip
def test_accelerators_are_found_without_jax_where_there_can_be_none(environment, found, imported):
    code = (
        "import sys\nfrom fashion_jax.system import accelerators\n"
        f"accelerators._MODULES = ()\nassert accelerators.has_accelerator() is {found}\n"
        f"assert ('jax' in sys.modules) is {imported}"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "JAX_PLATFORM_NAME": "cpu", **environment}
    )


def test_predicting_on_cpus_imports_no_jax(tmp_path):
    code = (
        "import sys\nfrom fashion_jax.cli import main\n"
        "from PIL import Image\nImage.new('RGB', (60, 80), 'red').save('photo.png')\n"
        "assert main(['predict', '--model', 'small', '--source', 'photo.png']) == 0\n"
        "assert main(['embed', '--model', 'small', '--source', 'photo.png']) == 0\n"
        "assert not {'jax', 'flax', 'tensorflow', 'grain', 'scann', 'matplotlib'} & set(sys.modules)"
    )
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, check=True, env=env, cwd=tmp_path, capture_output=True, text=True).stderr
    assert "predicting: 100%" in said and "embedding: 100%" in said


def test_the_description_of_a_package_without_a_decision_is_whole():
    about = describe(package_of(ALL))
    assert about["attributes"]["use"] == {
        "classes": ["a", "b"], "bonus": {"accuracy": [0.0, 0.0], "macro_f1": [0.0, 0.0]},
        "thresholds": None, "label_set": None,
    }  # fmt: skip
    assert about["tags"]["occasion"]["thresholds"] == [0.5, 0.5, 0.5] and about["out_of_catalogue"] is None
    assert about["embedding"] == {"size": 13, "subspaces": {"kind": 3, "hue": 4, "rest": 6}, "compare": "cosine"}
    assert describe(load_package(find_model("small")))["joint"]
