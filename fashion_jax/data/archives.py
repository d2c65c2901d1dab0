"""Where a catalogue's files are: a folder, a zip, or a tar that is read in one pass. Names in them are hostile."""

from __future__ import annotations

import os
import posixpath
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from fashion_jax.data.schema import PHOTO_SUFFIXES
from fashion_jax.data.tables import TABLE_SUFFIXES
from fashion_jax.system.errors import UserError

MAX_MEMBER_BYTES = 2_000_000_000  # of a table; photos have a limit of their own
MAX_RATIO = 200  # unpacked over packed size; photos hardly shrink
FREE_BYTES = 1_000_000_000  # unpacked size below which the ratio does not matter
_HELD_BYTES = 256_000_000  # unpacked size up to which a tar's photos stay in memory


class Files(Protocol):
    """Read access to named files; names are relative, with forward slashes."""

    def sizes(self) -> dict[str, int]:
        """Returns name -> bytes."""
        ...

    def stamp(self, name: str) -> int:
        """Returns a number that changes when a file does: its time (in a folder or tar) or checksum (in a zip)."""
        ...

    def read(self, name: str) -> bytes:
        """Returns one file; KeyError if there is none."""
        ...

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | OSError]]:
        """Yields the named files in the order in which they are read fastest; what cannot be read as an OSError."""
        ...


def open_files(path: Path, links_within: Path | None = None) -> Files:
    """Opens a folder, zip or tar; UserError when it is none, damaged, leads outside, or unpacks to absurd size.

    Args:
        path: of the folder or archive.
        links_within: a folder to which links of a folder may lead besides the folder itself.
    """
    if path.is_dir():
        return FolderFiles(path, links_within)
    if not path.exists():
        raise UserError(f"there is nothing at {path}; check the path")
    try:
        if zipfile.is_zipfile(path):
            return ZipFiles(path)
        return TarFiles(path)
    except (tarfile.ReadError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(
            f"{path} is not a zip or tar archive, or it is damaged ({error}); if it is a download, fetch it again"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"{path} is damaged ({error}); if it is a download, fetch it again") from error
    except Exception as error:  # lzma.LZMAError is an Exception of its own; hostile archives find others
        raise UserError(f"{path} is damaged ({error}); if it is a download, fetch it again") from error


def safe_name(name: str, where: object) -> str:
    """Returns a member's name in plain form; UserError when it leads outside."""
    plain = posixpath.normpath(name.replace("\\", "/"))
    if plain.startswith(("/", "../")) or plain == ".." or (len(plain) > 1 and plain[1] == ":") or "\0" in plain:
        raise UserError(f"{where} is not safe to read: its member {name!r} leads outside of it")
    return plain


class FolderFiles:
    """Files below a folder; links that lead out of it are not followed."""

    def __init__(self, root: Path, links_within: Path | None = None) -> None:
        self.root = root.resolve()
        self._allowed = (self.root, *([links_within.resolve()] if links_within else []))

    def sizes(self) -> dict[str, int]:
        found = {}
        for folder, _, names in os.walk(self.root):
            base = Path(folder).relative_to(self.root)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_file() and (not entry.is_symlink() or self._inside(Path(entry.path))):
                        found[(base / entry.name).as_posix()] = entry.stat().st_size
            del names
        return found

    def read(self, name: str) -> bytes:
        path = self.root / name
        if not self._inside(path) or not path.is_file():
            raise KeyError(name)
        return path.read_bytes()

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | OSError]]:
        for name in names:
            try:
                yield name, self.read(name)
            except KeyError:
                yield name, OSError("the photo's file is gone")
            except OSError as error:
                yield name, error

    def stamp(self, name: str) -> int:
        return (self.root / name).stat().st_mtime_ns

    def _inside(self, path: Path) -> bool:
        target = path.resolve()
        return any(target.is_relative_to(folder) for folder in self._allowed)


