"""Outlines of drawn products, a function for each sub-category. Coordinates run from 0 to 1 over the product's box."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

Point = tuple[float, float]


class Pen:
    """Draws into layers: body, shade (a darker tone of the body), trim (neutral), line, and a badge on top.

    The badge has a white face and a black rim, so that it is visible on every cloth.
    """

    def __init__(self, width: int, height: int, place: Callable[[Point], Point], *, flip: bool) -> None:
        """Makes empty layers. `place` maps box coordinates to pixels; `flip` mirrors the box first."""
        self.layers = {
            name: Image.new("L", (width, height), 0) for name in ("body", "shade", "trim", "line", "rim", "face")
        }
        self._draw = {name: ImageDraw.Draw(layer) for name, layer in self.layers.items()}
        self._place, self._flip = place, flip

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        return [self._place((1 - x, y) if self._flip else (x, y)) for x, y in points]

    def _bounds(self, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        (x, y), (u, v) = self._pixels([(left, top), (right, bottom)])
        return min(x, u), min(y, v), max(x, u), max(y, v)

    def shape(self, *points: Point, layer: str = "body") -> None:
        """Fills a polygon."""
        self._draw[layer].polygon(self._pixels(points), fill=255)

    def line(self, *points: Point, layer: str = "line", thick: int = 2) -> None:
        """Draws an open line, `thick` in pixels."""
        self._draw[layer].line(self._pixels(points), fill=255, width=thick, joint="curve")

    def oval(self, left: float, top: float, right: float, bottom: float, layer: str = "body") -> None:
        """Fills an ellipse."""
        self._draw[layer].ellipse(self._bounds(left, top, right, bottom), fill=255)

    def ring(self, left: float, top: float, right: float, bottom: float, thick: int, layer: str = "body") -> None:
        """Draws an ellipse's outline."""
        self._draw[layer].ellipse(self._bounds(left, top, right, bottom), outline=255, width=thick)

    def badge(self, centre: Point, *outlines: Sequence[Point]) -> None:
        """Fills polygons around a place in the box. Their points are in pixels from it, so they keep their shape."""
        x, y = self._place(centre)
        for outline in outlines:
            points = [(x + dx, y + dy) for dx, dy in outline]
            self._draw["rim"].polygon(points, fill=255, outline=255, width=1)
            self._draw["rim"].line([*points, *points[:2]], fill=255, width=4, joint="curve")
            self._draw["face"].polygon(points, fill=255)


def topwear(pen: Pen, kind: int) -> None:
    sleeve = (0.42, 0.8)[kind]
    pen.shape(
        (0.3, 0.06), (0.42, 0.12), (0.58, 0.12), (0.7, 0.06), (0.78, 0.3), (0.76, 0.95), (0.24, 0.95), (0.22, 0.3)
    )
    pen.shape((0.3, 0.06), (0.02, sleeve - 0.08), (0.14, sleeve), (0.32, 0.3))
    pen.shape((0.7, 0.06), (0.98, sleeve - 0.08), (0.86, sleeve), (0.68, 0.3))
    pen.line((0.42, 0.12), (0.5, 0.17), (0.58, 0.12))
    if kind:
        pen.line((0.5, 0.17), (0.5, 0.94))


def bottomwear(pen: Pen, kind: int) -> None:
    end = (0.98, 0.55)[kind]
    pen.shape((0.25, 0.04), (0.75, 0.04), (0.86, end), (0.58, end), (0.5, 0.3), (0.42, end), (0.14, end))
    pen.shape((0.25, 0.04), (0.75, 0.04), (0.76, 0.1), (0.24, 0.1), layer="shade")
    pen.line((0.5, 0.1), (0.5, 0.3))


def dress(pen: Pen, kind: int) -> None:
    pen.shape((0.36, 0.03), (0.64, 0.03), (0.66, 0.4), (0.95, 0.97), (0.05, 0.97), (0.34, 0.4))
    pen.shape((0.335, 0.38), (0.665, 0.38), (0.69, 0.45), (0.31, 0.45), layer="shade")
    pen.line((0.42, 0.5), (0.3, 0.95))
    pen.line((0.58, 0.5), (0.7, 0.95))


