"""Reads any catalogue: finds its table and photos, applies the schema, and notes why a row is left out."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import posixpath
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from fashion_jax.data.archives import Files, open_files
from fashion_jax.data.carried import Carried, carry_columns
from fashion_jax.data.columns import (
    explain_unused,
    find_image_column,
    find_repeated_ids,
    find_split_column,
    infer_schema,
    more_photo_columns,
    offer_photo_columns,
)
from fashion_jax.data.corrections import Corrections, apply_corrections, read_corrections
from fashion_jax.data.encodings import Text
from fashion_jax.data.headings import has_photo_heading
from fashion_jax.data.name_groups import (
    USUAL,
    check_fits,
    group_names,
    looks_grouped,
    looks_like_folders,
    product_of,
    stem_of,
)
from fashion_jax.data.photo_cells import listed
from fashion_jax.data.photo_names import (
    HEIC_SUFFIXES,
    base_name,
    enable_heic,
    is_address,
    is_litter,
    is_placeholder,
    kind_of_file,
    names_photo,
    readable,
)
from fashion_jax.data.photo_paths import ABSENT, ADDRESS, OUTSIDE, Found, PhotoFinder
from fashion_jax.data.photos import BadPhoto, UnreadPhoto
from fashion_jax.data.product_ids import check_ids, clean_ids, explain_no_id
from fashion_jax.data.schema import DOCUMENTED, FASHION, NOT_APPLICABLE, Attribute, Schema, is_fashion, load_schema
from fashion_jax.data.sources import Source, find_source
from fashion_jax.data.tables import TABLE_SUFFIXES, Table, join_tables, one_line, read_table
from fashion_jax.data.tags import TagColumn, choose_classes, find_classes, offer_tags, read_tags
from fashion_jax.data.words import clean_column, clean_label, find_look_alikes, find_missing
from fashion_jax.system import files
from fashion_jax.system.errors import UserError, nearest

_PLACEHOLDER = "the row names a placeholder in place of a photo"  # a kind of reasons
# A photo that so many products share, or so many and such a share of the products, may be a placeholder.
_MANY_PRODUCTS, _SOME_PRODUCTS, _SOME_SHARE = 10, 4, 0.1
_SHOWN_SHARED = 3  # photos
_SHOWN = 5  # columns
_MOST_LOST = 0.2  # share of photos that are named by ids and absent; above it, names with endings are looked for


@dataclass(frozen=True, slots=True)
class Record:
    """A usable photo with the labels of its product."""

    number: int  # unique in the catalogue, from 1; ascending in the table's order
    row: int  # number of its row in the table, from 1
    id: str  # of its product; the photos of one product share it
    title: str  # for people; may be empty
    labels: tuple[str | None, ...]  # one for each attribute of the schema, None where missing
    split: str  # the text in the table's split column, or empty
    photo: str | bytes  # the name of its file, or its bytes
    # one text for each multi-valued attribute of the schema, as the module `tags` writes it
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was left out."""

    row: int  # number in the table, from 1
    id: str  # of the product; may be empty
    reason: str  # why it was left out
    kind: str = ""  # what the reason is counted as; empty: the reason without names and numbers
    by_schema: bool = False  # whether the row is fine and the schema drops it
    is_repeat: bool = False  # whether other rows hold all that the row says, so that nothing is lost

    def __str__(self) -> str:
        return f"row {self.row} (id {self.id!r}): {self.reason}"


