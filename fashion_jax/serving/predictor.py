"""A trained model in use: photos in, labels and embeddings out."""

from __future__ import annotations

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
from fashion_jax.data.photos import BadPhoto, decode_photo, letterbox, normalise_image, normalise_photo
from fashion_jax.decision.decisions import OPERATING_POINTS
from fashion_jax.models.classifier import (
    abstract_classifier,
    mean_energy,
    mean_of_mirrored,
    merge_network,
    num_colour_features,
)
from fashion_jax.models.resnet import num_features
from fashion_jax.serving.outputs import NetworkOutputs, Outputs, Prediction, decide, join_outputs, name_labels
from fashion_jax.serving.package import Package, load_package
from fashion_jax.serving.zoo import find_model
from fashion_jax.system.devices import computes_bfloat16_faster, on_accelerator, one_blas_thread
from fashion_jax.system.errors import UserError, nearest
from fashion_jax.system.process import num_cores

__all__ = ["Outputs", "Photo", "Prediction", "Predictor", "load_model"]

Photo = str | Path | bytes | Image.Image | UInt8[np.ndarray, "height width 3"]

_BATCH = 256
_BATCH_PIXELS = _BATCH * 224 * 224  # fewer photos of a larger size run at once
# Likewise, of each core, whose cache holds the maps of so few: 64 photos of 60 x 45 take a ResNet-18 of width 32 on two
# devices .77 of the time that 256 take on two, and .82 of that on eight; four of 224 x 224 take .62 of that of 64.
_CPU_CORE_PIXELS = 2 * 224 * 224


def load_model(path: str | Path) -> Predictor:
    """Loads a trained model.

    Args:
        path: a model package, the workdir of a finished run, or the name of a model that comes with the library
            ("small").

    Raises:
        UserError: it is none of these, or damaged.
    """
    return Predictor(load_package(find_model(path)))


