"""Which photos show one product, told from their names: `FS-1400_1.jpg` and `FS-1400_2.jpg` show FS-1400."""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Collection
from functools import cache

from fashion_jax.data.photo_names import has_suffix, names_photo, readable
from fashion_jax.system.errors import UserError

USUAL = "usual"  # the pattern that knows the usual endings
MOST_DEPTH = 3  # levels of folders below a product's folder, in which its photos are looked for
_VIEWS = "front|back|rear|side|left|right|top|bottom|sole|detail|details|main|model|alt|zoom|hover"
_ENDING = re.compile(
    r"(?P<id>.*?[^ _.-])(?:[ _.-]++\(?(?P<n>\d{1,3})\)?|\s*+\((?P<m>\d{1,3})\)|[_-](?P<letter>[a-f])"
    rf"|[ _.-]++(?:{_VIEWS})[ _-]?\d{{0,2}})",
    re.IGNORECASE,
)
_LONGEST = 255  # characters of a name that is taken apart; file systems allow no more
_MOST_PHOTOS = 30  # of one product, where nothing but the names tells products
_MANY_FOLDERS = 10  # of few photos each, which look like products
_LEAST_SHARE = 0.2  # of the photos that lie in groups, for names that look grouped


def check_pattern(pattern: str) -> None:
    """Raises UserError where a pattern is neither "usual" nor a text with `{id}` once, such as `{id}_{n}`."""
    rest = pattern.replace("{id}", "", 1).replace("{n}", "")
    if pattern != USUAL and ("{id}" not in pattern or set(rest) & set("{}")):
        raise UserError(
            f"group_by_name is {pattern!r}; give 'usual', or how a photo's name is made, such as '{{id}}_{{n}}': "
            "{id} is the product, {n} a number, * any text"
        )
    if "{id}*" in pattern or "*{id}" in pattern:
        raise UserError(f"group_by_name is {pattern!r}; put a sign between {{id}} and *, such as '{{id}}_*'")


def check_fits(names: Collection[str], pattern: str) -> None:
    """Raises UserError where a pattern of one's own fits none of the photos' names."""
    if names and pattern != USUAL and not any(_fit(name, pattern) for name in names):
        raise UserError(
            f"group_by_name is {pattern!r}, and it fits no photo's name, such as "
            f"{readable(min(names))[:_LONGEST]}; correct the pattern (the photo's ending, such as .jpg, is no "
            "part of it), or give 'usual'"
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
    match = _fit(name, pattern)
    return match["id"] if match else stem_of(name)


def _fit(name: str, pattern: str) -> re.Match[str] | None:
    stem = stem_of(name)
    if pattern == USUAL:
        return _ENDING.fullmatch(stem) if len(stem) <= _LONGEST else None
    expression, depth = _compile(pattern)
    text = "/".join([*(posixpath.dirname(name).split("/")[-depth:] if depth else []), stem])
    return expression.fullmatch(text) if len(text) <= _LONGEST else None


@cache
def _compile(pattern: str) -> tuple[re.Pattern[str], int]:
    """Returns a pattern as a regular expression, and the number of its folders.

    A match takes at most the cube of a name's length in time, however many `*` the pattern has: the first place where
    the text between two `*` fits is kept, as in `fnmatch`. Before `{id}` only the last `*` is tried at all places.
    """
    pattern = re.sub(r"\*+", "*", re.sub(r"(\{n\})+", "{n}", _without_suffix(pattern)))
    before, after = (part.split("*") for part in pattern.split("{id}"))
    texts = [[re.escape(text).replace(r"\{n\}", r"\d++") for text in part] for part in (before, after)]
    start = "".join(f"(?>.*?{text})" for text in texts[0][1:-1])
    start = texts[0][0] + start + (f".*{texts[0][-1]}" if len(before) > 1 else "")
    end = "".join(f"(?>.*?{text})" for text in texts[1][1:-1])
    end = texts[1][0] + end + (f".*{texts[1][-1]}" if len(after) > 1 else "")
    return re.compile(f"{start}(?P<id>.+?){end}"), pattern.count("/")


def _without_suffix(pattern: str) -> str:
    return posixpath.splitext(pattern)[0] if names_photo(pattern) else pattern


def group_names(names: Collection[str], pattern: str) -> dict[str, list[str]]:
    """Returns the photos of each product, in the order of their numbers.

    Args:
        names: paths of the photos' files.
        pattern: as in `product_of`. "usual" joins names only if their numbers or letters look like those of photos:
            they begin at 0, 1, 2 or a and hardly have gaps, and no more than 30 photos show one product.

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
    if sum(_fit(name, USUAL) is not None for name in sample) < _LEAST_SHARE / 2 * len(sample):
        return ""  # most catalogues; to group all names takes longer
    groups = [found for found in group_names(names, USUAL).values() if len(found) > 1]
    if len(groups) < 2 or sum(map(len, groups)) < _LEAST_SHARE * len(names):
        return ""
    return " and ".join(readable(posixpath.basename(name)) for name in groups[0][:2])


def looks_like_folders(names: Collection[str]) -> tuple[str, str]:
    """Returns an example of two photos of one product where there seems to be a folder for each product, or empty text.

    That is so where folders hold few photos each, and either their photos have the same names in all folders
    (`S0/front.jpg`, `S1/front.jpg`), or there are many folders.

    Returns:
        The example, and the pattern that groups the photos: `{id}/*`.
    """
    for depth in range(1, MOST_DEPTH + 1):
        folders: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            folders["/".join(name.split("/")[:-depth])].append(name)
        folders.pop("", None)
        sizes = [len(found) for found in folders.values()]
        if len(folders) < 2 or max(sizes) > _MOST_PHOTOS or sum(size > 1 for size in sizes) < len(folders) / 2:
            continue
        if len({posixpath.basename(folder) for folder in folders}) < len(folders) / 2:
            continue  # `S0/large/1.jpg`: the folder above names the product
        stems = Counter(stem_of(name) for found in folders.values() for name in found)
        same = sum(count for count in stems.values() if count > 1)
        if same >= len(names) / 2 or len(folders) >= _MANY_FOLDERS:
            pair = sorted(next(found for found in folders.values() if len(found) > 1), key=natural)[:2]
            example = " and ".join("/".join(readable(name).split("/")[-depth - 1 :]) for name in pair)
            return example, "{id}" + "/*" * depth
    return "", ""


def natural(name: str) -> list[tuple[int, int, str]]:
    """Returns a key that sorts `a2` before `a10`, and `a` before `a_2`."""
    parts = re.split(r"(\d+)", stem_of(name))
    numbers = [part.lstrip("0") if part.isdecimal() else None for part in parts]
    return [
        (1, 0, part) if number is None else (0, len(number), number)
        for part, number in zip(parts, numbers, strict=True)
        if part
    ]


def _without_series(groups: dict[tuple[str, str], list[str]]) -> defaultdict[tuple[str, str], list[str]]:
    """Takes apart groups whose numbers are not those of photos: IMG_0412 to IMG_0977, or FS-140 and FS-141."""
    kept: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for (folder, product), names in groups.items():
        found = [match for name in names if (match := _fit(name, USUAL))]
        numbers = [int(match["n"] or match["m"]) for match in found if match["n"] or match["m"]]
        numbers += [ord(match["letter"].lower()) - ord("a") + 1 for match in found if match["letter"]]
        good = not numbers or (min(numbers) <= 2 and max(numbers) <= 2 * len(names) + 2)
        if good and len(names) <= _MOST_PHOTOS:
            kept[folder, product] += names
        else:
            for name in names:
                kept[folder, readable(stem_of(name))].append(name)
    return kept
