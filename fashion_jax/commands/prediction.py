"""`fashion-jax predict`, `embed` and `export`: a trained model at work on products, here or in other programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_jax.commands.command import MODEL, SOURCES, Command, add_schema_flag, read_schema, start_for_prediction

if TYPE_CHECKING:
    from fashion_jax.serving.predictor import Predictor


def _add_shared_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, help=MODEL)
    parser.add_argument("--source", required=True, help=f"a photo, a folder of photos, or a catalogue: {SOURCES}")
    add_schema_flag(parser)


def _add_predict_flags(parser: argparse.ArgumentParser) -> None:
    _add_shared_flags(parser)
    parser.add_argument("--out", type=Path, help="the CSV file to write; without it the first 20 products are printed")
    parser.add_argument(
        "--per-photo",
        action="store_true",
        help="give a line for each photo; without it, a product with several photos gets one line",
    )
    parser.add_argument(
        "--operating-point",
        default="accuracy",
        choices=("accuracy", "macro_f1"),
        help="how a label is chosen: accuracy gives the most correct labels; macro_f1 predicts rare classes more often",
    )


def _load_model(path: Path) -> Predictor:
    """Loads a model. JAX is imported, and its devices are set, only where JAX computes the model."""
    from fashion_jax.serving.package import find_model, load_package
    from fashion_jax.serving.predictor import Predictor, choose_engine

    package = load_package(find_model(path))
    engine = choose_engine(package)
    if engine == "jax":
        start_for_prediction()
    return Predictor(package, engine=engine)


def _predict(flags: argparse.Namespace) -> int:
    from fashion_jax.serving.predict import MOST_SHOWN, format_predictions, predict_source

    predictions = predict_source(
        _load_model(flags.model),
        flags.source,
        flags.out,
        schema=read_schema(flags),
        operating_point=flags.operating_point,
        per_photo=flags.per_photo,
    )
    if flags.out is None or len(predictions) <= MOST_SHOWN:
        print(format_predictions(predictions))
    return 0


def _add_embed_flags(parser: argparse.ArgumentParser) -> None:
    _add_shared_flags(parser)
    parser.add_argument("--out", type=Path, default=Path("embeddings.npz"), help="the file to write")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16"), help="number type; float16 halves the file"
    )


def _embed(flags: argparse.Namespace) -> int:
    from fashion_jax.serving.embed import embed_source

    embed_source(_load_model(flags.model), flags.source, flags.out, dtype=flags.dtype, schema=read_schema(flags))
    return 0


def _add_export_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, help=MODEL)
    parser.add_argument(
        "--format",
        default="onnx",
        choices=("onnx", "stablehlo"),
        help="onnx: for onnxruntime and other engines; stablehlo: for JAX on CPU, GPU and TPU, without this library",
    )
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")


def _export(flags: argparse.Namespace) -> int:
    from fashion_jax.serving.export import export_model
    from fashion_jax.serving.package import find_model, load_package

    path = export_model(load_package(find_model(flags.model)), flags.out, kind=flags.format)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; classes and thresholds are in {path.with_name('model.json')}")
    return 0


PREDICT = Command(
    "predict",
    "labels the photos of a source with a trained model, and prints or writes a table",
    _add_predict_flags,
    _predict,
    (
        "fashion-jax predict --model small --source photo.jpg",
        "fashion-jax predict --model small --source products.csv --out predictions.csv",
    ),
)
EMBED = Command(
    "embed",
    "writes an embedding for each product of a source: the vector that search compares",
    _add_embed_flags,
    _embed,
    ("fashion-jax embed --model small --source photos/ --out embeddings.npz",),
)
EXPORT = Command(
    "export",
    "writes a model as an ONNX or StableHLO file, for programs without this library",
    _add_export_flags,
    _export,
    ("fashion-jax export --model small --out exported",),
)
