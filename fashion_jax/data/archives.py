"""Reads the files of a folder, a zip or a tar. Their names may be an attack and are checked."""

from __future__ import annotations

import os
import posixpath
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Protocol

from fashion_jax.data.photo_names import HEAD_BYTES, has_suffix, names_photo
from fashion_jax.data.tables import TABLE_SUFFIXES
from fashion_jax.system.errors import UserError

MAX_MEMBER_BYTES = 2_000_000_000  # of a table; photos have a limit of their own
MAX_RATIO = 200  # unpacked over packed size; more is an attack, because packed photos hardly shrink
FREE_BYTES = 1_000_000_000  # unpacked size up to which the ratio is not checked
_IN_MEMORY_BYTES = 256_000_000  # unpacked size up to which a tar's photos stay in memory


class Files(Protocol):
    """Read access to named files; names are relative, with forward slashes."""

    def sizes(self) -> dict[str, int]:
        """Returns name -> bytes."""
        ...

    def stamp(self, name: str) -> int:
        """Returns a number that changes with the file: its time (folder, tar) or its checksum (zip)."""
        ...

    def read(self, name: str) -> bytes:
        """Returns a file's bytes; KeyError where there is none."""
        ...

    def head(self, name: str) -> bytes:
        """Returns the first bytes of a file whose name has no suffix; empty where it cannot be read."""
        ...

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | OSError]]:
        """Yields (name, bytes) in the order in which reading is fastest; an OSError in place of bytes on a fault."""
        ...


def open_files(path: Path, links_within: Path | None = None) -> Files:
    """Opens a folder, zip or tar.

    Args:
        path: of the folder or archive.
        links_within: another folder to which links may lead; elsewhere links must stay within the folder.

    Raises:
        UserError: it is none of the three, it is damaged, a name in it leads outside, or it unpacks to absurd size.
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
    except Exception as error:  # lzma.LZMAError, and whatever else hostile archives provoke
        raise UserError(f"{path} is damaged ({error}); if it is a download, fetch it again") from error


def safe_name(name: str, where: object) -> str:
    """Returns a member's name in plain form; UserError where it leads outside of the archive."""
    plain = posixpath.normpath(name.replace("\\", "/"))
    if plain.startswith(("/", "../")) or plain == ".." or (len(plain) > 1 and plain[1] == ":") or "\0" in plain:
        raise UserError(
            f"{where} is not safe to read: its file {name!r} would be written outside of it; pack the files again"
        )
    return plain


