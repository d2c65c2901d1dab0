"""The mean colour of each class of a colour attribute, measured on training photos."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int

from fashion_jax.data.photos import BadPhoto, decode_photo, decode_photos
from fashion_jax.data.records import Prepared
from fashion_jax.system.cielab import ciede2000, product_pixels
from fashion_jax.system.progress import progress_bar

PHOTOS_PER_CLASS = 200  # more do not move a mean by what anyone sees
_HEIGHT, _WIDTH = 80, 60  # pixels at which photos are looked at


def class_colours(prepared: Prepared, attribute: str, *, progress: bool = False) -> Float32[np.ndarray, "classes 3"]:
    """Returns the mean CIELAB colour of the product's pixels over training photos of each class.

    Args:
        prepared: the records.
        attribute: of the catalogue, whose classes are colours.
        progress: whether to show a bar.

    Returns:
        NaN for a class without a training row.
    """
    column, classes = prepared.attributes.index(attribute), len(prepared.vocabularies[attribute])
    rows = prepared.indices("train")
    labels = prepared.labels[rows, column]
    chosen = [_spread(rows[labels == number]) for number in range(classes)]
    means: list[list[np.ndarray]] = [[] for _ in range(classes)]
    photos = ((number, prepared.read_photo(int(row))) for number, own in enumerate(chosen) for row in own)
    with progress_bar(sum(map(len, chosen)), f"measuring {attribute}", show=progress, unit="photo") as bar:
        for number, mean in decode_photos(_mean_colour, photos):
            if not isinstance(mean, BadPhoto):
                means[number].append(mean)
            bar.update()
    return np.array([np.mean(own, axis=0) if own else [np.nan] * 3 for own in means], np.float32)


def _mean_colour(photo: bytes) -> Float32[np.ndarray, "3"]:
    mean: Float32[np.ndarray, "3"] = product_pixels(decode_photo(photo, _HEIGHT, _WIDTH)).mean(0)
    return mean


def _spread(rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    if len(rows) <= PHOTOS_PER_CLASS:
        return rows
    return rows[np.linspace(0, len(rows) - 1, PHOTOS_PER_CLASS).astype(int)]


def colour_differences(colours: Float[np.ndarray, "classes 3"]) -> Float[np.ndarray, "classes classes"]:
    """Returns the CIEDE2000 differences of classes: 0 of a class to itself, infinite where one is unknown."""
    differences = ciede2000(colours[:, None], colours[None])
    differences[~np.isfinite(differences)] = np.inf
    np.fill_diagonal(differences, 0.0)
    return differences
