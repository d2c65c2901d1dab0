"""What the columns of a user's table mean: guessed from their headings and cells."""

from __future__ import annotations

import dataclasses
import json
import posixpath
from collections import Counter
from collections.abc import Iterable

import pandas as pd

from fashion_jax.data.headings import (
    are_splits,
    id_kind,
    id_rank,
    names_amount,
    names_classes,
    names_fold,
    names_maker,
    names_part,
    names_state,
    photo_rank,
    photo_role,
    plain_photo_heading,
    words_of,
)
from fashion_jax.data.photo_cells import SAMPLE as _SAMPLE
from fashion_jax.data.photo_cells import holds_photos, split_photos
from fashion_jax.data.photo_names import PHOTO_SUFFIXES, is_address, names_photo, without_query
from fashion_jax.data.schema import NOT_IN_NAMES, PREDICTED, PREDICTED_SUFFIXES, Attribute, Schema
from fashion_jax.data.splits import SPLIT_NAMES
from fashion_jax.data.values import Values, read_values
from fashion_jax.system.errors import UserError

NOT_NAMED = "the schema does not name it"
_GUIDE = "docs/your-catalogue.md shows one"
_MAX_INFERRED_CLASSES = 500
_LEAST_IDS = 0.1  # share of different values that a column with a usual word as its name needs
_NEARLY = 0.9  # share of rows with an id, or of different ids, from which on a column is full, or its ids are unique
_MOST_PHOTOS = 100  # rows of a table of one product
_TITLES = {"title", "name", "productdisplayname", "description", "productname", "producttitle", "itemname"}
_MOST_NUMBERS = 20  # different whole numbers that may still be numbers of classes
_SHOWN_COLUMNS = 5


def infer_schema(
    table: pd.DataFrame, name: str = "catalogue", *, labelled: bool = True
) -> tuple[Schema, dict[str, str]]:
    """Guesses the schema of a user's own table. `prepare` writes it to schema.json, which the user can edit.

    The column of ids is known by its name, such as `id`, `sku` or `product_id`, also where an id comes twice. A column
    becomes an attribute if its values repeat: 2 to 500 different values, each in 3 rows on average or more.
    `explain_unused` names what is never an attribute.

    Args:
        table: columns of text, with empty text for missing values; a column of bytes holds photos.
        name: of the data set.
        labelled: False accepts a table without attributes.

    Returns:
        The schema, and what `explain_unused` says about it.

    Raises:
        UserError: no column holds photos or ids, or no column could be an attribute.
    """
    columns = [str(c) for c in table.columns]
    image = find_image_column(table)
    rest = [c for c in columns if c != image]
    id_column = find_id_column(table, rest)
    # Photos that are named by their ids need a column that certainly holds ids.
    if not image and (not id_column or id_kind(id_column) in ("usual", "model")):
        raise UserError(
            f"no column holds photo paths (ending in {', '.join(PHOTO_SUFFIXES[:3])}) or ids; "
            f"the columns are: {', '.join(columns)}; write a schema.json that names image_column ({_GUIDE})"
        )
    split = find_split_column(table)
    title = next((c for c in rest if "".join(words_of(c)) in _TITLES and c != id_column), "")
    schema = Schema(
        name,
        (),
        id_column=id_column,
        image_column=image,
        more_image_columns=more_photo_columns(table, image),
        title_column=title,
        split_column=split,
    )
    unused = explain_unused(table, schema)
    attributes: list[Attribute] = []
    for column in rest:
        if unused.get(column) != NOT_NAMED:
            continue
        name_of = _attribute_name(column, {item.name for item in attributes})
        attributes.append(Attribute(name_of, column="" if name_of == column else column))
    if not attributes and labelled:
        reasons = "; ".join(f"{column}: {reason}" for column, reason in list(unused.items())[:_SHOWN_COLUMNS])
        raise UserError(
            f"no column looks like an attribute (2 to {_MAX_INFERRED_CLASSES} values that repeat); "
            f"the columns are: {', '.join(columns)} ({reasons}); write a schema.json that names attributes ({_GUIDE})"
        )
    named = {column: reason for column, reason in unused.items() if reason != NOT_NAMED}
    return dataclasses.replace(schema, attributes=tuple(attributes)), named