class ZipFiles:
    """Files of a zip, with random access."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = zipfile.ZipFile(path)
        self._members: dict[str, zipfile.ZipInfo] = {}
        total = 0
        for info in self._zip.infolist():
            name = safe_name(info.filename, path)
            if not info.is_dir():
                self._members[name] = info
                total += info.file_size
        _check_total(path, total)

    def sizes(self) -> dict[str, int]:
        return {name: info.file_size for name, info in self._members.items()}

    def stamp(self, name: str) -> int:
        return self._members[name].CRC

    def read(self, name: str) -> bytes:
        info = self._members[name]
        try:
            with self._zip.open(info) as file:
                data = file.read(min(info.file_size, MAX_MEMBER_BYTES) + 1)
        except Exception as error:  # zipfile meets a damaged header with a dozen kinds, from OSError to struct.error
            raise OSError(f"damaged in the archive: {error}") from error
        if len(data) > info.file_size:
            raise OSError("larger than the archive declares")
        return data

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | OSError]]:
        for name in sorted(names, key=lambda n: self._members[n].header_offset):
            try:
                yield name, self.read(name)
            except OSError as error:
                yield name, error


class TarFiles:
    """Files of a tar, plain or compressed; nothing is unpacked to the disk.

    A second pass over a compressed archive costs as much as the first, so tables stay in memory, and of a small archive
    the photos too. Of several files of a name the last one counts, as when a tar is unpacked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sizes: dict[str, int] = {}
        self._times: dict[str, int] = {}
        self._copies: Counter[str] = Counter()
        self._held: dict[str, bytes] = {}
        total = 0
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                name = safe_name(member.name, path)
                if member.islnk() or member.issym():
                    # A symbolic link's target is relative to its own folder, a hard link's to the archive.
                    base = posixpath.dirname(name) if member.issym() else ""
                    safe_name(posixpath.join(base, member.linkname), path)
                if not member.isfile():
                    continue
                if member.size < 0:
                    raise tarfile.ReadError(f"the size of {name} is negative")
                total += member.size
                _check_total(path, total)
                self._sizes[name], self._times[name] = member.size, int(member.mtime)
                self._copies[name] += 1
                self._held.pop(name, None)
                # A map of a sparse file's holes may take hours to read, and no tool packs photos as such.
                is_photo = name.lower().endswith(PHOTO_SUFFIXES) and not member.issparse()
                if (is_photo and total <= _HELD_BYTES) or (_is_table(name) and member.size <= MAX_MEMBER_BYTES):
                    file = tar.extractfile(member)
                    self._held[name] = file.read() if file else b""
        if total > _HELD_BYTES:
            self._held = {name: data for name, data in self._held.items() if _is_table(name)}

    def sizes(self) -> dict[str, int]:
        return dict(self._sizes)

    def stamp(self, name: str) -> int:
        return self._times[name]

    def read(self, name: str) -> bytes:
        if name in self._held:
            return self._held[name]
        for _, data in self.read_many([name]):
            if isinstance(data, OSError):
                raise data
            return data
        raise KeyError(name)

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | OSError]]:
        wanted, passed = set(names), Counter[str]()
        if wanted <= self._held.keys():
            yield from ((name, data) for name, data in self._held.items() if name in wanted)
            return
        try:
            with tarfile.open(self.path, "r|*") as tar:
                for member in tar:
                    name = safe_name(member.name, self.path)
                    if member.isfile() and name in wanted:
                        passed[name] += 1
                        if passed[name] < self._copies[name]:
                            continue
                        wanted.discard(name)
                        file = tar.extractfile(member)
                        yield name, file.read() if file else b""
        except (tarfile.ReadError, EOFError, zlib.error) as error:
            raise UserError(f"{self.path} is damaged ({error}); if it is a download, fetch it again") from error
        for name in sorted(wanted):
            yield name, OSError("the archive changed while it was read")


def _is_table(name: str) -> bool:
    return name.lower().endswith(TABLE_SUFFIXES)


def _check_total(path: Path, total: int) -> None:
    packed = max(path.stat().st_size, 1)
    if total > FREE_BYTES and total > MAX_RATIO * packed:
        raise UserError(
            f"{path} is not safe to read: its {packed:,} bytes unpack to {total:,} or more, "
            f"over {MAX_RATIO} times as many"
        )
