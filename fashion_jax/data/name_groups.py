"""Which photos show one product, told from their names: `FS-1400_1.jpg` and `FS-1400_2.jpg` show FS-1400."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection

from fashion_jax.data.photo_names import has_suffix, names_photo, readable
from fashion_jax.system.errors import UserError

USUAL = "usual"  # the pattern that knows the usual endings
_VIEWS = "front|back|rear|side|left|right|top|bottom|sole|detail|details|main|model|alt|zoom|hover"
_ENDING = re.compile(
    rf"(?P<id>.+?)(?:[ _.-]+\(?(?P<n>\d{{1,3}})\)?|\s*\((?P<m>\d{{1,3}})\)|[ _.-]+(?:{_VIEWS})[ _-]?\d{{0,2}})",
    re.IGNORECASE,
)
_MOST_PHOTOS = 30  # of one product, where nothing but the names tells products
_LEAST_SHARE = 0.2  # of the photos that lie in groups, for names that look grouped


def check_pattern(pattern: str) -> None:
    """Raises UserError where a pattern is neither "usual" nor a text with `{id}` once, such as `{id}_{n}`."""
    rest = pattern.replace("{id}", "", 1).replace("{n}", "")
    if pattern != USUAL and ("{id}" not in pattern or set(rest) & set("{}")):
        raise UserError(
            f"group_by_name is {pattern!r}; give 'usual', or how a photo's name is made, such as '{{id}}_{{n}}': "
            "{id} is the product, {n} a number, * any text"
        )


def stem_of(name: str) -> str:
    """Returns the name of a photo's file without folder and suffix."""
    base = posixpath.basename(name)
    return posixpath.splitext(base)[0] if names_photo(base) or has_suffix(base) else base


def product_of(name: str, pattern: str) -> str:
    """Returns the product that a photo's name names, or its name without folder and suffix.

    Args:
        name: path of the photo's file.
        pattern: "usual", or a text with `{id}`; one with `/` also describes the folders: `{id}/{n}`.
    """
    if pattern == USUAL:
        match = _ENDING.fullmatch(stem_of(name))
    else:
        expression = re.escape(pattern).replace(r"\{id\}", "(?P<id>.+?)").replace(r"\{n\}", r"\d+").replace(r"\*", ".*")
        depth = pattern.count("/")
        folders = posixpath.dirname(name).split("/")[-depth:] if depth else []
        match = re.fullmatch(expression, "/".join([*folders, stem_of(name)]))
    return match["id"] if match else stem_of(name)


def group_names(names: Collection[str], pattern: str) -> dict[str, list[str]]:
    """Returns the photos of each product, in the order of their numbers.

    Args:
        names: paths of the photos' files.
        pattern: as in `product_of`. "usual" joins names only if their numbers look like those of photos: they begin at
            0, 1 or 2 and hardly have gaps, and no more than 30 photos show one product.

    Returns:
        Id -> names. The folder is a part of the id where two folders hold products of one name.
    """
    groups: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    depth = 0 if pattern == USUAL else pattern.count("/")
    for name in names:
        folder = posixpath.dirname(name)
        for _ in range(depth):
            folder = posixpath.dirname(folder)
        groups[folder, readable(product_of(name, pattern))].append(name)
    if pattern == USUAL:
        groups = _without_series(groups)
    folders: defaultdict[str, set[str]] = defaultdict(set)
    for folder, product in groups:
        folders[product].add(folder)
    return {
        product if len(folders[product]) == 1 else posixpath.join(readable(folder), product): sorted(found, key=natural)
        for (folder, product), found in groups.items()
    }


def looks_grouped(names: Collection[str]) -> str:
    """Returns an example of two photos of one product where many names look so, or empty text."""
    sample = list(names)[:: 1 + len(names) // 1000]
    if sum(_ENDING.fullmatch(stem_of(name)) is not None for name in sample) < _LEAST_SHARE / 2 * len(sample):
        return ""  # most catalogues; to group all names takes longer
    groups = [found for found in group_names(names, USUAL).values() if len(found) > 1]
    if len(groups) < 2 or sum(map(len, groups)) < _LEAST_SHARE * len(names):
        return ""
    return " and ".join(readable(posixpath.basename(name)) for name in groups[0][:2])


def natural(name: str) -> list[tuple[int, int, str]]:
    """Returns a key that sorts `a2` before `a10`, and `a` before `a_2`."""
    parts = re.split(r"(\d+)", stem_of(name))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _without_series(groups: dict[tuple[str, str], list[str]]) -> defaultdict[tuple[str, str], list[str]]:
    """Takes apart groups whose numbers are not those of photos: IMG_0412 to IMG_0977, or FS-140 and FS-141."""
    kept: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for (folder, product), names in groups.items():
        found = (_ENDING.fullmatch(stem_of(name)) for name in names)
        numbers = [int(match["n"] or match["m"]) for match in found if match and (match["n"] or match["m"])]
        good = not numbers or (min(numbers) <= 2 and max(numbers) <= 2 * len(names) + 2)
        if good and len(names) <= _MOST_PHOTOS:
            kept[folder, product] += names
        else:
            for name in names:
                kept[folder, readable(stem_of(name))].append(name)
    return kept
