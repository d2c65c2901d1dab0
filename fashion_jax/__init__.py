"""Fashion products from photos: one network with a head per attribute, and embeddings for visual search.

The public names are imported on first use, so that `import fashion_jax` neither loads JAX nor touches a device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fashion_jax.data.catalog import Catalog, open_catalog
    from fashion_jax.data.prepare import PrepareOptions, prepare
    from fashion_jax.data.records import open_prepared
    from fashion_jax.data.splits import SplitOptions
    from fashion_jax.run.train import evaluate, train
    from fashion_jax.search.index import Index
    from fashion_jax.serving.embed import embed_source as embed
    from fashion_jax.serving.predict import predict_source as predict
    from fashion_jax.serving.predictor import load_model

_PUBLIC = {
    "Catalog": "fashion_jax.data.catalog:Catalog",
    "Index": "fashion_jax.search.index:Index",
    "PrepareOptions": "fashion_jax.data.prepare:PrepareOptions",
    "SplitOptions": "fashion_jax.data.splits:SplitOptions",
    "embed": "fashion_jax.serving.embed:embed_source",
    "evaluate": "fashion_jax.run.train:evaluate",
    "load_model": "fashion_jax.serving.predictor:load_model",
    "open_catalog": "fashion_jax.data.catalog:open_catalog",
    "open_prepared": "fashion_jax.data.records:open_prepared",
    "predict": "fashion_jax.serving.predict:predict_source",
    "prepare": "fashion_jax.data.prepare:prepare",
    "train": "fashion_jax.run.train:train",
}

__all__ = [
    "Catalog",
    "Index",
    "PrepareOptions",
    "SplitOptions",
    "embed",
    "evaluate",
    "load_model",
    "open_catalog",
    "open_prepared",
    "predict",
    "prepare",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("fashion-jax")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fashion_jax' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