@dataclass
class Catalog:
    """A catalogue whose table has been read, and whose photos have not."""

    source: str  # as given
    schema: Schema  # how the table was read
    files: Files  # reads the photos
    table_digest: str  # hash of the table's bytes
    photo_sizes: dict[str, int]  # name of a photo's file -> bytes
    records: list[Record] = field(default_factory=list)  # usable photos, in the table's order
    # rows that were left out, those that the schema drops included
    rejected: list[Rejected] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows that the schema drops
    repairs: Counter[str] = field(default_factory=Counter)  # repair of the table -> rows that needed it
    num_rows: int = 0  # the rows of the table
    # rows that have a known class in every attribute with fixed classes, with or without a photo
    documented_rows: int = 0
    vocabularies: dict[str, tuple[str, ...]] = field(default_factory=dict)  # attribute -> class names, sorted
    # kind of file -> files of the source that are neither its table nor a photo that a row names
    passed_over: Counter[str] = field(default_factory=Counter)
    # attribute -> products whose rows give it different labels
    differing: Counter[str] = field(default_factory=Counter)
    offers: list[str] = field(default_factory=list)  # what could be read in another way, as sentences
    text: Text | None = None  # the table's encoding, with sample words; None for Parquet and Excel
    # attribute -> word that was taken as a missing label, the empty one included -> rows
    missing_words: dict[str, Counter[str]] = field(default_factory=dict)
    # attribute -> value that is no class, because the schema does not name it or it has too few rows -> rows
    masked_words: dict[str, Counter[str]] = field(default_factory=dict)
    merged: dict[str, Counter[str]] = field(default_factory=dict)  # attribute -> value that was merged -> rows
    # attribute -> word that became the class "does not apply" -> rows
    not_applicable: dict[str, Counter[str]] = field(default_factory=dict)
    tags: dict[str, TagColumn] = field(default_factory=dict)  # multi-valued attribute -> its values and classes
    # attribute -> groups of classes that differ in case, spaces or hyphens only: class -> rows, the likeliest first
    look_alikes: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)  # column that is not used -> why it is no attribute
    carried: Carried = field(default_factory=Carried)  # columns that go with the products to the results
    corrections: Corrections | None = None  # the corrections that were applied to the table
    corrected: Counter[str] = field(default_factory=Counter)  # attribute -> labels that the corrections changed
    temporary: tempfile.TemporaryDirectory[str] | None = None  # a folder that must exist while the catalogue is used

    @property
    def num_bad(self) -> int:
        """Number of rows and photos that are lost because something is wrong with them."""
        return sum(not (item.by_schema or item.is_repeat) for item in self.rejected)

    @property
    def num_products(self) -> int:
        """Number of products that have a usable photo."""
        return len(self.count_photos())

    def name_photos(self) -> dict[int, str]:
        """Returns record number -> name of its photo: the file's name in the catalogue, or "row N" for bytes."""
        names, rows = {}, Counter[int]()
        for record in self.records:
            if isinstance(record.photo, str):
                names[record.number] = readable(record.photo)
            else:
                rows[record.row] += 1
                again = f", photo {rows[record.row]}" if rows[record.row] > 1 else ""
                names[record.number] = f"row {record.row}{again}"
        return names

    def count_photos(self) -> Counter[str]:
        """Returns product's id -> number of its usable photos."""
        return Counter(record.id for record in self.records)

    def stamp(self) -> str:
        """Returns a hash of table, corrections, schema, and the photos' names, sizes, and times or checksums.

        It changes when the source changes. No photo is read for it.
        """
        names = sorted({p.photo for p in self.records if isinstance(p.photo, str)})
        used = [(name, self.photo_sizes.get(name, 0), self.files.stamp(name)) for name in names]
        schema = {
            key: value for key, value in self.schema.to_dict().items() if key not in ("name", "image_root", "carry")
        }
        changes = self.corrections.digest() if self.corrections else ""
        return files.digest([self.table_digest, used, schema, *([changes] if changes else [])])

    def iter_photos(self, records: Iterable[Record]) -> Iterator[tuple[Record, bytes | BadPhoto]]:
        """Yields every given record once, with its photo's bytes, in the order in which reading is fastest."""
        by_name: dict[str, list[Record]] = {}
        for record in records:
            if isinstance(record.photo, bytes):
                yield record, record.photo
            else:
                by_name.setdefault(record.photo, []).append(record)
        for name, data in self.files.read_many(by_name):
            for record in by_name[name]:
                yield record, UnreadPhoto(f"the photo cannot be read: {data}") if isinstance(data, OSError) else data


def open_catalog(
    source: str | Path, schema: Schema | None = None, *, labelled: bool = True, corrections: str | Path | None = None
) -> Catalog:
    """Reads a catalogue's table and finds its photos.

    Args:
        source: one of: a zip or tar (plain, gz, xz) in Kaggle's layout or with one table; such a folder; a table (CSV,
            TSV, JSON, Excel, Parquet; text also packed with gzip) that holds the photos' bytes or their paths, relative
            to the file; `kaggle:OWNER/NAME`; `hf:OWNER/NAME`; or a catalogue that is drawn: `synthetic[:COUNT[:SEED]]`,
            or `synthetic-tags[:COUNT[:SEED]]` with attributes of several values.
        schema: how to read the table; None: Kaggle's schema where the table has its columns, else one that is inferred.
        labelled: False also accepts sources without labels: a photo, or a folder or archive of photos.
        corrections: a table of corrected labels; the module `corrections` describes it.

    Raises:
        UserError: there is no such source, it cannot be read, it is unsafe, columns are missing, or the corrections do
            not fit.
    """
    text = str(source)
    found = find_source(text, labelled=labelled)
    if schema is None and found.schema is not None:
        schema = load_schema(found.schema)
    if not found.tables:
        if corrections:
            raise UserError(f"{text} holds no table of labels, so corrections cannot be applied; leave them out")
        return _photos_only(text, found, schema.group_by_name if schema else "")
    parts, digest = [], hashlib.sha256()
    for name in found.tables:
        data = found.read_table_file(name)
        digest.update(data)
        parts.append(read_table(name, data, schema.encoding if schema else ""))
    table = join_tables(parts, found.tables) if len(parts) > 1 else parts[0]
    is_guessed = schema is None or not schema.name
    try:
        schema, unused = _choose_schema(table.frame, schema, labelled, found.path.stem)
    except UserError as error:
        unread = [name for name in table.repairs if "not read" in name]
        raise UserError("; ".join([str(error), *unread[:_SHOWN]])) from error
    base = posixpath.dirname(found.tables[0])
    files, sizes, finder = _open_photos(found, schema, base)
    if is_guessed and not schema.image_column:
        before, schema = schema, _with_photo_column(table.frame, schema, finder)
        unused = unused if schema == before else None
    catalog = Catalog(text, schema, files, digest.hexdigest(), sizes)
    catalog.temporary = found.temporary
    catalog.text = table.text
    catalog.unused = explain_unused(table.frame, schema) if unused is None else unused
    if corrections:
        catalog.corrections = read_corrections(corrections, schema)
    _read_rows(catalog, table, finder, labelled)
    single = {column for attribute in schema.attributes for column in attribute.columns()} | set(catalog.unused)
    catalog.offers += offer_tags(schema, table.frame, [c for c in table.frame.columns if c in single])
    named = {product.photo for product in catalog.records}
    catalog.passed_over = Counter(
        f"{kind_of_file(name)} (photos of no usable row)" if names_photo(name) else kind_of_file(name)
        for name in sizes
        if name not in named and not name.lower().endswith(TABLE_SUFFIXES)
    )
    return catalog


