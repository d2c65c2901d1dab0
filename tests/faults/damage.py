"""Seeded damage of stored files: of their bytes, of their place, and of the values of JSON documents.

Nothing here knows the layout of a stored thing. A digest is made anew wherever a JSON file of the thing holds the old
one, so that an edit by hand with a digest that fits ("signed") can be tried on every layout.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEEP = 100_000  # levels of nesting
CANARY = "faults.canary"  # a module that nothing imports, unless data can name code
_HOLE = "a value that JSON text replaces"
_GONE, _TWICE = object(), object()
_DEEP_LISTS, _DEEP_OBJECTS = "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP
# What an edit puts in the place of a value; a str after "json:" is put there as JSON text.
_VALUES: dict[str, Any] = {
    "null": None, "true": True, "false": False, "0": 0, "-1": -1, "2**31": 2**31, "10**400": 10**400, "0.5": 0.5,
    "1e308": 1e308, "NaN": float("nan"), "infinity": float("inf"), "empty text": "", "text": "other", "[]": [],
    "{}": {}, "[1]": [1], '{"a": 1}': {"a": 1}, "long text": "x" * 200_000, "half a character": "\ud800",
    "zero byte": "a\0b", "path": "../../../../etc/passwd", "code": f"{CANARY}.Canary", "removed": _GONE,
    "key twice": _TWICE, "nested lists": f"json:{_DEEP_LISTS}", "nested objects": f"json:{_DEEP_OBJECTS}",
    "many digits": "json:" + "9" * 100_000,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One damaged input."""

    number: int  # of its kind, from 0
    file: str  # name relative to the thing's folder
    way: str  # of damage: a key of WAYS

    @property
    def signed(self) -> bool:
        return self.way.endswith("signed")


@dataclass(frozen=True)
class Stored:
    """A stored thing, as damage sees it."""

    folder: Path  # of the copy, which is damaged
    twin: Path  # another thing of the same kind
    boundaries: dict[str, list[int]]  # file -> places where its records end, where they are known


Damage = Callable[[Stored, Path, random.Random], str | None]


def _flip(stored: Stored, path: Path, chance: random.Random) -> str | None:
    data = bytearray(path.read_bytes())
    if not data:
        return None
    place, bit = chance.randrange(len(data)), chance.randrange(8)
    data[place] ^= 1 << bit
    _put(path, bytes(data))
    return f"bit {bit} of byte {place} of {len(data)}"


def _cut(stored: Stored, path: Path, chance: random.Random) -> str | None:
    data = path.read_bytes()
    if len(data) < 2:
        return None
    place = chance.randrange(1, len(data))
    _put(path, data[:place])
    return f"after byte {place} of {len(data)}"


def _empty(stored: Stored, path: Path, chance: random.Random) -> str | None:
    if not path.stat().st_size:
        return None
    _put(path, b"")
    return "emptied"


def _delete(stored: Stored, path: Path, chance: random.Random) -> str | None:
    path.unlink()
    return "deleted"


def _append(stored: Stored, path: Path, chance: random.Random) -> str | None:
    data, size = path.read_bytes(), chance.choice([1, 7, 512, 5000])
    tail = chance.choice([b"\0" * size, chance.randbytes(size), (data * size)[:size] or b"x"])
    _put(path, data + tail)
    return f"{len(tail)} bytes at the end"


def _swap(stored: Stored, path: Path, chance: random.Random) -> str | None:
    """Puts another file of the same kind in the place of a file: of the twin, or with another number of the thing."""
    shape = _shape(path.relative_to(stored.folder).as_posix())
    others = [
        (whose, name, (folder / name).read_bytes())
        for whose, folder in (("the twin", stored.twin), ("the same thing", stored.folder))
        for name in list_files(folder)
        if _shape(name) == shape
    ]
    others = [other for other in others if other[2] != path.read_bytes()]
    if not others:
        return None
    whose, name, data = chance.choice(others)
    _put(path, data)
    return f"with {name} of {whose}"


def _duplicate(stored: Stored, path: Path, chance: random.Random) -> str | None:
    """Adds the file a second time: under the next number, or with another name."""
    number = re.search(r"\d+(?=\D*$)", path.stem)
    name = f"copy of {path.name}"
    if number:
        name = path.name.replace(number[0], f"{int(number[0]) + 1:0{len(number[0])}}")
    if (path.parent / name).exists():
        name = f"2-{path.name}"
    shutil.copy(path, path.parent / name)
    return f"as {name}"


def _double(stored: Stored, path: Path, chance: random.Random) -> str | None:
    data = path.read_bytes()
    if not data:
        return None
    _put(path, data + data)
    return "its content twice"


