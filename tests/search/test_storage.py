"""Saved indexes: the same after loading, refused when damaged, never half-written, one writer at a time."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from search.clustered import attributes_of, clustered, recall, truth
from search.journals import ends_of, first_place, forge_update, journal_of, updates_of

from fashion_jax.cli import main
from fashion_jax.search import journal, planner, storage
from fashion_jax.search.attributes import AttributeTable
from fashion_jax.search.index import Index
from fashion_jax.search.journal import create_journal, read_updates
from fashion_jax.search.snapshot import GrowingArray, Update
from fashion_jax.system import stored
from fashion_jax.system.errors import UserError
from forging import set_at

VECTORS, QUERIES = np.split(clustered(1_040, 16), [1_000])
ATTRIBUTES = attributes_of(VECTORS)


@pytest.fixture(scope="module")
def template(request, tmp_path_factory):
    """An index in memory and its folder, with two updates in the journal; exact unless a test asks otherwise."""
    folder, backend = tmp_path_factory.mktemp("template") / "index", getattr(request, "param", "exact")
    index = Index.build(VECTORS, np.arange(1_000), ATTRIBUTES, backend=backend, model="abc")
    index.save(folder)
    index.upsert([3, 2_000], QUERIES[:2], {"side": ["new", "new"]})
    index.delete([4])
    index.close()
    return index, folder


@pytest.fixture
def index(template):
    """The index in memory, which tests only read."""
    return template[0]


@pytest.fixture
def folder(template, tmp_path):
    """A copy of its folder, which a test may change."""
    return shutil.copytree(template[1], tmp_path / "index")


BACKENDS = pytest.mark.parametrize("template", ["exact", "scann", "hnsw"], indirect=True)


def generation(folder):
    return next(p for p in folder.glob("generation-*") if p.is_dir())


@pytest.fixture(autouse=True)
def index_answers(monkeypatch):
    """The index answers, also where exact search is faster."""
    monkeypatch.setattr(planner, "_GAIN", np.inf)


@BACKENDS
def test_loaded_is_the_same(index, folder):
    loaded = Index.load(folder)
    assert len(loaded) == len(index) == 1_000
    assert (loaded.model, loaded.columns) == ("abc", index.columns)
    for where in (None, "side == 'left'", "side == 'new'", "share < 0.01"):
        ours, theirs = index.search(QUERIES, 7, where=where), loaded.search(QUERIES, 7, where=where)
        assert np.array_equal(ours.ids, theirs.ids) and np.array_equal(ours.scores, theirs.scores)
    assert loaded.attributes([2_000, 3]) == index.attributes([2_000, 3])
    assert loaded.snapshot.base.points == index.snapshot.base.points


@BACKENDS
def test_saving_again_leaves_one_generation_and_an_empty_journal(folder):
    (folder / "generation-1").mkdir()  # not ours
    with Index.load(folder) as loaded:
        loaded.save(folder)
    names = sorted(p.name.split("-")[0] for p in folder.iterdir() if p.name != "generation-1")
    assert names == [".lock", "generation", "generation", "manifest.json"]
    assert (folder / "generation-1").is_dir() and updates_of(folder).updates == []
    assert np.array_equal(Index.load(folder).search(QUERIES, 5).ids, loaded.search(QUERIES, 5).ids)


def test_text_ids_survive_and_words_that_no_row_has_do_not(tmp_path):
    names, longer, place = [f"ключ {i}" for i in range(20)], "a much longer name than the others", tmp_path / "index"
    with Index.build(VECTORS[:20], names, {"n": ["start"] * 20}, backend="exact") as index:
        index.save(place)
        for step in range(40):
            index.upsert([longer], VECTORS[30:31], {"n": [f"word {step}"]})
        assert Index.load(place).search(VECTORS[[30, 4]], 1).ids[:, 0].tolist() == [longer, names[4]]
        index.save(place)
    loaded = Index.load(place)
    assert sorted(loaded.snapshot.attributes.column("n").vocabulary) == ["start", "word 39"]
    assert loaded.attributes([longer, names[4]]) == [{"n": "word 39"}, {"n": "start"}]


def test_one_writer_at_a_time_and_others_catch_up(folder, monkeypatch):
    first, second = Index.load(folder), Index.load(folder)
    first.upsert([5_000], QUERIES[5:6])
    with pytest.raises(UserError, match="another process is changing"):
        second.delete([5_000])
    assert 5_000 not in second
    assert second.refresh() and 5_000 in second and not second.refresh()
    first.rebuild()
    first.delete([5_000])
    assert second.refresh() and 5_000 not in second
    first.close()
    with second:
        second.upsert([6_000], QUERIES[6:7])  # reads what it missed, then writes
    with first:
        first.upsert([7_000], QUERIES[7:8])
        assert 6_000 in first
    monkeypatch.chdir(folder.parent)
    with second:
        second.save(folder.name)  # the same place by another name; what others wrote is not overwritten
        assert 7_000 in second
    assert 7_000 in Index.load(folder)


@BACKENDS
def test_changed_missing_and_foreign_files_are_told_of(folder):
    paths = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size and p.suffix != ".journal"]
    assert len(paths) >= 5
    for path in paths:
        whole = path.read_bytes()
        place = len(whole) // 2
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], b""):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=r"damaged|format"):
                Index.load(folder)
        path.unlink()
        with pytest.raises(UserError, match=r"missing|no index"):
            Index.load(folder)
        path.write_bytes(whole)
    assert len(Index.load(folder)) == 1_000
    (paths[-1].parent / "scann_docids.pkl").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(UserError, match="no file of this index"):
        Index.load(folder)


def test_an_update_that_a_crash_cut_short_is_none(folder, capsys):
    """A process may be stopped at any byte of a record, and before the head names it."""
    place, whole = journal_of(folder), journal_of(folder).read_bytes()
    head, begin, (_, last, end) = whole[: first_place(folder).end], first_place(folder), ends_of(folder)
    record = whole[last:end]
    for kept in range(len(record) + 1):
        place.write_bytes(whole + record[:kept])  # a third record, whatever it holds
        found = read_updates(place, begin, "")
        assert len(found.updates) == 2 and found.place.end == end and bool(found.note) == bool(kept)
    assert main(["verify", str(folder)]) == 0  # nothing is lost
    assert "a change that was not finished" in capsys.readouterr().out
    with Index.load(folder) as loaded:
        assert "was not finished" in loaded.journal_warning
        loaded.delete([10])
        assert not loaded.journal_warning
    assert 10 not in Index.load(folder) and ends_of(folder)[:3] == [len(head), last, end]


@pytest.mark.parametrize("fails", [None, 1, 2, 3, 4, 5])
def test_at_every_moment_of_an_append_what_was_acknowledged_is_there(folder, monkeypatch, fails):
    """The journal is read after every few bytes that are written; one of the flushes may fail."""
    place, states, done, flushes = journal_of(folder), [], 2, itertools.count(1)

    def write(file, data):
        written = os.write(file, data[:37])
        states.append((done, place.read_bytes()))
        return written

    def fsync(file):
        if next(flushes) == fails:
            raise OSError(5, "Input/output error")
        os.fsync(file)

    with Index.load(folder) as loaded:
        monkeypatch.setattr(journal, "os", SimpleNamespace(**{**vars(os), "write": write, "fsync": fsync}))
        for name in (20, 21, 22):
            with contextlib.suppress(OSError):
                loaded.delete([name])
                done += 1
    assert done == 5 - bool(fails) and len(states) > 20
    last = Index.verify(folder)
    assert [name in last for name in (20, 21, 22)].count(False) == done - 2 == len(updates_of(folder).updates) - 2
    for known, state in states:
        place.write_bytes(state)
        assert known <= len(updates_of(folder).updates) <= known + 1


def test_a_reader_follows_a_writer_at_every_moment(folder, monkeypatch):
    reader, stop = Index.load(folder), threading.Event()

    def write():
        try:
            with Index.load(folder) as writer:
                for step in range(1, 61):
                    writer.upsert([3], QUERIES[:1], {"share": [step]})
                    if step % 6 == 0:
                        writer.save(folder)
        finally:
            stop.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(1) as threads:
            writing, seen = threads.submit(write), [0]
            while not stop.is_set():
                reader.refresh()
                seen.append(reader.attributes([3])[0]["share"] if reader.snapshot.version > 3 else 0)
            writing.result()
    finally:
        sys.setswitchinterval(interval)
    reader.refresh()
    assert reader.attributes([3])[0]["share"] == 60
    assert seen == sorted(seen) and len(set(seen)) > 5


def test_half_a_head_after_a_loss_of_power_loses_nothing(folder, capsys):
    """One copy of the head may hold anything; the other one names the last update, or the one before it."""
    place, whole = journal_of(folder), journal_of(folder).read_bytes()
    for number in (0, 1):
        for torn in (bytes(200), b"\xff" * 200, whole[4096 * number :][:40] + bytes(160)):
            start = 4096 * number
            place.write_bytes(whole[:start] + torn + whole[start + 200 :])
            assert len(updates_of(folder).updates) == 2
            with pytest.raises(UserError, match="one of the two copies of its header"):
                Index.verify(folder)
    assert main(["verify", str(folder)]) == 2
    assert "the other copy" in capsys.readouterr().out
    with Index.load(folder) as loaded:
        assert 4 not in loaded
        loaded.delete([10])
    assert 10 not in Index.verify(folder)
    place.write_bytes(whole[:4096] + bytes(200) + whole[4296:-5])  # two damages, which no crash makes
    with pytest.raises(UserError, match="damaged"):
        Index.load(folder)


def lost_updates(folder, tmp_path):
    """Yields damaged contents of a journal (None: no file), each with a part of its error message."""
    place, whole, (first, second, end) = journal_of(folder), journal_of(folder).read_bytes(), ends_of(folder)
    yield None, "is missing"
    yield b"", "neither copy of its header"
    yield whole[:first], "change 1 of 2 is cut short"
    yield whole[:second], "change 2 of 2 is cut short"
    yield whole[:-1], "change 2 of 2 is cut short"
    yield whole[:first] + whole[second:], "change 2 in place of change 1"
    yield whole[:first] + whole[second:end] + whole[first:second], "change 2 in place of change 1"
    yield whole[:first] + 2 * whole[first:second], "change 2 of 2 is cut short or damaged"
    yield bytes(4096) * 2 + whole[first:], "neither copy of its header"
    for byte in range(first, end):
        for bit in (0, 7):
            yield whole[:byte] + bytes([whole[byte] ^ 1 << bit]) + whole[byte + 1 :], r"damaged"
    place.write_bytes(whole)
    with Index.load(folder) as other:
        other.save(tmp_path / "other")  # the same products in another generation
        yield journal_of(tmp_path / "other").read_bytes(), "another index"
        other.upsert([3, 2_000], QUERIES[:2], {"side": ["new", "new"]})
        other.delete([5])
        yield journal_of(tmp_path / "other").read_bytes(), "another index"
    place.write_bytes(whole)


def test_a_journal_that_lost_an_update_is_refused(folder, tmp_path):
    for data, message in lost_updates(folder, tmp_path):
        journal_of(folder).write_bytes(data) if data is not None else journal_of(folder).unlink()
        with pytest.raises(UserError, match=message) as caught:
            updates_of(folder) if data else Index.load(folder)
        assert str(folder) in str(caught.value)
        (folder / f"{generation(folder).name}.journal").touch()
    journal_of(folder).unlink()
    with pytest.raises(UserError, match=r"updates=False\).save\("):
        Index.verify(folder)
    Index.load(folder, updates=False).save(folder)
    assert 4 in Index.verify(folder)  # as it was before the changes


def test_any_flipped_bit_of_a_head_changes_nothing_or_is_refused(folder):
    place, whole = journal_of(folder), journal_of(folder).read_bytes()
    for byte in [*range(100), *range(4096, 4196)]:
        place.write_bytes(whole[:byte] + bytes([whole[byte] ^ 4]) + whole[byte + 1 :])
        assert len(updates_of(folder).updates) == 2


def test_what_is_no_index_is_said_and_left_alone(index, folder, tmp_path):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    stored.write_document(folder / "manifest.json", {**manifest, "format": 99})
    with pytest.raises(UserError, match="format 99"):
        Index.load(folder)
    (tmp_path / "manifest.json").write_text('{"format": 1, "fingerprint": "x", "num_products": 3}')
    with pytest.raises(UserError, match="holds other files"):
        index.save(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        index.save(tmp_path / "manifest.json")
    assert "fingerprint" in (tmp_path / "manifest.json").read_text()


def with_npy(name, array):
    return lambda place, manifest: np.save(place / name, array)


def with_npz(name, save=np.savez, **arrays):
    def change(place, manifest):
        with np.load(place / name) as old:
            save(place / name, **{**old, **arrays})

    return change


def with_bytes(name, data):
    return lambda place, manifest: (place / name).write_bytes(data)


def with_zip_bytes(*changes):
    def change(place, manifest):
        data = bytearray((place / "columns.npz").read_bytes())
        for mark, offset, new in changes:
            start = data.rfind(mark) + offset
            data[start : start + len(new)] = new
        (place / "columns.npz").write_bytes(bytes(data))

    return change


def with_text_among_arrays(place, manifest):
    with zipfile.ZipFile(place / "columns.npz", "a") as archive:
        archive.writestr("column9.npy", "hello")


def with_much_claimed(place, manifest):
    """A header of 10**13 rows, as the manifest says, and the bytes of a thousand."""
    with (place / "vectors.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**13, 16)})
        file.write(bytes(64_000))
    manifest["rows"] = 10**13


HARMS = [
    with_npy("vectors.npy", np.full((1_000, 16), np.nan, np.float32)), with_npy("ids.npy", np.repeat(range(500), 2)),
    with_npy("ids.npy", np.arange(-1, 999)), with_text_among_arrays, with_much_claimed, ("rows", -1), ("dim", 0),
    with_bytes("vectors.npy", b"\x93NUMPY\x01"), with_bytes("columns.npz", b"PK\x03\x04" + b"x" * 50),
    with_bytes("vectors.npy", b"\x93NUMPY\x01\x00\x14\x00{'descr': ('<f4',    \n"),
    with_zip_bytes((b"PK\x01\x02", 20, b"\xf0\xff\xff\xff" * 2)),  # an array is said to take gigabytes
    with_zip_bytes((b"PK\x03\x04", 6, b"\x01"), (b"PK\x01\x02", 8, b"\x01")),  # encrypted
    with_npz("columns.npz", column0=np.full(1_000, 99, np.int32)), with_npz("columns.npz", np.savez_compressed),
    ("version", None), ("columns", [3]), ("generation", "generation-../../../etc"), ("settings.backend", 5),
    ("settings.batch", -1), ("base", {}), ("base.rows", 10**9), ("base.rows", 0), ("base.backend", "faiss"),
    ("base.target_recall", "much"), ("base.device_costs", [-1, 1]), ("base.points", [{"neighbours": 10}]),
    ("settings.about", {"schema": 5}), ("settings.about", {"labels": [3]}), ("settings.about", {"model": []}),
    ("settings.about", {"schema": {"name": "x", "attributes": 3}}),
    ("base.host_costs", []), ("base.host_costs.rows", [5, 3]), ("base.host_costs.batch", float("nan")),
]  # fmt: skip
SCANN_HARMS = [
    ("base.index.leaves", 10**12), ("base.points.0.effort", 10**9), ("base.points.0.reorder", -1),
    ("base.own_recall", 1.5), ("base.own_recall", "most"), ("base.points.0.neighbours", 0),
    ("base.points.0.single_seconds", -1.0), ("base.points.0.batch_seconds", 0.0),
    with_npy("scann/dataset.npy", np.zeros((1_000, 16), np.float32)), with_npz("sample.npz", rows=np.full(600, 10**6)),
    with_npy("scann/dataset.npy", np.zeros((9_000, 16), np.float32)), with_npz("sample.npz", scores=np.zeros(3, "f4")),
    with_npz("sample.npz", scores=np.full((600, 999), np.nan, np.float32)),
]  # fmt: skip


def with_links(change):
    """Changes the links of a graph in place: links, and the place where each row's links begin."""

    def harm(place, manifest):
        levels, links = (np.load(place / "hnsw" / f"{name}.npy") for name in ("levels", "links"))
        change(links, np.cumsum(12 * (levels + 1)) - 12 * (levels + 1), levels)
        np.save(place / "hnsw" / "links.npy", links)

    return harm


