"""What a table's columns mean: attributes, id, photo, title. Kaggle's schema is known; others are inferred."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fashion_jax.data.name_groups import check_pattern
from fashion_jax.data.photo_cells import holds_photos, more_photo_columns
from fashion_jax.data.photo_names import PHOTO_SUFFIXES, is_address
from fashion_jax.data.values import Values, read_values
from fashion_jax.system import files
from fashion_jax.system.errors import UserError, nearest

_PAIRS = "tuple[tuple[str, str], ...]"
_GUIDE = "docs/your-catalogue.md shows one"
MISSING = -1  # in place of a class number where a row has no label
NOT_APPLICABLE = "does not apply"  # the class of products that an attribute says nothing about
BETWEEN_TAGS = "|"  # stands between the values of a multi-valued attribute wherever this library writes them

_MAX_INFERRED_CLASSES = 500
_PHOTO_HEADING = re.compile(r"image|img|photo|picture", re.IGNORECASE)
# Names of id columns without separators, the likeliest first.
_SURE_IDS = (
    "id productid sku itemid articleid variantid variantsku skuid productsku itemsku asin gtin ean ean13 upc "
    "isbn barcode uuid guid uid pid articleno articlenumber articlenr artno artnr artikelnr artikelnummer itemno "
    "itemnumber productno productnumber productcode itemcode articlecode styleid styleno stylecode stylenumber "
    "modelno modelnumber mpn referencia référence артикул 商品番号 品番 货号 商品id 商品编号 상품번호"
).split()
_USUAL_WORDS = "handle item article artikel product reference ref code no number nr".split()  # may also name labels
_IDS = [*_SURE_IDS, *_USUAL_WORDS]
_ENDS_IN_ID = re.compile(r"(?:[\W_][iI][dD]|[a-z](?:ID|Id)|^[iI][dD])$")
_LEAST_IDS = 0.1  # share of different values that a column with a usual word as its name needs
_NEARLY_UNIQUE = 0.9
_TITLES = {"title", "name", "productdisplayname", "description", "productname", "producttitle", "itemname"}
_FOLDS = {"fold", "folds", "kfold", "cv", "split", "subset", "partition"}
# Words in the names of columns that hold prices, counts, measures, ratings and times.
_AMOUNTS = set(
    (
        "price prices cost msrp rrp mrp discount rebate rabatt tax vat preis precio prix prezzo preço cena цена "
        "価格 价格 가격 stock inventory qty quantity amount count counts num units sold sales bestand menge lager "
        "cantidad quantité остаток 在庫 库存 재고 rating ratings stars score rank ranking review reviews likes views "
        "clicks votes position sort order weight length width height depth gewicht age date time timestamp day week "
        "month year years jahr año année год 年"
    ).split()
)
# Words in the names of columns that hold makers, which a photo rarely shows.
_MAKERS = set(
    "brand brands brandname marke marca marque vendor manufacturer hersteller supplier seller fabricante fabricant "
    "бренд ブランド 品牌 브랜드".split()
)
NOT_NAMED = "the schema does not name it"
_CLASSES = {"label", "labels", "class", "classes", "category", "target", "type", "kind", "attribute"}
_MOST_NUMBERS = 20  # different whole numbers that may still be numbers of classes
_SHOWN_COLUMNS = 5
_NOT_IN_NAMES = set("/\\\0\n\r")  # attributes' names become names of columns and files


@dataclass(frozen=True, slots=True)
class Attribute:
    """A label column."""

    name: str  # of the attribute, and of its column where `column` is empty
    column: str = ""  # the column's name, if it is another
    aliases: tuple[str, ...] = ()  # other names that the column may have, tried in order
    classes: tuple[str, ...] = ()  # the allowed values; empty: all values that the column holds
    min_rows: int = 1  # where `classes` is empty, a value needs so many rows to become a class
    # what to do with a value that is no class: "mask" makes the label missing, "drop" drops the row
    on_unknown: str = "mask"
    # (value, class) pairs: a value that becomes another class, such as a second spelling; an object in schema.json
    merge: tuple[tuple[str, str], ...] = ()
    # texts that become the class "does not apply", upper and lower case being the same; they are never missing labels,
    # not even the empty text
    not_applicable: tuple[str, ...] = ()

    def columns(self) -> tuple[str, ...]:
        """Returns the names that the column may have, the likeliest first."""
        return (self.column or self.name, *self.aliases)

    def fixed_classes(self) -> tuple[str, ...]:
        """Returns `classes`, with "does not apply" where there is such a class."""
        own = (NOT_APPLICABLE,) if self.classes and self.not_applicable and NOT_APPLICABLE not in self.classes else ()
        return (*self.classes, *own)


@dataclass(frozen=True, slots=True)
class MultiValued:
    """An attribute of which a product has any number of values; code calls the values tags."""

    name: str  # of the attribute, and of its column where `column` and `columns` are empty
    column: str = ""  # the column of lists, if it has another name
    # (class, column) pairs of columns that hold yes or no, in place of one column; an object in schema.json
    columns: tuple[tuple[str, str], ...] = ()
    separator: str = ""  # the text between two values of a cell; empty: it is found
    classes: tuple[str, ...] = ()  # the allowed values; empty: all values that the column holds
    min_rows: int = 1  # where `classes` is empty, a value needs so many rows to become a class
    merge: tuple[tuple[str, str], ...] = ()  # as in `Attribute`

    def used_columns(self) -> tuple[str, ...]:
        """Returns the names of its columns."""
        return tuple(column for _, column in self.columns) or (self.column or self.name,)


def _check_multi_valued(attribute: MultiValued) -> None:
    """Raises UserError for settings that contradict each other."""
    if attribute.columns and (attribute.column or attribute.separator or attribute.classes):
        raise UserError(
            f"{attribute.name!r} has columns, one for each class; leave out its column, separator and classes"
        )
    if not all(label and column for label, column in attribute.columns):
        raise UserError(f"columns of {attribute.name!r} must map each class to the name of its column")
    odd = [c for c in (*attribute.classes, *dict(attribute.columns), *dict(attribute.merge).values()) if "|" in c]
    if odd:
        raise UserError(f"{odd[0]!r} cannot be a class of {attribute.name!r}: '|' stands between two classes")


def _check_merge(attribute: Attribute | MultiValued) -> None:
    """Raises UserError for a merge with two targets, or with a target that is merged itself or is no class."""
    merged = dict(attribute.merge)
    if len(merged) < len(attribute.merge):
        raise UserError(f"merge of {attribute.name!r} names a value twice")
    for value, target in merged.items():
        if target in merged:
            raise UserError(
                f"merge of {attribute.name!r} makes {target!r} of {value!r}, and merges {target!r} itself; give every "
                "value its final class"
            )
        if not value or not target:
            raise UserError(
                f'merge of {attribute.name!r} holds an empty text; texts that mean "no label" stand in missing_values'
            )
        if attribute.classes and target not in attribute.classes:
            raise UserError(
                f"merge of {attribute.name!r} makes {target!r} of {value!r}, which is none of its classes"
                f"{nearest(target, attribute.classes)}"
            )


@dataclass(frozen=True, slots=True)
class Schema:
    """How to read a catalogue's table."""

    # of the data set; empty: the schema is inferred from the table, and only `image_root` and `group_by_name` are taken
    # from this one
    name: str
    attributes: tuple[Attribute, ...]  # the label columns, in the order of the model's heads
    id_column: str = "id"  # the column of ids; rows with one id show one product; empty: the row's number is the id
    # the column of the photos' paths, relative to the table, or of their bytes; empty: see `image_template`. A cell may
    # name several photos: `a.jpg|b.jpg`.
    image_column: str = ""
    # path of a product's photo, with `{id}`; used where `image_column` is empty
    image_template: str = "images/{id}.jpg"
    more_image_columns: tuple[str, ...] = ()  # columns with more photos of the row's product, as `image_column`
    # the column that says which rows show one product, if it is not the column of ids; its values are the products' ids
    product_column: str = ""
    # the folder to which photo paths are relative, from the table's folder or absolute; empty: the table's folder
    image_root: str = ""
    # which photos show one product by their names: "usual" (`FS-1400_1.jpg`, `FS-1400_2.jpg`), or how a name is made,
    # such as "{id}_{n}" or "{id}/{n}"; empty: names say nothing
    group_by_name: str = ""
    title_column: str = ""  # the column of titles, which are shown and help to find near-duplicates; may be empty
    split_column: str = ""  # the column that holds train, validation or test; may be empty
    # texts that mean that there is no label; upper and lower case are the same
    missing_values: tuple[str, ...] = (
        "", "-", "--", "?", "NA", "N/A", "n.a.", "#N/A", "<NA>", "NaN", "null", "None"
    )  # fmt: skip
    encoding: str = ""  # of the table, as Python names it ("cp1252"); empty: it is found
    # columns that go with the products to the index and to predictions.csv, such as price and brand; empty: guessed
    carry: tuple[str, ...] = ()
    multi_valued: tuple[MultiValued, ...] = ()  # the attributes of which a product has any number of values

    def __post_init__(self) -> None:
        every: tuple[Attribute | MultiValued, ...] = (*self.attributes, *self.multi_valued)
        names = [attribute.name for attribute in every]
        for attribute in every:
            if not attribute.name or set(attribute.name) & _NOT_IN_NAMES or attribute.name.startswith("."):
                raise UserError(
                    f"the attribute name {attribute.name!r} must not be empty, begin with a dot, or hold / or \\"
                )
            if attribute.name == "id" or f"{attribute.name}_confidence" in names:
                raise UserError(
                    f"the attribute name {attribute.name!r} cannot be used: predictions have the columns id and "
                    'NAME_confidence; set another "name", and set "column" to the table\'s column'
                )
            if len(set(attribute.classes)) < len(attribute.classes):
                double = next(c for c in attribute.classes if attribute.classes.count(c) > 1)
                raise UserError(f"the attribute {attribute.name!r} names the class {double!r} twice")
            if names.count(attribute.name) > 1:
                raise UserError(
                    f"the schema names the attribute {attribute.name!r} twice; it stands under attributes (one value) "
                    "or under multi_valued (any number of values)"
                )
            _check_merge(attribute)
        for several in self.multi_valued:
            _check_multi_valued(several)
        for one in self.attributes:
            if one.on_unknown not in ("mask", "drop"):
                raise UserError(f"on_unknown of {one.name!r} is {one.on_unknown!r}; give 'mask' or 'drop'")
        if self.group_by_name:
            check_pattern(self.group_by_name)
        if self.more_image_columns and not self.image_column:
            raise UserError("the schema has more_image_columns and no image_column; name the first column there")
        rest = self.image_template.replace("{id}", "")
        if "\0" in self.image_root:
            raise UserError("image_root holds a NUL character; give the path of a folder")
        if not self.image_column and ("{id}" not in self.image_template or set(rest) & set("{}")):
            raise UserError("the schema needs an image_column, or an image_template with {id} and no other braces")

    def columns(self) -> tuple[str, ...]:
        """Returns the names of the columns that are no attributes; empty texts are among them."""
        named = (self.id_column, self.product_column, self.image_column, self.split_column, self.title_column)
        return (*named, *self.more_image_columns)

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        for attribute in (*values["attributes"], *values["multi_valued"]):
            attribute["merge"] = dict(attribute["merge"])
        for attribute in values["multi_valued"]:
            attribute["columns"] = dict(attribute["columns"])
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schema:
        """Returns the schema that `to_dict` wrote; UserError for unknown keys and wrong types."""
        top = _checked(cls, values, "the schema")
        attributes = tuple(Attribute(**_checked(Attribute, item, "an attribute")) for item in top.pop("attributes", ()))
        several = tuple(
            MultiValued(**_checked(MultiValued, {"name": item} if isinstance(item, str) else item, "a multi_valued"))
            for item in top.pop("multi_valued", ())
        )
        if not top.get("name") or not all([item.name for item in attributes] + [item.name for item in several]):
            raise UserError("a schema and each of its attributes need a name")
        return cls(attributes=attributes, multi_valued=several, **top)