def _open_photos(found: Source, schema: Schema, base: str) -> tuple[Files, dict[str, int], PhotoFinder]:
    """Opens the photos of a table: those of its own source, or those in the schema's `image_root`.

    Args:
        base: the table's folder in the source.
    """
    root = schema.image_root.replace("\\", "/")
    within = posixpath.normpath(posixpath.join(base, root))
    if not root or any(name.startswith(f"{within}/") for name in found.sizes):
        return found.files, found.sizes, PhotoFinder(found.files, found.sizes, base=within.removeprefix("."))
    folder = (found.path if found.path.is_dir() else found.path.parent) / base
    path = folder / schema.image_root
    if not path.exists():
        raise UserError(
            f"there is no folder of photos at {path}; check --photos or the schema's image_root, which is relative to "
            "the table"
        )
    files = open_files(path)
    sizes = {name: size for name, size in files.sizes().items() if not is_litter(name)}
    return files, sizes, PhotoFinder(files, sizes, table_folder=folder)


def _with_photo_column(frame: pd.DataFrame, schema: Schema, finder: PhotoFinder) -> Schema:
    """Returns the schema with the column that is named like photos and whose cells are files or folders of photos.

    Their names need not end like those of photos, so that the table alone does not tell it.
    """
    for column in filter(has_photo_heading, map(str, frame.columns)):
        cells = [cell for cell in frame[column] if isinstance(cell, str) and cell][:50]
        names = [str(name) for cell in cells for name in listed(cell)]
        leading = {name for name, item in finder.find(names).items() if item.name} | finder.folders(names).keys()
        differ = len(set(cells)) > len(cells) / 2 or any("/" in name for name in leading)
        if cells and differ and len(leading) > len(set(names)) / 2 and column != schema.id_column:
            rest = tuple(attribute for attribute in schema.attributes if column not in attribute.columns())
            return dataclasses.replace(schema, image_column=column, attributes=rest)
    return schema


def _photos_only(source: str, found: Source, pattern: str) -> Catalog:
    schema = Schema("photos", (), group_by_name=pattern)
    catalog = Catalog(source, schema, found.files, "", found.sizes, num_rows=len(found.photos))
    catalog.passed_over = found.passed_over
    heic = _heic_problem(found.photos)
    if pattern:
        check_fits(found.photos, pattern)
        products = {name: product for product, names in group_names(found.photos, pattern).items() for name in names}
        if found.photos and len(set(products.values())) == len(found.photos):
            catalog.offers.append(
                f"--group-by-name {pattern!r} groups no photos: every photo is a product of its own; check the pattern"
            )
    else:
        stems = Counter(map(stem_of, found.photos))
        products = {n: readable(stem_of(n) if stems[stem_of(n)] == 1 else n) for n in found.photos}
        _offer_groups(catalog, found.photos)
    ids = _number_alike(products.values())
    for row, name in enumerate(found.photos, 1):
        product_id = ids[products[name]]
        catalog.repairs["names that differ only in spaces, told apart by a number"] += product_id != one_line(
            products[name]
        )
        if heic and _is_heic(name):
            catalog.rejected.append(Rejected(row, product_id, heic, kind="the photo is HEIC"))
        else:
            catalog.records.append(Record(row, row, product_id, "", (), "", name))
    catalog.repairs = +catalog.repairs
    return catalog


def _number_alike(products: Iterable[str]) -> dict[str, str]:
    """Returns product -> its id in one line; a product whose id another one has gets a number: `red dress (2)`."""
    ids: dict[str, str] = {}
    every = dict.fromkeys(products)
    taken = {product for product in every if product == one_line(product)}
    for product in every:
        plain = one_line(product)
        if plain != product and plain in taken:
            number = next(n for n in itertools.count(2) if f"{plain} ({n})" not in taken)
            plain = f"{plain} ({number})"
        taken.add(plain)
        ids[product] = plain
    return ids


