"""A schema says what a table's columns mean: attributes, id, photo, title. Kaggle's schema stands here; those of other
tables are guessed in the module `columns`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fashion_jax.data.name_groups import check_pattern
from fashion_jax.system import files
from fashion_jax.system.errors import UserError, nearest

_HALF = re.compile("[\ud800-\udfff]")  # half a character, which JSON can hold
_PAIRS = "tuple[tuple[str, str], ...]"
MISSING = -1  # in place of a class number where a row has no label
NOT_APPLICABLE = "does not apply"  # the class of products that an attribute says nothing about
BETWEEN_TAGS = "|"  # stands between the values of a multi-valued attribute wherever this library writes them

# Columns of predictions.csv beside those of the attributes, and what is added to an attribute's name for its columns.
PREDICTED = {"id", "num_photos", "photos_disagree", "out_of_catalogue", "is_out_of_catalogue"}
PREDICTED_SUFFIXES = ("_confidence", "_accepted")
NOT_IN_NAMES = set("/\\\0\n\r")  # attributes' names become names of columns and files


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
            if not attribute.name or set(attribute.name) & NOT_IN_NAMES or attribute.name.startswith("."):
                raise UserError(
                    f"the attribute name {attribute.name!r} must not be empty, begin with a dot, or hold / or \\"
                )
            taken = next((f"{attribute.name}{s}" for s in PREDICTED_SUFFIXES if f"{attribute.name}{s}" in names), "")
            if attribute.name in PREDICTED or taken:
                raise UserError(
                    f"the attribute name {taken or attribute.name!r} cannot be used: predictions have a column of that "
                    'name; set another "name", and set "column" to the table\'s column'
                )
            if len(set(attribute.classes)) < len(attribute.classes):
                double = next(c for c in attribute.classes if attribute.classes.count(c) > 1)
                raise UserError(f"the attribute {attribute.name!r} names the class {double!r} twice")
            if names.count(attribute.name) > 1:
                raise UserError(
                    f"the schema names the attribute {attribute.name!r} twice; keep it either under attributes "
                    f"(one value) "
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
            raise UserError(
                "the schema has more_image_columns but no image_column; write the first of these columns as "
                "image_column"
            )
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
        """Returns the schema that `to_dict` wrote; UserError for unknown keys, wrong types and half characters."""
        if _HALF.search(json.dumps(values, ensure_ascii=False)):
            raise UserError(
                "the schema holds half a character (\\ud800 to \\udfff), which cannot be written to a file; remove "
                "it, or type the text again"
            )
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