def lead_down(links, starts, levels):
    """A link on level 1 to a row that has level 0 alone: faiss would read the links of a row behind it."""
    links[starts[np.argmax(levels > 1)] + 24] = np.argmax(levels == 1)


HNSW_HARMS = [
    ("base.index.entry", 1_000), ("base.index.entry", -1), ("base.index.entry", "3"), ("base.index.links", 10**9),
    ("base.index.links", 16), ("base.index.coded", "yes"), ("base.index", []), ("base.points.0.effort", 1_001),
    with_npy("hnsw/links.npy", np.zeros(7, np.int32)), with_npy("hnsw/links.npy", np.zeros((2, 3), np.int32)),
    with_npy("hnsw/levels.npy", np.zeros(1_000, np.int32)), with_npy("hnsw/levels.npy", np.full(1_000, 99, np.int32)),
    with_npy("hnsw/levels.npy", np.ones(1_000, np.int32)), with_npy("hnsw/levels.npy", np.ones(9, np.int32)),
    with_links(lambda links, starts, levels: links.__setitem__(5, 1_000)),
    with_links(lambda links, starts, levels: links.__setitem__(5, -2)), with_links(lead_down),
]  # fmt: skip


CASES = [
    (backend, harm)
    for backend, harms in (("exact", HARMS), ("scann", SCANN_HARMS), ("hnsw", HNSW_HARMS))
    for harm in harms
]