def _offer_groups(catalog: Catalog, names: Collection[str], beside: Collection[str] = ()) -> None:
    """Says where photos' names look as if several photos show one product.

    Args:
        names: of the photos that are used.
        beside: photos in the same folders that are not used.
    """
    known = {
        (posixpath.dirname(name), product) for name in names for product in (stem_of(name), product_of(name, USUAL))
    }
    more = [name for name in beside if (posixpath.dirname(name), product_of(name, USUAL)) in known]
    if example := looks_grouped([*names, *more]):
        unused = f" ({len(more):,} photos such as {readable(more[0])} are not used)" if more else ""
        catalog.offers.append(
            f"photos such as {example} may show one product{unused}; if they do, add --group-by-name (or to the "
            f'schema: "group_by_name": "{USUAL}")'
        )
        return
    example, pattern = looks_like_folders([*names, *beside])
    if example:
        catalog.offers.append(
            f"photos such as {example} may show one product, with a folder for each; if they do, add "
            f'--group-by-name \'{pattern}\' (or to the schema: "group_by_name": "{pattern}")'
        )


def _is_heic(name: str | bytes) -> bool:
    return isinstance(name, str) and name.lower().endswith(HEIC_SUFFIXES)


def _heic_problem(names: Iterable[str | bytes]) -> str:
    """Lets Pillow read HEIC where a name needs it; returns why it cannot, or empty text."""
    if any(map(_is_heic, names)):
        try:
            enable_heic()
        except UserError as error:
            return str(error)
    return ""


def _choose_schema(
    frame: pd.DataFrame, schema: Schema | None, labelled: bool, name: str
) -> tuple[Schema, dict[str, str] | None]:
    """Returns the schema, and what `explain_unused` says about it where that is known already."""
    columns, unused = [str(c) for c in frame.columns], None
    if schema is not None and not schema.name:
        guessed, unused = _choose_schema(frame, None, labelled, name)
        return dataclasses.replace(guessed, image_root=schema.image_root, group_by_name=schema.group_by_name), unused
    if schema is None:
        if is_fashion(columns):
            found = tuple(a for a in FASHION.attributes if set(a.columns()) & set(columns))
            image = find_image_column(frame)
            if image and any(isinstance(cell, str) and is_address(cell) for cell in frame[image].head(50)):
                image = ""  # the column holds web addresses; the photo's file is named by its id
            known = Schema(
                FASHION.name,
                found,
                image_column=image,
                more_image_columns=more_photo_columns(frame, image),
                split_column=find_split_column(frame),
                title_column=FASHION.title_column if FASHION.title_column in columns else "",
            )
            return known, None
        schema, unused = infer_schema(frame, name, labelled=labelled)
    needed = [c for c in schema.columns() if c]
    missing = [c for c in needed if c not in columns]
    if labelled:
        missing += [a.columns()[0] for a in schema.attributes if not set(a.columns()) & set(columns)]
        missing += [c for several in schema.multi_valued for c in several.used_columns() if c not in columns]
    if missing:
        hint = nearest(missing[0], columns)
        raise UserError(
            f"the table lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}, which the schema names"
            f"{hint}; it has: {', '.join(columns[:30])}"
        )
    return schema, unused