def innerwear(pen: Pen, kind: int) -> None:
    if kind:
        pen.oval(0.05, 0.35, 0.5, 0.75)
        pen.oval(0.5, 0.35, 0.95, 0.75)
        pen.line((0.15, 0.42), (0.25, 0.05), layer="shade", thick=4)
        pen.line((0.85, 0.42), (0.75, 0.05), layer="shade", thick=4)
    else:
        pen.shape((0.05, 0.25), (0.95, 0.25), (0.92, 0.45), (0.6, 0.78), (0.4, 0.78), (0.08, 0.45))
        pen.shape((0.05, 0.25), (0.95, 0.25), (0.94, 0.33), (0.06, 0.33), layer="shade")


def saree(pen: Pen, kind: int) -> None:
    pen.shape((0.4, 0.02), (0.62, 0.04), (0.72, 0.4), (0.8, 0.98), (0.2, 0.98), (0.3, 0.4))
    pen.shape((0.62, 0.04), (0.78, 0.1), (0.95, 0.75), (0.8, 0.78), layer="body")
    for x in (0.3, 0.4, 0.5, 0.6, 0.7):
        pen.line((0.45 + (x - 0.5) * 0.4, 0.5), (x, 0.97))
    pen.line((0.42, 0.04), (0.76, 0.5), layer="shade", thick=6)
    pen.shape((0.2, 0.92), (0.8, 0.92), (0.8, 0.98), (0.2, 0.98), layer="shade")


def nightwear(pen: Pen, kind: int) -> None:
    pen.shape((0.3, 0.04), (0.7, 0.04), (0.85, 0.97), (0.15, 0.97))
    pen.shape((0.3, 0.04), (0.0, 0.55), (0.16, 0.62), (0.36, 0.3))
    pen.shape((0.7, 0.04), (1.0, 0.55), (0.84, 0.62), (0.64, 0.3))
    pen.shape((0.36, 0.04), (0.64, 0.04), (0.5, 0.42), layer="shade")
    pen.shape((0.22, 0.48), (0.78, 0.48), (0.79, 0.55), (0.21, 0.55), layer="shade")
    pen.line((0.5, 0.55), (0.42, 0.75), layer="shade", thick=5)


def socks(pen: Pen, kind: int) -> None:
    for shift in (0.0, 0.45):
        outline = ((0.08, 0.08), (0.3, 0.08), (0.3, 0.6), (0.52, 0.78), (0.5, 0.92), (0.3, 0.92), (0.08, 0.68))
        pen.shape(*((x + shift, y) for x, y in outline))
        pen.shape((0.08 + shift, 0.08), (0.3 + shift, 0.08), (0.3 + shift, 0.17), (0.08 + shift, 0.17), layer="shade")


def shoes(pen: Pen, kind: int) -> None:
    top = (0.4, 0.2)[kind]
    pen.shape((0.04, top), (0.3, top), (0.52, 0.5), (0.86, 0.56), (0.97, 0.7), (0.97, 0.76), (0.03, 0.76))
    pen.shape((0.02, 0.76), (0.98, 0.76), (0.97, 0.84), (0.03, 0.84), layer="trim")
    for x in (0.4, 0.48, 0.56):
        pen.line((x - 0.04, 0.52), (x + 0.06, 0.44), layer="trim", thick=3)


def sandal(pen: Pen, kind: int) -> None:
    pen.shape((0.03, 0.76), (0.6, 0.8), (0.97, 0.8), (0.97, 0.87), (0.03, 0.87), layer="shade")
    if kind:
        pen.shape((0.05, 0.8), (0.17, 0.8), (0.12, 0.98), (0.07, 0.98), layer="shade")
    pen.line((0.62, 0.8), (0.74, 0.58), (0.9, 0.8), layer="body", thick=8)
    pen.line((0.1, 0.78), (0.14, 0.42), (0.4, 0.42), (0.46, 0.8), layer="body", thick=8)
    pen.line((0.4, 0.44), (0.74, 0.6), layer="body", thick=7)


