"""Packages with drawn weights, for tests of prediction that need no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drawn_products import draw_product
from fashion_jax.decision.decisions import Decision, HeadDecision, Link, OutOfCatalogue
from fashion_jax.decision.embedding import EmbeddingPlan, Subspace
from fashion_jax.decision.tags import TagDecision
from fashion_jax.models.architecture import num_features, parameter_shapes
from fashion_jax.serving.package import Package

CLASSES = {"kind": ("round", "square", "tall"), "colour, or hue": ("blue", "green", "red", "yellow"), "use": ("a", "b")}
TAGS = {"occasion": ("casual", "formal", "sports")}
PLAIN = {
    "classes": {name: len(classes) for name, classes in CLASSES.items()}, "depth": 10, "width": 4, "stem": "small",
    "drop_path": 0.0, "pooling": "average", "colour_heads": [], "second_heads": [], "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5], "dtype": "float32",
}  # fmt: skip
COLOUR = {"colour_heads": ["colour, or hue"]}
ALL = {**COLOUR, "second_heads": ["kind", "colour, or hue"], "tags": {"occasion": 3}, "pooling": "gem"}


def package_of(changes, *, height: int = 37, width: int = 26, decision=None, planned: bool = True) -> Package:
    """A package with drawn weights, whose activations and logits are of the order of 1."""
    model, rng = {**PLAIN, **changes}, np.random.default_rng(0)
    weights = {}
    for name, shape in parameter_shapes(model).items():
        part = name.rsplit("/", 1)[1]
        if part == "kernel":
            drawn = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
        elif part in ("scale", "var"):
            drawn = rng.uniform(0.3, 0.7, shape)
        else:
            drawn = {"power": 2.7, "weight": 0.4}.get(part, 0) + rng.normal(size=shape) * 0.1
        weights[name] = drawn.astype(np.float32)
    features = num_features(model["depth"], model["width"])
    components = np.linalg.qr(rng.normal(size=(features, 6)))[0].astype(np.float32)
    plan = EmbeddingPlan(
        (
            Subspace("kind", "kind", 3, 0.5, 0.7),
            Subspace("hue", "colour, or hue", 4, 0.3),
            Subspace("rest", None, 6, 0.2),
        ),
        components,
    )
    preprocessing = {
        "height": height, "width": width, "max_side": 64, "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7],
        "test_time_flip": False,
    }  # fmt: skip
    vocabularies = {name: CLASSES[name] for name in model["classes"]}
    tags = {name: TAGS[name] for name in model.get("tags", {})}
    network = (weights, "0" * 32, decision, plan, tags)
    return Package(Path("drawn"), model, vocabularies, preprocessing, {}, *network)


def photos(package: Package, count: int = 5) -> np.ndarray:
    """Drawn products on white, and noise; with pure white and grey, where colours are least certain."""
    rng = np.random.default_rng(1)
    shape = package.preprocessing["height"], package.preprocessing["width"], 3
    given = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
    drawn = draw_product("round", "red", 3)[: shape[0], : shape[1]]
    given[0, : drawn.shape[0], : drawn.shape[1]] = drawn
    given[1], given[2] = 255, 128
    return given


def _head(classes: int, link: Link | None = None) -> HeadDecision:
    points = {"accuracy": 0.0, "macro_f1": 0.3}
    return HeadDecision(0.8, np.arange(1, classes + 1), points, {"accuracy": 0.6, "macro_f1": np.inf}, 0.2, link)


def decision_of(pooling: str = "linear", weight: float = 0.4) -> Decision:
    """A drawn decision for packages with ALL, whose kinds follow from colours."""
    rng = np.random.default_rng(2)
    counts = rng.integers(0, 9, (4, 3))
    link = Link("colour, or hue", counts, pooling, weight, 1.2)
    heads = {"kind": _head(3, link), "colour, or hue": _head(4), "use": _head(2)}
    directions = np.linalg.qr(rng.normal(size=(32, 5)))[0].T
    detector = OutOfCatalogue(
        rng.normal(size=32), directions, rng.uniform(1, 2, 5), 0.3, (0.2, -1.0), (0.5, 0.7), threshold=2.0
    )
    return Decision(heads, out_of_catalogue=detector, tags={"occasion": TagDecision(1.3, -0.2, np.full(3, 0.4))})