def _read_rows(catalog: Catalog, table: Table, finder: PhotoFinder, labelled: bool) -> None:
    schema, frame = catalog.schema, table.frame
    catalog.num_rows, catalog.repairs = table.num_rows, table.repairs
    catalog.rejected = [Rejected(*item) for item in table.rejected]
    if frame.empty:
        raise UserError(f"the table of {catalog.source} has no rows")
    for column in {schema.id_column, schema.product_column} - {""}:
        check_ids(catalog.source, column, clean_ids(frame[column]))
    photos = _name_photos(catalog, frame, finder)
    ids = _name_products(schema, frame, photos, catalog.repairs)
    catalog.carried = carry_columns(frame, ids.tolist(), schema, catalog.unused)
    labels = _read_labels(catalog, frame)
    catalog.tags = read_tags(schema, frame, catalog.repairs)
    _fill_from_product(catalog, labels, ids)
    fixed = [a for a in schema.attributes if a.classes]
    if catalog.corrections:
        # Corrections come before the schema's rules, as if somebody had edited the table. But an audit has seen the
        # tags after these rules, without the values that are no classes.
        kept = pd.Series(True, frame.index)
        for attribute in fixed if labelled else ():
            if attribute.on_unknown == "drop":
                kept &= labels[attribute.name].isin(["", *attribute.fixed_classes()])
        chosen = {a.name: find_classes(a, catalog.tags[a.name], kept) for a in schema.multi_valued}
        catalog.corrected = apply_corrections(
            catalog.corrections, labels, ids.tolist(), schema.attributes, catalog.tags, chosen
        )
    keep = pd.Series(True, frame.index)
    reasons: dict[int, str] = {}
    for attribute in fixed:
        values = labels[attribute.name]
        unknown = (values != "") & ~values.isin(attribute.fixed_classes())
        catalog.masked_words[attribute.name] = _count(values[unknown])
        if attribute.on_unknown == "drop" and labelled:
            for row in labels.index[unknown & keep]:
                reasons[row] = (
                    f"{attribute.name} {values[row]!r} is none of the {len(attribute.classes)} classes of the schema"
                )
                catalog.dropped[f"{attribute.name} outside its classes"] += 1
            keep &= ~unknown
        else:
            labels.loc[unknown, attribute.name] = ""
    for attribute in schema.attributes:
        catalog.vocabularies[attribute.name] = _vocabulary(attribute, labels.loc[keep, attribute.name])
        known = labels[attribute.name].isin(catalog.vocabularies[attribute.name])
        if not attribute.classes:
            catalog.masked_words[attribute.name] = _count(labels.loc[keep & ~known, attribute.name])
        labels.loc[~known, attribute.name] = ""
    for several in schema.multi_valued:
        choose_classes(several, catalog.tags[several.name], keep)
    if labelled and not fixed and catalog.vocabularies and not any(catalog.vocabularies.values()):
        raise UserError(f"no label of {catalog.source} occurs in enough rows; lower min_rows in the schema")
    documented = [a.name for a in fixed if a.name in DOCUMENTED] or [a.name for a in fixed]
    whole = keep & (labels[documented] != "").all(axis=1) if documented else keep
    catalog.documented_rows = int(whole.sum())
    _add_records(catalog, _Rows(frame, ids, labels, photos), reasons, finder)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a table, as far as they have been understood."""

    frame: pd.DataFrame  # the table
    ids: pd.Series  # of the products; empty where a row has none
    labels: pd.DataFrame  # a column for each attribute
    photos: list[list[str | bytes]]  # of each row: what its cells name, or photos' bytes


def _name_photos(catalog: Catalog, frame: pd.DataFrame, finder: PhotoFinder) -> list[list[str | bytes]]:
    """Returns what the rows' cells name as photos; nothing for a row whose photos are named by its id."""
    schema = catalog.schema
    missing = {word.casefold() for word in schema.missing_values}

    def is_missing(photo: str | bytes) -> bool:
        if isinstance(photo, bytes):
            return False
        name = photo.casefold()
        return name in missing or base_name(name) in missing

    def read(cell: str | bytes | tuple[bytes, ...]) -> list[str | bytes]:
        if isinstance(cell, str) and cell in catalog.photo_sizes:
            return [] if is_missing(cell) else [cell]
        photos = listed(cell)
        if isinstance(cell, str) and len(photos) > 1 and finder.holds(cell):
            photos = [cell]
        return [photo for photo in photos if not is_missing(photo)]

    columns = [schema.image_column, *schema.more_image_columns] if schema.image_column else []
    rows: list[list[str | bytes]] = [[] for _ in frame.index]
    for column in columns:
        for row, cell in zip(rows, frame[column], strict=True):
            row += read(cell)
    return rows


def _name_products(
    schema: Schema, frame: pd.DataFrame, photos: list[list[str | bytes]], repairs: Counter[str]
) -> pd.Series:
    """Returns the product's id of each row."""
    if schema.group_by_name and schema.image_column:
        names = {row[0]: "" for row in photos if row and isinstance(row[0], str)}
        groups = group_names([str(name).replace("\\", "/") for name in names], schema.group_by_name)
        products = {name: product for product, found in groups.items() for name in found}
        ids = [products.get(str(row[0]).replace("\\", "/"), "") if row else "" for row in photos]
    else:
        column = schema.product_column or schema.id_column
        if column:
            return clean_ids(frame[column], repairs)
        ids = [str(row) for row in frame.index]
    return pd.Series(ids, frame.index, dtype=object)


def _fill_from_product(catalog: Catalog, labels: pd.DataFrame, ids: pd.Series) -> None:
    """Fills a row's missing labels in place with those of the product's first row that has one; counts differences."""
    several = (ids.duplicated(keep=False) & (ids != "")).to_numpy()
    if not several.any():
        return
    columns = [(name, labels[name]) for name in labels.columns]
    columns += [(name, column.cells) for name, column in catalog.tags.items()]
    for name, whole in columns:
        values = whole[several]
        known = values.mask(values == "")
        groups = known.groupby(ids[several])
        catalog.differing[name] = int((groups.nunique() > 1).sum())
        filled = known.fillna(groups.transform("first")).fillna("")
        catalog.repairs["labels taken from another row of the product"] += int((filled != values).sum())
        if name in labels.columns:
            labels.loc[several, name] = filled
        else:
            catalog.tags[name].cells = whole.mask(several, filled)
    catalog.repairs, catalog.differing = +catalog.repairs, +catalog.differing