@pytest.mark.parametrize(("template", "change"), CASES, indirect=["template"])
def test_a_folder_that_means_harm_is_refused_with_a_sentence(folder, change):
    """Files are changed as somebody would who means harm: digests and all are right."""
    place, path = generation(folder), folder / "manifest.json"
    manifest = json.loads(path.read_text())
    if callable(change):
        change(place, manifest)
    else:
        set_at(manifest, *change)
    for name in manifest["files"]:
        data = (place / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del manifest["sha256"]
    path.write_text(json.dumps({**manifest, "sha256": stored.document_digest(manifest)}))
    create_journal(journal_of(folder), first_place(folder))
    with pytest.raises(UserError, match="damaged"):
        Index.load(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "[]", "3", "\xff", '{"format": ' + "9" * 5_000 + "}", ""])
def test_a_manifest_that_is_none_is_a_sentence(folder, text):
    (folder / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"damaged|format"):
        Index.load(folder)


ROW = {"side": [None], "share": [0], "title": [""]}


def addition(vectors=np.eye(1, 16), name=5, **columns):  # noqa: B008
    return Update(False, np.array([name]), np.asarray(vectors, np.float32), {**ROW, **columns})


@pytest.mark.parametrize("update", [
    addition(np.ones((1, 16))), addition(np.eye(1, 9)), addition(name=-5), addition(side=[3]),
    addition(side=[]), addition(side=["\ud800"]), addition(share=[10**400]),
    Update(True, np.array(["a"])), Update(True, np.array([], np.int64)),
    Update(False, np.array([5]), np.eye(1, 16, dtype=np.float32), {"side": [None]}),
])  # fmt: skip
def test_updates_that_no_index_wrote_are_refused(index, folder, update, monkeypatch):
    assert addition().fits(index.snapshot)
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda values, **_: dumps(values))  # which writes half of a surrogate pair too
    forge_update(folder, update)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"that no index writes|another index"):
        Index.load(folder)