def explain_unused(table: pd.DataFrame, schema: Schema) -> dict[str, str]:
    """Returns column -> why it is not used: why `infer_schema` makes no attribute of it, or NOT_NAMED.

    No attributes are: numbers with decimals, a currency or a unit; numbers of many different values; numbers and yes/no
    whose column is named like a price, a count, a size in units, a rating or a year; brands; dates; folds of a
    cross-validation and parts of a split; what a shop does with a product, such as its availability; ids of products
    and of groups of products; addresses and paths of photos; results of `predict`; and columns of one value, or of
    values that hardly repeat.
    """
    used = set(schema.columns()) | {column for attribute in schema.attributes for column in attribute.columns()}
    used |= {column for attribute in schema.multi_valued for column in attribute.used_columns()}
    missing = {word.casefold() for word in schema.missing_values}
    reasons = {}
    for column in map(str, table.columns):
        if column in used:
            continue
        if any(isinstance(cell, bytes) for cell in table[column].head(_SAMPLE)):
            reasons[column] = "it holds bytes"
        elif holds_photos(table[column]) and not _holds_addresses(table[column]):
            key = "more_image_columns" if schema.image_column else "image_column"
            reasons[column] = f"it holds names of photos too; to use it, name it in the schema's {key}"
        else:
            reasons[column] = _why_unused(column, table[column], missing) or NOT_NAMED
        if reasons[column] == NOT_NAMED and _is_result(column, table):
            reasons[column] = "it holds results of `fashion-jax predict`"
    return reasons


def _why_unused(column: str, cells: pd.Series, missing: set[str]) -> str:
    counts = Counter([str(cell).strip() for cell in cells.tolist()])
    longest = max(map(len, missing), default=0)
    for word in [word for word in counts if len(word) <= longest and word.casefold() in missing]:
        del counts[word]
    distinct, present = len(counts), counts.total()
    if distinct < 2:
        return "it holds one value" if distinct else "it holds nothing"
    if _holds_ids(column, counts):
        return "it holds ids"
    if column.startswith("Unnamed"):
        return "it has no name"
    if present < 3 * distinct:
        return f"its values hardly repeat: {distinct:,} different ones in {present:,} rows"
    if distinct > _MAX_INFERRED_CLASSES:
        return f"it has {distinct:,} different values; an attribute that is guessed has at most {_MAX_INFERRED_CLASSES}"
    words = list(counts)
    if sum("://" in word for word in words) > distinct / 2:
        return "it holds addresses"
    return _why_no_class(column, words, read_values(words))


def _holds_ids(column: str, counts: Counter[str]) -> bool:
    """True for a column that is named like ids, unless its few values look like labels.

    Args:
        column: its name.
        counts: value -> rows.
    """
    kind = id_kind(column)
    many = len(counts) > _MOST_NUMBERS or len(counts) > _LEAST_IDS * counts.total()
    if kind in ("sure", "group") and [word for word in words_of(column) if not word.isdigit()] != ["id"]:
        return many or read_values(list(counts)).kind != "boolean"
    if kind in ("usual", "model"):
        is_name = words_of(column) == ["handle"] or (kind == "model" and words_of(column) != ["style"])
        coded = sum(any(c.isdigit() for c in word) for word in counts) > len(counts) / 2
        return len(counts) > _LEAST_IDS * counts.total() and (is_name or coded)
    return bool(kind) and many


def _is_result(column: str, table: pd.DataFrame) -> bool:
    """True for numbers and yes/no in a column that `predict` adds to its table, such as `colour_accepted`."""
    of = next((column.removesuffix(s) for s in PREDICTED_SUFFIXES if column.endswith(s)), "")
    if column not in PREDICTED and not (of and of in table.columns):
        return False
    return read_values(list({str(cell).strip() for cell in table[column]})).kind in ("number", "boolean")