def load_schema(path: str | Path) -> Schema:
    """Reads a schema.json; UserError names what is wrong in it."""
    path = Path(path)
    try:
        values = files.read_json_object(path)
    except OSError as error:
        raise UserError(f"the schema {path} cannot be read: {error.strerror}") from error
    try:
        return Schema.from_dict(values)
    except (UserError, TypeError) as error:
        raise UserError(f"in {path}: {error}") from error


def save_schema(schema: Schema, path: str | Path) -> None:
    """Writes a schema.json that a person can edit."""
    files.write_json(path, schema.to_dict())


# Kaggle's "Fashion Product Images" (paramaggarwal). The four attributes of the documented task have fixed classes.
DOCUMENTED: dict[str, tuple[str, ...]] = {
    name: tuple(sorted(classes.split("|")))
    for name, classes in {
        "masterCategory": "Accessories|Apparel|Footwear|Personal Care",
        "subCategory": (
            "Accessories|Apparel Set|Bags|Belts|Bottomwear|Cufflinks|Dress|Eyes|Eyewear|Flip Flops|Fragrance|"
            "Headwear|Innerwear|Jewellery|Lips|Loungewear and Nightwear|Makeup|Mufflers|Nails|Sandal|Saree|"
            "Scarves|Shoe Accessories|Shoes|Skin|Skin Care|Socks|Stoles|Ties|Topwear|Wallets|Watches"
        ),
        "baseColour": (
            "Beige|Black|Blue|Bronze|Brown|Burgundy|Charcoal|Coffee Brown|Copper|Cream|Gold|Green|Grey|"
            "Grey Melange|Khaki|Lavender|Magenta|Maroon|Mauve|Metallic|Multi|Mushroom Brown|Mustard|Navy Blue|"
            "Nude|Off White|Olive|Orange|Peach|Pink|Purple|Red|Rose|Rust|Sea Green|Silver|Skin|Steel|Tan|Taupe|"
            "Teal|Turquoise Blue|White|Yellow"
        ),
        "gender": "Boys|Girls|Men|Unisex|Women",
    }.items()
}

