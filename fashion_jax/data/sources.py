"""Finds what a source is: an archive, a folder, a table, a download, or the embedded catalogue; and its table in it."""

from __future__ import annotations

import os
import posixpath
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fashion_jax.data.archives import Files, FolderFiles, open_files
from fashion_jax.data.hub import download, is_hub_source
from fashion_jax.data.schema import PHOTO_SUFFIXES
from fashion_jax.data.tables import TABLE_SUFFIXES
from fashion_jax.system.errors import UserError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz")


@dataclass(slots=True)
class Source:
    """Where a catalogue is.

    Attributes:
        path: of the folder, archive or table.
        files: read access to what is in it.
        tables: name of the table, or of its parts; empty where there are photos alone.
        sizes: of all files; empty for a table beside its photos, which are looked up rather than a whole disk listed.
        temporary: to be kept while the files are read, or None.
    """

    path: Path
    files: Files
    tables: list[str]
    sizes: dict[str, int]
    temporary: tempfile.TemporaryDirectory[str] | None = None

    def read_table_file(self, name: str) -> bytes:
        """Returns a table's bytes; UserError when it is damaged, OSError when the system refuses it."""
        try:
            return self.files.read(name)
        except (OSError, KeyError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UserError(f"the table {name} of {self.path} cannot be read: {error}") from error


def find_source(source: str, *, labelled: bool) -> Source:
    """Finds a source, downloaded or drawn where its name says so.

    Args:
        source: as `catalog.open_catalog` takes it.
        labelled: False accepts photos without a table.

    Raises:
        UserError: there is none, it is damaged or unsafe, or it holds no table or several.
    """
    if source == "synthetic" or source.startswith("synthetic:"):
        temporary = _write_synthetic(source)
        found = _locate(Path(temporary.name), labelled)
        found.temporary = temporary
        return found
    if is_hub_source(source):
        folder, links_within = download(source)
        return _locate(folder, labelled, links_within)
    return _locate(Path(source), labelled)


def _locate(path: Path, labelled: bool, links_within: Path | None = None) -> Source:
    suffix = path.suffix.lower()
    if path.is_file() and suffix in (*TABLE_SUFFIXES, *(() if labelled else PHOTO_SUFFIXES)):
        folder = FolderFiles(path.parent)
        if suffix in TABLE_SUFFIXES:
            return Source(path, folder, [path.name], {})
        return Source(path, folder, [], {path.name: path.stat().st_size})
    files = open_files(path, links_within)
    sizes = {name: size for name, size in files.sizes().items() if not _is_litter(name)}
    tables = sorted((n for n in sizes if n.lower().endswith(TABLE_SUFFIXES)), key=lambda n: (n.count("/"), n))
    styles = [n for n in tables if posixpath.basename(n) == "styles.csv"]
    parquet = [n for n in tables if n.endswith(".parquet")]
    chosen = styles[:1] or parquet or tables
    if len(chosen) > 1 and not parquet:
        shallow = [n for n in chosen if n.count("/") == chosen[0].count("/")]
        if len(shallow) > 1:
            raise UserError(f"{path} holds several tables ({', '.join(shallow[:5])}); give the path of one of them")
        chosen = shallow
    archives = [n for n in sizes if n.lower().endswith(ARCHIVE_SUFFIXES)]
    if not chosen and path.is_dir() and len(archives) == 1:  # a download that nobody unpacked
        return _locate(path / archives[0], labelled)
    if not chosen and (labelled or not any(n.lower().endswith(PHOTO_SUFFIXES) for n in sizes)):
        sample = ", ".join(sorted(sizes)[:3]) or "nothing"
        raise UserError(f"{path} holds no table (styles.csv, or one .csv, .tsv or .parquet); it holds {sample}")
    return Source(path, files, chosen, sizes)


def _is_litter(name: str) -> bool:
    """True for what macOS leaves in folders and zips."""
    return posixpath.basename(name).startswith("._") or name.startswith("__MACOSX/") or "/__MACOSX/" in name


def _write_synthetic(source: str) -> tempfile.TemporaryDirectory[str]:
    from fashion_jax.data.drawn.catalogue import DEFAULT_COUNT, write_catalog

    _, _, rest = source.partition(":")
    count, _, seed = rest.partition(":")
    try:
        numbers = int(count or DEFAULT_COUNT), int(seed or 0)
    except ValueError:
        numbers = (0, 0)
    if not 100 <= numbers[0] <= 10_000_000 or numbers[1] < 0:
        raise UserError(f"{source!r} is not of the form synthetic[:COUNT[:SEED]] with COUNT of 100 or more")
    folder = tempfile.TemporaryDirectory(prefix="fashion_jax_synthetic_")
    write_catalog(Path(folder.name), *numbers)
    for path in Path(folder.name).rglob("*"):
        os.utime(path, (0, 0))  # drawn again, it is the same catalogue
    return folder