def _read_labels(catalog: Catalog, frame: pd.DataFrame) -> pd.DataFrame:
    """Returns a column of clean labels for each attribute, with empty text for missing ones; notes what was done."""
    schema, columns = catalog.schema, {}
    for attribute in schema.attributes:
        name = next((c for c in attribute.columns() if c in frame.columns), None)
        values = clean_column(frame[name] if name else pd.Series("", frame.index), catalog.repairs)
        if attribute.not_applicable:
            words = {clean_label(word)[0].casefold() for word in attribute.not_applicable}
            spared = values.isin([NOT_APPLICABLE, *attribute.classes])
            chosen = values.str.casefold().isin(words) & ~spared
            counts = values[chosen].value_counts()
            catalog.not_applicable[attribute.name] = Counter({str(word): int(rows) for word, rows in counts.items()})
            values = values.mask(chosen, NOT_APPLICABLE)
        missing = find_missing(values, schema.missing_values, attribute.classes)
        values = values.mask(values.isin(list(missing)), "")
        merge = {clean_label(value)[0]: target for value, target in attribute.merge}
        if merge:
            found = _count(values)
            catalog.merged[attribute.name] = Counter({value: found[value] for value in merge})
            values = values.replace(merge)
        catalog.missing_words[attribute.name] = missing
        catalog.look_alikes[attribute.name] = find_look_alikes(_count(values), attribute.classes)
        columns[attribute.name] = values
    return pd.DataFrame(columns, index=frame.index)


def _count(values: pd.Series) -> Counter[str]:
    return Counter({str(value): int(rows) for value, rows in values[values != ""].value_counts().items()})


def _add_records(catalog: Catalog, rows: _Rows, reasons: dict[int, str], finder: PhotoFinder) -> None:
    schema, frame = catalog.schema, rows.frame
    found = _find_photos(catalog, rows, finder)
    placeholders = _find_placeholders(catalog, rows, found)
    heic = _heic_problem(item.name for item in found.values())
    titles = _first_of_product(frame[schema.title_column], rows.ids) if schema.title_column else [""] * len(frame)
    splits = _read_splits(catalog, frame[schema.split_column], rows.ids) if schema.split_column else [""] * len(frame)
    no_id = explain_no_id(rows.ids)
    used: dict[tuple[str, str | bytes], int] = {}  # (product, photo) -> the row that holds it
    number = 0
    tags = pd.DataFrame({name: column.cells for name, column in catalog.tags.items()}, index=frame.index)
    texts = (table.itertuples(index=False, name=None) for table in (rows.labels, tags))
    for row, product_id, title, split, photos, values, own_tags in zip(
        frame.index, rows.ids, titles, splits, rows.photos, *texts, strict=True
    ):
        reason = reasons.get(row, "") or ("" if product_id else no_id)
        if not reason and not photos:
            reason = "the row holds no photo" if _holds_bytes(frame, schema) else "the row names no photo"
        if reason:
            kind = "the row has no id" if reason == no_id else ""
            catalog.rejected.append(Rejected(row, product_id, reason, kind, by_schema=row in reasons))
            continue
        named = tuple(value or None for value in values)
        repeats = []
        real = [cell for cell in photos if isinstance(cell, bytes) or cell not in placeholders]
        if not real:
            reason = f"{one_line(photos[0])[:200]} is named like a placeholder, not like a photo"
            catalog.rejected.append(Rejected(row, product_id, reason, _PLACEHOLDER))
            continue
        if len(real) < len(photos):
            catalog.repairs["placeholders beside photos, left out"] += len(photos) - len(real)
        for cell in real:
            item = found[cell] if isinstance(cell, str) else Found("bytes")
            photo = item.name if isinstance(cell, str) else cell
            if item.problem:
                catalog.rejected.append(Rejected(row, product_id, item.problem, item.kind))
            elif heic and _is_heic(photo):
                catalog.rejected.append(Rejected(row, product_id, heic, "the photo is HEIC"))
            elif (product_id, photo) in used:
                repeats.append(used[product_id, photo])
            else:
                number += 1
                used[product_id, photo] = row
                catalog.repairs.update(item.repairs)
                record = Record(number, row, product_id, one_line(title), named, str(split), photo, own_tags)
                catalog.records.append(record)
        if len(repeats) == len(real) and row not in repeats:
            what = "the same id" if not schema.image_column else "the same id and the same photo"
            reason = f"row {repeats[0]} has {what}"
            catalog.rejected.append(Rejected(row, product_id, reason, f"an earlier row has {what}", is_repeat=True))
        elif repeats:
            catalog.repairs["photos that a product names twice, used once"] += len(repeats)
    _mark_repeats(catalog)
    catalog.rejected.sort(key=lambda item: item.row)
    more_columns = offer_photo_columns(frame, schema)
    catalog.offers += more_columns
    # The names of photos in such columns would be grouped too, so one offer is enough.
    if not schema.group_by_name and not more_columns and catalog.num_products == len(catalog.records):
        names = [r.photo for r in catalog.records if isinstance(r.photo, str)]
        _offer_groups(catalog, names, finder.beside(names))
    if not schema.group_by_name and not schema.product_column:
        catalog.offers += [
            f"column {column!r} holds {count:,} different ids in {len(frame):,} rows; if rows with one of them show "
            f'one product, write into the schema: "product_column": "{column}"'
            for column, count in find_repeated_ids(frame, schema).items()
            if count < catalog.num_products
        ]


