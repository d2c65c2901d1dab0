"""A drawn catalogue with attributes of several values, and with one that does not apply to every product.

A cloth may have several patterns, and what is seen behind a product shows its occasions. The sleeve does not apply to
shoes, bags and the like; the table says `n/a` there, and leaves some cells empty whose label is not known.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from fashion_jax.data.drawn.catalogue import HEIGHT, SCALE, WIDTH, compose, placement
from fashion_jax.data.drawn.colours import PLAIN
from fashion_jax.data.drawn.shapes import SHAPES, Pen
from fashion_jax.data.photos import encode_photo
from fashion_jax.data.schema import Attribute, MultiValued, Schema, save_schema
from fashion_jax.data.tags import join_tags

DEFAULT_COUNT = 1500
NOT_KNOWN = "n/a"  # the table's word for a sleeve that does not apply
PATTERNS = ("Striped", "Dotted", "Checked")
OCCASIONS = ("Beach", "Formal", "Party", "Sports", "Winter")
SCHEMA = Schema(
    "drawn_tags",
    (Attribute("category"), Attribute("colour"), Attribute("sleeve", not_applicable=(NOT_KNOWN,))),
    image_column="photo",
    multi_valued=(MultiValued("pattern"), MultiValued("occasion")),
)

_CATEGORIES = ("Topwear", "Dress", "Loungewear and Nightwear", "Bottomwear", "Shoes", "Bags", "Wallets", "Scarves")
_SLEEVES = {"Topwear": ("Short", "Long"), "Dress": ("None", "None"), "Loungewear and Nightwear": ("Long", "Long")}
_COLOURS = ("Black", "Blue", "Brown", "Green", "Pink", "Purple", "Red", "Yellow")
_MISSING = 0.05  # share of the cells of sleeve, pattern and occasion


@dataclass(frozen=True, slots=True)
class TaggedSpec:
    """A product before it is drawn."""

    id: str  # of the product
    shape: int  # place in SHAPES
    kind: int  # variant of the outline, 0 or 1
    colour: str  # of the cloth
    patterns: tuple[str, ...]  # of the cloth; none for a plain one
    occasions: tuple[str, ...]  # that the background shows
    look: int  # seed of everything else that can be seen

    @property
    def sleeve(self) -> str:
        """The class of the sleeve, or NOT_KNOWN."""
        return _SLEEVES.get(SHAPES[self.shape][1], (NOT_KNOWN, NOT_KNOWN))[self.kind].replace("None", "Sleeveless")


def write_tagged_catalog(folder: Path, count: int = DEFAULT_COUNT, seed: int = 0) -> Path:
    """Writes products.csv and photos/<id>.jpg (60 pixels wide, 80 high), and returns the path of its schema.json.

    Args:
        seed: equal seeds write equal bytes.
    """
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, count, 1])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "photo", "category", "colour", "sleeve", "pattern", "occasion"))
    for spec in plan_tagged(count, seed):
        photo = f"photos/{spec.id}.jpg"
        (folder / photo).write_bytes(encode_photo(draw_tagged(spec)))
        cells = (spec.sleeve, join_tags(spec.patterns or ("Plain",)), join_tags(spec.occasions))
        known = ["" if rng.random() < _MISSING else cell for cell in cells]
        writer.writerow((spec.id, photo, SHAPES[spec.shape][1], spec.colour, *known))
    (folder / "products.csv").write_text(text.getvalue(), encoding="utf-8")
    save_schema(SCHEMA, folder / "schema.json")
    return folder / "schema.json"


def plan_tagged(count: int, seed: int) -> list[TaggedSpec]:
    """Returns all products of a catalogue; nothing is drawn yet."""
    rng = np.random.default_rng([seed, count])
    shapes = [next(place for place, shape in enumerate(SHAPES) if shape[1] == name) for name in _CATEGORIES]
    specs = []
    for number in range(count):
        patterns = tuple(name for name in PATTERNS if rng.random() < 0.3)
        occasions = tuple(name for name in OCCASIONS if rng.random() < 0.25)
        shape = shapes[int(rng.integers(len(shapes)))]
        kind, colour = int(rng.random() < 0.5), _COLOURS[int(rng.integers(len(_COLOURS)))]
        specs.append(TaggedSpec(f"T{number:05}", shape, kind, colour, patterns, occasions, int(rng.integers(2**31))))
    return specs


def draw_tagged(spec: TaggedSpec) -> UInt8[np.ndarray, "80 60 3"]:
    """Draws a product's photo."""
    rng = np.random.default_rng(spec.look)
    height, width = HEIGHT * SCALE, WIDTH * SCALE
    pen = Pen(width, height, placement(SHAPES[spec.shape][4], rng), flip=bool(rng.random() < 0.5))
    SHAPES[spec.shape][3](pen, spec.kind)
    background = np.full((height, width, 3), 255, np.float32)
    for name in spec.occasions:
        _draw_occasion(background, name, rng)
    return compose(pen, _paint_cloth(spec, height, width, rng), background, rng, rng)


def _paint_cloth(
    spec: TaggedSpec, height: int, width: int, rng: np.random.Generator
) -> Float32[np.ndarray, "height width 3"]:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    base = np.asarray(PLAIN[spec.colour], np.float32)
    tone = 95 if base.mean() < 128 else -95
    cloth = np.broadcast_to(base, (height, width, 3)).copy()
    for name in spec.patterns:
        gap = rng.uniform(14, 19)
        marks = {
            "Striped": (y + rng.uniform(0, gap)) % gap < gap / 3,
            "Dotted": ((x % gap - gap / 2) ** 2 + (y % gap - gap / 2) ** 2) < (gap / 3.4) ** 2,
            "Checked": ((x % gap) < gap / 2) ^ ((y % gap) < gap / 2),
        }[name]
        cloth[marks] += {"Striped": tone, "Dotted": 1.3 * tone, "Checked": 0.85 * tone}[name]
    return np.clip(cloth, 0, 255)


def _draw_occasion(background: Float32[np.ndarray, "height width 3"], name: str, rng: np.random.Generator) -> None:
    """Draws what is seen behind a product: sand, grey curtains, confetti, a green court, or snow on a blue sky."""
    height, width = background.shape[:2]
    y, x = np.mgrid[:height, :width]
    if name == "Beach":
        background[y > height * rng.uniform(0.84, 0.9)] = (236, 205, 130)
    elif name == "Sports":
        background[x < width * rng.uniform(0.1, 0.16)] = (60, 170, 90)
    elif name == "Formal":
        background[x > width * rng.uniform(0.84, 0.9)] = (110, 110, 125)
    elif name == "Winter":
        background[y < height * rng.uniform(0.1, 0.16)] = (170, 205, 250)
    else:
        for _ in range(45):
            place = rng.uniform(0, (height, width))
            near = (y - place[0]) ** 2 + (x - place[1]) ** 2 < 7
            background[near] = ((230, 40, 160), (250, 190, 0), (40, 150, 240))[int(rng.integers(3))]