def flip_flops(pen: Pen, kind: int) -> None:
    for shift in (0.0, 0.5):
        pen.oval(0.04 + shift, 0.08, 0.46 + shift, 0.55)
        pen.oval(0.1 + shift, 0.45, 0.42 + shift, 0.96)
        pen.shape((0.08 + shift, 0.35), (0.43 + shift, 0.35), (0.4 + shift, 0.7), (0.12 + shift, 0.7))
        pen.line((0.08 + shift, 0.55), (0.25 + shift, 0.24), (0.42 + shift, 0.55), layer="trim", thick=5)


def bags(pen: Pen, kind: int) -> None:
    pen.ring(0.25, 0.04, 0.75, 0.66, 6, layer="shade")
    pen.shape((0.1, 0.36), (0.9, 0.36), (0.98, 0.94), (0.02, 0.94))
    if kind:
        pen.shape((0.1, 0.36), (0.9, 0.36), (0.8, 0.64), (0.2, 0.64), layer="shade")
    pen.oval(0.46, 0.6, 0.54, 0.67, layer="trim")


def belts(pen: Pen, kind: int) -> None:
    pen.ring(0.04, 0.22, 0.96, 0.86, 13)
    pen.shape((0.36, 0.72), (0.64, 0.72), (0.64, 0.96), (0.36, 0.96), layer="trim")
    pen.shape((0.44, 0.79), (0.56, 0.79), (0.56, 0.89), (0.44, 0.89), layer="line")


def watches(pen: Pen, kind: int) -> None:
    pen.shape((0.36, 0.02), (0.64, 0.02), (0.68, 0.98), (0.32, 0.98))
    if kind:
        pen.shape((0.2, 0.3), (0.8, 0.3), (0.8, 0.7), (0.2, 0.7), layer="shade")
    else:
        pen.oval(0.16, 0.3, 0.84, 0.7, layer="shade")
    pen.oval(0.25, 0.36, 0.75, 0.64, layer="trim")
    pen.line((0.5, 0.5), (0.5, 0.4))
    pen.line((0.5, 0.5), (0.62, 0.54))


def wallets(pen: Pen, kind: int) -> None:
    pen.shape((0.03, 0.3), (0.97, 0.3), (0.97, 0.76), (0.03, 0.76))
    pen.line((0.03, 0.42 + 0.1 * kind), (0.97, 0.42 + 0.1 * kind), thick=3)
    pen.shape((0.72, 0.46), (0.97, 0.46), (0.97, 0.6), (0.72, 0.6), layer="shade")
    pen.oval(0.76, 0.5, 0.83, 0.56, layer="trim")


def eyewear(pen: Pen, kind: int) -> None:
    pen.ring(0.02, 0.36, 0.46, 0.68, 7)
    pen.ring(0.54, 0.36, 0.98, 0.68, 7)
    pen.line((0.44, 0.48), (0.56, 0.48), layer="body", thick=6)
    for left in (0.08, 0.6):
        pen.oval(left, 0.41, left + 0.32, 0.63, layer="body" if kind else "trim")
    pen.line((0.03, 0.46), (0.14, 0.28), layer="body", thick=5)
    pen.line((0.97, 0.46), (0.86, 0.28), layer="body", thick=5)


def jewellery(pen: Pen, kind: int) -> None:
    if kind:
        for left in (0.08, 0.58):
            pen.line((left + 0.17, 0.1), (left + 0.17, 0.34), layer="trim", thick=3)
            pen.shape((left, 0.5), (left + 0.17, 0.3), (left + 0.34, 0.5), (left + 0.17, 0.9))
    else:
        pen.ring(0.12, 0.02, 0.88, 0.74, 8)
        pen.shape((0.5, 0.62), (0.68, 0.78), (0.5, 0.98), (0.32, 0.78))


