"""Reads Parquet files, also those of the Hugging Face Hub, whose metadata holds the names of classes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fashion_jax.data.table_limits import MAX_TABLE_BYTES, check_bytes, check_shape
from fashion_jax.data.values import cell_text
from fashion_jax.system import stored
from fashion_jax.system.errors import UserError

_BATCH_ROWS = 1000  # that are unpacked at a time


def read_parquet(name: str, data: bytes) -> tuple[dict[str, list[Any]], int, Counter[str]]:
    """Reads a Parquet file.

    Class numbers become the names that the file's metadata holds. A column of images becomes the photos' bytes, or
    their paths where no photo is inside. A column whose values have no text, such as dates beyond the year 9999, is
    left out, and counted as a repair.

    Returns:
        The columns, as texts or bytes; the number of rows; and name of a repair -> rows that needed it.

    Raises:
        UserError: the file cannot be read, or is too large.
    """
    repairs: Counter[str] = Counter()
    columns: dict[str, list[Any]] = {}
    with stored.reading(Path(name), "it is no Parquet file that can be read; write it anew, or as CSV UTF-8"):
        arrow = _read_arrow(name, data)
        features = _features(arrow.schema.metadata)
        for column in arrow.column_names:
            found: Counter[str] = Counter()
            try:
                values = _read_column(arrow.column(column), features.get(column), found)
            except Exception as error:  # Arrow knows more types and values than Python
                values, found = None, Counter({f"column {column!r} was not read ({stored.first_line(error)})": 1})
            else:
                if values is None:
                    found = Counter({f"column {column!r} holds nested values and was not read": 1})
            repairs += found
            if values is not None:
                columns[column] = values
    return columns, len(arrow), repairs


def _read_arrow(name: str, data: bytes) -> pa.Table:
    """Reads the columns part by part, because a small file may unpack to more than the memory."""
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    schema, rows = file.schema_arrow, file.metadata.num_rows
    check_shape(name, rows, len(schema))
    doubles = [column for column, count in Counter(schema.names).items() if count > 1]
    if doubles:
        raise UserError(f"{name} has two columns named {doubles[0]!r}; rename one")
    parts: list[list[pa.Array]] = [[] for _ in schema]
    size = 0
    for batch in file.iter_batches(batch_size=_BATCH_ROWS):
        for part, values in zip(parts, batch.columns, strict=True):
            plain = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
            size += plain.nbytes
            part.append(plain)
        check_bytes(name, size, MAX_TABLE_BYTES, "unpacked, it")
    fields = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in schema]
    plain_schema = pa.schema(fields, schema.metadata)
    return pa.table([pa.chunked_array(p, f.type) for p, f in zip(parts, fields, strict=True)], schema=plain_schema)


def _read_column(values: pa.ChunkedArray, feature: Any, repairs: Counter[str]) -> list[Any] | None:
    """Returns texts or bytes, or None for values that are neither."""
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType) and pa.types.is_nested(kind.storage_type):
        return None
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:  # Hugging Face's image type
        photos = pa.chunked_array([chunk.field("bytes") for chunk in values.chunks], kind.field("bytes").type)
        if photos.null_count == len(photos) and kind.get_field_index("path") >= 0:
            photos = pa.chunked_array([chunk.field("path") for chunk in values.chunks], kind.field("path").type)
        values, kind = photos, photos.type
    if _is_bytes(kind):
        return [value or b"" for value in values.to_pylist()]
    item = kind.value_type if _is_list(kind) else kind
    if _is_list(kind) and (pa.types.is_struct(item) or _is_bytes(item)):
        return _read_photo_lists(values, item)
    if pa.types.is_nested(item) or pa.types.is_dictionary(item) or _is_bytes(item):
        return None
    names = _class_names(feature)
    cells = values.to_pylist()
    if names and pa.types.is_integer(item):
        return [_name_classes(cell, names, repairs) for cell in cells]
    if pa.types.is_float32(item) or pa.types.is_float16(item):  # 0.1 as 0.1, and not as 0.10000000149
        cells = [_narrow(cell) for cell in cells]
    return [cell_text(cell) for cell in cells]


def _read_photo_lists(values: pa.ChunkedArray, item: pa.DataType) -> list[Any] | None:
    """Returns a tuple of photos' bytes for each row, or paths joined by `|` where no photo is inside."""
    if pa.types.is_struct(item) and (item.get_field_index("bytes") < 0 or not _is_bytes(item.field("bytes").type)):
        return None
    cells = [[part for part in cell or [] if part is not None] for cell in values.to_pylist()]
    if not pa.types.is_struct(item):
        return [tuple(cell) for cell in cells]
    if any(part["bytes"] for cell in cells for part in cell):
        return [tuple(part["bytes"] for part in cell if part["bytes"]) for cell in cells]
    return ["|".join(part.get("path") or "" for part in cell) for cell in cells]


def _is_bytes(kind: pa.DataType) -> bool:
    known = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(is_kind(kind) for is_kind in known)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Returns column -> description as the library `datasets` writes it; nothing where there is none."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except Exception:  # it is no JSON, nested too deep, or another one
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(feature: Any) -> list[str]:
    """Returns the names of a ClassLabel, or of a list of them."""
    for _ in range(2):
        if isinstance(feature, list):
            feature = feature[0] if feature else None
        if not isinstance(feature, dict):
            return []
        names = feature.get("names")
        if feature.get("_type") == "ClassLabel" and isinstance(names, list):
            return [str(name) for name in names]
        feature = feature.get("feature")
    return []


def _name_classes(cell: Any, names: list[str], repairs: Counter[str]) -> str:
    if isinstance(cell, list):
        return "|".join(name for item in cell if (name := _name_classes(item, names, repairs))) or (
            "" if cell else "[]"
        )
    if cell is None or cell == -1:  # -1 is a missing label
        return ""
    if not 0 <= cell < len(names):
        repairs["class numbers without a name, read as missing"] += 1
        return ""
    return names[cell].strip()


def _narrow(cell: Any) -> Any:
    if isinstance(cell, list):
        return [_narrow(item) for item in cell]
    return None if cell is None else np.float32(cell)