FASHION = Schema(
    name="fashion_products",
    attributes=(
        Attribute("masterCategory", aliases=("category1",), classes=DOCUMENTED["masterCategory"], on_unknown="drop"),
        Attribute("subCategory", aliases=("category2",), classes=DOCUMENTED["subCategory"], on_unknown="drop"),
        Attribute("articleType", aliases=("category3",), min_rows=11),
        Attribute("baseColour", classes=DOCUMENTED["baseColour"], on_unknown="drop"),
        Attribute("gender", classes=DOCUMENTED["gender"], on_unknown="drop"),
        Attribute("season"),
        Attribute("usage"),
    ),
    title_column="productDisplayName",
)


def is_fashion(columns: list[str]) -> bool:
    """True when a table has the documented attributes under their names or aliases."""
    documented = [a for a in FASHION.attributes if a.name in DOCUMENTED]
    return "id" in columns and all(set(a.columns()) & set(columns) for a in documented)


def infer_schema(table: pd.DataFrame, name: str = "catalogue", *, labelled: bool = True) -> Schema:
    """Guesses the schema of a user's own table. `prepare` writes it to schema.json, which the user can edit.

    The column of ids is known by its name, such as `id`, `sku` or `product_id`, also where an id comes twice. A column
    becomes an attribute if its values repeat: 2 to 500 different values, each in 3 rows on average or more.
    `explain_unused` names what is never an attribute.

    Args:
        table: columns of text, with empty text for missing values; a column of bytes holds photos.
        name: of the data set.
        labelled: False accepts a table without attributes.

    Raises:
        UserError: no column holds photos or ids, or no column could be an attribute.
    """
    columns = [str(c) for c in table.columns]
    image = find_image_column(table)
    rest = [c for c in columns if c != image]
    id_column = find_id_column(table, rest)
    # Photos that are named by their ids need a column that certainly holds ids.
    if not image and (not id_column or _plain(id_column) in _USUAL_WORDS):
        raise UserError(
            f"no column holds photo paths (ending in {', '.join(PHOTO_SUFFIXES[:3])}) or ids; "
            f"the columns are: {', '.join(columns)}; write a schema.json that names image_column ({_GUIDE})"
        )
    split = find_split_column(table)
    title = next((c for c in rest if _plain(c) in _TITLES and c != id_column), "")
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
    return dataclasses.replace(schema, attributes=tuple(attributes))


