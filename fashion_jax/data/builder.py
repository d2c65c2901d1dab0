"""Records on the disk, as a TFDS data set in ArrayRecord files. TensorFlow is not needed.

Everything that reads TFDS data sets reads them:

    builder = tfds.builder("fashion_products", data_dir="PREPARED")
    source = builder.as_data_source("train")
    source[0]  # {"id", "image", "title", <one label per attribute>, <a list of numbers per multi-valued attribute>}
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import tqdm_utils

NAME = "fashion_products"
_SHARD_ROWS = 16_384  # rows of a file
LABEL_PREFIX = "label_"  # keeps an attribute called "image" or "id" apart from those
TAGS_PREFIX = "tags_"


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
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, records: RecordSource | None = None, **kwargs: Any) -> None:
        """Opens the records in the folder `data_dir`; with `records`, gets ready to write them there."""
        self._records = records
        if records is None:
            manifest = json.loads((Path(kwargs.get("data_dir") or ".") / "manifest.json").read_text(encoding="utf-8"))
            self._vocabularies: Mapping[str, Any] = manifest["vocabularies"]
            self._tag_vocabularies: Mapping[str, Any] = manifest.get("tag_vocabularies", {})
        else:
            self._vocabularies, self._tag_vocabularies = records.vocabularies, records.tag_vocabularies
        super().__init__(file_format="array_record", **{k: v for k, v in kwargs.items() if k != "file_format"})

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {LABEL_PREFIX + n: tfds.features.ClassLabel(names=list(v)) for n, v in self._vocabularies.items()}
        tags = {
            TAGS_PREFIX + name: tfds.features.Sequence(tfds.features.ClassLabel(names=list(classes)))
            for name, classes in self._tag_vocabularies.items()
        }
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
        return _LocalInfo(
            builder=self,
            description="Products with a photo and one label per attribute; -1 for a missing label.",
            features=tfds.features.FeaturesDict(
                {"id": tfds.features.Text(), "title": tfds.features.Text(), "image": image, **labels, **tags}
            ),
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
    builder = FashionProducts(records=records, data_dir=str(folder))
    shown = tqdm_utils._active
    tqdm_utils.display_progress_bar(False)  # `prepare` shows its own
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints about downloads
            builder.download_and_prepare()
    except RuntimeError as error:
        if "No space left" not in str(error):  # ArrayRecord's words for a full disk
            raise
        raise OSError(errno.ENOSPC, "No space left on device", str(folder)) from error
    finally:
        tqdm_utils.display_progress_bar(shown)
        shutil.rmtree(folder / "downloads", ignore_errors=True)  # TFDS made it; it is empty


def open_records(folder: Path, split: str) -> Any:
    """Returns random access to a split's rows, photos as JPEG bytes."""
    builder = tfds.builder_from_directory(str(folder / NAME / "1.0.0"))
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
