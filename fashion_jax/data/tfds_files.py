"""The files of a TFDS data set, read without TFDS: it would import the Python classes that features.json names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds
from google.protobuf import json_format
from grain.sources import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

LABEL_PREFIX = "label_"  # keeps an attribute called "image" or "id" apart from those
TAGS_PREFIX = "tags_"


class PhotoReader:
    """The photos of a split, in ArrayRecord files.

    Args:
        paths: of the files, in the order of the rows.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._rows = ArrayRecordDataSource([str(path) for path in paths])

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, place: int, product: str) -> bytes:
        """Returns a photo as JPEG bytes; raises whatever the libraries raise.

        Args:
            place: of the row in the split.
            product: the id that the row must have.
        """
        values = tf_example_pb2.Example.FromString(self._rows[place]).features.feature
        if values["id"].bytes_list.value[0].decode() != product:
            raise ValueError(f"a photo of the product {product!r} belongs to another product")
        photo: bytes = values["image"].bytes_list.value[0]
        return photo


def make_features(
    vocabularies: Mapping[str, tuple[str, ...]], tag_vocabularies: Mapping[str, tuple[str, ...]]
) -> tfds.features.FeaturesDict:
    """Returns what TFDS needs to know of the records.

    Args:
        vocabularies: attribute -> class names.
        tag_vocabularies: multi-valued attribute -> class names.
    """
    labels = {LABEL_PREFIX + n: tfds.features.ClassLabel(names=list(v)) for n, v in vocabularies.items()}
    tags = {
        TAGS_PREFIX + name: tfds.features.Sequence(tfds.features.ClassLabel(names=list(classes)))
        for name, classes in tag_vocabularies.items()
    }
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    return tfds.features.FeaturesDict(
        {"id": tfds.features.Text(), "title": tfds.features.Text(), "image": image, **labels, **tags}
    )


def is_described(path: Path, features: tfds.features.FeaturesDict) -> bool:
    """Returns whether a features.json is what TFDS writes for these features; raises whatever a damaged file gives."""
    return bool(json.loads(path.read_bytes()) == json_format.MessageToDict(features.to_proto()))