def explain_unused(table: pd.DataFrame, schema: Schema) -> dict[str, str]:
    """Returns column -> why it is not used: why `infer_schema` makes no attribute of it, or NOT_NAMED.

    No attributes are: numbers with decimals, a currency or a unit; numbers of many different values; numbers and yes/no
    whose column is named like a price, a count, a size in units, a rating or a year; brands; dates; folds of a
    cross-validation; ids; addresses and paths of photos; and columns of one value, or of values that hardly repeat.
    """
    used = set(schema.columns()) | {column for attribute in schema.attributes for column in attribute.columns()}
    used |= {column for attribute in schema.multi_valued for column in attribute.used_columns()}
    missing = {word.casefold() for word in schema.missing_values}
    reasons = {}
    for column in map(str, table.columns):
        if column not in used:
            reasons[column] = _why_unused(column, table[column], missing) or NOT_NAMED
    return reasons


def _why_unused(column: str, cells: pd.Series, missing: set[str]) -> str:
    if any(isinstance(cell, bytes) for cell in cells.head(50)):
        return "it holds bytes"
    counts = cells.astype(str).str.strip().value_counts()
    counts = counts[[word.casefold() not in missing for word in counts.index]]
    distinct, present = len(counts), int(counts.sum())
    words = [str(word) for word in counts.index]
    if distinct < 2:
        return "it holds one value" if distinct else "it holds nothing"
    if _plain(column) in _SURE_IDS and (distinct > _MOST_NUMBERS or distinct > _LEAST_IDS * present):
        return "it holds ids"
    if column.startswith("Unnamed"):
        return "it has no name"
    if present < 3 * distinct:
        return f"its values hardly repeat: {distinct:,} different ones in {present:,} rows"
    if distinct > _MAX_INFERRED_CLASSES:
        return f"it has {distinct:,} different values; an attribute that is guessed has at most {_MAX_INFERRED_CLASSES}"
    if sum("://" in word for word in words) > distinct / 2:
        return "it holds addresses"
    if sum(word.lower().endswith(PHOTO_SUFFIXES) for word in words) > distinct / 2:
        return "it holds names of photos"
    return _why_no_class(column, words, read_values(words))


