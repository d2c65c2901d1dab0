"""How wrong wrong colours are: families of colours, and colours that look alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

# Names that shops use, by family; a name that is not here is a family of its own.
FAMILIES: dict[str, tuple[str, ...]] = {
    "black": ("Black",),
    "grey": ("Grey", "Grey Melange", "Charcoal", "Gray"),
    "white": ("White", "Off White"),
    "beige": ("Beige", "Cream", "Nude", "Skin", "Khaki"),
    "brown": ("Brown", "Coffee Brown", "Mushroom Brown", "Tan", "Taupe"),
    "metallic": ("Metallic", "Silver", "Steel", "Gold", "Bronze", "Copper"),
    "red": ("Red", "Maroon", "Burgundy", "Rust"),
    "pink": ("Pink", "Rose", "Magenta"),
    "orange": ("Orange", "Peach"),
    "yellow": ("Yellow", "Mustard"),
    "green": ("Green", "Olive", "Sea Green", "Lime Green", "Fluorescent Green"),
    "blue": ("Blue", "Navy Blue", "Turquoise Blue", "Teal"),
    "purple": ("Purple", "Lavender", "Mauve"),
    "multi": ("Multi",),
}
JUST_TOLERABLE = 5.0  # CIEDE2000 difference of two classes' means up to which a mistake is one of naming

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
