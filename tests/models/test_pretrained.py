"""Pretrained backbones: golden parity with timm and transformers, and everything that is refused, by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from unittest.mock import Mock, call

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from golden import golden_weights

from fashion_jax.models.classifier import abstract_classifier, merge_network
from fashion_jax.models.pretrained import IMAGENET_MEAN, PretrainedInfo, load_pretrained
from fashion_jax.system.errors import UserError

GOLDEN = Path(__file__).parent.parent / "golden"

# Case -> the depth, width and stem that must be read off its files.
CASES = {
    "timm_resnet18": (18, 64, "imagenet"), "timm_resnet50": (50, 64, "imagenet"),
    "timm_resnet50d": (50, 8, "resnet_d"), "timm_resnet50c": (50, 8, "deep"),
    "transformers_resnet50": (50, 8, "imagenet"), "transformers_resnet18": (18, 8, "imagenet"),
}  # fmt: skip
SMALL = "transformers_resnet18"


def about(case: str) -> dict:
    return json.loads(bytes(np.load(GOLDEN / f"{case}.npz")["about"]))


def drawn_tensors(case: str) -> dict[str, np.ndarray]:
    """The state dict that the golden file was computed with."""
    return {
        name: np.asarray(3, np.int64) if name.endswith("tracked") else golden_weights.draw_weight(name, tuple(shape))
        for name, shape in about(case)["shapes"].items()
    }


def write_checkpoint(folder: Path, case: str = SMALL, *, tensors=None, **changes) -> Path:
    """Writes a folder of the Hub's layout; `changes` go into its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in about(case)["files"].items():
        value = {**value, **changes} if name == "config.json" else value
        (folder / name).write_text(json.dumps(value))
    tensors = drawn_tensors(case) if tensors is None else tensors
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


def features_of(loaded, images) -> np.ndarray:
    info = loaded.info
    architecture = {"depth": info.depth, "width": info.width, "stem": info.stem}
    graph, params, batch_stats = abstract_classifier({**architecture, "classes": {}, "dtype": "float32"})
    flat = traverse_util.flatten_dict({"params": params, "batch_stats": batch_stats})
    tree = traverse_util.unflatten_dict({path: loaded.weights["/".join(map(str, path))] for path in flat})
    run = jax.jit(lambda p, s: merge_network(graph, p, s)(images, train=False).features)
    return np.asarray(run(tree["params"], tree["batch_stats"]))


@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_the_torch_implementation(tmp_path, case):
    loaded = load_pretrained(str(write_checkpoint(tmp_path / "hub", case)))
    assert (loaded.info.depth, loaded.info.width, loaded.info.stem) == CASES[case]
    names = [n.removeprefix("resnet.") for n in about(case)["shapes"] if "tracked" not in n]
    assert len(loaded.weights) == len([n for n in names if not n.startswith(("fc.", "classifier."))])
    wanted = np.load(GOLDEN / f"{case}.npz")["features"]
    found = features_of(loaded, golden_weights.draw_input(70, 65)[: len(wanted)])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).mean())