def test_links_and_pipes_in_the_folder_lead_nowhere(folder, tmp_path):
    victim = tmp_path / "victim"
    journal = journal_of(folder)
    whole = journal.read_bytes()
    for place in (journal, folder / ".lock"):
        victim.write_bytes(b"precious" * 1_000)
        place.unlink(missing_ok=True)
        place.symlink_to(victim)
        with pytest.raises(UserError):
            Index.load(folder).delete([10])
        assert victim.read_bytes() == b"precious" * 1_000
        place.unlink()
    for make, remove in ((Path.mkdir, Path.rmdir), (os.mkfifo, Path.unlink)):
        make(journal)
        with pytest.raises(UserError, match="no ordinary file"):
            Index.load(folder)
        remove(journal)
    journal.write_bytes(whole)
    assert len(Index.load(folder)) == 1_000


def test_a_journal_that_vanishes_is_not_written_on(index, folder):
    loaded = Index.load(folder)
    journal_of(folder).unlink()
    with pytest.raises(UserError, match="is missing"):
        loaded.delete([10])
    assert 10 in loaded
    create_journal(folder / f"{generation(folder).name}.journal", first_place(folder))
    with pytest.raises(UserError, match="has lost changes"):
        loaded.delete([10])
    loaded.save(folder.with_name("elsewhere"))
    loaded.close()
    assert len(Index.load(folder.with_name("elsewhere"))) == len(index)