def _why_no_class(column: str, words: list[str], values: Values) -> str:
    """Returns why values that repeat are no classes; "" if they may be."""
    names = set(_tokens(column))
    if names & _MAKERS:
        return "it is named like a brand, which photos rarely show"
    if values.kind == "date":
        return "it holds dates"
    if names & _FOLDS and values.kind == "number":
        return "it is a fold of a cross-validation"
    if names & _AMOUNTS and (values.kind in ("number", "boolean") or any(word[0].isdigit() for word in words)):
        return "it is named like a price, a count or a measure"
    if values.kind != "number":
        return "its numbers have several units or currencies" if "several units" in values.how else ""
    if ", in " in values.how or not all(isinstance(value, float) and value.is_integer() for value in values.values):
        return "it holds numbers with decimals, a currency or a unit"
    if all(1900 <= value <= 2100 for value in values.values if isinstance(value, float)):
        return "it holds years"
    if len(words) > _MOST_NUMBERS and not names & _CLASSES:
        return f"it holds numbers, {len(words):,} different ones"
    return ""


def find_repeated_ids(table: pd.DataFrame, schema: Schema) -> dict[str, int]:
    """Returns the unused columns that are named like ids and whose values repeat -> the number of different values."""
    found = {}
    for column in map(str, table.columns):
        if _plain(column) in _SURE_IDS and column not in schema.columns():
            present = table[column][table[column] != ""]
            count = present.nunique()
            if len(present) == len(table) and _LEAST_IDS * len(table) < count < _NEARLY_UNIQUE * len(table):
                found[column] = int(count)
    return found