def _find_photos(catalog: Catalog, rows: _Rows, finder: PhotoFinder) -> dict[str, Found]:
    """Returns what the rows' cells lead to. It first puts into the rows photos that are named by ids or folders."""
    schema, frame, known = catalog.schema, rows.frame, dict[str, Found]()
    if not schema.image_column:
        ids = rows.ids if not schema.product_column else clean_ids(frame[schema.id_column])
        names = _spell_photos(schema, frame, ids, finder)
        groups = finder.group(names, schema.group_by_name) if schema.group_by_name else {}
        for photos, name in zip(rows.photos, names, strict=True):
            photos += [name] if name else []
    else:
        groups = finder.folders(dict.fromkeys(c for photos in rows.photos for c in photos if isinstance(c, str)))
        if groups:
            catalog.repairs["folders read as their photos"] += len(groups)
    for photos in rows.photos if groups else ():
        photos[:] = [name for c in photos for name in (groups.get(c, [c]) if isinstance(c, str) else [c])]
    known |= {name: Found(name) for names in groups.values() for name in names}
    found = finder.find(
        dict.fromkeys(c for photos in rows.photos for c in photos if isinstance(c, str) and c not in known)
    )
    found |= known
    _check_found(catalog, finder, found)
    if not schema.image_column and not schema.group_by_name:
        _offer_lost(catalog, frame, finder, found)
    elif schema.image_column and schema.group_by_name:
        _add_unnamed(schema, rows, finder, found)
    return found


def _offer_lost(catalog: Catalog, frame: pd.DataFrame, finder: PhotoFinder, found: dict[str, Found]) -> None:
    """Says where ids without photos have several photos or a folder; UserError if no id has a photo of its name."""
    lost = [name for name, item in found.items() if item.kind == ABSENT]
    if len(lost) <= _MOST_LOST * len(found):
        return
    groups, (num_folders, example, pattern) = finder.group(lost, USUAL), finder.count_folders(lost)
    said = ""
    if num_folders > len(groups):
        said = (
            f"{len(lost):,} ids have no photo with exactly their name, such as {lost[0]}, but {num_folders:,} of these "
            f"ids have a folder of that name, with photos such as {readable(example)}; to use these photos, add "
            f'--group-by-name \'{pattern}\' (or to the schema: "group_by_name": "{pattern}")'
        )
    elif groups:
        example = readable(groups[next(name for name in lost if name in groups)][0])
        said = (
            f"{len(lost):,} ids have no photo with exactly their name, such as {lost[0]}, but {len(groups):,} of these "
            f"ids have photos such as {example}; to use these photos, add --group-by-name (or to the schema: "
            f'"group_by_name": "{USUAL}")'
        )
    elif len(lost) == len(found):
        for column in filter(has_photo_heading, map(str, frame.columns)):
            if cell := next((one_line(cell)[:200] for cell in frame[column] if isinstance(cell, str) and cell), ""):
                raise UserError(
                    f"{catalog.source} has no photo that is named by an id, such as {lost[0]}; column {column!r} is "
                    f"named like photos, but its cells, such as {cell!r}, do not end like a photo's name (.jpg, ...); "
                    "correct the cells, with | between several photos, or name the column of photos in the schema "
                    "(image_column)"
                )
    if said and not any(item.name for item in found.values()):
        raise UserError(said)
    catalog.offers += [said] if said else []


def _add_unnamed(schema: Schema, rows: _Rows, finder: PhotoFinder, found: dict[str, Found]) -> None:
    """Adds photos that no row names and whose names name the product of a row's photo; in place."""
    used = dict.fromkeys(item.name for item in found.values() if item.name)
    check_fits(used, schema.group_by_name)
    more = {}
    for names in group_names([*used, *finder.beside(used)], schema.group_by_name).values():
        first = next((name for name in names if name in used), "")
        more[first] = [name for name in names if name not in used]
    for photos in rows.photos:
        for cell in [cell for cell in photos if isinstance(cell, str)]:
            added = more.pop(found[cell].name, []) if found[cell].name else []
            photos += added
            found |= {name: Found(name) for name in added}


