"""Prepared records: what training, evaluation and people read of a catalogue once it has been prepared."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int8, Int32, Int64

from fashion_jax.data.schema import Schema
from fashion_jax.data.splits import SPLITS
from fashion_jax.system.errors import UserError

FORMAT = 1  # of the folder


@dataclass
class Prepared:
    """A prepared folder. Rows are ordered train, validation, test, and by the catalogue's table within.

    Attributes:
        folder: where it is.
        fingerprint: of the records; equal fingerprints have equal records.
        stamp: of the source and the options from which they were made.
        max_side: pixels to which larger photos were scaled.
        schema: by which the source was read.
        vocabularies: attribute -> class names; a label's number is its place there.
        ids: of the products, text (n,).
        titles: of the products.
        labels: int32 (n, attributes), MISSING where a row lacks one.
        splits: int8 (n,), place in SPLITS.
        groups: int64 (n,), rows with equal numbers are near-duplicates.
        report: counts, as `catalog_report.format_report` prints them.
    """

    folder: Path
    fingerprint: str
    stamp: str
    max_side: int
    schema: Schema
    vocabularies: dict[str, tuple[str, ...]]
    ids: np.ndarray
    titles: list[str]
    labels: Int32[np.ndarray, "n attributes"]
    splits: Int8[np.ndarray, " n"]
    groups: Int64[np.ndarray, " n"]
    report: dict[str, Any]

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the label columns."""
        return tuple(self.vocabularies)

    def __len__(self) -> int:
        return len(self.ids)

    def indices(self, split: str) -> Int64[np.ndarray, " rows"]:
        """Returns the row numbers of "train", "validation" or "test", ascending."""
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def read_photo(self, row: int) -> bytes:
        """Returns a row's photo as JPEG bytes; safe to call from several threads."""
        side = int(self.splits[row])
        data: bytes = self._sources[side][row - int(self._starts[side])]["image"]
        return data

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.searchsorted(self.splits, np.arange(len(SPLITS)))

    @cached_property
    def _sources(self) -> list[Any]:
        # TFDS takes a second to import, which readers of labels alone need not wait for.
        from fashion_jax.data.builder import open_records

        return [open_records(self.folder, s) if len(self.indices(s)) else [] for s in SPLITS]

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel to worker processes; they open their own.
        return {k: v for k, v in self.__dict__.items() if k not in ("_sources", "_starts")}


def is_prepared(folder: Path) -> bool:
    """True for a folder that `prepare` made; other programs have a manifest.json too."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and {"format", "fingerprint", "num_products"} <= manifest.keys()


def open_prepared(folder: str | Path) -> Prepared:
    """Opens a prepared folder; UserError when it is none, damaged, or of another version."""
    folder = Path(folder)
    if not is_prepared(folder):
        raise UserError(f"{folder} holds no prepared records; make them with: fashion-jax prepare --source S --out DIR")
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise UserError(
                f"{folder} was prepared by another version (format {manifest['format']}, not {FORMAT}); "
                "prepare it again"
            )
        vocabularies = {name: tuple(classes) for name, classes in manifest["vocabularies"].items()}
        with (folder / "products.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        numbers = {name: {c: i for i, c in enumerate(v)} | {"": -1} for name, v in vocabularies.items()}
        labels = [[numbers[name][row[f"label_{name}"]] for name in vocabularies] for row in rows]
        prepared = Prepared(
            folder=folder,
            fingerprint=manifest["fingerprint"],
            stamp=manifest["stamp"],
            max_side=int(manifest["options"]["max_side"]),
            schema=Schema.from_dict(manifest["schema"]),
            vocabularies=vocabularies,
            ids=np.array([row["id"] for row in rows]),
            titles=[row["title"] for row in rows],
            labels=np.array(labels, np.int32).reshape(len(rows), len(vocabularies)),
            splits=np.array([SPLITS.index(row["split"]) for row in rows], np.int8),
            groups=np.array([int(row["group"]) for row in rows], np.int64),
            report=manifest["report"],
        )
        whole = len(rows) == manifest["num_products"] and bool(np.all(np.diff(prepared.splits) >= 0))
    except (KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the records in {folder} are damaged ({error!r}); prepare them again") from error
    if not whole:
        raise UserError(f"the records in {folder} are damaged: products.csv does not fit manifest.json; prepare again")
    return prepared