def test_normalisation_and_digest_are_the_files(tmp_path):
    folder = write_checkpoint(tmp_path / "a")
    info = load_pretrained(str(folder)).info
    assert (info.mean, info.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert info.digest == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert PretrainedInfo.from_dict(json.loads(json.dumps(dataclasses.asdict(info)))) == info
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    folder = write_checkpoint(tmp_path / "b", "timm_resnet50c", pretrained_cfg=given)
    assert load_pretrained(str(folder)).info.mean == (0.1, 0.2, 0.3)
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet50c"}))
    for given, wanted in (
        ({"image_mean": [0.2] * 3, "image_std": [0.3] * 3}, (0.2, 0.3)),
        ({"do_normalize": False}, (0, 1)),
    ):
        (folder / "preprocessor_config.json").write_text(json.dumps(given))
        info = load_pretrained(str(folder)).info
        assert (info.mean, info.std) == tuple((value,) * 3 for value in wanted)
    # A bare file says nothing, and ImageNet's are what such files were trained with.
    (folder / "preprocessor_config.json").unlink()
    (folder / "config.json").unlink()
    assert load_pretrained(str(folder / "model.safetensors")).info.mean == IMAGENET_MEAN


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_precisions_are_read(tmp_path, kind):
    tensors = {n: a.astype(kind) if a.dtype == np.float32 else a for n, a in drawn_tensors(SMALL).items()}
    loaded = load_pretrained(str(write_checkpoint(tmp_path, tensors=tensors)))
    assert {a.dtype for a in loaded.weights.values()} == {np.dtype(np.float32)}
    expected = tensors[STEM].astype(np.float32).transpose(2, 3, 1, 0)
    assert np.array_equal(loaded.weights["params/backbone/stem/0/conv/kernel"], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"downsample_in_bottleneck": True}, "a ResNet v1 "), ({"hidden_act": "gelu"}, "the activation 'gelu'"),
        ({"downsample_in_first_stage": True}, "stride of 2"), ({"model_type": "regnet"}, "model_type 'regnet'"),
        ({"architecture": "resnetv2_50"}, "pre-activation"), ({"architecture": "seresnet50.a1_in1k"}, "attention"),
        ({"architecture": "resnext50_32x4d"}, "a ResNeXt"), ({"architecture": "wide_resnet50_2"}, "a wide ResNet"),
        ({"architecture": "resnetblur50"}, "anti-aliased"), ({"architecture": "resnet50_gn"}, "group normalisation"),
        ({"architecture": "resnet26"}, "another depth or form"), ({"architecture": "convnext"}, "which is no ResNet"),
        ({"architecture": "resnet18", "model_args": {"act_layer": "silu"}}, r"model_args\.act_layer"),
        ({"model_args": 3}, r"config\.json is damaged"), ({"mean": [0.5] * 2, "std": [1] * 3}, "mean=.* three"),
        ({"mean": [0.5] * 3, "std": [0, 1, 1]}, "std=.* is not three numbers"), ({"mean": [0.5, 0.5, 0.5]}, "std=None"),
    ],
)  # fmt: skip
def test_other_networks_are_refused_by_name(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_pretrained(str(write_checkpoint(tmp_path, **changes)))


KERNEL, STEM = "encoder.stages.2.layers.0.layer.0.convolution.weight", "embedder.embedder.convolution.weight"
NORM = "encoder.stages.2.layers.0.layer.0.normalization"


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (KERNEL, None, f"lacks {KERNEL}"), (f"{NORM}.running_mean", None, "without batch norm"),
        (KERNEL, zeros(32, 16, 3, 5), rf"{KERNEL} has .*\(32, 16, 3, 5\); .* has \(32, 16, 3, 3\)"),
        (KERNEL, zeros(32, 4, 3, 3), "a ResNeXt"), (KERNEL, np.zeros((32, 16, 3, 3), np.int8), "holds I8"),
        (KERNEL, zeros(32, 16, 3, 3) + np.nan, f"{KERNEL} holds NaN or infinity"),
        (KERNEL, np.full((32, 16, 3, 3), 1e99), "infinity"), (f"{NORM}.running_var", zeros(32) - 1, "negative"),
        ("encoder.stages.2.layers.0.layer.0.se.fc1.weight", zeros(2, 2), "channel attention"),
        ("encoder.pos_embed", zeros(3), r"no plain ResNet: it has encoder\.pos_embed"),
        (STEM, zeros(8, 1, 7, 7), "and 1 inputs"), (STEM, zeros(8, 3, 5, 5), "a kernel of 5"),
        (STEM, zeros(4, 3, 7, 7), "a wide ResNet"), (STEM, zeros(8), "no convolution has"),
        (KERNEL.replace("stages.2", "stages.4"), zeros(1, 1, 1, 1), "2, 2, 2, 2, 1 basic"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(tmp_path, name, array, message):
    tensors = {**drawn_tensors(SMALL), name: array}
    if array is None:
        del tensors[name]
    with pytest.raises(UserError, match=message):
        load_pretrained(str(write_checkpoint(tmp_path, tensors=tensors)))


@pytest.mark.parametrize(
    ("names", "message"), [("cls_token a.b", "names such as 'a.b'"), ("stem.conv.weight stages.0.x", "V2")]
)
def test_a_network_of_another_kind_is_refused_by_its_tensors(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        load_pretrained(str(write_checkpoint(tmp_path, tensors=dict.fromkeys(names.split(), zeros(2)))))


def file_of(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


HUGE = b'{"conv1.weight": {"dtype": "F32", "shape": [%d, 3, 7, 7], "data_offsets": [0, %d]}}' % (1 << 40, 147 << 42)


DAMAGED = {
    "model.safetensors": (b"", b"\xff" * 64, file_of(b"{}")[:-1], file_of(HUGE[:50]), file_of(HUGE)),
    "config.json": (b"{", b"[1]", b"[" * 100_000, b"\xff"),
}


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, given in DAMAGED.items() for data in given])
def test_damaged_files_are_a_sentence_and_allocate_nothing(tmp_path, name, data):
    write_checkpoint(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(
        UserError, match=r"model\.safetensors is damaged .*; download|config\.json (is not JSON|does not hold)"
    ):
        load_pretrained(str(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "resnet50.pth", "model.pt", "last.ckpt"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=rf"{name} is a pickle.*safetensors\.torch\.save_file"):
            load_pretrained(str(source))


@pytest.mark.parametrize("source", ["nowhere", "/a/x", "a/b/c", "a/../x", "a/x@../y", "a/b.safetensors", "a\0/b"])
def test_what_is_neither_a_path_nor_a_name(source):
    with pytest.raises(UserError, match="there is no such path"):
        load_pretrained(source)


def test_the_hub_is_asked_for_what_is_needed_alone(tmp_path, monkeypatch):
    # A cache whose snapshots link to blobs, as the Hub's client keeps it.
    snapshot, blobs = tmp_path / "models--owner--name/snapshots/0123abc", tmp_path / "models--owner--name/blobs"
    write_checkpoint(blobs)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(blobs.iterdir())):
        file.rename(blobs / f"beef{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/beef{number}")
    download = Mock(return_value=str(snapshot))
    monkeypatch.setitem(sys.modules, "huggingface_hub", Mock(snapshot_download=download))
    assert load_pretrained("owner/name@refs/pr/3").info.source == "owner/name@refs/pr/3"
    assert load_pretrained("owner/name").info.depth == 18
    wanted = ["config.json", "preprocessor_config.json", "model.safetensors"]
    assert download.mock_calls == [
        call(repo_id="owner/name", revision=revision, allow_patterns=wanted) for revision in ("refs/pr/3", None)
    ]
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"owner/name holds no model\.safetensors"):
        load_pretrained("owner/name")
    download.side_effect = ConnectionError("Name or service not known\nmore")
    with pytest.raises(UserError, match=r"could not be downloaded .*ConnectionError: Name or service not known"):
        load_pretrained("owner/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"\[hub\]"):
        load_pretrained("owner/name")
