"""From the paths in a table to files of the catalogue: one resolver. It never reads outside of the catalogue."""

from __future__ import annotations

import difflib
import posixpath
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from fashion_jax.data.archives import Files, FolderFiles
from fashion_jax.data.name_groups import MOST_DEPTH, check_fits, natural, product_of, stem_of
from fashion_jax.data.photo_names import (
    PHOTO_SUFFIXES,
    begins_like_photo,
    has_suffix,
    is_address,
    is_litter,
    kind_of_file,
    names_photo,
    readable,
    without_query,
)

IMAGES = "images"  # Kaggle's folder of photos; among files of one name those in it are taken
# Why there is no photo. Rows are counted by it.
ADDRESS = "the photo is an address, and the catalogue has no copy of it"
OUTSIDE = "the photo's path leads outside of the catalogue"
ABSENT = "the photo's file was not found"
SEVERAL = "the photo's name fits several files or rows"
TOGETHER = "the cell looks like several photos"
# Names of repairs.
_QUERY = "photo paths with ?... or #... after the name"
_PERCENT = "photo paths with %20 or the like"
_FROM_ROOT = "photo paths from the catalogue's folder instead of the table's"
_FORM = "photo names in another Unicode form"
_CASE = "photo names in another case"
_SUFFIX = "photo names with another suffix"
_FOLDER = "photos found by their name in another folder"
_COPIES = "smaller copies, such as NAME-150x150.jpg"
_COPY = "photos given by address, found by their name"

_MOST_LISTED = 300_000  # files in a lone table's folder; of a larger one only the folders that cells name are listed
_MOST_FOLDERS = 100  # of a lone table's photos, in which further photos are looked for
_MOST_ALIKE = 20  # files with one name; more are never told apart
_MOST_HINTS = 1_000  # photos for which the nearest file is looked for
_LONGEST_PATH = 4_096  # characters
_LONGEST = 160  # characters of a name in a message
_SUFFIXES = frozenset(PHOTO_SUFFIXES)
_END = f"(?:{'|'.join(map(re.escape, PHOTO_SUFFIXES))})"
_TOGETHER = re.compile(rf"{_END}(?![a-z0-9])", re.IGNORECASE)  # in the name of a folder
_TOGETHER_ADDRESS = re.compile(rf"{_END}[\s,;&^+]", re.IGNORECASE)  # `https://host/a.jpg/small/b.jpg` is one photo
_BETWEEN = re.compile(r"[\s,;&^+]+")
_SCALED = re.compile(r"(.+)[-_]\d{2,5}x\d{2,5}(?:@2x)?", re.IGNORECASE)
_DRIVE = re.compile(r"^/*[A-Za-z]:")


class Found(NamedTuple):
    """What a cell of the photo column leads to."""

    name: str = ""  # of the file in the catalogue; empty where there is none
    repairs: tuple[str, ...] = ()  # what had to be repaired to find it
    problem: str = ""  # a sentence, where there is no file
    kind: str = ""  # what the problem is counted as: ADDRESS, OUTSIDE, ABSENT or SEVERAL