def _find_placeholders(catalog: Catalog, rows: _Rows, found: dict[str, Found]) -> set[str]:
    """Returns the cells' paths that are named like placeholders; says which other photos so many products share.

    A photo with the name "default" is a placeholder if several products share it.
    """
    pairs = {
        (found[cell].name or cell, product): cell
        for photos, product in zip(rows.photos, rows.ids, strict=True)
        for cell in photos
        if isinstance(cell, str)
    }
    counts, cells = Counter(name for name, _ in pairs), {name: cell for (name, _), cell in pairs.items()}
    shared = {name for name, count in counts.items() if count > 1 and stem_of(base_name(name)).lower() == "default"}
    placeholders = {c for c, item in found.items() if is_placeholder(c) or (item.name or c) in shared}
    for name, count in counts.most_common(_SHOWN_SHARED + len(placeholders)):
        many = count >= _MANY_PRODUCTS or (count >= _SOME_PRODUCTS and count >= _SOME_SHARE * rows.ids.nunique())
        if many and found[cells[name]].name and cells[name] not in placeholders:
            words = json.dumps([*catalog.schema.missing_values, base_name(cells[name])], ensure_ascii=False)
            catalog.offers.append(
                f"{count:,} products share the photo {readable(name)}; if it is a placeholder, write into the schema: "
                f'"missing_values": {words}'
            )
    return placeholders


def _spell_photos(schema: Schema, frame: pd.DataFrame, ids: pd.Series, finder: PhotoFinder) -> list[str]:
    """Returns the names of photos that are named by ids: as the table spells the id if there is such a photo."""
    names = [schema.image_template.replace("{id}", name) if name else "" for name in ids]
    if schema.id_column:
        cells = map(one_line, frame[schema.id_column])
        spelled = [schema.image_template.replace("{id}", cell) for cell in cells]
        others = finder.find({own for own, name in zip(spelled, names, strict=True) if name and own != name})
        there = {own for own, item in others.items() if item.name and not item.repairs}
        names = [own if own in there else name for own, name in zip(spelled, names, strict=True)]
    return names


def _first_of_product(cells: pd.Series, ids: pd.Series) -> list[str]:
    """Returns the cell of each row, or of the first row of its product that has one."""
    cells = cells.astype(str)
    if not ids.duplicated().any():
        return cells.tolist()
    known = cells.mask(cells.str.strip() == "")
    first = known.groupby(ids.where(ids != "", ids.index.astype(str) + "\0")).transform("first")
    return first.fillna("").tolist()


def _read_splits(catalog: Catalog, cells: pd.Series, ids: pd.Series) -> list[str]:
    """Returns the split of each row's product, and counts the products whose rows name several."""
    words = cells.astype(str).str.strip().str.casefold()
    named = words[(ids != "") & (words != "")]
    count = int((named.groupby(ids[named.index]).nunique() > 1).sum())
    catalog.repairs["products whose rows name several splits, taken from their first row"] += count
    catalog.repairs = +catalog.repairs
    return _first_of_product(cells, ids)


def _holds_bytes(frame: pd.DataFrame, schema: Schema) -> bool:
    return bool(schema.image_column) and any(isinstance(cell, (bytes, tuple)) for cell in frame[schema.image_column])


def _mark_repeats(catalog: Catalog) -> None:
    """Marks rows without a photo whose product has a photo in another row: a shop's export has one for each size."""
    there = {record.id for record in catalog.records}
    for place, item in enumerate(catalog.rejected):
        if (item.reason == "the row names no photo" or item.kind == _PLACEHOLDER) and item.id in there:
            reason = "the row names no photo, and other rows of its product do"
            catalog.rejected[place] = dataclasses.replace(item, reason=reason, kind="", is_repeat=True)


def _check_found(catalog: Catalog, finder: PhotoFinder, found: dict[str, Found]) -> None:
    """Raises UserError where no photo was found and most cells have one fault that a sentence can mend."""
    lost = Counter(item.kind for item in found.values())
    if any(item.name for item in found.values()) or not lost:
        return
    kind, count = lost.most_common(1)[0]
    cell = next(cell for cell, item in found.items() if item.kind == kind)
    example, column = one_line(cell)[:200], catalog.schema.image_column
    if count <= len(found) / 2:
        return
    if kind == ADDRESS:
        raise UserError(
            f"column {column!r} holds addresses, such as {example}, and {catalog.source} has no copies of them; "
            "download the photos first (img2dataset does that), then put them beside the table under the last part of "
            "their address, or name their folder with --photos"
        )
    if kind == OUTSIDE:
        raise UserError(
            f"the photo paths of {catalog.source}, such as {example}, lead outside of the catalogue's folder, and "
            f"nothing is read there; if the photos lie there, add --photos {finder.outside_folder(cell) or 'DIR'} (or "
            "image_root to the schema)"
        )


def _vocabulary(attribute: Attribute, values: pd.Series) -> tuple[str, ...]:
    if attribute.classes:
        return tuple(sorted(attribute.fixed_classes()))
    counts = values[values != ""].value_counts()
    return tuple(sorted(str(name) for name, count in counts.items() if count >= attribute.min_rows))
