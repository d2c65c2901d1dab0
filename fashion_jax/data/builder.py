"""Records on the disk, as a TFDS data set in ArrayRecord files. TensorFlow is not needed.

Everything that reads TFDS data sets reads them:

    builder = tfds.builder("fashion_products", data_dir="PREPARED")
    source = builder.as_data_source("train")
    source[0]  # {"id", "image", "title", <one label per attribute>, <a list of numbers per multi-valued attribute>}
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import tqdm_utils

from fashion_jax.data.records import NAME, VERSION, open_prepared
from fashion_jax.data.tfds_files import LABEL_PREFIX, TAGS_PREFIX, make_features
from fashion_jax.system import stored

_SHARD_ROWS = 16_384  # rows of a file


@dataclass(frozen=True, slots=True)
class RecordSource:
    """What the builder writes."""

    vocabularies: Mapping[str, tuple[str, ...]]  # attribute -> class names
    split_sizes: Mapping[str, int]  # the number of rows of each split that has any
    # (split, start, stop) -> rows: id, title, image (JPEG), labels (attribute -> class number, -1 where missing), tags
    # (multi-valued attribute -> class numbers, -1 alone where missing)
    examples: Callable[[str, int, int], Iterator[dict[str, Any]]]
    tag_vocabularies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # multi-valued attribute -> classes


class _LocalInfo(tfds.core.DatasetInfo):
    """Information about a data set that TFDS does not publish."""

    def initialize_from_bucket(self) -> None:
        """Does nothing. TFDS would look the data set up online and leave a folder in the temporary directory."""


class FashionProducts(tfds.core.ShardBasedBuilder):
    """Products with a photo and one label per attribute; a missing label is -1.

    TFDS's `GeneratorBasedBuilder` sorts all rows of a split in memory, and above 1 GB it needs TensorFlow. A
    `ShardBasedBuilder` writes the rows in the order in which it gets them.
    """

    name = NAME
    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, records: RecordSource | None = None, **kwargs: Any) -> None:
        """Opens the records in the folder `data_dir`; with `records`, gets ready to write them there.

        Raises:
            UserError: there are no records in the folder, or they are damaged.
        """
        self._records = records
        self._vocabularies: Mapping[str, tuple[str, ...]]
        self._tag_vocabularies: Mapping[str, tuple[str, ...]]
        if records is None:
            prepared = open_prepared(kwargs.get("data_dir") or ".")
            prepared.check_photos()
            prepared.check_features()
            self._vocabularies, self._tag_vocabularies = prepared.vocabularies, prepared.tag_vocabularies
        else:
            self._vocabularies, self._tag_vocabularies = records.vocabularies, records.tag_vocabularies
        super().__init__(file_format="array_record", **{k: v for k, v in kwargs.items() if k != "file_format"})

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(
            builder=self,
            description="Products with a photo and one label per attribute; -1 for a missing label.",
            features=make_features(self._vocabularies, self._tag_vocabularies),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]]:
        assert self._records is not None, "these records are written already"
        return {
            split: [partial(self._examples, split, start) for start in range(0, count, _SHARD_ROWS)]
            for split, count in self._records.split_sizes.items()
        }

    def _examples(self, split: str, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        assert self._records is not None
        for number, row in enumerate(self._records.examples(split, start, start + _SHARD_ROWS), start):
            labels = {LABEL_PREFIX + name: value for name, value in row["labels"].items()}
            tags = {TAGS_PREFIX + name: value for name, value in row["tags"].items()}
            yield number, {"id": row["id"], "title": row["title"], "image": row["image"], **labels, **tags}


def write_records(records: RecordSource, folder: Path) -> None:
    """Writes all splits into a folder, in the order of the rows; OSError where the disk is full."""
    shown = tqdm_utils._active
    tqdm_utils.display_progress_bar(False)  # `prepare` shows its own
    try:
        # It prints about downloads.
        with stored.writing(folder), contextlib.redirect_stdout(io.StringIO()):
            FashionProducts(records=records, data_dir=str(folder)).download_and_prepare()
    finally:
        tqdm_utils.display_progress_bar(shown)
        shutil.rmtree(folder / "downloads", ignore_errors=True)  # TFDS made it; it is empty