class FolderFiles:
    """Files in a folder and its subfolders. Links that lead out of it are not followed."""

    def __init__(self, root: Path, links_within: Path | None = None) -> None:
        self.root = root.resolve()
        given = posixpath.normpath(root.absolute().as_posix())
        self.roots = tuple({path.rstrip("/") for path in (self.root.as_posix(), given)})  # with and without links
        self._allowed = (self.root, *([links_within.resolve()] if links_within else []))

    def sizes(self) -> dict[str, int]:
        return {name: entry.stat().st_size for name, entry in self._walk()}

    def names(self, most: int) -> list[str] | None:
        """Returns the names of all files; None where there are more than `most`."""
        found = [name for name, _ in islice(self._walk(), most + 1)]
        return found if len(found) <= most else None

    def names_in(self, folder: str) -> list[str]:
        """Returns the names of the files in one folder, without its subfolders."""
        path = self.root / folder
        if not self._inside(path):
            return []
        return [posixpath.join(folder, entry.name) for entry in self._entries(path)]

    def size(self, name: str) -> int | None:
        """Returns the size of one file; None where there is none inside of the folder."""
        path = self.root / name
        try:
            return path.stat().st_size if self._inside(path) and path.is_file() else None
        except (OSError, ValueError):  # a name that is too long, or holds a NUL
            return None

    def leads_out(self, name: str) -> bool:
        """True where a link on the way to a file leads out of the folder."""
        return not self._inside(self.root / name)

    def _walk(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        for folder, _, _ in os.walk(self.root):
            base = Path(folder).relative_to(self.root)
            for entry in self._entries(folder):
                yield (base / entry.name).as_posix(), entry

    def _entries(self, folder: str | Path) -> Iterator[os.DirEntry[str]]:
        """Yields the files in one folder, without links that lead nowhere or out of the root."""
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_file() and (not entry.is_symlink() or self._inside(Path(entry.path))):
                        yield entry

    def read(self, name: str) -> bytes:
        path = self.root / name
        if not self._inside(path) or not path.is_file():
            raise KeyError(name)
        return path.read_bytes()

    def head(self, name: str) -> bytes:
        path = self.root / name
        try:
            if not self._inside(path) or not path.is_file():
                return b""
            with path.open("rb") as file:
                return file.read(HEAD_BYTES)
        except (OSError, ValueError):
            return b""

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
        try:
            target = path.resolve()
        except (OSError, ValueError, RuntimeError):  # a NUL, or links in a circle
            return False
        return any(target.is_relative_to(folder) for folder in self._allowed)


class ZipFiles:
    """Files in a zip."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = zipfile.ZipFile(path)
        self._members: dict[str, zipfile.ZipInfo] = {}
        total = 0
        for info in self._zip.infolist():
            name = safe_name(_zip_name(info), path)
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
        except Exception as error:  # on a damaged header zipfile raises a dozen kinds
            raise OSError(f"damaged in the archive: {error}") from error
        if len(data) > info.file_size:
            raise OSError("larger than the archive declares")
        return data

    def head(self, name: str) -> bytes:
        try:
            with self._zip.open(self._members[name]) as file:
                return file.read(HEAD_BYTES)
        except Exception:  # as in `read`
            return b""

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | OSError]]:
        for name in sorted(names, key=lambda n: self._members[n].header_offset):
            try:
                yield name, self.read(name)
            except OSError as error:
                yield name, error


class TarFiles:
    """Files in a tar, plain or compressed. Nothing is unpacked to the disk.

    A second pass over a compressed archive costs as much as the first. So the tables stay in memory, and so do the
    photos of a small archive. Of several files with one name the last one counts, as when a tar is unpacked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sizes: dict[str, int] = {}
        self._times: dict[str, int] = {}
        self._copies: Counter[str] = Counter()
        self._in_memory: dict[str, bytes] = {}
        self._heads: dict[str, bytes] = {}  # of files whose names have no suffix
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
                self._in_memory.pop(name, None)
                # A sparse file's map of holes may take hours to read, and no tool packs photos as sparse files.
                is_photo = names_photo(name) and not member.issparse()
                if not is_photo and not has_suffix(name) and not member.issparse():
                    file = tar.extractfile(member)
                    self._heads[name] = file.read(HEAD_BYTES) if file else b""
                elif (is_photo and total <= _IN_MEMORY_BYTES) or (_is_table(name) and member.size <= MAX_MEMBER_BYTES):
                    file = tar.extractfile(member)
                    self._in_memory[name] = file.read() if file else b""
        if total > _IN_MEMORY_BYTES:
            self._in_memory = {name: data for name, data in self._in_memory.items() if _is_table(name)}

    def sizes(self) -> dict[str, int]:
        return dict(self._sizes)

    def stamp(self, name: str) -> int:
        return self._times[name]

    def read(self, name: str) -> bytes:
        if name in self._in_memory:
            return self._in_memory[name]
        for _, data in self.read_many([name]):
            if isinstance(data, OSError):
                raise data
            return data
        raise KeyError(name)

    def head(self, name: str) -> bytes:
        return self._heads.get(name, b"")

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | OSError]]:
        wanted, passed = set(names), Counter[str]()
        if wanted <= self._in_memory.keys():
            yield from ((name, data) for name, data in self._in_memory.items() if name in wanted)
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


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Returns a member's name. macOS and others write UTF-8 without the flag that says so."""
    if not info.flag_bits & 0x800 and not info.filename.isascii():
        with suppress(UnicodeError):
            return info.filename.encode("cp437").decode()
    return info.filename


def _is_table(name: str) -> bool:
    return name.lower().endswith(TABLE_SUFFIXES)


def _check_total(path: Path, total: int) -> None:
    packed = max(path.stat().st_size, 1)
    if total > FREE_BYTES and total > MAX_RATIO * packed:
        raise UserError(
            f"{path} is not safe to read: its {packed:,} bytes unpack to {total:,} or more, "
            f"over {MAX_RATIO} times as many; if you trust it, unpack it yourself and give the folder"
        )
