"""The drawn catalogue: products in Kaggle's layout, with the faults of a real catalogue and without its copyright.

With it the whole way from a catalogue to a trained model can be tried and tested without a download. Shading, patterns,
position and scale vary. Some products have a second photo or a copy, 2% of the labels are wrong, some are missing, some
files are damaged, and some classes are much rarer than others. Everything depends on the seed only.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from fashion_jax.data.drawn.colours import COLOURS, paint
from fashion_jax.data.drawn.shapes import SHAPES, Pen, Point
from fashion_jax.data.photos import encode_photo

DEFAULT_COUNT = 3000
HEIGHT, WIDTH = 80, 60
COLUMNS = (
    "id", "gender", "masterCategory", "subCategory", "articleType", "baseColour", "season", "year", "usage",
    "productDisplayName",
)  # fmt: skip
GENDERS = ("Men", "Women", "Unisex", "Boys", "Girls")
LABELLED = ("masterCategory", "subCategory", "baseColour", "gender")  # the columns that get wrong labels

SCALE = 2  # photos are drawn larger and then averaged
_WRONG, _MISSING, _RESHOT, _COPIED, _DAMAGED = 0.02, 0.01, 0.04, 0.015, 0.003
_DAMAGES = ("empty", "text", "garbage", "half", "tail", "rotated", "png", "grey", "absent")
_SEASONS = ("Summer", "Winter", "Fall", "Spring")
_USAGES = ("Casual", "Sports", "Formal", "Ethnic", "Party")
_BRANDS = (
    "Alder", "Birch", "Cedar", "Dune", "Ember", "Fjord", "Grove", "Heath", "Isle", "Juniper", "Kelp", "Linden",
    "Maple", "Nettle", "Oak", "Pine", "Quartz", "Reed", "Sage", "Thorn",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spec:
    """A product before it is drawn."""

    id: str  # of the product
    truth: dict[str, str]  # column -> the label that fits the photo
    written: dict[str, str]  # column -> the label in styles.csv
    shape: int  # place in SHAPES
    kind: int  # variant of the outline, 0 or 1
    pattern: str  # of the cloth
    look: int  # seed of everything else that can be seen; the photos of one product share it
    shift: Point = (0.0, 0.0)  # pixels by which a second photo is moved
    copy_of: str = ""  # id of the product whose file this product repeats, or empty
    damage: str = ""  # the fault of the file, or empty


def write_catalog(folder: Path, count: int = DEFAULT_COUNT, seed: int = 0) -> None:
    """Writes styles.csv and images/<id>.jpg (60 pixels wide, 80 high), the layout of Kaggle's archive.

    Args:
        seed: equal seeds write equal bytes.
    """
    specs = plan(count, seed)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    encoded: dict[str, bytes] = {}
    for spec in specs:
        data = encoded[spec.copy_of] if spec.copy_of else encode_photo(draw(spec))
        encoded[spec.id] = data
        damaged = _damage(data, spec.damage)
        if damaged is not None:
            (images / f"{spec.id}.jpg").write_bytes(damaged)
    (folder / "styles.csv").write_text(_format_table(specs), encoding="utf-8")


def wrong_labels(count: int = DEFAULT_COUNT, seed: int = 0) -> set[tuple[str, str]]:
    """Returns (id, column) of every label in styles.csv that does not fit the photo. It draws nothing."""
    return {
        (spec.id, column)
        for spec in plan(count, seed)
        for column in LABELLED
        if spec.written[column] not in ("NA", spec.truth[column])
    }


def plan(count: int, seed: int) -> list[Spec]:
    """Returns all products of a catalogue; nothing is drawn yet."""
    rng = np.random.default_rng([seed, count])
    shapes = _long_tailed(len(SHAPES), count, rng)
    colours = _long_tailed(len(COLOURS), count, rng)
    specs: list[Spec] = []
    number = 1000
    for i in range(count):
        number += int(rng.integers(1, 9))
        chance = rng.random()
        if specs and chance < _RESHOT:
            # A second photo of the last product: the next id, the same title, a slightly moved camera.
            number = int(specs[-1].id) + 1
            shift = (float(rng.uniform(-2, 2)), float(rng.uniform(-2, 2)))
            spec = replace(specs[-1], id=str(number), shift=shift, copy_of="", damage="")
        elif specs and chance < _RESHOT + _COPIED:
            other = specs[int(rng.integers(len(specs)))]
            spec = replace(other, id=str(number), copy_of=other.copy_of or other.id, damage="")
        else:
            spec = _new_product(str(number), int(shapes[i]), COLOURS[colours[i]], rng)
        specs.append(replace(spec, written=_write_labels(spec.truth, rng)))
    for place, row in enumerate(rng.choice(count, max(len(_DAMAGES), round(_DAMAGED * count)), replace=False)):
        specs[row] = replace(specs[row], damage=_DAMAGES[place % len(_DAMAGES)])
    return specs


def draw(spec: Spec) -> UInt8[np.ndarray, "80 60 3"]:
    """Draws a product's photo."""
    rng = np.random.default_rng(spec.look)
    height, width = HEIGHT * SCALE, WIDTH * SCALE
    child = spec.truth["gender"] in ("Boys", "Girls")
    place = placement(SHAPES[spec.shape][4], rng, child=child, shift=spec.shift)
    pen = Pen(width, height, place, flip=bool(rng.random() < 0.5))
    SHAPES[spec.shape][3](pen, spec.kind)
    _emblem(pen, spec.truth["gender"])
    cloth = paint(spec.truth["baseColour"], spec.pattern, height, width, rng).astype(np.float32)
    background = np.full((height, width, 3), 255, np.float32)
    return compose(pen, cloth, background, rng, np.random.default_rng([spec.look, int(spec.id)]))


