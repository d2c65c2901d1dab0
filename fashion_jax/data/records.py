"""Prepared records: what `prepare` makes of a catalogue, and training, evaluation and audit read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int8, Int32, Int64

from fashion_jax.data.schema import Schema
from fashion_jax.data.splits import SPLITS
from fashion_jax.data.tags import tag_vectors
from fashion_jax.system import files
from fashion_jax.system.errors import UserError

FORMAT = 2  # of the folder's files; it goes into fingerprints


@dataclass
class Prepared:
    """The records in a folder. Rows are in the order train, validation, test; within a split, as in the table."""

    folder: Path  # where the records are
    fingerprint: str  # a hash of the records' content: labels, photos, classes and splits
    # a hash of the source's files and of the options. Equal stamps mean that nothing needs to be made again.
    stamp: str
    max_side: int  # longest side of a stored photo, in pixels
    schema: Schema  # how the source was read
    vocabularies: dict[str, tuple[str, ...]]  # attribute -> class names. A label is a place in this list.
    ids: np.ndarray  # of the products, text (n,); the photos of one product share its id
    titles: list[str]  # of the products
    labels: Int32[np.ndarray, "n attributes"]  # int32 (n, attributes), MISSING where a row has no label
    splits: Int8[np.ndarray, " n"]  # int8 (n,), place in SPLITS
    groups: Int64[np.ndarray, " n"]  # int64 (n,); photos of one product, and near-duplicates, have equal numbers
    report: dict[str, Any]  # counts, which `catalog_report.format_report` prints
    tag_vocabularies: dict[str, tuple[str, ...]] = field(default_factory=dict)  # multi-valued attribute -> class names
    # multi-valued attribute -> int8 (n, classes), 1 for each class that a row has; MISSING in all of a row's classes
    # where it has no label
    tags: dict[str, Int8[np.ndarray, "n classes"]] = field(default_factory=dict)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the label columns, without multi-valued attributes."""
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
        # TFDS takes a second to import; reading labels does not need it.
        from fashion_jax.data.builder import open_records

        return [open_records(self.folder, s) if len(self.indices(s)) else [] for s in SPLITS]

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be sent to worker processes; each process opens its own.
        return {k: v for k, v in self.__dict__.items() if k not in ("_sources", "_starts")}


def is_prepared(folder: Path) -> bool:
    """True for a folder that `prepare` made. Other programs write a manifest.json too, so its keys are checked."""
    try:
        return {"format", "fingerprint", "num_products"} <= files.read_json_object(folder / "manifest.json").keys()
    except (OSError, UserError):
        return False


def open_prepared(folder: str | Path) -> Prepared:
    """Opens the records in a folder; UserError where there are none or they are damaged."""
    folder = Path(folder)
    if not is_prepared(folder):
        raise UserError(f"{folder} holds no prepared records; make them with: fashion-jax prepare --source S --out DIR")
    try:
        manifest = files.read_json_object(folder / "manifest.json")
        if manifest["format"] != FORMAT:
            raise ValueError(f"their format is {manifest['format']}, not {FORMAT}")
        vocabularies = {name: tuple(classes) for name, classes in manifest["vocabularies"].items()}
        rows = files.read_csv(folder / "products.csv")
        numbers = {name: {c: i for i, c in enumerate(v)} | {"": -1} for name, v in vocabularies.items()}
        labels = [[numbers[name][row[f"label_{name}"]] for name in vocabularies] for row in rows]
        tag_vocabularies = {name: tuple(classes) for name, classes in manifest.get("tag_vocabularies", {}).items()}
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
            tag_vocabularies=tag_vocabularies,
            tags={n: tag_vectors([row[f"tags_{n}"] for row in rows], v) for n, v in tag_vocabularies.items()},
        )
        if len(rows) != manifest["num_records"] or bool(np.any(np.diff(prepared.splits) < 0)):
            raise ValueError("products.csv does not fit manifest.json")
    except (KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"the records in {folder} cannot be used ({error!r}); prepare them again") from error
    return prepared