def _records(change: Callable[[list[bytes], random.Random], str | None]) -> Damage:
    """Returns damage of whole records: of a journal whose boundaries are known, or of the lines of a text."""

    def damage(stored: Stored, path: Path, chance: random.Random) -> str | None:
        data, ends = path.read_bytes(), stored.boundaries.get(path.relative_to(stored.folder).as_posix(), [])
        if ends:
            parts = [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]
        else:
            parts = data.splitlines(keepends=True) if _is_text(data) else []
        parts = [part for part in parts if part]
        if len(parts) < 3:
            return None
        said = change(parts, chance)
        if b"".join(parts) == data:
            return None
        _put(path, b"".join(parts))
        return said

    return damage


def _drop_record(parts: list[bytes], chance: random.Random) -> str:
    place = chance.randrange(len(parts))
    del parts[place]
    return f"record {place} of {len(parts) + 1}"


def _cut_at_record(parts: list[bytes], chance: random.Random) -> str:
    place, count = chance.randrange(1, len(parts)), len(parts)
    del parts[place:]
    return f"after {place} of {count} records"


def _repeat_record(parts: list[bytes], chance: random.Random) -> str:
    place = chance.randrange(len(parts))
    parts.insert(place, parts[place])
    return f"record {place} of {len(parts) - 1}"


def _exchange_records(parts: list[bytes], chance: random.Random) -> str:
    one, two = chance.sample(range(len(parts)), 2)
    parts[one], parts[two] = parts[two], parts[one]
    return f"records {one} and {two} of {len(parts)}"


def _edit(stored: Stored, path: Path, chance: random.Random) -> str | None:
    """Changes one value of a JSON document, or of one of its lines."""
    text = path.read_bytes().decode(errors="replace")
    lines = [text]
    if _parse(text) is None:
        lines = text.splitlines()
    places = [place for place, line in enumerate(lines) if isinstance(_parse(line), (dict, list))]
    if not places:
        return None
    place = chance.choice(places)
    value = _parse(lines[place])
    paths = list(_paths(value))
    if not paths:
        return None
    where = chance.choice(paths)
    name = chance.choice(list(_VALUES))
    lines[place] = _changed(value, where, _VALUES[name], indent=2 if len(lines) == 1 else None)
    changed = "\n".join(lines) + "\n"
    _put(path, changed.encode(errors="surrogatepass"))
    return f"{'.'.join(map(str, where))} = {name}" + (f" in line {place}" if len(lines) > 1 else "")


def _edit_alike(stored: Stored, path: Path, chance: random.Random) -> str | None:
    """Changes one value of a JSON document to another of the same type, which only a digest can tell."""
    value = _parse(path.read_bytes().decode(errors="replace"))
    if not isinstance(value, (dict, list)):
        return None
    leaves = [where for where in _paths(value) if isinstance(_at(value, where), (bool, int, float, str, list))]
    if not leaves:
        return None
    where = chance.choice(leaves)
    old = _at(value, where)
    new: Any
    if isinstance(old, bool):
        new = not old
    elif isinstance(old, (int, float)):
        new = old + chance.choice([1, -1, 7]) if isinstance(old, int) else old * chance.choice([0.5, 1.01, 2])
    elif isinstance(old, list):
        new = chance.choice([old[::-1], old[1:], [*old, *old[:1]]])
    else:
        new = old[::-1] if len(old) > 1 and old != old[::-1] else old + "x"
    _put(path, _changed(value, where, new, indent=2).encode())
    return f"{'.'.join(map(str, where))}: {old!r:.60} -> {new!r:.60}"


def _signed(damage: Damage) -> Damage:
    def signed(stored: Stored, path: Path, chance: random.Random) -> str | None:
        before = path.read_bytes()
        said = damage(stored, path, chance)
        if said is None or not _sign(stored.folder, path, before):
            return None
        return said

    return signed


WAYS: dict[str, Damage] = {
    "flip": _flip,
    "cut": _cut,
    "empty": _empty,
    "delete": _delete,
    "append": _append,
    "swap": _swap,
    "duplicate": _duplicate,
    "double": _double,
    "drop a record": _records(_drop_record),
    "cut at a record": _records(_cut_at_record),
    "repeat a record": _records(_repeat_record),
    "exchange records": _records(_exchange_records),
    "edit": _edit,
    "edit alike": _edit_alike,
    "edit, signed": _signed(_edit),
    "edit alike, signed": _signed(_edit_alike),
    "flip, signed": _signed(_flip),
    "cut, signed": _signed(_cut),
    "empty, signed": _signed(_empty),
    "swap, signed": _signed(_swap),
}
_ROUNDS = 50
_OFTEN = {"flip": 3, "cut": 2, "edit": 3, "edit, signed": 3, "edit alike": 2}