def compose(
    pen: Pen,
    cloth: Float32[np.ndarray, "height width 3"],
    background: Float32[np.ndarray, "height width 3"],
    rng: np.random.Generator,
    noise: np.random.Generator,
) -> UInt8[np.ndarray, "80 60 3"]:
    """Returns the photo of a drawn product on a background, with light, shadow and noise.

    Args:
        pen: its layers are drawn, at twice the photo's size.
        cloth: in [0, 255].
        background: in [0, 255].
        rng: of light and shadow.
        noise: of the camera's noise.
    """
    height, width = cloth.shape[:2]
    body, shade, trim, line, rim, face = (
        np.asarray(layer, np.float32)[..., None] / 255 for layer in pen.layers.values()
    )
    y, x = np.mgrid[:height, :width].astype(np.float32)
    slope = rng.uniform(-0.06, 0.06, 2)
    light = 1 + slope[0] * (x / width - 0.5) + slope[1] * (y / height - 0.5)
    cloth = np.clip(cloth * light[..., None], 0, 255)

    photo = background.copy()
    outline = np.clip(sum(np.roll(body, s, a) for s in (-1, 1) for a in (0, 1)), 0, 1)
    shadow = np.roll(np.maximum(body, shade), (int(rng.integers(2, 5)), int(rng.integers(-3, 4))), (0, 1))
    photo -= 22 * shadow
    photo = photo * (1 - outline) + 0.62 * cloth * outline
    photo = photo * (1 - body) + cloth * body
    photo = photo * (1 - shade) + 0.72 * cloth * shade
    photo = photo * (1 - trim) + float(rng.choice([205, 225])) * trim
    photo = photo * (1 - line) + (0.35 * cloth + 10) * line
    photo = photo * (1 - rim) + 20 * rim
    photo = photo * (1 - face) + 250 * face
    small = photo.reshape(HEIGHT, SCALE, WIDTH, SCALE, 3).mean((1, 3))
    return np.clip(np.rint(small + noise.normal(0, 1.5, small.shape)), 0, 255).astype(np.uint8)


def _new_product(product_id: str, shape: int, colour: str, rng: np.random.Generator) -> Spec:
    master, sub, articles, _, _ = SHAPES[shape]
    kind = int(rng.random() < 0.4)
    gender = GENDERS[int(rng.choice(len(GENDERS), p=(0.38, 0.32, 0.14, 0.09, 0.07)))]
    truth = {
        "gender": gender,
        "masterCategory": master,
        "subCategory": sub,
        "articleType": articles[kind],
        "baseColour": colour,
        "season": _SEASONS[int(rng.choice(4, p=(0.5, 0.2, 0.2, 0.1)))],
        "year": str(int(rng.integers(2010, 2019))),
        "usage": _USAGES[int(rng.choice(5, p=(0.7, 0.12, 0.08, 0.06, 0.04)))],
        "productDisplayName": f"{_BRANDS[int(rng.integers(len(_BRANDS)))]} {gender} {colour} {articles[kind]}",
    }
    pattern = str(rng.choice(["plain", "stripes", "dots", "check"], p=(0.64, 0.12, 0.12, 0.12)))
    return Spec(product_id, truth, truth, shape, kind, pattern, int(rng.integers(2**31)))


