"""Writes a model for programs without this library: as an ONNX graph, or as StableHLO for other programs with JAX.

model.onnx        the network from uint8 photos to probabilities, embeddings and out-of-catalogue scores
model.stablehlo   the same as `jax.export` serialises it, with the weights inside
model.json        what a program needs to use the file: classes, thresholds, size of photos; a digest of the file
label_photo.py    with ONNX: an example that labels photos with numpy, pillow and onnxruntime alone
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fashion_jax.decision.decisions import OPERATING_POINTS, Decision, adjust
from fashion_jax.serving.package import Package
from fashion_jax.system import files, stored
from fashion_jax.system.errors import UserError
from fashion_jax.system.progress import say

FORMATS = ("onnx", "stablehlo")
PLATFORMS = ("cpu", "cuda", "tpu")  # for which StableHLO is lowered
FORMAT = 1
DESCRIPTION, EXAMPLE = "model.json", "label_photo.py"


def export_model(package: Package, out: str | Path, *, kind: str) -> Path:
    """Writes the model into a folder, which is made; the files of an earlier export are replaced or removed.

    model.json is removed first and written last, so that it never describes another model's file.

    Args:
        package: what was trained.
        out: the folder.
        kind: "onnx" or "stablehlo".

    Returns:
        The path of the model.

    Raises:
        UserError: there is no such format, `out` is no folder, or the model is too large for ONNX.
    """
    folder = Path(out)
    if kind not in FORMATS:
        raise UserError(f"there is no format {kind!r}; use {' or '.join(FORMATS)}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give the name of a folder to write to")
    about, content = describe(package), b""
    if kind == "onnx":
        from fashion_jax.serving.onnx_graph import OPSET, write_graph

        content = write_graph(package, flip=package.preprocessing["test_time_flip"], finished=True)
        about["opset"] = OPSET
    else:
        content = _write_stablehlo(package)
        about["platforms"] = list(PLATFORMS)
    written = {f"model.{kind}": content}
    if kind == "onnx":
        written[EXAMPLE] = Path(__file__).with_name(EXAMPLE).read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    for name in (*(f"model.{one}" for one in FORMATS), EXAMPLE):
        if name not in written and (folder / name).exists():
            (folder / name).unlink()
            say(f"note: removed {folder / name} of an earlier export")
    for name, data in written.items():
        files.write_bytes(folder / name, data)
    path = folder / f"model.{kind}"
    about["file"] = {"name": path.name, "bytes": len(content), stored.DIGEST: files.digest(content)}
    stored.write_document(folder / DESCRIPTION, about)
    return path


def describe(package: Package) -> dict[str, Any]:
    """Returns JSON values: what a program must know to use the outputs of an exported model."""
    values, decision = package.preprocessing, package.decision
    tags = {} if decision is None else decision.tags
    detector = None if decision is None else decision.out_of_catalogue
    return {
        "format": FORMAT,
        "fingerprint": package.fingerprint,
        # The input: uint8 RGB (batch, height, width, 3). A photo is scaled until it fits and centred on white.
        "input": "photos",
        "height": values["height"],
        "width": values["width"],
        "max_side": values["max_side"],  # larger photos are scaled to it first
        "attributes": {
            name: {"classes": list(classes), **_describe_head(decision, name, len(classes))}
            for name, classes in package.vocabularies.items()
        },
        "tags": {  # multi-valued attributes: a class is predicted from its threshold on
            name: {
                "classes": list(classes),
                "thresholds": tags[name].thresholds.tolist() if name in tags else [0.5] * len(classes),
            }
            for name, classes in package.tags.items()
        },
        # Attributes whose labels are chosen together: the combination with the largest sum of scores.
        "joint": []
        if decision is None
        else [
            {"attributes": list(group.names), "combinations": group.combinations.tolist()} for group in decision.joint
        ],
        # The class "does not apply" is never predicted with these classes of the finer attribute.
        "applicability": {}
        if decision is None
        else {
            name: {"class": found.number, "finer": found.finer, "never": np.flatnonzero(found.never).tolist()}
            for name, found in decision.applicability.items()
        },
        "out_of_catalogue": None if detector is None else {"threshold": detector.threshold},
        "embedding": {
            "size": package.embedding_size,
            "subspaces": {} if package.embedding is None else package.embedding.sizes,
            "compare": "cosine",
        },
    }


def _describe_head(decision: Decision | None, name: str, classes: int) -> dict[str, Any]:
    """Returns what is added to log probabilities before the best class is taken, and thresholds."""
    if decision is None:
        return {
            "bonus": {point: [0.0] * classes for point in OPERATING_POINTS},
            "thresholds": None,  # no label is marked as unsure
            "label_set": None,
        }
    head, nothing = decision.heads[name], np.zeros((1, classes))
    return {
        "bonus": {
            point: adjust(nothing, head.class_rows, strength)[0].tolist() for point, strength in head.strengths.items()
        },
        "thresholds": {point: value if math.isfinite(value) else None for point, value in head.thresholds.items()},
        "label_set": head.label_set,  # a class is in the label set from this probability on
    }


def _write_stablehlo(package: Package) -> bytes:
    """Returns what `jax.export.deserialize` reads: a function of uint8 photos, for any number of them."""
    import jax
    from jax import export

    shape = (*export.symbolic_shape("batch"), package.preprocessing["height"], package.preprocessing["width"], 3)
    exported = export.export(jax.jit(_make_finished(package)), platforms=PLATFORMS)(
        jax.ShapeDtypeStruct(shape, np.uint8)
    )
    return bytes(exported.serialize())


def _make_finished(package: Package) -> Callable[[Any], dict[str, Any]]:
    """Returns a function of photos with the same outputs as `onnx_graph.write_graph(finished=True)`, in float32.

    GPUs and TPUs multiply float32 with their default precision, which may be lower.
    """
    import jax
    import jax.numpy as jnp

    from fashion_jax.decision import decisions as deciding
    from fashion_jax.serving.jax_engine import make_forward

    forward, trees, flip = make_forward(package, "float32"), package.trees(), package.preprocessing["test_time_flip"]
    decision = package.decision

    def finished(photos: jax.Array) -> dict[str, jax.Array]:
        found = forward(*trees, photos, flip)
        logits = {name: found["logits"][name] for name in package.vocabularies}
        if decision is None:
            logs: Any = {name: jax.nn.log_softmax(values) for name, values in logits.items()}
        else:
            logs = deciding.log_probabilities(decision, logits, jnp)
        outputs = {"features": found["features"], "embedding": found["embeddings"]}
        for name, values in {**logits, **found["tags"]}.items():
            outputs[f"logits/{name}"] = values
        for name in package.vocabularies:
            outputs[f"probabilities/{name}"] = jnp.exp(logs[name])
        for name, values in found["tags"].items():
            fitted = None if decision is None else decision.tags.get(name)
            scaled = values if fitted is None else fitted.scale * values + fitted.shift
            outputs[f"probabilities/{name}"] = jax.nn.sigmoid(scaled)
        if decision is not None and decision.out_of_catalogue is not None:
            outputs["out_of_catalogue"] = decision.out_of_catalogue.scores(found["features"], found["energies"], jnp)
        return outputs

    return finished
