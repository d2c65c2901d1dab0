"""Journals of saved indexes, read and forged by tests."""

from __future__ import annotations

import json

from fashion_jax.search import journal
from fashion_jax.search.journal import Place, append_update, open_to_append, read_updates


def journal_of(folder):
    return next(folder.glob("*.journal"))


def first_place(folder):
    return Place.first(json.loads((folder / "manifest.json").read_text())["sha256"])


def updates_of(folder):
    return read_updates(journal_of(folder), first_place(folder), "restore it")


def forge_update(folder, update):
    """Appends an update as the index does, without its checks."""
    place = updates_of(folder).place
    with open_to_append(journal_of(folder), place) as file:
        append_update(file, update, place)


def ends_of(folder):
    """The bytes where the records of a journal begin, and where the last one ends."""
    data, ends, place = journal_of(folder).read_bytes(), [], first_place(folder).end
    while place < len(data):
        ends.append(place)
        _, _, header, payload, _ = journal._RECORD.unpack_from(data, place)
        place += journal._RECORD.size + 32 + header + payload
    return [*ends, place]
