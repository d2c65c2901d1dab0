"""Syntax trees of source files, for tests that read the code."""

from __future__ import annotations

import ast
import functools
import gc
from pathlib import Path


@functools.cache
def parse(path: Path) -> ast.Module:
    """Parses a file once.

    CPython 3.11 keeps the depth of the tree that it makes in one place for the whole interpreter: a garbage collection
    in between can end in "SystemError: AST constructor recursion depth mismatch" (CPython issue 106905).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        if enabled:
            gc.enable()