def _why_no_class(column: str, words: list[str], values: Values) -> str:
    """Returns why values that repeat are no classes; "" if they may be."""
    if are_splits(words) or (names_part(column) and values.kind == "boolean"):
        return "it looks like a split; name it as split_column if every row has train, validation or test"
    if names_maker(column):
        return "it is named like a brand, which photos rarely show"
    if values.kind == "date":
        return "it holds dates"
    if names_fold(column) and values.kind == "number":
        return "it is a fold of a cross-validation"
    if names_state(column):
        return "it is named like what a shop does with a product, which no photo shows"
    if names_amount(column) and (values.kind in ("number", "boolean") or any(word[0].isdigit() for word in words)):
        return "it is named like a price, a count or a measure"
    if values.kind != "number":
        return "its numbers have several units or currencies" if "several units" in values.how else ""
    if ", in " in values.how or not all(isinstance(value, float) and value.is_integer() for value in values.values):
        return "it holds numbers with decimals, a currency or a unit"
    if all(1900 <= value <= 2100 for value in values.values if isinstance(value, float)):
        return "it holds years"
    if len(words) > _MOST_NUMBERS and not names_classes(column):
        return f"it holds numbers, {len(words):,} different ones"
    return ""


def find_repeated_ids(table: pd.DataFrame, schema: Schema) -> dict[str, int]:
    """Returns the unused columns that are named like ids and whose values repeat -> the number of different values."""
    found = {}
    for column in map(str, table.columns):
        if id_kind(column) not in ("", "other") and column not in schema.columns():
            counts = Counter(str(cell) for cell in table[column].tolist() if cell != "")
            full = counts.total() == len(table) and 1 < len(counts) < _NEARLY * len(table)
            if full and len(counts) > _LEAST_IDS * len(table) and _holds_ids(column, counts):
                found[column] = len(counts)
    return found


def find_id_column(table: pd.DataFrame, columns: list[str]) -> str:
    """Returns the column of ids, or "".

    A column is known by its name, upper and lower case, accents and separators ignored. Columns with an id in nearly
    every row come first, of these the ones whose ids hardly repeat, and then the likeliest name. A column with a usual
    word as its name (`item`, `code`) must have many different values. A short table may hold one product, with one id
    in its rows, if the column's name says clearly that it holds ids. Without a known name, a column of unique values
    whose name ends in "id" is taken.
    """
    found: list[tuple[bool, bool, tuple[int, int, int], str]] = []
    rows = len(table)
    for column in columns:
        kind = id_kind(column)
        if not kind:
            continue
        present = [cell for cell in table[column].tolist() if cell != ""]
        if not present or any(isinstance(cell, (bytes, tuple)) for cell in present[:_SAMPLE]):
            continue
        share, full = len(set(present)) / len(present), len(present) >= _NEARLY * rows
        if kind == "other" and (share < 1 or len(present) < rows):
            continue
        if (kind == "usual" and share <= _LEAST_IDS) or (kind == "model" and not (full and share >= _NEARLY)):
            continue
        one_product = kind in ("sure", "group") and full and rows <= _MOST_PHOTOS
        if len(set(present)) > 1 or kind == "other" or one_product:
            found.append((not full, share < _NEARLY, id_rank(column), column))
    certain = [item for item in found if id_kind(item[-1]) in ("sure", "group")]
    if certain and all(sparse for sparse, *_ in certain):
        # An id that most rows lack, such as the SKU of a row that only names one more photo of its product.
        found = [i for i in found if i in certain or (id_kind(i[-1]) == "usual" and _in_blocks(table[i[-1]]))]
    others = [item for item in found if id_kind(item[-1]) == "other"]
    named = [item for item in found if item not in others]
    return min(named or others, key=lambda item: item[:-1], default=("",))[-1]


def _in_blocks(cells: pd.Series) -> bool:
    """True where equal cells follow each other, as the rows of a product do; labels come in any order."""
    return int((cells != cells.shift()).sum()) <= 1.1 * cells.nunique()


def named_ids(columns: Iterable[str]) -> list[str]:
    """Returns the columns that have a usual name of a column of ids, the likeliest first."""
    return sorted((c for c in columns if id_kind(c) not in ("", "other")), key=id_rank)