class Predictor:
    """A model that is ready to predict. Batches are spread over the local devices.

    Attributes:
        dtype: in which the network is computed here, "float32" or "bfloat16".
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        # What was trained in bfloat16 is computed in float32 where that is as fast: it has all of bfloat16.
        self.dtype: str = package.model["dtype"] if computes_bfloat16_faster(training=False) else "float32"
        graph, _, _ = abstract_classifier({**package.model, "dtype": self.dtype})
        values = package.preprocessing
        mean, std, dtype = tuple(values["mean"]), tuple(values["std"]), jnp.dtype(self.dtype)

        def forward(
            params: Any, batch_stats: Any, images: jax.Array, flip: bool
        ) -> tuple[dict[str, jax.Array], jax.Array, jax.Array, jax.Array, jax.Array]:
            network, pixels = merge_network(graph, params, batch_stats), normalize(images, mean, std, dtype)
            outputs = network(pixels, train=False)
            every = mean_of_mirrored(network, pixels, outputs) if flip else outputs.logits
            plan, pooled = package.embedding, outputs.features
            embedding = pooled if plan is None else plan.embed(outputs.logits, pooled)
            return every, pooled, mean_energy(outputs.logits), embedding, outputs.colour

        devices = jax.local_devices()
        mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
        everywhere, self._rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
        self._forward = jax.jit(
            forward,
            in_shardings=(everywhere, everywhere, self._rows),
            out_shardings=(self._rows,) * 5,
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
        plan = self._package.embedding
        return self.num_features if plan is None else plan.size

    @property
    def num_features(self) -> int:
        """Pooled features of the network."""
        return num_features(self._package.model["depth"], self._package.model["width"])

    @property
    def num_colour_features(self) -> int:
        """What colour heads see besides the pooled features; 0 without such heads."""
        return num_colour_features(self._package.model)

    @property
    def subspaces(self) -> dict[str, int]:
        """Subspace of the embedding -> its features, in their order; empty where the package has none."""
        plan = self._package.embedding
        return {} if plan is None else plan.sizes

    @property
    def fingerprint(self) -> str:
        """Of the package; models with equal ones make the same embeddings, to the digits of `dtype`."""
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
        """Photos that run at once at most: 256, fewer above 224 x 224 pixels; on a CPU what cores' caches hold."""
        height, width = self.size
        pixels = _BATCH_PIXELS if on_accelerator() else _CPU_CORE_PIXELS * max(self._devices, num_cores())
        return self._round_up(max(1, min(_BATCH, pixels // (height * width))))

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
        self,
        images: UInt8[np.ndarray, "n height width 3"],
        *,
        whole_batches: bool = False,
        flip: bool | None = None,
        operating_point: str = "accuracy",
    ) -> Outputs:
        """Runs the model over photos of the model's size, in batches of one compiled shape.

        Args:
            images: RGB.
            whole_batches: pads few photos to `batch_size` too, so that calls of any number compile once.
            flip: whether the probabilities are means over the photos and their mirror images; None: as the package
                says. Embeddings are always those of the photos themselves.
            operating_point: "accuracy", or "macro_f1" for labels with the best of it on validation rows, mostly by
                rare classes that are said more often; the probabilities are the same.

        Raises:
            UserError: another shape, dtype or operating point.
        """
        images = self._check_images(images)
        self.check_operating_point(operating_point)
        return self._decide(self.run_network(images, whole_batches=whole_batches, flip=flip), operating_point)

    def predict_batches(
        self,
        batches: Iterable[UInt8[np.ndarray, "n height width 3"]],
        *,
        whole_batches: bool = False,
        flip: bool | None = None,
        operating_point: str = "accuracy",
    ) -> Iterator[Outputs]:
        """Runs the model over batches as they come, each while the next one is read.

        Args:
            batches: of `batch_size` photos at most, as `predict_arrays` takes them.
            whole_batches: see there.
            flip: see there.
            operating_point: see there.

        Yields:
            The outputs of each batch, in order.

        Raises:
            UserError: another shape, dtype or operating point, or too many photos.
        """
        self.check_operating_point(operating_point)
        for said in self._run(map(self._check_images, batches), whole_batches, flip):
            yield self._decide(said, operating_point)

    def run_network(
        self, images: UInt8[np.ndarray, "n height width 3"], *, whole_batches: bool = False, flip: bool | None = None
    ) -> NetworkOutputs:
        """Returns what the network itself says of sound photos, uint8 RGB of the model's size."""
        size = self.batch_size
        batches = (images[start : start + size] for start in range(0, len(images), size))
        parts = list(self._run(batches, whole_batches or len(images) > size, flip))
        classes = {name: len(names) for name, names in self.classes.items()}
        return join_outputs(parts, classes, self.num_features, self.embedding_size, self.num_colour_features)

    def _check_images(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != (*self.size, 3) or images.dtype != np.uint8:
            raise UserError(f"photos must be uint8 {('n', *self.size, 3)}, not {images.dtype} {images.shape}")
        return images

    def _decide(self, said: NetworkOutputs, operating_point: str) -> Outputs:
        with one_blas_thread():
            return decide(
                self._package.decision,
                said.logits,
                said.features,
                said.energies,
                operating_point,
                embeddings=said.embeddings,
            )

    def check_operating_point(self, name: str) -> None:
        """Raises UserError unless the package can predict at an operating point."""
        if name not in OPERATING_POINTS:
            known = ", ".join(OPERATING_POINTS)
            raise UserError(f"there is no operating point {name!r}{nearest(name, OPERATING_POINTS)}; use {known}")
        if name != OPERATING_POINTS[0] and self._package.decision is None:
            raise UserError(
                f"{self._package.folder} has no decision.json, so it cannot predict at the operating point {name!r}; "
                "it was made by an earlier version or without validation rows: train again with the same command"
            )

    def _round_up(self, count: int) -> int:
        return -(-count // self._devices) * self._devices

    def _run(self, batches: Iterable[np.ndarray], whole_batches: bool, flip: bool | None) -> Iterator[NetworkOutputs]:
        flip = self.preprocessing["test_time_flip"] if flip is None else flip
        before: tuple[int, Any] | None = None  # the batch that runs while the next one is prepared
        for images in batches:
            if len(images) > self.batch_size:
                raise UserError(f"a batch must have {self.batch_size} photos at most, not {len(images)}")
            # Few photos take a batch of their own size, rounded up to a power of two: few shapes are ever compiled.
            few = self._round_up(1 << max(len(images) - 1, 0).bit_length())
            size = self.batch_size if whole_batches else min(few, self.batch_size)
            padded = np.concatenate([images, np.zeros((size - len(images), *images.shape[1:]), np.uint8)])
            result = self._forward(self._params, self._batch_stats, jax.device_put(padded, self._rows), flip)
            if before is not None:
                yield _fetch(*before)
            before = len(images), result
        if before is not None:
            yield _fetch(*before)

    def predict(self, photos: Sequence[Photo] | Photo, *, operating_point: str = "accuracy") -> list[Prediction]:
        """Labels photos.

        Args:
            photos: one or several, of any of the kinds that `read` takes; an array (n, height, width, 3) is n photos.
            operating_point: as `predict_arrays` takes it.

        Returns:
            Per photo, attribute -> (class, probability), with what `Prediction` holds beside it.

        Raises:
            UserError: a photo that cannot be read, or no such operating point.
        """
        return self.name_labels(self.predict_arrays(self._read_all(photos), operating_point=operating_point))

    def embed(self, photos: Sequence[Photo] | Photo) -> Float32[np.ndarray, "n features"]:
        """Returns the embeddings of photos, which are compared by their cosine; takes what `predict` takes."""
        return self.predict_arrays(self._read_all(photos), flip=False).embeddings

    def name_labels(self, outputs: Outputs) -> list[Prediction]:
        """Returns per photo, attribute -> (the class that is said, its probability)."""
        return name_labels(outputs, self._package.vocabularies)

    def _read_all(self, photos: Sequence[Photo] | Photo) -> np.ndarray:
        single = isinstance(photos, (str, Path, bytes, Image.Image)) or (
            isinstance(photos, np.ndarray) and photos.ndim == 3
        )
        images = [self.read(photo) for photo in cast(Sequence[Photo], [photos] if single else photos)]
        return np.stack(images) if images else np.empty((0, *self.size, 3), np.uint8)


def _fetch(count: int, result: Any) -> NetworkOutputs:
    """Waits for a batch and returns its first rows, without those that filled it up."""
    return NetworkOutputs(*jax.tree.map(lambda array: array[:count], jax.device_get(result)))