def test_an_interrupted_catching_up_starts_again(folder, monkeypatch):
    with Index.load(folder) as writer:
        reader = Index.load(folder)
        writer.delete([2_000])
        writer.upsert([5_000], QUERIES[:1])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GrowingArray, "extend", Mock(side_effect=KeyboardInterrupt))  # after the removal was applied
        reader.refresh()
    assert reader.refresh()
    assert 2_000 not in reader and 5_000 in reader and len(reader) == len(writer)


def test_a_long_journal_is_saved_away(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_LEAST_JOURNAL", 1_000)
    with Index.build(VECTORS, np.arange(1_000), ATTRIBUTES, backend="exact") as index:
        index.save(tmp_path / "index")
        sizes = []
        for step in range(60):
            index.upsert(np.arange(step, step + 20), QUERIES[:20], {"side": [str(step)] * 20})
            sizes.append(len(updates_of(tmp_path / "index").updates))
    assert 0 in sizes  # it was saved away in between
    loaded = Index.load(tmp_path / "index")
    assert [row["side"] for row in loaded.attributes([0, 30, 78])] == ["0", "30", "59"]
    assert np.array_equal(loaded.ids, index.ids) and len(loaded) == 1_000


def test_what_cannot_be_saved_away_is_kept_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_LEAST_JOURNAL", 0)
    save = Mock(side_effect=MemoryError)
    with Index.build(VECTORS[:2], np.arange(2), backend="exact") as index:
        index.save(tmp_path / "index")
        monkeypatch.setattr(np, "save", save)
        for step in range(20):
            index.upsert([step], QUERIES[:1])
    assert 1 <= save.call_count < 10  # not with every change
    assert len(Index.load(tmp_path / "index")) == 20


@BACKENDS
def test_times_are_measured_again_on_another_machine(index, folder, monkeypatch):
    monkeypatch.setattr(storage, "machine_name", lambda: "another machine")
    before, after = index.snapshot.base, Index.load(folder).snapshot.base
    assert before.host.costs != after.host.costs
    assert before.backend == "exact" or before.points != after.points
    assert all(p.single_seconds > 0 and p.batch_seconds > 0 for p in after.points)
    same = {"single_seconds": 0, "batch_seconds": 0}
    assert [replace(p, **same) for p in before.points] == [replace(p, **same) for p in after.points]


@BACKENDS
@pytest.mark.parametrize(("call", "fails"), [("save", (np, "save")), ("delete", (os, "fsync"))])
def test_a_full_disk_leaves_the_index_as_it_was(folder, monkeypatch, call, fails):
    loaded = Index.load(folder)
    loaded.delete([11])
    before = sorted(p.name for p in folder.iterdir())
    monkeypatch.setattr(*fails, Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        loaded.save(folder) if call == "save" else loaded.delete([14])
    monkeypatch.undo()
    assert sorted(p.name for p in folder.iterdir()) == before
    loaded.delete([12])
    loaded.close()
    again = Index.load(folder)
    assert [name in again for name in (11, 12, 14)] == [False, False, True]


@pytest.mark.parametrize("template", ["scann"], indirect=True)
def test_files_that_scann_cannot_write_are_a_sentence(folder):
    """A limit on the sizes of files does to ScaNN what a full disk does."""
    code = (
        "import resource, signal, sys\n"
        "from fashion_jax.search.index import Index\n"
        "index = Index.load(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "index.snapshot.base.index.save = lambda folder, save=index.snapshot.base.index.save: (\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, resource.RLIM_INFINITY)), save(folder))\n"
        "index.save(sys.argv[1])\n"
    )
    failed = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert "OSError: [Errno 5] ScaNN cannot write (" in failed.stderr
    assert len(Index.verify(folder)) == 1_000


