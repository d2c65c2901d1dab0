"""A trained model in use: photos in, labels and embeddings out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float32, UInt8
from PIL import Image

from fashion_jax.data.augment import normalize
from fashion_jax.data.photos import BadPhoto, decode_photo, letterbox, normalise_image, normalise_photo
from fashion_jax.errors import UserError
from fashion_jax.models.classifier import abstract_classifier, mean_of_mirrored, merge_classifier
from fashion_jax.models.resnet import embedding_size
from fashion_jax.serving.package import Package, load_package

Photo = str | Path | bytes | Image.Image | UInt8[np.ndarray, "height width 3"]

_BATCH = 256
_BATCH_PIXELS = _BATCH * 224 * 224  # fewer photos of a larger size run at once


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the model says of n photos.

    Attributes:
        probabilities: attribute -> float32 (n, classes), each row sums to 1.
        embeddings: float32 (n, features), at least 0, not normalised.
    """

    probabilities: dict[str, Float32[np.ndarray, "n classes"]]
    embeddings: Float32[np.ndarray, "n features"]


def load_model(path: str | Path) -> Predictor:
    """Loads a model package, or the package of a finished run's workdir; UserError when it is none or damaged."""
    return Predictor(load_package(path))


class Predictor:
    """A model that is ready to predict. Batches are spread over the local devices."""

    def __init__(self, package: Package) -> None:
        self._package = package
        graph, _, _ = abstract_classifier(package.model)
        values = package.preprocessing
        mean, std, dtype = tuple(values["mean"]), tuple(values["std"]), jnp.dtype(package.model["dtype"])

        def forward(
            params: Any, batch_stats: Any, images: jax.Array, flip: bool
        ) -> tuple[dict[str, jax.Array], jax.Array]:
            network, pixels = merge_classifier(graph, params, batch_stats), normalize(images, mean, std, dtype)
            outputs = network(pixels, train=False)
            every = mean_of_mirrored(network, pixels, outputs) if flip else outputs.logits
            return {name: jax.nn.softmax(logits) for name, logits in every.items()}, outputs.embedding

        devices = jax.local_devices()
        mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
        everywhere, self._rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
        self._forward = jax.jit(
            forward,
            in_shardings=(everywhere, everywhere, self._rows),
            out_shardings=(self._rows, self._rows),
            static_argnums=3,
        )
        self._params = jax.device_put(package.params, everywhere)
        self._batch_stats = jax.device_put(package.batch_stats, everywhere)
        self._devices = len(devices)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The heads, in their order."""
        return tuple(self._package.vocabularies)

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Attribute -> class names in the order of the probabilities."""
        return dict(self._package.vocabularies)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels to which photos are fitted."""
        return self._package.preprocessing["height"], self._package.preprocessing["width"]

    @property
    def embedding_size(self) -> int:
        """Features of an embedding."""
        return embedding_size(self._package.model["depth"], self._package.model["width"])

    @property
    def fingerprint(self) -> str:
        """Of the package; models with equal ones make the same embeddings."""
        return self._package.fingerprint

    @property
    def package(self) -> Package:
        """What was loaded."""
        return self._package

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What happens to a photo: height and width (pixels) to which it is fitted, mean and std of RGB in [0, 1]."""
        return dict(self._package.preprocessing)

    @property
    def _max_side(self) -> int:
        return int(self._package.preprocessing["max_side"])

    @property
    def batch_size(self) -> int:
        """Photos that run at once at most: 256, fewer above 224 x 224 pixels; divisible by the devices."""
        height, width = self.size
        return self._round_up(max(1, min(_BATCH, _BATCH_PIXELS // (height * width))))

    def read(self, photo: Photo) -> UInt8[np.ndarray, "height width 3"]:
        """Repairs, decodes and fits one photo as training did.

        Args:
            photo: a path, a file's bytes, a Pillow image, or uint8 RGB (height, width, 3).

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
                return letterbox(normalise_image(photo, self._max_side), *self.size)
            data = photo if isinstance(photo, bytes) else Path(photo).read_bytes()
            return self.decode(data)
        except OSError as error:
            raise UserError(f"{where} cannot be read: {error.strerror}") from error
        except BadPhoto as error:
            raise UserError(f"{where} is not usable: {error}") from error

    def decode(self, data: bytes) -> UInt8[np.ndarray, "height width 3"]:
        """Repairs, decodes and fits a photo's bytes; BadPhoto when it is not usable."""
        sound, _ = normalise_photo(data, self._max_side)
        return decode_photo(sound, *self.size)

    def predict_arrays(
        self, images: UInt8[np.ndarray, "n height width 3"], *, whole_batches: bool = False, flip: bool | None = None
    ) -> Outputs:
        """Runs the model over photos of the model's size, in batches of one compiled shape.

        Args:
            images: RGB.
            whole_batches: pads few photos to `batch_size` too, so that calls of any number compile once.
            flip: whether the probabilities are means over the photos and their mirror images; None: as the package
                says. Embeddings are always those of the photos themselves.

        Raises:
            UserError: another shape or dtype.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != (*self.size, 3) or images.dtype != np.uint8:
            wanted = f"uint8 (n, {self.size[0]}, {self.size[1]}, 3)"
            raise UserError(f"photos must be {wanted}, not {images.dtype} {images.shape}")
        if not len(images):
            empty = {name: np.empty((0, len(v)), np.float32) for name, v in self.classes.items()}
            return Outputs(empty, np.empty((0, self.embedding_size), np.float32))
        parts = list(self._run(images, whole_batches, self.preprocessing["test_time_flip"] if flip is None else flip))
        probabilities = {name: np.concatenate([p[name] for p, _ in parts]) for name in self.attributes}
        return Outputs(probabilities, np.concatenate([e for _, e in parts]))

    def _round_up(self, count: int) -> int:
        return -(-count // self._devices) * self._devices

    def _run(
        self, images: np.ndarray, whole_batches: bool, flip: bool
    ) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        # Few photos take a batch of their own size, rounded up to a power of two: few shapes are ever compiled.
        few = self._round_up(1 << (len(images) - 1).bit_length())
        size = self.batch_size if whole_batches else min(few, self.batch_size)
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.uint8)])
            result = self._forward(self._params, self._batch_stats, jax.device_put(padded, self._rows), flip)
            probabilities, embeddings = jax.device_get(result)
            yield {n: p[: len(part)] for n, p in probabilities.items()}, embeddings[: len(part)]

    def predict(self, photos: Sequence[Photo] | Photo) -> list[dict[str, tuple[str, float]]]:
        """Labels photos.

        Args:
            photos: one or several, of any of the kinds that `read` takes; an array (n, height, width, 3) is n photos.

        Returns:
            Per photo, attribute -> (class, probability).

        Raises:
            UserError: a photo that cannot be read.
        """
        return self.name_labels(self.predict_arrays(self._read_all(photos)))

    def embed(self, photos: Sequence[Photo] | Photo) -> Float32[np.ndarray, "n features"]:
        """Returns the embeddings of photos, not normalised; takes what `predict` takes."""
        return self.predict_arrays(self._read_all(photos), flip=False).embeddings

    def name_labels(self, outputs: Outputs) -> list[dict[str, tuple[str, float]]]:
        """Returns per photo, attribute -> (the likeliest class, its probability)."""
        best = {name: p.argmax(1) for name, p in outputs.probabilities.items()}
        return [
            {
                name: (self.classes[name][best[name][i]], float(outputs.probabilities[name][i, best[name][i]]))
                for name in self.attributes
            }
            for i in range(len(outputs.embeddings))
        ]

    def _read_all(self, photos: Sequence[Photo] | Photo) -> np.ndarray:
        single = isinstance(photos, (str, Path, bytes, Image.Image)) or (
            isinstance(photos, np.ndarray) and photos.ndim == 3
        )
        images = [self.read(photo) for photo in cast(Sequence[Photo], [photos] if single else photos)]
        return np.stack(images) if images else np.empty((0, *self.size, 3), np.uint8)
