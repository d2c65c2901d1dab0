"""Inputs that a fuzzer found, and sound ones: each gives a result or a sentence."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).with_name("fuzz.py"))
assert _spec is not None and _spec.loader is not None
fuzz = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzz)

FOUND = [(path.parent.name, path) for path in sorted(fuzz.CORPUS.glob("*/*"))]


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_sound_inputs_pass(target: str) -> None:
    inputs = list(fuzz.seeds(target))
    assert inputs
    for data in inputs:
        fuzz.run(target, data)


@pytest.mark.parametrize(("target", "path"), FOUND, ids=[f"{target}-{path.name}" for target, path in FOUND])
def test_what_was_found_stays_mended(target: str, path: Path) -> None:
    fuzz.run(target, path.read_bytes())
