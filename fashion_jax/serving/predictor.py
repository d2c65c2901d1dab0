"""A trained model that predicts: photos in, labels and embeddings out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from fashion_jax.data.photos import BadPhoto, decode_photo, letterbox, normalise_image, normalise_photo, read_photo
from fashion_jax.decision.decisions import OPERATING_POINTS
from fashion_jax.serving.engine import ENGINES, Engine, NetworkOutputs
from fashion_jax.serving.outputs import Embeddings, Outputs, Prediction, Predictions, decide, name_labels
from fashion_jax.serving.package import Package, find_model, load_package
from fashion_jax.system.accelerators import has_accelerator
from fashion_jax.system.blas import one_blas_thread
from fashion_jax.system.errors import UserError, nearest
from fashion_jax.system.progress import say
from fashion_jax.system.stored import first_line

__all__ = ["Embeddings", "Outputs", "Photo", "Prediction", "Predictions", "Predictor", "load_model"]

Photo = str | Path | bytes | Image.Image | UInt8[np.ndarray, "height width 3"]


def load_model(path: str | Path, *, engine: str = "auto") -> Predictor:
    """Loads a trained model.

    Args:
        path: the name of a model that comes with the library ("small"), a model package, or the workdir of a finished
            run.
        engine: what computes the network; see `Predictor`.

    Raises:
        UserError: there is no such model or engine, or the model is damaged.
    """
    return Predictor(load_package(find_model(path)), engine=engine)


class Predictor:
    """A model that is ready to predict.

    Attributes:
        package: what was loaded.
        engine: what computes the network, "jax" or "onnx".
        dtype: in which this machine computes the network, "float32" or "bfloat16".
    """

    def __init__(self, package: Package, *, engine: str = "auto") -> None:
        """Prepares the network.

        Args:
            package: a loaded package.
            engine: "jax", which compiles for the local devices; "onnx", which is onnxruntime on CPUs, in float32 and
                without compiling; or "auto": JAX on accelerators, onnxruntime elsewhere. In float32 on CPUs, both
                give the same labels, and probabilities that differ by less than 0.0001.

        Raises:
            UserError: there is no such engine, or onnxruntime was asked for and cannot be used.
        """
        self.package = package
        self._engine = _make_engine(package, engine)
        self.engine, self.dtype = self._engine.name, self._engine.dtype

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes that the model predicts, in the order of its heads."""
        return tuple(self.package.vocabularies)

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Attribute -> names of its classes, in the order of the probabilities."""
        return dict(self.package.vocabularies)

    @property
    def tags(self) -> dict[str, tuple[str, ...]]:
        """Multi-valued attribute -> names of its classes, in the order of the probabilities; empty without any."""
        return dict(self.package.tags)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels to which photos are fitted."""
        return self.package.preprocessing["height"], self.package.preprocessing["width"]

    @property
    def num_features(self) -> int:
        """Number of pooled features of the backbone."""
        return self.package.num_features

    @property
    def num_colour_features(self) -> int:
        """Size of the features that colour heads see besides the pooled ones; 0 without colour heads."""
        return self.package.num_colour_features

    @property
    def embedding_size(self) -> int:
        """Size of an embedding."""
        return self.package.embedding_size

    @property
    def subspaces(self) -> dict[str, int]:
        """Name of each subspace of the embedding -> its size, in order; empty where embeddings are the features."""
        return {} if self.package.embedding is None else self.package.embedding.sizes

    @property
    def fingerprint(self) -> str:
        """Hash of the package. Models with the same fingerprint give the same embeddings, up to rounding."""
        return self.package.fingerprint

    @property
    def batch_size(self) -> int:
        """The largest batch: 256 photos (on accelerators for each device), fewer for large photos or few CPU cores."""
        return self._engine.batch_size

    def predict(self, photos: Sequence[Photo] | Photo, *, operating_point: str = "accuracy") -> Predictions:
        """Predicts the labels of photos.

        Args:
            photos: one photo or several, of any kind that `read` takes; an array (n, height, width, 3) is n photos.
            operating_point: as `predict_arrays` takes it.

        Returns:
            A list with a `Prediction` for each photo: attribute -> (class, probability), and more. `to_frame()` makes
            a pandas table of it, and `to_dict()` a dictionary.

        Raises:
            UserError: a photo that cannot be read, or an unknown operating point.
        """
        photos = list(_as_list(photos))  # an iterator can be read only once
        outputs = self.predict_arrays(self._read_all(photos), operating_point=operating_point)
        return Predictions(name_labels(outputs, self.classes, self.tags), names_of(photos))

    def predict_proba(self, photos: Sequence[Photo] | Photo) -> dict[str, Float32[np.ndarray, "n classes"]]:
        """Returns attribute -> the probability of each class, in the order of `classes`; each row sums to 1.

        Multi-valued attributes follow, in the order of `tags`; the probabilities of their classes do not sum to 1.
        """
        outputs = self.predict_arrays(self._read_all(photos))
        return {**outputs.probabilities, **outputs.tag_probabilities}

    def embed(self, photos: Sequence[Photo] | Photo) -> Embeddings:
        """Returns the embeddings of photos, which are compared by their cosine. Takes the same photos as `predict`.

        Returns:
            float32 (n, size), with `to_frame()` and `to_dict()`.
        """
        photos = list(_as_list(photos))
        found = self.predict_arrays(self._read_all(photos), flip=False).embeddings
        return Embeddings.of(found, names_of(photos))

    def read(self, photo: Photo) -> UInt8[np.ndarray, "height width 3"]:
        """Repairs and decodes one photo and fits it to the model's size, as training did.

        Args:
            photo: a path, the bytes of a file, a Pillow image, or uint8 RGB (height, width, 3).

        Raises:
            UserError: the file does not exist, or is no usable photo.
        """
        if isinstance(photo, np.ndarray):
            if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
                raise UserError(f"a photo must be uint8 (height, width, 3), not {photo.dtype} {photo.shape}")
            photo = Image.fromarray(photo)
        where = str(photo) if isinstance(photo, (str, Path)) else "the photo"
        try:
            if isinstance(photo, Image.Image):
                return letterbox(normalise_image(photo, self.package.preprocessing["max_side"]), *self.size)
            data = photo if isinstance(photo, bytes) else read_photo(Path(photo))
            return self.decode(data)
        except OSError as error:
            raise UserError(f"{where} cannot be read: {error.strerror}") from error
        except BadPhoto as error:
            raise UserError(f"{where} is not usable: {error}") from error

    def decode(self, data: bytes) -> UInt8[np.ndarray, "height width 3"]:
        """Does what `read` does for the bytes of a file; BadPhoto where they are no usable photo."""
        sound, _ = normalise_photo(data, self.package.preprocessing["max_side"])
        return decode_photo(sound, *self.size)

    def predict_arrays(
        self,
        images: UInt8[np.ndarray, "n height width 3"],
        *,
        flip: bool | None = None,
        operating_point: str = "accuracy",
    ) -> Outputs:
        """Runs the model on photos that have the model's size.

        Args:
            images: RGB.
            flip: whether probabilities are means over each photo and its mirror image; None: as the package says.
                Features and embeddings are always those of the photo itself.
            operating_point: "accuracy", or "macro_f1" to predict rare classes more often: better macro-F1, slightly
                lower accuracy. The probabilities are the same.

        Raises:
            UserError: another shape, dtype or operating point.
        """
        self.check_operating_point(operating_point)
        images, size = self._check_images(images), self.batch_size
        # Without a photo, one empty batch gives arrays of the right shapes.
        batches = (images[start : start + size] for start in range(0, max(len(images), 1), size))
        return self._decide(NetworkOutputs.join(list(self._run(batches, flip))), operating_point)

    def predict_batches(
        self,
        batches: Iterable[UInt8[np.ndarray, "n height width 3"]],
        *,
        flip: bool | None = None,
        operating_point: str = "accuracy",
    ) -> Iterator[Outputs]:
        """Yields the outputs of batches of at most `batch_size` photos, each computed while the next one is read.

        The options and errors are those of `predict_arrays`.
        """
        self.check_operating_point(operating_point)
        for outputs in self._run(map(self._check_images, batches), flip):
            yield self._decide(outputs, operating_point)

    def _check_images(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != (*self.size, 3) or images.dtype != np.uint8:
            raise UserError(
                f"photos must be uint8 (photos, {self.size[0]}, {self.size[1]}, 3), not {images.dtype} {images.shape}"
            )
        return images

    def _decide(self, found: NetworkOutputs, operating_point: str) -> Outputs:
        logits = {name: found.logits[name] for name in self.attributes}  # JAX sorts a dictionary by name.
        tags = {name: found.tags[name] for name in self.tags}
        with one_blas_thread():
            decided = decide(self.package.decision, logits, found.features, found.energies, operating_point, tags=tags)
        return dataclasses.replace(decided, embeddings=found.embeddings, colour_features=found.colour_features)

    def check_operating_point(self, name: str) -> None:
        """Raises UserError where the package cannot predict at an operating point."""
        if name not in OPERATING_POINTS:
            known = ", ".join(OPERATING_POINTS)
            raise UserError(f"there is no operating point {name!r}{nearest(name, OPERATING_POINTS)}; use {known}")
        if name != OPERATING_POINTS[0] and self.package.decision is None:
            raise UserError(
                f"{self.package.folder} has no decision.json, so it cannot predict at the operating point {name!r}; "
                "it was trained without validation rows: train again with some"
            )

    def _run(self, batches: Iterable[np.ndarray], flip: bool | None) -> Iterator[NetworkOutputs]:
        def checked() -> Iterator[np.ndarray]:
            for images in batches:
                if len(images) > self.batch_size:
                    raise UserError(f"a batch must have {self.batch_size} photos at most, not {len(images)}")
                yield images

        return self._engine.run(checked(), self.package.preprocessing["test_time_flip"] if flip is None else flip)

    def _read_all(self, photos: Sequence[Photo] | Photo) -> np.ndarray:
        images = [self.read(photo) for photo in _as_list(photos)]
        return np.stack(images) if images else np.empty((0, *self.size, 3), np.uint8)


def names_of(photos: Sequence[Photo] | Photo) -> list[str]:
    """Returns the names of photos' files; the number of a photo that is no file."""
    return [Path(p).name if isinstance(p, (str, Path)) else str(n) for n, p in enumerate(_as_list(photos))]


def _as_list(photos: Sequence[Photo] | Photo) -> Sequence[Photo]:
    single = isinstance(photos, (str, Path, bytes, Image.Image)) or getattr(photos, "ndim", 0) == 3
    return cast(Sequence[Photo], [photos] if single else photos)


def choose_engine(package: Package) -> str:
    """Returns the engine that "auto" stands for on this machine: "jax" or "onnx"."""
    if has_accelerator():
        return "jax"
    problem = _find_onnx_problem(package)
    if problem:
        say(f"note: {problem}, so JAX predicts, after it has compiled the network")
    return "jax" if problem else "onnx"


def _find_onnx_problem(package: Package) -> str:
    """Returns why onnxruntime cannot compute a package; an empty text if it can."""
    try:
        import fashion_jax.serving.onnx_engine  # noqa: F401
        from fashion_jax.serving.onnx_graph import fits
    except Exception as error:  # such as a missing C++ runtime, or a version of protobuf that onnx refuses
        return f"onnxruntime cannot be imported ({first_line(error)})"
    return "" if fits(package) else f"{package.folder} is too large for ONNX"


def _make_engine(package: Package, wanted: str) -> Engine:
    if wanted not in ENGINES:
        raise UserError(f"there is no engine {wanted!r}{nearest(wanted, ENGINES)}; use {', '.join(ENGINES)}")
    if wanted == "auto":
        wanted = choose_engine(package)
    elif wanted == "onnx" and (problem := _find_onnx_problem(package)):
        raise UserError(f"{problem}; use engine='jax'")
    if wanted == "onnx":
        from fashion_jax.serving.onnx_engine import OnnxEngine

        return OnnxEngine(package)
    from fashion_jax.serving.jax_engine import JaxEngine

    return JaxEngine(package)
