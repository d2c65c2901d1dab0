"""A drawn shop with the habits of real ones: photos in rows of their own, semicolons, Windows-1252, prices in euros."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fashion_jax.data.drawn.catalogue import draw, plan
from fashion_jax.data.photos import encode_photo

HEADER = "Item No;Product Name;Category;Base Colour;For Whom;price;stock;Brand;Photo File"


@dataclass
class Shop:
    """What the table holds, as a person would count it."""

    table: Path  # products.csv
    photos: dict[str, list[str]] = field(default_factory=dict)  # item -> names of its photos
    prices: dict[str, float] = field(default_factory=dict)
    stock: dict[str, int] = field(default_factory=dict)
    brands: dict[str, str] = field(default_factory=dict)
    colours: dict[str, str] = field(default_factory=dict)  # item -> its colour, in one spelling; empty: not known
    rows: int = 0  # of the table
    missing: dict[str, int] = field(default_factory=dict)  # word -> rows whose colour it is
    spelled: int = 0  # rows with the second spelling of navy blue
    repeated: str = ""  # the item that is in the table twice


def write_shop(folder: Path, count: int, seed: int = 0) -> Shop:
    """Writes products.csv and photos/ for so many products, with one to four photos each."""
    rng = np.random.default_rng(seed)
    specs = [spec for spec in plan(3 * count, seed) if not spec.copy_of and spec.shift == (0.0, 0.0)][:count]
    shop = Shop(folder / "products.csv", missing={"-": 0, "n/a": 0})
    (folder / "photos").mkdir(parents=True)
    lines = [HEADER]
    for number, spec in enumerate(specs):
        item = f"FS-{1400 + 7 * number}"
        shop.prices[item] = price = float(np.round(rng.uniform(5, 120), 2)) if number % 40 else 1249.0
        shop.stock[item], shop.brands[item] = int(rng.integers(0, 6)), spec.truth["productDisplayName"].split()[0]
        euros = f"{price:,.2f} €".replace(",", "x").replace(".", ",").replace("x", ".")
        colour = spec.truth["baseColour"]
        shop.colours[item] = "" if number % 25 == 3 else colour
        shop.photos[item] = []
        for view in range(1 + int(rng.integers(4))):
            name = f"photos/{item}_{view + 1}.jpg"
            moved = replace(spec, id=str(10 * int(spec.id) + view), shift=tuple(rng.uniform(-4, 4, 2)))
            (folder / name).write_bytes(encode_photo(draw(moved)))
            shop.photos[item].append(name)
            written = colour.lower() if colour == "Navy Blue" and number % 2 else colour
            if not shop.colours[item]:
                written = "-" if number % 2 else "n/a"
                shop.missing[written] += 1
            shop.spelled += written == "navy blue"
            title = f"{spec.truth['articleType']} Größe M"
            who, kind = spec.truth["gender"], spec.truth["subCategory"]
            cells = [item, title, kind, written, who, euros, shop.stock[item], shop.brands[item], name]
            lines.append(";".join(map(str, cells)))
    shop.repeated = str(specs and list(shop.photos)[1])
    lines.append(next(line for line in lines if line.startswith(f"{shop.repeated};")))
    shop.rows = len(lines) - 1
    shop.table.write_bytes("\r\n".join(lines).encode("cp1252"))
    return shop