def headwear(pen: Pen, kind: int) -> None:
    dome = [(0.5 - 0.38 * math.cos(i * math.pi / 12), 0.6 - 0.38 * math.sin(i * math.pi / 12)) for i in range(13)]
    pen.shape(*dome)
    pen.shape((0.12, 0.56), (0.88, 0.56), (0.88, 0.64), (0.12, 0.64), layer="shade")
    if not kind:
        pen.shape((0.6, 0.58), (1.0, 0.66), (0.98, 0.72), (0.6, 0.66), layer="shade")
    else:
        pen.oval(0.44, 0.12, 0.56, 0.26, layer="shade")


def ties(pen: Pen, kind: int) -> None:
    pen.shape((0.38, 0.02), (0.62, 0.02), (0.57, 0.14), (0.43, 0.14), layer="shade")
    pen.shape((0.43, 0.14), (0.57, 0.14), (0.7, 0.86), (0.5, 0.99), (0.3, 0.86))
    for y in (0.3, 0.5, 0.7):
        pen.line((0.36, y + 0.08), (0.64, y - 0.04), layer="shade", thick=4)


def scarves(pen: Pen, kind: int) -> None:
    pen.shape((0.05, 0.08), (0.95, 0.08), (0.5, 0.62))
    pen.shape((0.42, 0.5), (0.58, 0.5), (0.74, 0.95), (0.26, 0.95))
    pen.shape((0.38, 0.44), (0.62, 0.44), (0.6, 0.56), (0.4, 0.56), layer="shade")
    pen.line((0.2, 0.12), (0.5, 0.45))
    pen.line((0.8, 0.12), (0.5, 0.45))


def mufflers(pen: Pen, kind: int) -> None:
    pen.shape((0.2, 0.04), (0.44, 0.04), (0.44, 0.84), (0.2, 0.84))
    pen.shape((0.56, 0.04), (0.8, 0.04), (0.8, 0.84), (0.56, 0.84))
    pen.shape((0.2, 0.02), (0.8, 0.02), (0.8, 0.16), (0.2, 0.16))
    for x in (0.22, 0.28, 0.34, 0.4, 0.58, 0.64, 0.7, 0.76):
        pen.line((x, 0.84), (x, 0.97), layer="shade", thick=3)


def cufflinks(pen: Pen, kind: int) -> None:
    for left in (0.05, 0.55):
        pen.shape((left, 0.34), (left + 0.4, 0.34), (left + 0.4, 0.64), (left, 0.64))
        pen.line((left + 0.2, 0.64), (left + 0.2, 0.8), layer="trim", thick=5)
        pen.line((left + 0.06, 0.8), (left + 0.34, 0.8), layer="trim", thick=6)
        pen.line((left + 0.05, 0.38), (left + 0.35, 0.6), thick=2)


def fragrance(pen: Pen, kind: int) -> None:
    pen.shape((0.15, 0.34), (0.85, 0.34), (0.85, 0.96), (0.15, 0.96))
    pen.shape((0.36, 0.06), (0.64, 0.06), (0.64, 0.24), (0.36, 0.24), layer="trim")
    pen.shape((0.42, 0.24), (0.58, 0.24), (0.58, 0.34), (0.42, 0.34), layer="shade")
    pen.shape((0.28, 0.56), (0.72, 0.56), (0.72, 0.76), (0.28, 0.76), layer="trim")


def lips(pen: Pen, kind: int) -> None:
    pen.shape((0.38, 0.3), (0.38, 0.12), (0.62, 0.02), (0.62, 0.3))
    pen.shape((0.34, 0.3), (0.66, 0.3), (0.66, 0.46), (0.34, 0.46), layer="trim")
    pen.shape((0.28, 0.46), (0.72, 0.46), (0.72, 0.98), (0.28, 0.98))


def nails(pen: Pen, kind: int) -> None:
    pen.shape((0.4, 0.02), (0.6, 0.02), (0.64, 0.48), (0.36, 0.48), layer="line")
    pen.oval(0.14, 0.44, 0.86, 0.98)
    pen.shape((0.24, 0.5), (0.76, 0.5), (0.84, 0.74), (0.16, 0.74))


