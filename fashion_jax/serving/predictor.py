"""A trained model that predicts: photos in, labels and embeddings out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float32, UInt8
from PIL import Image

from fashion_jax.data.augment import normalize
from fashion_jax.data.photos import BadPhoto, decode_photo, letterbox, normalise_image, normalise_photo, read_photo
from fashion_jax.decision.decisions import OPERATING_POINTS
from fashion_jax.models.classifier import (
    abstract_classifier,
    mean_energy,
    mean_of_mirrored,
    merge_network,
    num_colour_features,
)
from fashion_jax.models.resnet import num_features
from fashion_jax.serving.outputs import Embeddings, Outputs, Prediction, Predictions, decide, name_labels
from fashion_jax.serving.package import Package, find_model, load_package
from fashion_jax.system.devices import computes_bfloat16_faster, on_accelerator, one_blas_thread
from fashion_jax.system.errors import UserError, nearest
from fashion_jax.system.process import num_cores

__all__ = ["Embeddings", "Outputs", "Photo", "Prediction", "Predictions", "Predictor", "load_model"]

Photo = str | Path | bytes | Image.Image | UInt8[np.ndarray, "height width 3"]

_BATCH = 256
_BATCH_PIXELS = _BATCH * 224 * 224  # A batch of larger photos has fewer of them.
# On a CPU a core's cache should hold the feature maps. A ResNet-18 of width 32 needs 0.77 of the time for photos of
# 60 x 45 in batches of 64 instead of 256 on two devices (0.82 on eight), and 0.62 of the time for photos of 224 x 224
# in batches of 4 instead of 64.
_CPU_CORE_PIXELS = 2 * 224 * 224


def load_model(path: str | Path) -> Predictor:
    """Loads a trained model.

    Args:
        path: the name of a model that comes with the library ("small"), a model package, or the workdir of a finished
            run.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    return Predictor(load_package(find_model(path)))


class Predictor:
    """A model that is ready to predict. It spreads each batch over the local devices.

    Attributes:
        package: what was loaded.
        dtype: in which this machine computes the network, "float32" or "bfloat16".
    """

    def __init__(self, package: Package) -> None:
        self.package = package
        # A model that was trained in bfloat16 is computed in float32 where float32 is as fast, because it is exact.
        self.dtype: str = package.model["dtype"] if computes_bfloat16_faster(training=False) else "float32"
        graph, _, _ = abstract_classifier({**package.model, "dtype": self.dtype})
        values = package.preprocessing
        mean, std, dtype = tuple(values["mean"]), tuple(values["std"]), jnp.dtype(self.dtype)

        def forward(params: Any, batch_stats: Any, images: jax.Array, flip: bool) -> dict[str, Any]:
            network, pixels = merge_network(graph, params, batch_stats), normalize(images, mean, std, dtype)
            outputs = network(pixels, train=False)
            plan, logits, tags = package.embedding, outputs.logits, outputs.tags
            if flip:
                logits, tags = mean_of_mirrored(network, pixels, outputs)
            return {
                "logits": logits,
                "tags": tags,
                "features": outputs.features,
                "energies": mean_energy(outputs.logits),
                "embeddings": outputs.features if plan is None else plan.embed(outputs.logits, outputs.features),
                "colour_features": outputs.colour,
            }

        devices = jax.local_devices()
        mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
        everywhere, self._rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
        self._forward = jax.jit(
            forward, in_shardings=(everywhere, everywhere, self._rows), out_shardings=self._rows, static_argnums=3
        )
        self._params = jax.device_put(package.params, everywhere)
        self._batch_stats = jax.device_put(package.batch_stats, everywhere)
        self._devices = len(devices)

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
        """Size of the features that the backbone pools."""
        return num_features(self.package.model["depth"], self.package.model["width"])

    @property
    def num_colour_features(self) -> int:
        """Size of the features that colour heads see besides the pooled ones; 0 without colour heads."""
        return num_colour_features(self.package.model)

    @property
    def embedding_size(self) -> int:
        """Size of an embedding."""
        return self.num_features if self.package.embedding is None else self.package.embedding.size

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
        """Largest number of photos in a batch: 256, fewer for large photos or where a CPU's caches are small."""
        height, width = self.size
        pixels = _BATCH_PIXELS if on_accelerator() else _CPU_CORE_PIXELS * max(self._devices, num_cores())
        return self._round_up(max(1, min(_BATCH, pixels // (height * width))))

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
        parts = list(self._run(batches, flip))
        return self._decide(jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts), operating_point)

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

    def _decide(self, outputs: dict[str, Any], operating_point: str) -> Outputs:
        logits = {name: outputs["logits"][name] for name in self.attributes}  # JAX sorts a dictionary by name.
        with one_blas_thread():
            decided = decide(
                self.package.decision,
                logits,
                outputs["features"],
                outputs["energies"],
                operating_point,
                tags={name: outputs["tags"][name] for name in self.tags},
            )
        return dataclasses.replace(
            decided, embeddings=outputs["embeddings"], colour_features=outputs["colour_features"]
        )

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

    def _round_up(self, count: int) -> int:
        return -(-count // self._devices) * self._devices

    def _run(self, batches: Iterable[np.ndarray], flip: bool | None) -> Iterator[dict[str, Any]]:
        flip = self.package.preprocessing["test_time_flip"] if flip is None else flip
        before: tuple[int, Any] | None = None  # The devices compute it while the next batch is read.
        size = 1
        for images in batches:
            if len(images) > self.batch_size:
                raise UserError(f"a batch must have {self.batch_size} photos at most, not {len(images)}")
            # A batch is padded to a power of two, and to the size of those before it, so that few shapes are compiled.
            size = min(self.batch_size, max(size, self._round_up(1 << max(len(images) - 1, 0).bit_length())))
            padded = np.concatenate([images, np.zeros((size - len(images), *images.shape[1:]), np.uint8)])
            result = self._forward(self._params, self._batch_stats, jax.device_put(padded, self._rows), flip)
            if before is not None:
                yield _fetch(*before)
            before = len(images), result
        if before is not None:
            yield _fetch(*before)

    def _read_all(self, photos: Sequence[Photo] | Photo) -> np.ndarray:
        images = [self.read(photo) for photo in _as_list(photos)]
        return np.stack(images) if images else np.empty((0, *self.size, 3), np.uint8)


def names_of(photos: Sequence[Photo] | Photo) -> list[str]:
    """Returns the names of photos' files; the number of a photo that is no file."""
    return [Path(p).name if isinstance(p, (str, Path)) else str(n) for n, p in enumerate(_as_list(photos))]


def _as_list(photos: Sequence[Photo] | Photo) -> Sequence[Photo]:
    single = isinstance(photos, (str, Path, bytes, Image.Image)) or getattr(photos, "ndim", 0) == 3
    return cast(Sequence[Photo], [photos] if single else photos)


def _fetch(count: int, result: dict[str, Any]) -> dict[str, Any]:
    """Waits for a batch and returns its first rows, without the padding."""
    found: dict[str, Any] = jax.tree.map(lambda array: array[:count], jax.device_get(result))
    return found
