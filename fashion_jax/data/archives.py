"""Reads the files of a folder, a zip or a tar. Their names may be an attack and are checked."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import posixpath
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol, Self

from fashion_jax.data.photo_names import HEAD_BYTES, MAX_PHOTO_BYTES, has_suffix, names_photo
from fashion_jax.data.table_limits import MAX_TABLE_BYTES
from fashion_jax.data.tables import TABLE_SUFFIXES
from fashion_jax.system import files, stored
from fashion_jax.system.errors import UserError

MAX_RATIO = 200  # unpacked over packed size; more is an attack, because packed photos hardly shrink
FREE_BYTES = 1_000_000_000  # unpacked size up to which the ratio is not checked
_FREE_MEMBERS, _MIN_PACKED_BYTES = 100_000, 16  # packed bytes of each file in an archive of more files
_IN_MEMORY_BYTES = 256_000_000  # unpacked size up to which a tar's photos stay in memory
_MAX_HEADER_BYTES = 16_384  # of a tar's header with a long name or other attributes, which tarfile reads at once
_PIECE = 1 << 18  # bytes that are unpacked at a time
# First bytes -> what unpacks such a file to its end, and checks its checksums.
_UNPACK: dict[bytes, Callable[[Path, str], Any]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open, b"]\0\0": lzma.open,
}  # fmt: skip
_REMEDY = "download it again, or unpack it yourself and give the folder"


class Files(Protocol):
    """Read access to named files; names are relative, with forward slashes."""

    def sizes(self) -> dict[str, int]:
        """Returns name -> bytes."""
        ...

    def stamp(self, name: str) -> int:
        """Returns a number that changes with the file: its time (folder) or its checksum (zip, tar)."""
        ...

    def read(self, name: str) -> bytes:
        """Returns a file's bytes; KeyError where there is none, OSError where it is damaged or larger than a table."""
        ...

    def head(self, name: str) -> bytes:
        """Returns the first bytes of a file whose name has no suffix; empty where it cannot be read."""
        ...

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | OSError]]:
        """Yields (name, bytes) of photos in the order in which reading is fastest.

        An OSError stands in place of the bytes of a photo that is gone, damaged or too large.
        """
        ...


def open_files(path: Path, links_within: Path | None = None) -> Files:
    """Opens a folder, zip or tar.

    Args:
        path: of the folder or archive.
        links_within: another folder to which links may lead; elsewhere links must stay within the folder.

    The checksums of an archive are checked: of a zip for each file that is read, of a packed tar at once for all of it.
    A plain .tar and a .tar.lzma hold none for their files' bytes.

    Raises:
        UserError: it is none of the three, it is damaged, a name in it leads outside, or it unpacks to absurd size.
        OSError: the system does not let it be read.
    """
    if path.is_dir():
        os.scandir(path).close()  # a folder that must not be listed is not taken for an empty one
        return FolderFiles(path, links_within)
    files.check_regular(path)
    with stored.reading(path, _REMEDY):
        return ZipFiles(path) if zipfile.is_zipfile(path) else TarFiles(path)


def safe_name(name: str, where: object) -> str:
    """Returns a member's name in plain form; UserError where it leads outside of the archive."""
    plain = posixpath.normpath(name.replace("\\", "/"))
    if plain.startswith(("/", "../")) or plain == ".." or (len(plain) > 1 and plain[1] == ":") or "\0" in plain:
        raise UserError(
            f"{where} is not safe to read: its file {name!r} lies outside of it; pack the files again without it"
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
        return _read_file(path, MAX_TABLE_BYTES)

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
            path = self.root / name
            try:
                if not self._inside(path) or not path.is_file():
                    raise OSError("the photo's file is gone")
                yield name, _read_file(path, MAX_PHOTO_BYTES)
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
        return self._read(name, MAX_TABLE_BYTES)

    def head(self, name: str) -> bytes:
        try:
            with self._zip.open(self._members[name]) as file:
                return file.read(HEAD_BYTES)
        except Exception:  # as in `_read`
            return b""

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | OSError]]:
        for name in sorted(names, key=lambda n: self._members[n].header_offset):
            try:
                yield name, self._read(name, MAX_PHOTO_BYTES)
            except OSError as error:
                yield name, error

    def _read(self, name: str, most: int) -> bytes:
        info = self._members[name]
        _check_size(info.file_size, most)
        try:
            with self._zip.open(info) as file:
                data = file.read(info.file_size + 1)  # to the end, where the checksum is checked
        except Exception as error:  # on a damaged header zipfile raises a dozen kinds
            raise OSError(f"damaged in the archive: {stored.first_line(error)}") from error
        if len(data) > info.file_size:
            raise OSError("larger than the archive declares")
        return data