def plan_cases(folder: Path, seed: int, kind: Any) -> Iterator[Case]:
    """Yields cases for a thing without an end: all pairs of a file and a way of damage in a random order, repeated."""
    files = [file for file in list_files(folder) if kind.only(file)]
    ways = [way for way in WAYS if kind.has_parts or not way.startswith("swap")]
    pairs = [(file, way) for file in files for way in ways for _ in range(_OFTEN.get(way, 1))]
    pairs = [(file, way) for file, way in pairs if _may_apply(folder / file, way)]
    random.Random(f"{seed} {kind.name}").shuffle(pairs)
    numbers = range(_ROUNDS * len(pairs))
    return (Case(number, *pairs[number % len(pairs)]) for number in numbers)


def apply(case: Case, stored: Stored, seed: int, name: str) -> str | None:
    """Damages a thing; returns what was done in words, or None where the damage changes nothing here."""
    path = stored.folder / case.file
    return WAYS[case.way](stored, path, random.Random(f"{seed} {name} {case.number}"))


def list_files(folder: Path) -> list[str]:
    """Returns the names of all files, relative to the folder, without locks."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _may_apply(path: Path, way: str) -> bool:
    if way.startswith("edit"):
        return path.read_bytes()[:1] in (b"{", b"[")
    if "record" in way:
        return path.suffix not in (".jpg", ".png")
    # What is not checked of ScaNN's own files is documented: an index is only for those who trust its author.
    return not (way.endswith("signed") and "scann" in path.parts)


def _shape(name: str) -> str:
    return re.sub(r"[0-9a-f]{8,}|\d+", "#", name)


def _put(path: Path, data: bytes) -> None:
    path.unlink()  # the file may be linked to that of another copy
    path.write_bytes(data)


def _is_text(data: bytes) -> bool:
    return b"\0" not in data and data.count(b"\n") > 1


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*before, key)
        yield from _paths(item, (*before, key))


def _at(value: Any, where: tuple[Any, ...]) -> Any:
    for key in where:
        value = value[key]
    return value


def _changed(value: Any, where: tuple[Any, ...], new: Any, *, indent: int | None) -> str:
    """Returns a document as text, with another value at a place."""
    *parents, last = where
    parent, text = _at(value, tuple(parents)), None
    if new is _GONE:
        del parent[last]
    elif new is _TWICE:
        if isinstance(parent, list):
            parent.append(parent[last])
        else:
            text = f"{json.dumps(parent[last])}, {json.dumps(last)}: null"
            parent[last] = _HOLE
    elif isinstance(new, str) and new.startswith("json:"):
        parent[last], text = _HOLE, new.removeprefix("json:")
    else:
        parent[last] = new
    whole = json.dumps(value, indent=indent, ensure_ascii=False) if not _is_half(new) else json.dumps(value)
    return whole if text is None else whole.replace(json.dumps(_HOLE), text, 1)


def _is_half(new: Any) -> bool:
    return isinstance(new, str) and any("\ud800" <= c <= "\udfff" for c in new)


def _sign(folder: Path, path: Path, before: bytes) -> bool:
    """Makes the digests anew that a changed file breaks; returns whether there were any."""
    changed, done = [(path, before)], False
    while changed:
        file, old = changed.pop()
        done |= _sign_document(file)
        if not file.exists():
            return False
        new = file.read_bytes()
        for other in list_files(folder):
            place = folder / other
            text = place.read_bytes()
            value = _parse(text.decode(errors="replace")) if text[:1] in (b"{", b"[") and place != file else None
            if value is not None and _replace_digest(value, _digest(old), _digest(new), len(new)):
                _put(place, json.dumps(value, indent=2, ensure_ascii=False).encode())
                changed.append((place, text))
                done = True
    return done


def _sign_document(path: Path) -> bool:
    """Makes the digest anew that a document has of its own other keys."""
    value = _parse(path.read_bytes().decode(errors="replace"))
    if not isinstance(value, dict) or not isinstance(value.get("sha256"), str):
        return False
    rest = {key: item for key, item in value.items() if key != "sha256"}
    value["sha256"] = _digest(json.dumps(rest, sort_keys=True).encode())
    text = json.dumps(value, indent=2)
    _put(path, text.encode())
    return True


def _replace_digest(value: Any, old: str, new: str, size: int) -> bool:
    found = False
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        if item == old:
            value[key], found = new, True
            if isinstance(value, dict) and "bytes" in value:
                value["bytes"] = size
        else:
            found |= _replace_digest(item, old, new, size)
    return found


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