def makeup(pen: Pen, kind: int) -> None:
    pen.oval(0.1, 0.02, 0.9, 0.5, layer="shade")
    pen.oval(0.18, 0.07, 0.82, 0.45, layer="trim")
    pen.oval(0.06, 0.48, 0.94, 0.98, layer="shade")
    pen.oval(0.13, 0.53, 0.87, 0.93)


def skin_care(pen: Pen, kind: int) -> None:
    pen.shape((0.3, 0.8), (0.7, 0.8), (0.92, 0.06), (0.08, 0.06))
    pen.shape((0.08, 0.02), (0.92, 0.02), (0.92, 0.08), (0.08, 0.08), layer="shade")
    pen.shape((0.32, 0.8), (0.68, 0.8), (0.66, 0.98), (0.34, 0.98), layer="trim")


def eyes(pen: Pen, kind: int) -> None:
    pen.shape((0.3, 0.98), (0.16, 0.9), (0.66, 0.16), (0.8, 0.24))
    pen.shape((0.66, 0.16), (0.8, 0.24), (0.86, 0.02), layer="line")
    pen.line((0.24, 0.78), (0.38, 0.87), layer="trim", thick=5)


# master category, sub-category, article types (one per kind), outline, width over height of the box
SHAPES: tuple[tuple[str, str, tuple[str, str], Callable[[Pen, int], None], float], ...] = (
    ("Apparel", "Topwear", ("Tshirts", "Shirts"), topwear, 0.8),
    ("Footwear", "Shoes", ("Casual Shoes", "Sports Shoes"), shoes, 1.2),
    ("Accessories", "Bags", ("Handbags", "Backpacks"), bags, 0.8),
    ("Apparel", "Bottomwear", ("Jeans", "Shorts"), bottomwear, 0.55),
    ("Accessories", "Watches", ("Watches", "Watches"), watches, 0.55),
    ("Apparel", "Innerwear", ("Briefs", "Bra"), innerwear, 0.9),
    ("Accessories", "Jewellery", ("Pendant", "Earrings"), jewellery, 0.7),
    ("Accessories", "Eyewear", ("Sunglasses", "Sunglasses"), eyewear, 1.2),
    ("Personal Care", "Fragrance", ("Perfume and Body Mist", "Deodorant"), fragrance, 0.55),
    ("Footwear", "Sandal", ("Sandals", "Heels"), sandal, 1.2),
    ("Accessories", "Wallets", ("Wallets", "Wallets"), wallets, 1.1),
    ("Footwear", "Flip Flops", ("Flip Flops", "Flip Flops"), flip_flops, 0.75),
    ("Accessories", "Belts", ("Belts", "Belts"), belts, 1.1),
    ("Accessories", "Socks", ("Socks", "Socks"), socks, 0.9),
    ("Apparel", "Dress", ("Dresses", "Dresses"), dress, 0.6),
    ("Personal Care", "Lips", ("Lipstick", "Lip Gloss"), lips, 0.4),
    ("Apparel", "Loungewear and Nightwear", ("Bath Robe", "Bath Robe"), nightwear, 0.75),
    ("Apparel", "Saree", ("Sarees", "Sarees"), saree, 0.6),
    ("Accessories", "Headwear", ("Caps", "Hat"), headwear, 1.1),
    ("Personal Care", "Nails", ("Nail Polish", "Nail Polish"), nails, 0.5),
    ("Personal Care", "Makeup", ("Compact", "Compact"), makeup, 0.7),
    ("Accessories", "Ties", ("Ties", "Ties"), ties, 0.4),
    ("Accessories", "Scarves", ("Scarves", "Scarves"), scarves, 0.8),
    ("Personal Care", "Skin Care", ("Face Moisturisers", "Face Wash and Cleanser"), skin_care, 0.5),
    ("Accessories", "Mufflers", ("Mufflers", "Mufflers"), mufflers, 0.6),
    ("Accessories", "Cufflinks", ("Cufflinks", "Cufflinks"), cufflinks, 1.0),
    ("Personal Care", "Eyes", ("Kajal and Eyeliner", "Mascara"), eyes, 0.7),
)
