"""Finds the trained packages that come with the library."""

from __future__ import annotations

from pathlib import Path

ZOO = Path(__file__).resolve().parent / "packages"


def zoo_models() -> tuple[str, ...]:
    """Returns the names of the packages that come with the library."""
    return tuple(sorted(file.parent.name for file in ZOO.glob("*/config.json")))


def find_model(path: str | Path) -> Path:
    """Returns `path` where it exists, else the folder of the library's package of that name, if there is one."""
    given = Path(path)
    if not given.exists() and given.parent == Path() and given.name in zoo_models():
        return ZOO / given.name
    return given
