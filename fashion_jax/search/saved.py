"""The place of an index on the disk: who may write there, and how far it has been read."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, BinaryIO

from fashion_jax.search import storage
from fashion_jax.search.journal import Update, append_update, fits, read_updates
from fashion_jax.search.snapshot import Snapshot
from fashion_jax.system import files
from fashion_jax.system.errors import UserError

_LEAST_JOURNAL = 64 << 20  # bytes


class SavedIndex:
    """A saved index as one process knows it."""

    def __init__(self, folder: Path, generation: str = "") -> None:
        self.folder, self._generation = folder, generation
        self._journal: BinaryIO | None = None
        self._end = 0  # of the updates that the snapshot has
        self._read = 0  # and of those that it is about to have
        self._bytes = 0  # of the vectors that were saved
        self.rest = ""  # about bytes behind the last update, which are none
        self._held = contextlib.ExitStack()

    @property
    def is_writer(self) -> bool:
        """Whether this process holds the lock and may append."""
        return self._journal is not None

    def lock(self) -> None:
        """Keeps other processes from writing; UserError where one does."""
        self._held.enter_context(storage.lock_index(self.folder))

    def is_replaced(self) -> bool:
        """Whether another generation than the one that was read is the current one."""
        return bool(storage.read_manifest(self.folder)["generation"] != self._generation)

    def is_at(self, folder: Path) -> bool:
        """Whether a path leads here, and the index is still there."""
        return self.folder.resolve() == folder.resolve() and (self.is_writer or storage.is_index(folder))

    def read(self) -> tuple[Snapshot, dict[str, Any]]:
        """Reads the current generation as it was saved; `updates` yields what came after."""
        snapshot, settings, self._generation = storage.read_index(self.folder)
        self._start(snapshot)
        return snapshot, settings

    def updates(self, snapshot: Snapshot) -> list[Update]:
        """Returns the updates that the snapshot does not have; `advance` says that it has them.

        Raises:
            UserError: the journal is damaged, or does not belong to the snapshot.
        """
        place = storage.journal_path(self.folder, self._generation)
        try:
            updates, self._read, self.rest = read_updates(place, self._end)
            if all(fits(update, snapshot) for update in updates):
                return updates
        except UserError:
            raise
        except Exception as error:
            # It may hold anything.
            raise UserError(f"{place} cannot be read ({type(error).__name__}: {error})") from error
        raise UserError(f"{place} holds an update of another index; restore it from a copy")

    def open_journal(self) -> None:
        """Makes ready to append; the lock is held and all updates are read."""
        place = storage.journal_path(self.folder, self._generation)
        try:
            self._journal = files.open_own(place, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        except OSError as error:
            raise UserError(f"{place} cannot be written ({error.strerror})") from error
        if self._journal.seek(0, os.SEEK_END) < self._end:
            raise UserError(f"{place} has lost updates that are in memory here; save the index into another folder")
        self._journal.truncate(self._end)  # what a crash cut short
        self.rest = ""

    def append(self, update: Update) -> None:
        """Returns once an update is on the disk; `advance` says that the snapshot has it."""
        assert self._journal is not None
        append_update(self._journal, update)
        self._read = self._journal.seek(0, 2)

    def advance(self) -> None:
        """Takes note that the snapshot has every update that was read or appended."""
        self._end = self._read

    @property
    def journal_is_long(self) -> bool:
        """Whether the journal takes more than what it is added to, so that a reader had better find it saved anew."""
        return self._end > max(_LEAST_JOURNAL, self._bytes)

    def put_off(self) -> None:
        """Lets the journal become twice as long before it is called long again."""
        self._bytes = 2 * self._end

    def replace(self, snapshot: Snapshot, settings: dict[str, Any]) -> None:
        """Writes a new generation with an empty journal, and appends there; an error calls for `let_go`."""
        generation = storage.write_index(self.folder, snapshot, settings)
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._generation = generation
        self._start(snapshot)
        self.open_journal()
        storage.remove_others(self.folder, generation)

    def _start(self, snapshot: Snapshot) -> None:
        self._end = self._read = 0
        self._bytes = snapshot.base.vectors.nbytes + snapshot.delta.nbytes

    def let_go(self) -> None:
        """Lets other processes write."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._held.close()
