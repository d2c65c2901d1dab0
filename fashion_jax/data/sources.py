"""Finds a source and its table: an archive, a folder, a table, a download, or the drawn catalogue."""

from __future__ import annotations

import os
import posixpath
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fashion_jax.data.archives import Files, FolderFiles, open_files
from fashion_jax.data.photo_names import PHOTO_SUFFIXES, is_litter
from fashion_jax.data.photo_paths import list_photos
from fashion_jax.data.tables import NAMED_SUFFIXES, TABLE_SUFFIXES, name_split
from fashion_jax.system.downloads import download_error, hub_client, is_repository
from fashion_jax.system.errors import UserError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz")
_DOWNLOADED = [*(f"*{suffix}" for suffix in TABLE_SUFFIXES), "*.zip", "*.tar*"]
_DOWNLOADED += [f"*{suffix}" for lower in PHOTO_SUFFIXES for suffix in (lower, lower.upper())]


@dataclass(slots=True)
class Source:
    """Where a catalogue is."""

    path: Path  # of the folder, archive or table
    files: Files  # reads the files in it
    tables: list[str]  # names of the table, or of its parts; empty where there are only photos
    # file name -> bytes. Empty where the source is a table: its photos are looked up one by one, because its folder may
    # hold a whole disk.
    sizes: dict[str, int]
    # a folder that must exist while the files are read, or None
    temporary: tempfile.TemporaryDirectory[str] | None = None
    photos: list[str] = field(default_factory=list)  # names of the photos, where there is no table
    passed_over: Counter[str] = field(default_factory=Counter)  # kind -> other files, where there is no table
    schema: Path | None = None  # the schema.json that comes with a drawn catalogue, or None

    def read_table_file(self, name: str) -> bytes:
        """Returns a table's bytes; UserError where it is damaged, OSError where the system does not let it be read."""
        try:
            return self.files.read(name)
        except (OSError, KeyError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UserError(f"the table {name} of {self.path} cannot be read: {error}") from error


def find_source(source: str, *, labelled: bool) -> Source:
    """Finds a source; it is downloaded or drawn first if its name says so.

    Args:
        source: as `catalog.open_catalog` takes it.
        labelled: False accepts photos without a table.

    Raises:
        UserError: there is no such source, it is damaged or unsafe, or it holds no table or several.
    """
    if not source.strip():
        raise UserError("the source is an empty text; name a table, a folder, an archive or a download")
    if source.partition(":")[0] in ("synthetic", "synthetic-tags"):
        temporary, schema = _draw_catalogue(source)
        found = _locate(Path(temporary.name), labelled)
        found.temporary, found.schema = temporary, schema
        return found
    if source.startswith(("kaggle:", "hf:")):
        folder, links_within = download(source)
        return _locate(folder, labelled, links_within)
    return _locate(Path(source), labelled)


def download(source: str) -> tuple[Path, Path | None]:
    """Downloads `kaggle:OWNER/NAME` or `hf:OWNER/NAME` (extra "hub"), or finds it in the client's cache.

    Returns:
        Its folder, and a folder outside of it to which its links may lead: Hugging Face's cache keeps a snapshot as
        links.

    Raises:
        UserError: the name is malformed, the extra is not installed, or the download failed.
    """
    scheme, _, name = source.partition(":")
    if not is_repository(name):
        raise UserError(f"{source!r} is not of the form {scheme}:OWNER/NAME")
    try:
        if scheme == "kaggle":
            return Path(hub_client("kagglehub").dataset_download(name)), None
        hub = hub_client("huggingface_hub")
        folder = Path(hub.snapshot_download(repo_id=name, repo_type="dataset", allow_patterns=_DOWNLOADED))
        # datasets--OWNER--NAME/snapshots/REVISION links into datasets--OWNER--NAME/blobs.
        return folder, folder.parents[1] / "blobs"
    except UserError:
        raise
    except Exception as error:
        raise download_error(source, error) from error


def _locate(path: Path, labelled: bool, links_within: Path | None = None) -> Source:
    if path.is_file():
        folder = FolderFiles(path.parent)
        if path.name.lower().endswith(NAMED_SUFFIXES):
            return Source(path, folder, [path.name], {})
        if not labelled and list_photos(folder, [path.name])[0]:
            return Source(path, folder, [], {path.name: path.stat().st_size}, photos=[path.name])
    files = open_files(path, links_within)
    sizes = {name: size for name, size in files.sizes().items() if not is_litter(name)}
    tables = sorted((n for n in sizes if n.lower().endswith(TABLE_SUFFIXES)), key=lambda n: (n.count("/"), n))
    styles = [n for n in tables if posixpath.basename(n) == "styles.csv"]
    parquet = [n for n in tables if n.endswith(".parquet")]
    texts = [n for n in tables if n.lower().endswith((".csv", ".tsv"))]
    # The parts of a table on the Hub are named so. Other Parquet files may be another table than the CSV beside them.
    parts = [n for n in parquet if name_split(n) or re.search(r"\d{4,}", n)]
    chosen = styles[:1] or parts or sorted([*texts, *parquet], key=tables.index) or tables
    if len(chosen) > 1 and (texts or not parquet) and chosen is not parts:
        shallow = [n for n in chosen if n.count("/") == chosen[0].count("/")]
        if len(shallow) > 1:
            join = ", or join them into one table with a column 'split'" if all(map(name_split, shallow)) else ""
            raise UserError(
                f"{path} holds several tables ({', '.join(shallow[:5])}); give the path of one of them{join}"
            )
        chosen = shallow
    archives = [n for n in sizes if n.lower().endswith(ARCHIVE_SUFFIXES)]
    if not chosen and path.is_dir() and len(archives) == 1:  # a download that has not been unpacked
        return _locate(path / archives[0], labelled)
    photos, passed_over = ([], Counter[str]()) if chosen or labelled else list_photos(files, sizes)
    if not chosen and not photos:
        sample = ", ".join(sorted(sizes)[:3]) or "nothing"
        named = next((n for n in sizes if n.lower().endswith(NAMED_SUFFIXES)), "")
        hint = f"; if {named} is the table, give its path" if named else ""
        raise UserError(
            f"{path} holds no table (styles.csv, or one .csv, .tsv, .jsonl, .xlsx or .parquet); it holds {sample}{hint}"
        )
    return Source(path, files, chosen, sizes, photos=photos, passed_over=passed_over)


def _draw_catalogue(source: str) -> tuple[tempfile.TemporaryDirectory[str], Path | None]:
    """Draws a catalogue; returns its folder, and its schema.json where it has one."""
    from fashion_jax.data.drawn import catalogue, tagged

    name, _, rest = source.partition(":")
    count, _, seed = rest.partition(":")
    with_tags = name == "synthetic-tags"
    try:
        numbers = int(count or (tagged if with_tags else catalogue).DEFAULT_COUNT), int(seed or 0)
    except ValueError:
        numbers = (0, 0)
    if not 100 <= numbers[0] <= 10_000_000 or numbers[1] < 0:
        raise UserError(f"{source!r} is not of the form {name}[:COUNT[:SEED]] with COUNT of 100 or more")
    folder = tempfile.TemporaryDirectory(prefix="fashion_jax_drawn_")
    schema = None
    if with_tags:
        schema = tagged.write_tagged_catalog(Path(folder.name), *numbers)
    else:
        catalogue.write_catalog(Path(folder.name), *numbers)
    for path in Path(folder.name).rglob("*"):
        os.utime(path, (0, 0))  # equal times, so that the same catalogue is recognised
    return folder, schema
