"""The place of an index on the disk: who may write there, and how far it has been read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fashion_jax.search import storage
from fashion_jax.search.journal import Update, append_update, read_updates
from fashion_jax.search.snapshot import Snapshot


class SavedIndex:
    """A saved index as one process knows it."""

    def __init__(self, folder: Path, generation: str = "") -> None:
        self.folder, self._generation = folder, generation
        self._journal: BinaryIO | None = None
        self._end = 0  # of the updates that the snapshot has
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
        self._end = 0
        return snapshot, settings

    def updates(self) -> Iterator[Update]:
        """Yields the updates that were not read yet."""
        for update, end in read_updates(storage.journal_path(self.folder, self._generation), self._end):
            yield update
            self._end = end

    def open_journal(self) -> None:
        """Makes ready to append; the lock is held and all updates are read."""
        self._journal = storage.journal_path(self.folder, self._generation).open("ab", buffering=0)
        self._journal.truncate(self._end)  # what a crash cut short

    def append(self, update: Update) -> None:
        """Returns once an update is on the disk; `advance` says that the snapshot has it."""
        assert self._journal is not None
        append_update(self._journal, update)

    def advance(self) -> None:
        """Takes note that the snapshot has every update in the journal."""
        assert self._journal is not None
        self._end = self._journal.seek(0, 2)

    def replace(self, snapshot: Snapshot, settings: dict[str, Any]) -> None:
        """Writes a new generation with an empty journal, and appends there; an error calls for `let_go`."""
        generation = storage.write_index(self.folder, snapshot, settings)
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._generation, self._end = generation, 0
        self.open_journal()
        storage.remove_others(self.folder, generation)

    def let_go(self) -> None:
        """Lets other processes write."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._held.close()