class TarFiles:
    """Files in a tar, plain or compressed. Nothing is unpacked to the disk.

    A second pass over a compressed archive costs as much as the first. So the tables stay in memory, and so do the
    photos of a small archive. Every pass reads to the archive's end, where gzip, bzip2 and xz have checksums. A later
    pass also compares each file with the checksum that the first pass has computed. Of several files with one name the
    last one counts, as when a tar is unpacked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sizes: dict[str, int] = {}
        self._checksums: dict[str, int] = {}
        self._copies: Counter[str] = Counter()
        self._in_memory: dict[str, bytes] = {}
        self._heads: dict[str, bytes] = {}  # of files whose names have no suffix
        total = 0
        with _open_tar(path) as tar:
            for member in _members(tar, path.stat().st_size):
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
                self._sizes[name] = member.size
                self._copies[name] += 1
                self._in_memory.pop(name, None)
                self._checksums[name], self._heads[name] = 0, b""
                # A sparse file's map of holes may take hours to read, and no tool packs photos as sparse files.
                file = tar.extractfile(member) if not member.issparse() else None
                if file is None:
                    continue
                is_photo = names_photo(name) and total <= _IN_MEMORY_BYTES
                kept: list[bytes] = []
                while piece := file.read(_PIECE):
                    self._checksums[name] = zlib.crc32(piece, self._checksums[name])
                    if not kept or is_photo or (_is_table(name) and member.size <= MAX_TABLE_BYTES):
                        kept.append(piece)
                if is_photo or (_is_table(name) and member.size <= MAX_TABLE_BYTES):
                    self._in_memory[name] = b"".join(kept)
                elif not has_suffix(name) and kept:
                    self._heads[name] = kept[0][:HEAD_BYTES]
        if total > _IN_MEMORY_BYTES:
            self._in_memory = {name: data for name, data in self._in_memory.items() if _is_table(name)}

    def sizes(self) -> dict[str, int]:
        return dict(self._sizes)

    def stamp(self, name: str) -> int:
        return self._checksums[name]

    def read(self, name: str) -> bytes:
        if name in self._in_memory:
            return self._in_memory[name]
        for _, data in self._read_many({name}, MAX_TABLE_BYTES):
            if isinstance(data, OSError):
                raise data
            return data
        raise KeyError(name)

    def head(self, name: str) -> bytes:
        return self._heads.get(name, b"")

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | OSError]]:
        wanted = set(names)
        if wanted <= self._in_memory.keys():
            yield from ((name, data) for name, data in self._in_memory.items() if name in wanted)
        else:
            yield from self._read_many(wanted, MAX_PHOTO_BYTES)

    def _read_many(self, wanted: set[str], most: int) -> Iterator[tuple[str, bytes | OSError]]:
        passed, changed = Counter[str](), OSError("the archive changed while it was read")
        with stored.reading(self.path, _REMEDY), _open_tar(self.path) as tar:
            for member in _members(tar, self.path.stat().st_size):
                name = safe_name(member.name, self.path)
                if not member.isfile() or name not in wanted:
                    continue
                passed[name] += 1
                if passed[name] < self._copies[name]:
                    continue
                wanted.discard(name)
                if member.size > most:
                    yield name, OSError(_too_large(most))
                    continue
                file = tar.extractfile(member)
                data = file.read() if file else b""
                same = member.issparse() or zlib.crc32(data) == self._checksums[name]
                yield name, data if same else changed
        yield from ((name, changed) for name in sorted(wanted))


class _Member(tarfile.TarInfo):
    """A member's header. tarfile takes a damaged header for the archive's end, and reads long headers at once."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if not buf:
            raise tarfile.ReadError("it is cut off: its end marker is missing")
        if any(buf):
            try:
                member = super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as error:
                raise tarfile.ReadError(f"a header is damaged: {error}") from error
            if member.type in _ATTRIBUTES and not 0 <= member.size <= _MAX_HEADER_BYTES:
                raise tarfile.ReadError(f"a header has more than {_MAX_HEADER_BYTES:,} bytes")
            return member
        return super().frombuf(buf, encoding, errors)  # raises what tells tarfile that the archive ends


_ATTRIBUTES = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip


@contextmanager
def _open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Opens a tar to be read once from its beginning; when the block ends, reads what is left of the file."""
    with path.open("rb") as file:
        head = file.read(8)
    unpack = next((opener for mark, opener in _UNPACK.items() if head.startswith(mark)), open)
    with unpack(path, "rb") as file:
        limited = _Limited(path, file)
        try:
            tar: Any = tarfile.TarFile.open(fileobj=limited, mode="r|", tarinfo=_Member)  # type: ignore[call-overload]
        except tarfile.ReadError as error:
            raise UserError(f"{path} is not a zip or tar archive, or it is damaged ({error}); {_REMEDY}") from error
        with tar:
            yield tar
            while rest := tar.fileobj.read(_PIECE):
                if rest.strip(b"\0"):
                    raise tarfile.ReadError("there is data behind its end marker")


def _members(tar: tarfile.TarFile, packed: int) -> Iterator[tarfile.TarInfo]:
    number = 0
    while (member := tar.next()) is not None:
        number += 1
        if number > _FREE_MEMBERS and number * _MIN_PACKED_BYTES > packed:
            raise tarfile.ReadError(f"it holds too many files for its size: {number:,} or more")
        yield member
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all


class _Limited:
    """A file that is read from its beginning, and that must not unpack to absurd size."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file, self._total = path, file, 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._total += len(data)
        _check_total(self._path, self._total)
        return data


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Returns a member's name. macOS and others write UTF-8 without the flag that says so."""
    if not info.flag_bits & 0x800 and not info.filename.isascii():
        with suppress(UnicodeError):
            return info.filename.encode("cp437").decode()
    return info.filename


def _is_table(name: str) -> bool:
    return name.lower().endswith(TABLE_SUFFIXES)


def _check_total(path: Path, total: int) -> None:
    if total > FREE_BYTES and total > MAX_RATIO * (packed := max(path.stat().st_size, 1)):
        raise UserError(
            f"{path} is not safe to read: its {packed:,} bytes unpack to {total:,} or more, "
            f"over {MAX_RATIO} times as many; if you trust it, unpack it yourself and give the folder"
        )


def _read_file(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        _check_size(size, most)
        data = file.read(size + 1)
    if len(data) > size:
        raise OSError("it grew while it was read")
    return data


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise OSError(_too_large(most))


def _too_large(most: int) -> str:
    return f"it has more than {most:,} bytes"