class PhotoFinder:
    """Finds the files that the cells of a table name.

    A path is relative to the table. It may be absolute or hold "..", as long as it ends inside of the catalogue's
    folder. A file that is not there under its exact name is looked for by its name: in another case or Unicode form,
    with another suffix, in another folder. Such a match is a repair. It must be the only one, and no other row may
    have the file.

    Args:
        files: of the catalogue.
        sizes: name -> bytes of the files that are known. It is empty for a lone table, whose folder may hold a whole
            disk: then files are looked up one by one. Files that are found are added.
        base: the folder in `files` to which paths are relative.
        table_folder: where the table lies on the disk, if the photos have a folder of their own (`image_root`).
    """

    def __init__(
        self, files: Files, sizes: dict[str, int], *, base: str = "", table_folder: Path | None = None
    ) -> None:
        self._files, self._sizes, self._base = files, sizes, base
        self._folder = files if isinstance(files, FolderFiles) else None
        self._is_listed = bool(sizes) or self._folder is None
        self._table_folder = table_folder.absolute().as_posix() if table_folder else ""
        self._hints = 0
        self._index: _Index | None = None  # of the whole catalogue

    def find(self, cells: Iterable[str]) -> dict[str, Found]:
        """Returns what each cell leads to, by cell.

        Args:
            cells: all cells of a table at once, because a file that one row names is no match for another row.
        """
        found = {cell: self._exact(cell) for cell in cells}
        lost = [cell for cell, item in found.items() if not item.name]
        if lost:
            index = self._list(lost)
            taken = {item.name for item in found.values()}
            found |= self._without_clashes({cell: self._match(cell, index) for cell in lost}, taken, index)
        return found

    def holds(self, cell: str) -> bool:
        """True for the exact path of a file in the catalogue."""
        name = _inside(posixpath.join(self._base, _local(cell)))
        return bool(name) and self._has(name)

    def folders(self, cells: Iterable[str]) -> dict[str, list[str]]:
        """Returns cell -> the photos in the folder that it names, in the order of their numbers.

        Cells that name files or no folder of the catalogue are left out. A folder is found as a file is: in another
        case, or under another folder if only one has the name.
        """
        wanted = [c for c in cells if c and not names_photo(c) and not is_address(c) and not self.holds(c)]
        if not wanted:
            return {}
        photos: dict[str, list[str]] = {}
        below: dict[str, list[str]] = {}  # the same for folders that hold folders only
        listed = self._list([f"{cell}/1.jpg" for cell in wanted])
        for name in listed.photos():
            folder = posixpath.dirname(name)
            photos.setdefault(folder, []).append(name)
            for _ in range(MOST_DEPTH - 1):
                folder = posixpath.dirname(folder)
                below.setdefault(folder, []).append(name)
        photos = below | photos
        photos.pop("", None)  # the catalogue itself is no product
        near = {cell: next((path for path, _ in self._readings(cell) if path in photos), "") for cell in wanted}
        if listed.is_whole:
            index, exact = (_Index(f"{folder}.jpg" for folder in photos), set(near.values()))  # it drops suffixes
            loose = {cell: index.find(_parts(cell)) for cell in wanted if not near[cell]}
            takers = Counter(names[0] for names in loose.values() if names)
            for cell, names in loose.items():  # as with files, another row's folder is no match
                if len(names) == 1 and takers[names[0]] == 1 and names[0].removesuffix(".jpg") not in exact:
                    near[cell] = names[0].removesuffix(".jpg")
        every = {cell: [name for name in photos.get(folder, []) if self._has(name)] for cell, folder in near.items()}
        return {cell: sorted(names, key=natural) for cell, names in every.items() if names}

    def count_folders(self, cells: Collection[str]) -> tuple[int, str, str]:
        """Tells whether photos lie in folders that are named by products' ids.

        Args:
            cells: paths made of the ids.

        Returns:
            The number of cells with such a folder, one of its photos, and the pattern that groups them: `{id}/*`.
        """
        wanted = {_fold(stem_of(cell)) for cell in cells if cell}
        found: dict[int, dict[str, str]] = {depth: {} for depth in range(1, MOST_DEPTH + 1)}
        for name in self._list(list(cells)).photos():
            for depth, folder in enumerate(reversed(name.split("/")[-MOST_DEPTH - 1 : -1]), 1):
                if (folded := _fold(folder)) in wanted:
                    found[depth].setdefault(folded, name)
        depth, photos = max(found.items(), key=lambda item: len(item[1]))
        return len(photos), next(iter(photos.values()), ""), "{id}" + "/*" * depth

    def beside(self, names: Collection[str]) -> list[str]:
        """Returns the photos in the folders of these photos that are none of them, in the order of their numbers."""
        names = set(names)
        folders = set(map(posixpath.dirname, names))
        if self._is_listed or self._folder is None:
            every: Iterable[str] = self._sizes
        elif len(folders) > _MOST_FOLDERS:
            return []
        else:
            every = [name for folder in sorted(folders) for name in self._folder.names_in(folder)]
        found = (n for n in every if n not in names and names_photo(n) and posixpath.dirname(n) in folders)
        return sorted(found, key=natural)

    def group(self, cells: Sequence[str], pattern: str) -> dict[str, list[str]]:
        """Returns cell -> the catalogue's files whose names name the same product, in the order of their numbers.

        Args:
            cells: paths made of products' ids. Files in their folder come before files in other folders.
            pattern: as `name_groups.product_of` takes it.
        """
        wanted: dict[str, str] = {_fold(stem_of(cell)): cell for cell in cells if cell}
        groups: dict[str, list[str]] = {}
        photos = self._list(list(cells)).photos()
        check_fits(photos, pattern)
        for name in photos:
            for product in (stem_of(name), product_of(name, pattern)):
                if cell := wanted.get(_fold(product)):
                    groups.setdefault(cell, []).append(name)
                    break
        for cell, names in groups.items():
            folder = posixpath.dirname(self._target(_parts(cell)))
            near = [name for name in names if posixpath.dirname(name) == folder]
            near = near or [name for name in names if name.startswith(f"{folder}/")] or names
            groups[cell] = sorted((name for name in near if self._has(name)), key=natural)
        return groups

    def outside_folder(self, cell: str) -> str:
        """Returns the folder to which a path leads, by its text alone; empty text where it is of another system."""
        path = posixpath.dirname(_local(cell))
        if self._folder is None or _DRIVE.match(path) or path.startswith("//"):
            return ""
        return posixpath.normpath(posixpath.join(self._folder.root.as_posix(), self._base, path))

    def _exact(self, cell: str) -> Found:
        name = f"{self._base}/{cell}" if self._base else cell
        if name in self._sizes:
            return Found(name)
        for path, repairs in self._readings(cell):
            if self._has(path):
                return Found(path, repairs)
        return Found()

    def _readings(self, cell: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yields names inside of the catalogue that a path may mean, the likeliest first, with their repairs."""
        if is_address(cell):
            return
        plain = _local(cell)
        texts: list[tuple[str, tuple[str, ...]]] = [(plain, ())]
        if without_query(plain) != plain:
            texts.append((without_query(plain), (_QUERY,)))
        texts += [(unquote(text), (*repairs, _PERCENT)) for text, repairs in texts if "%" in text]
        for text, repairs in texts:
            places = [(posixpath.join(self._base, text), repairs)]
            for whole in (text, posixpath.join(self._table_folder, text) if self._table_folder else ""):
                for root in self._folder.roots if self._folder else ():
                    if posixpath.normpath(whole).startswith(f"{root}/"):
                        places.append((posixpath.normpath(whole)[len(root) + 1 :], repairs))
            if self._base:
                places.append((text, (*repairs, _FROM_ROOT)))
            for path, found in places:
                if name := _inside(path):
                    yield name, found

    def _has(self, name: str) -> bool:
        if name not in self._sizes and self._folder:
            size = self._folder.size(name)
            if size is not None:
                self._sizes[name] = size
        return name in self._sizes

    def _list(self, lost: list[str]) -> _Index:
        """Returns the index of names, in which inexact matches are looked for."""
        if self._index is not None:
            return self._index
        if self._is_listed or self._folder is None:
            self._index = _Index(self._sizes)
        elif (names := self._folder.names(_MOST_LISTED)) is not None:
            self._index = _Index(n for n in names if not is_litter(n))
        else:
            folders = {posixpath.dirname(name) for cell in lost for name, _ in self._readings(cell)}
            folders |= {self._base, posixpath.join(self._base, IMAGES)}
            return _Index((n for f in sorted(folders) for n in self._folder.names_in(f)), is_whole=False)
        return self._index

    def _match(self, cell: str, index: _Index) -> Found:
        address = is_address(cell)
        paths = [_parts(cell)]
        if "%" in cell and not address:
            paths.append([unquote(part) for part in paths[0]])
        for parts in paths:
            together = _TOGETHER_ADDRESS if address else _TOGETHER
            pieces = _BETWEEN.split(_local(cell)) if not address and len(cell) <= _LONGEST_PATH else []
            # The last name alone would stand for all: `img/0a.jpg$img/0b.jpg`, or `img/0a, img/0b` without suffixes.
            if any(map(together.search, parts[:-1])) or (
                len(pieces) > 1 and all("/" in piece and index.find(_parts(piece)) for piece in pieces)
            ):
                return Found(problem=f"{_shown(cell)} looks like several photos; write | between them", kind=TOGETHER)
            near = [self._base] if address else [posixpath.dirname(self._target(parts))]
            near += [posixpath.join(self._base, IMAGES), IMAGES]
            files = [n for n in index.find(parts) if n not in index.unsure or self._is_photo(n)]
            placed = [(name, index.fold_folder(name.rpartition("/")[0])) for name in files]
            places = [*map(index.fold_folder, near)]
            for place in places:
                placed = [item for item in placed if item[1] == place] or placed
            if not index.is_whole:  # elsewhere may be more files of this name
                placed = [item for item in placed if item[1] in places]
            closeness = [_closeness(name.rpartition("/")[2], parts[-1]) for name, _ in placed]
            best = min(closeness, default=0)
            hits = [name for (name, _), far in zip(placed, closeness, strict=True) if far == best]
            if len(hits) > 1:
                names = ", ".join(map(_shown, sorted(hits)[:3])) + (", ..." if len(hits) > 3 else "")
                return Found(problem=f"{_shown(cell)} fits several photos: {names}; write one of these", kind=SEVERAL)
            if hits:
                return Found(hits[0], self._repairs(cell, parts, hits[0], best))
        return self._missing(cell, index)

    def _target(self, parts: list[str]) -> str:
        """Returns the name that a file with these parts of a path would have if it was where the path says."""
        return _inside(posixpath.join(self._base, *parts)) or "/".join(parts)

    def _repairs(self, cell: str, parts: list[str], name: str, far: int) -> tuple[str, ...]:
        repairs = []
        if is_address(cell):
            repairs.append(_COPY)
        else:
            plain, target = _local(cell), self._target(parts)
            if without_query(plain) != plain:
                repairs.append(_QUERY)
            there = _inside(posixpath.join(self._base, without_query(plain)))
            if not there or _fold(posixpath.dirname(name)) != _fold(posixpath.dirname(target)):
                repairs.append(_FOLDER)
            elif far == 0:  # so the folder's name differs
                far = _closeness(name, target)
        return (*repairs, *((), (_FORM,), (_CASE,), (_SUFFIX,))[far])

    def _without_clashes(self, matches: dict[str, Found], taken: set[str], index: _Index) -> dict[str, Found]:
        """Takes back matches with a file that another row names, or that several rows would get.

        `A1/front.jpg` is absent and `A2/front.jpg` is there: it shows A2, and must not become the photo of A1.
        """
        loose = {cell: item for cell, item in matches.items() if {_SUFFIX, _FOLDER, _COPY} & set(item.repairs)}
        taken |= {item.name for cell, item in matches.items() if cell not in loose}
        takers: dict[str, dict[str, str]] = {}  # file -> path that fits it -> cell
        for cell, item in loose.items():
            takers.setdefault(item.name, {})["/".join(map(_fold, _parts(cell)))] = cell
        checked = dict(matches)
        for cell, item in loose.items():
            cells = list(takers[item.name].values())
            if item.name in taken:
                missing = self._missing(cell, index)
                begin = missing.problem.split("; the nearest file")[0]
                checked[cell] = missing._replace(problem=f"{begin}; {_shown(item.name)} is another row's photo")
            elif len(cells) > 1:
                problem = f"{_shown(cells[0])} and {_shown(cells[1])} both fit the file {_shown(item.name)}"
                checked[cell] = Found(problem=f"{problem}; write its path in the row that it belongs to", kind=SEVERAL)
        return checked

    def _is_photo(self, name: str) -> bool:
        return begins_like_photo(self._files.head(name))

    def _missing(self, cell: str, index: _Index) -> Found:
        if cell.lstrip().lower().startswith("data:"):
            problem = f"the cell holds a photo as text ({_shown(cell)[:30]}...); save it as a file and give its path"
            return Found(problem=problem, kind=ABSENT)
        if is_address(cell):
            last = _shown(_parts(cell)[-1])
            problem = f"the photo {_shown(cell)} is an address, and there is no file {last}; download it first"
            return Found(problem=problem, kind=ADDRESS)
        names = [name for name, _ in self._readings(cell)]
        if not names:
            return Found(problem=f"the photo path {_shown(cell)!r} leads outside of the catalogue", kind=OUTSIDE)
        if self._folder and any(map(self._folder.leads_out, names)):
            problem = f"the photo path {_shown(names[0])!r} leads outside of the catalogue through a link"
            return Found(problem=f"{problem}; give the photos' folder with --photos", kind=OUTSIDE)
        problem = f"there is no photo {_shown(names[0])}"
        self._hints += 1
        if self._hints <= _MOST_HINTS and (near := index.nearest(names[0])):
            problem += f"; the nearest file is {_shown(near)}"
        if not index.is_whole:
            problem += "; the table's folder is too large to look for it, so give the photos' folder with --photos"
        return Found(problem=problem, kind=ABSENT)


class _Index:
    """The names of a catalogue's files, by the end of their paths."""

    def __init__(self, names: Iterable[str], *, is_whole: bool = True) -> None:
        self.is_whole = is_whole  # whether all files of the catalogue are in it
        self._all = list(names)
        self._folded = [_fold(name.rpartition("/")[2]) for name in self._all]  # without their folders
        self.unsure: set[str] = set()  # photos that have no suffix, if their first bytes are those of photos
        self._tables: dict[int, dict[str, list[str]]] = {}
        self._folders: dict[str, str] = {}  # as it is -> as names are compared

    def find(self, parts: list[str]) -> list[str]:
        """Returns the files whose paths have the longest end in common with these parts, suffixes aside."""
        folded = [*map(_fold, parts[:-1]), _stem(_fold(parts[-1]))]
        hits: list[str] = []
        for length in range(1, len(folded) + 1):
            longer = self._table(length).get("/".join(folded[-length:]), [])
            hits = longer or hits
            if len(longer) < 2:  # a longer end cannot tell more
                break
        return hits

    def fold_folder(self, folder: str) -> str:
        """Returns a folder's path in the form in which names are compared."""
        if folder not in self._folders:
            self._folders[folder] = "/".join(map(_fold, folder.split("/")))
        return self._folders[folder]

    def photos(self) -> list[str]:
        """Returns the files that are named like photos."""
        return [name for name in self._all if names_photo(name)]

    def _table(self, length: int) -> dict[str, list[str]]:
        """Returns the photos by the last parts of their paths."""
        if length not in self._tables:
            table = self._tables[length] = {}
            for name, base in zip(self._all, self._folded, strict=True):
                if base[base.rfind(".") :] not in _SUFFIXES:
                    if not has_suffix(base):
                        self.unsure.add(name)
                    elif not names_photo(base):
                        continue
                key = _stem(base)
                if length > 1:
                    folders = self.fold_folder(name.rpartition("/")[0]).split("/")
                    if not folders[0] or len(folders) < length - 1:
                        continue
                    key = "/".join([*folders[len(folders) - length + 1 :], key])
                same = table.setdefault(key, [])
                if len(same) < _MOST_ALIKE:
                    same.append(name)
        return self._tables[length]

    @cached_property
    def _sorted(self) -> tuple[tuple[list[str], list[int]], ...]:
        """For names, and for names read backwards: each name without its folder, and the places in sorted order."""
        ways = (self._folded, [name[::-1] for name in self._folded])
        return tuple((names, sorted(range(len(names)), key=names.__getitem__)) for names in ways)

    def nearest(self, name: str) -> str:
        """Returns the file whose name is most like a name, or empty text where none is like it."""
        key = _fold(posixpath.basename(name))
        near: list[str] = []
        for (names, order), wanted in zip(self._sorted, (key, key[::-1]), strict=True):
            place = bisect_left(order, wanted, key=names.__getitem__)
            near += [self._all[number] for number in order[max(0, place - 4) : place + 4]]
        same = [n for n in near if _stem(_fold(posixpath.basename(n))) == _stem(key)]
        return next(iter(difflib.get_close_matches(name[:1000], same or near, n=1, cutoff=0.0 if same else 0.6)), "")


def list_photos(files: Files, names: Collection[str]) -> tuple[list[str], Counter[str]]:
    """Returns the photos among files, sorted, and counts the other files by their kind.

    A file without a suffix is a photo if it begins like one. A smaller copy that a website made of a photo beside it
    (`a-150x150.jpg`) is none.
    """
    photos, others = [], Counter[str]()
    there = set(names)
    for name in sorted(names):
        if _is_copy(name, there):
            others[_COPIES] += 1
        elif names_photo(name) or (not has_suffix(name) and begins_like_photo(files.head(name))):
            photos.append(name)
        else:
            others[kind_of_file(name)] += 1
    return photos, others


def _is_copy(name: str, there: Collection[str]) -> bool:
    stem, suffix = posixpath.splitext(name)
    match = _SCALED.fullmatch(stem) if len(stem) <= _LONGEST_PATH else None
    return match is not None and any(f"{match[1]}{more}{suffix}" in there for more in ("", "-scaled"))


def _local(cell: str) -> str:
    """Returns a path with forward slashes; `file://` is removed."""
    text = cell.strip().replace("\\", "/")
    if text.lower().startswith("file:"):
        text = re.sub(r"^file:(//[^/]*)?", "", text, flags=re.IGNORECASE)
    return text[1:] if re.match(r"/[A-Za-z]:/", text) else text


def _parts(cell: str) -> list[str]:
    """Returns the parts of a path or address, without drive, `..` and query; an address begins with its host."""
    if is_address(cell):
        text = unquote(re.split(r"[?#]", cell.strip(), maxsplit=1)[0])
        text = re.sub(r"^[a-z][a-z0-9+.-]*:", "", text, flags=re.IGNORECASE)
    else:
        text = _DRIVE.sub("", without_query(_local(cell)))
    return [part for part in posixpath.normpath(text).split("/") if part not in ("", ".", "..")] or [""]


def _inside(path: str) -> str:
    """Returns a name within the catalogue in its plain form, or empty text where the path leads outside."""
    plain = posixpath.normpath(path)
    bad = plain in (".", "..") or plain.startswith(("/", "../")) or "\0" in plain or _DRIVE.match(plain)
    return "" if bad else plain


def _fold(name: str) -> str:
    """Returns a name in the form in which names are compared."""
    if name.isascii():
        return name.lower().strip()
    name = unicodedata.normalize("NFC", readable(name))
    name = "".join(c for c in name if unicodedata.category(c) != "Cf")  # zero-width characters
    return unicodedata.normalize("NFC", name.casefold()).strip()


def _stem(name: str) -> str:
    """Returns a name without its photo suffixes: `a.jpg.jpg` becomes `a`, `v1.2` stays."""
    name = without_query(name)
    while (dot := name.rfind(".")) > 0 and name[dot:].lower() in _SUFFIXES:
        name = name[:dot].strip()
    return name


def _closeness(name: str, wanted: str) -> int:
    """Returns 0 for the same name, 1 if only its Unicode form differs, 2 if its case differs, and 3 otherwise."""
    if name == wanted:
        return 0
    one, other = (unicodedata.normalize("NFC", readable(text)) for text in (name, wanted))
    return 1 if one == other else 2 if _fold(one) == _fold(other) else 3


def _shown(name: str) -> str:
    """Returns a name as it may stand in a message: one line, not endless, and text that can be written."""
    text = readable(name)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    text = text.strip()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
