"""Syntax trees of source files for tests that read the code, and a way round a fault of CPython 3.11 in making them."""

from __future__ import annotations

import ast
import functools
import gc
import sys
from pathlib import Path


@functools.cache
def parse(path: Path) -> ast.Module:
    """Parses a file once."""
    return ast.parse(path.read_text(encoding="utf-8"))


def parse_without_collections() -> None:
    """Keeps the garbage collector from running inside `ast.parse`, which pytest calls for every module it rewrites.

    CPython 3.11 keeps the depth of the tree that it makes in one place for the whole interpreter: a garbage collection
    in between can end in "SystemError: AST constructor recursion depth mismatch" (CPython issue 106905).
    """
    if sys.version_info >= (3, 12):
        return
    original = ast.parse

    @functools.wraps(original)
    def undisturbed(*args, **kwargs):
        enabled = gc.isenabled()
        gc.disable()
        try:
            return original(*args, **kwargs)
        finally:
            if enabled:
                gc.enable()

    ast.parse = undisturbed