def _write_labels(truth: dict[str, str], rng: np.random.Generator) -> dict[str, str]:
    """Returns the labels for styles.csv: the true ones, some replaced by wrong ones, some missing."""
    written = dict(truth)
    others = {
        "masterCategory": sorted({s[0] for s in SHAPES}),
        "subCategory": sorted({s[1] for s in SHAPES}),
        "baseColour": list(COLOURS),
        "gender": list(GENDERS),
    }
    for column in LABELLED:
        chance = rng.random()
        if chance < _WRONG:
            written[column] = str(rng.choice([v for v in others[column] if v != truth[column]]))
        elif chance < _WRONG + _MISSING:
            written[column] = "NA"
    return written


def _long_tailed(num_classes: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Returns random class numbers; some classes are rare, but every class is frequent enough to be learnt."""
    weights = 1 / (np.arange(num_classes) + 8.0)
    floor = 0.6 / num_classes
    shares = floor + (1 - floor * num_classes) * weights / weights.sum()
    order = rng.permutation(num_classes) if num_classes == len(COLOURS) else np.arange(num_classes)
    return order[rng.choice(num_classes, count, p=shares)]


def placement(
    aspect: float, rng: np.random.Generator, *, child: bool = False, shift: Point = (0.0, 0.0)
) -> Callable[[Point], Point]:
    """Returns the function that maps coordinates of a product's box to pixels.

    Args:
        aspect: width over height of the box.
        rng: of size, place and angle.
        child: whether the product is small.
        shift: of the camera, in pixels.
    """
    size = rng.uniform(0.68, 0.8) if child else rng.uniform(0.84, 0.96)
    box_height = min(size * HEIGHT, size * WIDTH / aspect)
    box_width = box_height * aspect
    room_x, room_y = (WIDTH - box_width) / 2, (HEIGHT - box_height) / 2
    centre_x = WIDTH / 2 + rng.uniform(-0.7, 0.7) * room_x * 0.6 + shift[0]
    centre_y = HEIGHT / 2 + rng.uniform(-0.7, 0.7) * room_y * 0.6 + shift[1]
    return _Place(box_width, box_height, centre_x, centre_y, math.radians(rng.uniform(-5, 5)))


@dataclass(frozen=True, slots=True)
class _Place:
    width: float
    height: float
    x: float
    y: float
    angle: float

    def __call__(self, point: Point) -> Point:
        dx, dy = (point[0] - 0.5) * self.width, (point[1] - 0.5) * self.height
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        x, y = self.x + cosine * dx - sine * dy, self.y + sine * dx + cosine * dy
        return (x * SCALE, y * SCALE)


def _emblem(pen: Pen, gender: str) -> None:
    """Draws the sign that shows the gender, about 9 pixels wide. Children's products are also smaller."""

    def disc(x: float, y: float, radius: float) -> list[Point]:
        return [(x + radius * math.cos(t), y + radius * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 12)]

    badges: dict[str, list[list[Point]]] = {
        "Men": [[(-8, -8), (8, -8), (8, 8), (-8, 8)]],
        "Women": [disc(-6, 0, 5), disc(6, 0, 5)],
        "Boys": [[(-10, 8), (10, 8), (0, -9)]],
        "Girls": [disc(-6, -4, 4), disc(6, -4, 4), disc(0, 6, 4)],
        "Unisex": [],
    }
    pen.badge((0.5, 0.57), *badges[gender])


def _damage(data: bytes, damage: str) -> bytes | None:
    """Returns a file with the fault; None for a file that is absent."""
    if damage in ("rotated", "png", "grey"):
        image = Image.open(io.BytesIO(data))
        buffer = io.BytesIO()
        if damage == "rotated":
            exif = Image.Exif()
            exif[0x0112] = 6  # the camera was turned by 90 degrees
            image.rotate(90, expand=True).save(buffer, "JPEG", quality=95, exif=exif)
        elif damage == "png":
            image.convert("P", palette=Image.Palette.ADAPTIVE).save(buffer, "PNG")
        else:
            image.convert("L").save(buffer, "JPEG", quality=95)
        return buffer.getvalue()
    faults = {
        "empty": b"",
        "text": b"<html>404 Not Found</html>",
        "garbage": data[:64] + bytes(256),
        "half": data[: len(data) // 3],
        "tail": data[: int(len(data) * 0.93)],
    }
    return None if damage == "absent" else faults.get(damage, data)


def _format_table(specs: list[Spec]) -> str:
    """Returns styles.csv. The title of every 400th row holds commas without quotes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, spec in enumerate(specs):
        row = [spec.id, *(spec.written[column] for column in COLUMNS[1:])]
        if number % 400 == 399:
            text.write(",".join(row) + ", Pack of 2, Boxed\n")
        else:
            writer.writerow(row)
    return text.getvalue()
