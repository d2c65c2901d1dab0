"""The mean colour of each class of a colour attribute, measured on training photos."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32

from fashion_jax.data.loader import spread_rows
from fashion_jax.data.photos import BadPhoto, decode_photo, decode_photos
from fashion_jax.data.records import Prepared
from fashion_jax.system.cielab import ciede2000, product_pixels
from fashion_jax.system.progress import progress_bar

PHOTOS_PER_CLASS = 200  # more photos would not change a mean visibly
_HEIGHT, _WIDTH = 80, 60  # size at which photos are measured, in pixels


def class_colours(prepared: Prepared, attribute: str, *, progress: bool = False) -> Float32[np.ndarray, "classes 3"]:
    """Returns the mean CIELAB colour of each class, over the product's pixels in training photos.

    Args:
        attribute: an attribute whose classes are colours.

    Returns:
        A row for each class; NaN where the class has no training photo.
    """
    column, classes = prepared.attributes.index(attribute), len(prepared.vocabularies[attribute])
    rows = prepared.indices("train")
    labels = prepared.labels[rows, column]
    chosen = [spread_rows(rows[labels == number], PHOTOS_PER_CLASS) for number in range(classes)]
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


def colour_differences(colours: Float[np.ndarray, "classes 3"]) -> Float[np.ndarray, "classes classes"]:
    """Returns the CIEDE2000 difference of every two classes: 0 of a class to itself, infinite where one is unknown."""
    differences = ciede2000(colours[:, None], colours[None])
    differences[~np.isfinite(differences)] = np.inf
    np.fill_diagonal(differences, 0.0)
    return differences