def test_an_error_after_the_swap_loses_no_later_update(folder, monkeypatch):
    """The new generation is the current one, and what follows goes there, whatever fails behind the swap."""
    with Index.load(folder) as loaded:
        monkeypatch.setattr(storage, "remove_others", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            loaded.save(folder)
        monkeypatch.undo()
        loaded.delete([13])
    assert 13 not in Index.load(folder)


@BACKENDS
@pytest.mark.parametrize("where", ["append", "conform"])
def test_an_update_that_is_interrupted_leaves_every_vector_with_its_id(folder, monkeypatch, where):
    for index in (Index.build(VECTORS, np.arange(1_000), ATTRIBUTES, backend="exact"), Index.load(folder)):
        wanted = QUERIES[2:3] / np.linalg.norm(QUERIES[2])
        index.upsert([3_000], QUERIES[:1])
        with monkeypatch.context() as patch:
            patch.setattr(AttributeTable, where, Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                index.upsert([3_001], QUERIES[1:2])
        index.upsert([3_002], QUERIES[2:3])
        assert np.allclose(index.vectors([3_002]), wanted, atol=1e-6)
        assert index.search(QUERIES[2:3], 1).ids.tolist() == [[3_002]]
        index.close()
    again = Index.load(folder)
    assert np.allclose(again.vectors([3_002]), wanted, atol=1e-6)
    # On the disk before the interrupt came, or not begun.
    assert (3_001 in again) == (3_001 in index) == (where == "append")


@pytest.mark.parametrize("template", ["scann", "hnsw"], indirect=True)
def test_an_index_of_a_backend_that_is_not_installed_is_searched_exactly(index, folder, monkeypatch, caplog):
    def require(cls):
        raise UserError("not installed")

    library = index.snapshot.base.approximate.library
    monkeypatch.setattr(type(index.snapshot.base.approximate), "require", classmethod(require))
    with Index.load(folder) as loaded:
        assert loaded.snapshot.base.backend == "exact" and f"built with {library}" in caplog.text
        ids = np.append(np.arange(1_000), [3, 2_000])
        live = ~np.isin(np.arange(1_002), [3, 4])  # one was replaced, and one deleted
        wanted = ids[truth(np.concatenate([VECTORS, QUERIES[:2]]), QUERIES, 5, live)]
        assert recall(loaded.search(QUERIES, 5).ids, wanted) == 1
        assert f"built with {library}, which is not installed" in loaded.health().reasons[0]
        assert (loaded.search(QUERIES, 5, where="share < 0.1").ids >= 0).all()
        loaded.rebuild()
        assert not loaded.health().rebuild_due
    assert len(Index.load(folder)) == 1_000


def test_health_compares_the_recall_of_a_new_index_with_the_tuned_one():
    for backend in ("scann", "hnsw"):
        index = Index.build(clustered(3_000, 32), np.arange(3_000), backend=backend)
        base = index.snapshot.base
        assert index.health().recall == pytest.approx(base.points[0].recall, abs=1e-6)
        worse = base.points[0].recall - 0.1  # as if it had found more when it was new
        index._snapshot = replace(index.snapshot, base=replace(base, own_recall=base.own_recall + 0.1))
        assert index.health().recall == pytest.approx(worse, abs=1e-6) and index.health().rebuild_due


def test_health_says_when_a_rebuild_is_due():
    index = Index.build(VECTORS, np.arange(1_000), ATTRIBUTES, backend="scann")
    assert not index.health().rebuild_due
    index.delete(np.arange(350))
    assert "35% of the indexed rows" in index.health().reasons[0]
    index.upsert(np.arange(5_000, 5_200), clustered(200, 16, seed=9))
    assert any("17% of the rows were added since" in reason for reason in index.health().reasons)
    index.rebuild()
    assert index.health().reasons == () and len(index) == 850