def find_image_column(table: pd.DataFrame) -> str:
    """Returns the column of photos' bytes, or else of photos' names or addresses; or "".

    Of several, thumbnails, logos, masks and the like come last; files come before addresses, because the photos at
    addresses are not read; then come columns whose cells differ, and those with a word for photos as their name.
    """
    found: list[tuple[tuple[float, ...], str]] = []
    for column in map(str, table.columns):
        sample = table[column][table[column].astype(bool)].head(_SAMPLE).tolist()
        if not sample:
            continue
        in_bytes = all(isinstance(cell, (bytes, tuple)) for cell in sample)
        texts = [cell for cell in sample if isinstance(cell, str)]
        rank, role = photo_rank(column), ("photo", "thumbnail", "other").index(photo_role(column))
        endless = False  # `https://host/photo/123` does not end like a photo's name
        if not in_bytes and not holds_photos(table[column]):
            endless = photo_rank(column) < 2 and sum(map(is_address, texts)) > len(texts) / 2
            if not endless:
                continue
        different = len(set(map(str, sample))) if not in_bytes else len(sample)
        if role == 2 and different <= len(sample) / 2 and len(sample) > 2:
            continue  # one logo for many products is no photo of them
        addresses = any(map(is_address, texts))
        found.append(((role, not in_bytes, endless, addresses, different == 1 < len(sample), rank), column))
    return min(found, key=lambda item: item[0], default=((), ""))[1]


def more_photo_columns(table: pd.DataFrame, first: str) -> tuple[str, ...]:
    """Returns the columns that hold more photos of a row's product: `Photo 2` and `Photo 3` beside `Photo 1`.

    Their headings differ from the first one's in numbers and in words such as "additional", "front" and "back". A
    column of addresses beside a column of files holds the same photos.
    """
    wanted = plain_photo_heading(first)
    return tuple(c for c in _other_photos(table, first) if plain_photo_heading(c) == wanted)


def offer_photo_columns(table: pd.DataFrame, schema: Schema) -> list[str]:
    """Returns a sentence about columns that name other photos than the schema's columns do; none where there are none.

    Columns of thumbnails, logos, masks and the like are left out.
    """
    first, used = schema.image_column, [schema.image_column, *schema.more_image_columns]
    others = [c for c in _other_photos(table, first) if c not in used and not _same_photos(table, c, used)]
    if not others:
        return []
    names = ", ".join(map(repr, others))
    columns = json.dumps([*schema.more_image_columns, *others], ensure_ascii=False)
    return [
        f"column{'s' if len(others) > 1 else ''} {names}: other photos than in {first!r}; if they show the same "
        f'products, write into the schema: "more_image_columns": {columns}'
    ]


def _other_photos(table: pd.DataFrame, first: str) -> list[str]:
    if not first or any(isinstance(cell, (bytes, tuple)) for cell in table[first].head(_SAMPLE)):
        return []
    by_address = _holds_addresses(table[first])
    others = [c for c in map(str, table.columns) if c != first and photo_role(c) == "photo"]
    return [c for c in others if holds_photos(table[c]) and (by_address or not _holds_addresses(table[c]))]


def _same_photos(table: pd.DataFrame, column: str, used: list[str]) -> bool:
    """True where a column names no file that the row's used columns do not name."""
    for cells in table[table[column].astype(bool)].head(_SAMPLE)[[column, *used]].itertuples(index=False, name=None):
        own, *others = ([_path(photo) for photo in split_photos(cell)] for cell in map(str, cells))
        known = {photo for photos in others for photo in photos}
        copies = {posixpath.basename(photo) for photo in known if is_address(photo)}  # names of the addresses' files
        if not all(photo in known or posixpath.basename(photo) in copies for photo in own if names_photo(photo)):
            return False
    return True


def _path(photo: str) -> str:
    """Returns a photo's path or address as it is compared."""
    return without_query(photo).replace("\\", "/").casefold()


def _holds_addresses(cells: pd.Series) -> bool:
    sample = cells[cells.astype(bool)].head(_SAMPLE)
    return any(is_address(photo) for cell in sample if isinstance(cell, str) for photo in split_photos(cell))


def find_split_column(table: pd.DataFrame) -> str:
    """Returns the column named split, subset, fold or partition that holds train, validation or test in every row."""
    for column in map(str, table.columns):
        if names_fold(column) and set(table[column].astype(str).str.strip().str.lower()) <= SPLIT_NAMES.keys():
            return column
    return ""


def _attribute_name(column: str, taken: set[str]) -> str:
    """Returns an attribute's name for a column: "Size/Fit" becomes "Size_Fit"."""
    name = "".join("_" if c in NOT_IN_NAMES else c for c in column).lstrip(".") or "attribute"
    clashes = name in taken or name == "id" or name in PREDICTED
    for suffix in PREDICTED_SUFFIXES:
        clashes = (
            clashes or f"{name}{suffix}" in taken or (name.endswith(suffix) and name.removesuffix(suffix) in taken)
        )
    return f"{name}_label" if clashes else name