def find_id_column(table: pd.DataFrame, columns: list[str]) -> str:
    """Returns the column of ids, or "".

    A column is known by its name, upper and lower case and separators ignored. Of several, the first in the order of
    `_IDS` whose ids hardly repeat is taken, or else the first. A column with a usual word as its name (`item`, `code`)
    must have many different values. Without a known name, a column of unique values whose name ends in "id" is taken.
    """
    named = named_ids(columns)
    shares = {}
    for column in columns:
        present = table[column][table[column] != ""]
        if not len(present) or any(isinstance(cell, bytes) for cell in present.head(50)):
            continue
        share = present.nunique() / len(present)
        whole = len(present) == len(table) and share == 1
        is_named = column in named and (share > _LEAST_IDS or _plain(column) in _SURE_IDS)
        if (is_named and share * len(present) > 1) or (whole and _ENDS_IN_ID.search(column)):
            shares[column] = share
    known = [c for c in named if c in shares]
    nearly = [c for c in known if shares[c] >= _NEARLY_UNIQUE]
    return next(iter([*nearly, *known, *shares]), "")


def named_ids(columns: Iterable[str]) -> list[str]:
    """Returns the columns that have a usual name of a column of ids, the likeliest first."""
    return sorted((c for c in columns if _plain(c) in _IDS), key=lambda c: _IDS.index(_plain(c)))


def _plain(column: str) -> str:
    """Returns a column's name in small letters without separators: "Product-ID" becomes "productid"."""
    return "".join(letter for letter in column.casefold() if letter.isalnum())


def _tokens(column: str) -> list[str]:
    """Returns the words of a column's name in small letters: "unitPrice (EUR)" becomes unit, price, eur."""
    return [word.casefold() for word in re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+|[^\W_]+", column)]


def find_image_column(table: pd.DataFrame) -> str:
    """Returns the column of photos' bytes, or else of photos' names or addresses; or ""."""
    samples = {str(c): table[c][table[c].astype(bool)].head(50).tolist() for c in table.columns}
    for column, sample in samples.items():
        if sample and all(isinstance(v, (bytes, tuple)) for v in sample):
            return column
    photos = [column for column in samples if holds_photos(table[column])]
    # A column of files comes before a column of the same photos' addresses.
    local = [c for c in photos if not any(is_address(str(cell)) for cell in samples[c])]
    if local or photos:
        return (local or photos)[0]
    for column, sample in samples.items():  # `https://host/photo/123` does not end like a photo's name
        texts = [v for v in sample if isinstance(v, str)]
        if _PHOTO_HEADING.search(column) and sum(map(is_address, texts)) > len(texts) / 2:
            return column
    return ""


def find_split_column(table: pd.DataFrame) -> str:
    """Returns the column named split, subset or fold that holds train, validation or test in every row; or ""."""
    known = {"train", "training", "validation", "valid", "val", "dev", "test", "testing"}
    named = [str(c) for c in table.columns if str(c).lower() in ("split", "subset", "fold")]
    return next((c for c in named if set(table[c].astype(str).str.strip().str.lower()) <= known), "")


def _attribute_name(column: str, taken: set[str]) -> str:
    """Returns an attribute's name for a column: "Size/Fit" becomes "Size_Fit"."""
    name = "".join("_" if c in _NOT_IN_NAMES else c for c in column).lstrip(".") or "attribute"
    clashes = (
        name == "id" or name in taken or f"{name}_confidence" in taken or name.removesuffix("_confidence") in taken
    )
    return f"{name}_label" if clashes else name


def _checked(kind: type, values: Any, what: str) -> dict[str, Any]:
    """Returns the values of a dataclass's fields; UserError for unknown keys and wrong types."""
    if not isinstance(values, Mapping):
        raise UserError(f"{what} must be a JSON object, not {type(values).__name__}")
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"{what} has an unknown key {key!r}{nearest(str(key), fields)}")
        if fields[key] == _PAIRS:
            if not isinstance(value, Mapping) or not all(isinstance(i, str) for i in [*value, *value.values()]):
                raise UserError(f"{key!r} of {what} must be an object of strings, not {value!r}")
            checked[key] = tuple((str(one), str(two)) for one, two in value.items())
            continue
        wanted: type = {"str": str, "int": int}.get(fields[key], list)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise UserError(f"{key!r} of {what} must be {wanted.__name__}, not {value!r}")
        if isinstance(value, list) and fields[key] == "tuple[str, ...]" and not all(isinstance(i, str) for i in value):
            raise UserError(f"{key!r} of {what} must be a list of strings, not {value!r}")
        checked[key] = tuple(value) if isinstance(value, list) else value
    return checked
