"""Prepared records: what `prepare` makes of a catalogue, and training, evaluation and audit read.

manifest.json             a sealed document: classes, schema, counts, and every other file with its size and digest
products.csv              ids, titles, labels and splits
fashion_products/1.0.0/   the photos, as a TFDS data set in ArrayRecord files
schema.json, splits.csv, quarantine.csv   for people; nothing here reads them

Records may come from a stranger. No library reads a file before its digest has been checked, and TFDS's description of
the data set, which can name a Python class to import, is compared and not obeyed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int8, Int32, Int64

from fashion_jax.data.schema import MISSING, Schema
from fashion_jax.data.splits import SPLITS
from fashion_jax.data.tags import tag_vectors
from fashion_jax.system import files, stored
from fashion_jax.system.errors import UserError

if TYPE_CHECKING:
    from fashion_jax.data.tfds_files import PhotoReader

FORMAT = 2  # of the folder's files; it goes into fingerprints
NAME, VERSION = "fashion_products", "1.0.0"  # of the TFDS data set
DATA_SET = f"{NAME}/{VERSION}"  # its folder, in the folder of the records
LONGEST_NAME = 1_000  # characters of an id or a class; arrays of text take the length of the longest for every row
LONGEST_TEXT = 30_000  # characters of any other text; Python's CSV reader takes 131,072, and a spreadsheet 32,767
_MANIFEST = "manifest.json"
_PHOTOS = re.compile(rf"{DATA_SET}/{NAME}-({'|'.join(SPLITS)})\.array_record-\d{{5}}-of-\d{{5}}")
_OPENING = threading.Lock()  # many threads read photos, and one of them opens the files


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
    files: stored.Listing = field(default_factory=dict)  # every file of the folder without manifest.json

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
        """Returns a row's photo as JPEG bytes; safe to call from several threads.

        The first photo of a split takes longer: the digests of the split's files are checked.

        Raises:
            UserError: the files of the photos are missing or damaged.
        """
        side = int(self.splits[row])
        with stored.reading(self.folder / DATA_SET, remedy(self.folder)):
            reader = self._readers.get(side) or self._open(side)
            return reader.read(row - int(self._starts[side]), str(self.ids[row]))

    def photo_files(self, *splits: str) -> stored.Listing:
        """Returns the files that hold the photos of the named splits, in the order of the rows."""
        found = {name: _PHOTOS.fullmatch(name) for name in sorted(self.files)}
        return {name: self.files[name] for name, match in found.items() if match and match[1] in splits}

    def check_photos(self) -> None:
        """Checks the digests of the files that hold photos, without decoding any; UserError names a damaged file."""
        stored.check_files(self.folder, self.photo_files(*SPLITS), remedy=remedy(self.folder))

    def check_features(self) -> None:
        """Raises UserError where features.json is not what is written for these classes.

        The manifest's digest of it can be made anew by anyone, and TFDS imports the Python classes that it names.
        """
        # TFDS takes a second to import; reading labels does not need it.
        from fashion_jax.data.tfds_files import is_described, make_features

        path = self.folder / DATA_SET / "features.json"
        with stored.reading(path, remedy(self.folder)):
            if not is_described(path, make_features(self.vocabularies, self.tag_vocabularies)):
                raise UserError(f"{path} is not what this version of TFDS writes; {remedy(self.folder)}")

    def _open(self, side: int) -> PhotoReader:
        with _OPENING:
            # Imported within the lock: if a thread imports TFDS, imports in other threads may give a LazyModule.
            from fashion_jax.data.tfds_files import PhotoReader

            if side not in self._readers:
                names = self.photo_files(SPLITS[side])
                stored.check_files(self.folder, names, remedy=remedy(self.folder))
                self.check_features()
                reader = PhotoReader([self.folder / name for name in names])
                if len(reader) != len(self.indices(SPLITS[side])):
                    raise ValueError(f"the split {SPLITS[side]!r} has {len(reader)} photos")
                self._readers[side] = reader
            return self._readers[side]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.searchsorted(self.splits, np.arange(len(SPLITS)))

    @cached_property
    def _readers(self) -> dict[int, PhotoReader]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be sent to worker processes; each process opens its own.
        return {k: v for k, v in self.__dict__.items() if k not in ("_readers", "_starts")}


def remedy(folder: Path) -> str:
    """Returns what a user can do about damaged records, as the end of a sentence."""
    made = "run the command again that made it (fashion-jax prepare or train), with the same options"
    return f"restore {folder} from a backup, or {made}"


def is_prepared(folder: Path) -> bool:
    """True for a folder that `prepare` made, even if it is damaged.

    Other programs write a manifest.json too, so its keys are checked.
    """
    if (folder / DATA_SET).is_dir():
        return True
    path = folder / _MANIFEST
    try:
        return path.is_file() and {"format", "fingerprint", "num_products"} <= files.read_json_object(path).keys()
    except (OSError, UserError):
        return False


def open_prepared(folder: str | Path) -> Prepared:
    """Opens the records in a folder.

    The digests of all files are checked that are read here or that TFDS reads to describe the data set. Of the files
    that hold photos only the sizes are checked: `Prepared.read_photo` checks their digests.

    Raises:
        UserError: there are no records, or they are damaged.
    """
    folder = Path(folder)
    if not is_prepared(folder):
        raise UserError(f"{folder} holds no prepared records; make them with: fashion-jax prepare --source S --out DIR")
    manifest = stored.read_document(folder / _MANIFEST, remedy=remedy(folder))
    with stored.reading(folder / _MANIFEST, remedy(folder)):
        again = "make the records again with the command that made them"
        stored.check_format(folder, manifest["format"], FORMAT, remedy=again)
        listing = dict(manifest["files"])
        small = {name: listing[name] for name in listing if name.startswith(DATA_SET) and not _PHOTOS.fullmatch(name)}
        small |= {
            name: listing[name]
            for name in ("products.csv", *(f"{DATA_SET}/{n}.json" for n in ("dataset_info", "features")))
        }
        photos = {name: listing[name] for name in listing if _PHOTOS.fullmatch(name)}
        stored.check_files(folder, small, remedy=remedy(folder))
        stored.check_files(folder, photos, remedy=remedy(folder), contents=False)
        schema = Schema.from_dict(manifest["schema"])
        # The schema's check of names also keeps those of files from leading elsewhere.
        vocabularies = _read_vocabularies(manifest["vocabularies"], [a.name for a in schema.attributes])
        tag_vocabularies = _read_vocabularies(manifest["tag_vocabularies"], [a.name for a in schema.multi_valued])
    with stored.reading(folder / "products.csv", remedy(folder)):
        text = (folder / "products.csv").read_bytes().decode()
        columns = [*(f"label_{name}" for name in vocabularies), *(f"tags_{name}" for name in tag_vocabularies)]
        header, *rows = files.parse_csv(text)
        if header != ["row", "id", "title", "split", "group", *columns] or len(rows) != manifest["num_records"]:
            raise ValueError("it does not fit manifest.json")
        _, ids, titles, names, groups, *cells = zip(*rows, strict=True)
        if max(map(len, ids)) > LONGEST_NAME:
            raise ValueError(f"an id is longer than {LONGEST_NAME:,} characters")
        splits = np.array([SPLITS.index(name) for name in names], np.int8)
        if splits[0] != 0 or bool(np.any(np.diff(splits) < 0)):
            raise ValueError("its rows are not in the order train, validation, test")
        labels = np.empty((len(rows), len(vocabularies)), np.int32)
        for column, classes in enumerate(vocabularies.values()):
            numbers = {name: number for number, name in enumerate(classes)} | {"": MISSING}
            labels[:, column] = [numbers[cell] for cell in cells[column]]
        tag_cells = cells[len(vocabularies) :]
        prepared = Prepared(
            folder=folder,
            fingerprint=_checked(manifest["fingerprint"], str),
            stamp=_checked(manifest["stamp"], str),
            max_side=_checked(manifest["options"]["max_side"], int),
            schema=schema,
            vocabularies=vocabularies,
            ids=np.array(ids),
            titles=list(titles),
            labels=labels,
            splits=splits,
            groups=np.array([int(group) for group in groups], np.int64),
            report=_checked(manifest["report"], dict),
            tag_vocabularies=tag_vocabularies,
            tags={n: tag_vectors(tag_cells[i], classes) for i, (n, classes) in enumerate(tag_vocabularies.items())},
            files=listing,
        )
    return prepared


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r:.80} is no {kind.__name__}")
    return value


def _read_vocabularies(values: Any, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns attribute -> classes; an error for what `prepare` does not write."""
    vocabularies = {}
    for name, classes in values.items():
        names.index(name)
        vocabularies[name] = tuple(_checked(label, str) for label in _checked(classes, list))
        lengths = [len(label) for label in classes]
        if len(set(classes)) < len(classes) or not 0 < min(lengths) <= max(lengths) <= LONGEST_NAME:
            raise ValueError(f"the classes of {name!r} are empty, not unique, or too long")
    return vocabularies
