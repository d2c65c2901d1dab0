"""How wrong wrong colours are: families of colours, and colours that look alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int

from fashion_jax.data.loader import spread_rows
from fashion_jax.data.photos import BadPhoto, decode_photo, decode_photos
from fashion_jax.data.records import Prepared
from fashion_jax.system.cielab import ciede2000, product_pixels
from fashion_jax.system.progress import progress_bar

# Names that shops use, by family; a name that is not here is a family of its own.
FAMILIES: dict[str, tuple[str, ...]] = {
    "black": ("Black",), "grey": ("Grey", "Grey Melange", "Charcoal", "Gray"), "white": ("White", "Off White"),
    "beige": ("Beige", "Cream", "Nude", "Skin", "Khaki"), "purple": ("Purple", "Lavender", "Mauve"),
    "brown": ("Brown", "Coffee Brown", "Mushroom Brown", "Tan", "Taupe"), "yellow": ("Yellow", "Mustard"),
    "metallic": ("Metallic", "Silver", "Steel", "Gold", "Bronze", "Copper"), "orange": ("Orange", "Peach"),
    "red": ("Red", "Maroon", "Burgundy", "Rust"), "pink": ("Pink", "Rose", "Magenta"), "multi": ("Multi",),
    "green": ("Green", "Olive", "Sea Green", "Lime Green", "Fluorescent Green"),
    "blue": ("Blue", "Navy Blue", "Turquoise Blue", "Teal"),
}  # fmt: skip
JUST_TOLERABLE = 5.0  # CIEDE2000 difference of two classes' means up to which a mistake is one of naming

PHOTOS_PER_CLASS = 200  # more photos would not change a mean visibly
_HEIGHT, _WIDTH = 80, 60  # size at which photos are measured, in pixels
_FAMILY_OF = {name.lower(): family for family, names in FAMILIES.items() for name in names}


def colour_families(classes: Sequence[str]) -> tuple[list[str], Int[np.ndarray, " classes"]]:
    """Returns the families of some colours, and the number of each colour's family among them."""
    names = [_FAMILY_OF.get(name.lower(), name) for name in classes]
    families = sorted(set(names))
    return families, np.array([families.index(name) for name in names])


def colour_scores(
    probabilities: Float[np.ndarray, "n classes"],
    predicted: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    classes: Sequence[str],
    differences: Float[np.ndarray, "classes classes"],
) -> dict[str, float]:
    """Scores colour predictions more leniently than by their exact name.

    Args:
        probabilities: each row sums to 1.
        predicted: the class that is predicted, in [0, classes); not always the likeliest.
        labels: in [0, classes).
        classes: names of the colours.
        differences: of the classes' mean colours, CIEDE2000, 0 of a class to itself.

    Returns:
        `accuracy`; `family_accuracy`, of the family with the largest sum of probabilities; `tolerant_accuracy`, of
        predictions whose class looks like the right one; `mean_difference`, CIEDE2000 between the class that is
        predicted and the right one, over the rows where it is known. NaN where there is no row.
    """
    if not len(labels):
        return dict.fromkeys(("accuracy", "family_accuracy", "tolerant_accuracy", "mean_difference"), float("nan"))
    families, number = colour_families(classes)
    by_family = np.zeros((len(labels), len(families)))
    np.add.at(by_family.T, number, probabilities.T)
    off = differences[labels, predicted]
    known = np.isfinite(off)
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "family_accuracy": float(np.mean(by_family.argmax(1) == number[labels])),
        "tolerant_accuracy": float(np.mean(off <= JUST_TOLERABLE)),
        "mean_difference": float(off[known].mean()) if known.any() else float("nan"),
    }


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
