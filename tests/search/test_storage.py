"""Saved indexes: the same after loading, refused when damaged, never half-written, one writer at a time."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from search.clustered import attributes_of, clustered

from fashion_jax.errors import UserError
from fashion_jax.search import storage
from fashion_jax.search.attributes import AttributeTable
from fashion_jax.search.index import Index
from fashion_jax.search.journal import read_updates

VECTORS, QUERIES = np.split(clustered(1_040, 16), [1_000])
ATTRIBUTES = attributes_of(VECTORS)


@pytest.fixture(params=["exact", "scann"])
def saved(request, tmp_path):
    index = Index.build(VECTORS, np.arange(1_000), ATTRIBUTES, backend=request.param, pca=12, model="abc")
    index.save(tmp_path / "index")
    index.upsert([3, 2_000], QUERIES[:2], {"side": ["new", "new"]})
    index.delete([4])
    index.close()
    return index, tmp_path / "index"


def generation(folder):
    return next(p for p in folder.glob("generation-*") if p.is_dir())


def test_loaded_is_the_same(saved):
    index, folder = saved
    loaded = Index.load(folder)
    assert len(loaded) == len(index) == 1_000
    assert loaded.model == "abc"
    assert loaded.columns == index.columns
    assert loaded.projection.explained == index.projection.explained
    for where in (None, "side == 'left'", "side == 'new'", "share < 0.01"):
        ours, theirs = index.search(QUERIES, 7, where=where), loaded.search(QUERIES, 7, where=where)
        assert np.array_equal(ours.ids, theirs.ids)
        assert np.array_equal(ours.scores, theirs.scores)
    assert loaded.attributes([2_000, 3]) == index.attributes([2_000, 3])
    assert loaded.snapshot.base.points == index.snapshot.base.points


def test_saving_again_leaves_one_generation_and_an_empty_journal(saved):
    _, folder = saved
    with Index.load(folder) as loaded:
        loaded.save(folder)
        assert sorted(p.name.split("-")[0] for p in folder.iterdir()) == [
            ".lock", "generation", "generation", "manifest.json",
        ]  # fmt: skip
        assert [p.stat().st_size for p in folder.glob("*.journal")] == [0]
    again = Index.load(folder)
    assert np.array_equal(again.search(QUERIES, 5).ids, loaded.search(QUERIES, 5).ids)


def test_text_ids_survive(tmp_path):
    names = [f"ключ {i}" for i in range(20)]
    with Index.build(VECTORS[:20], names) as index:
        index.save(tmp_path / "index")
        index.upsert(["a much longer name than the others"], VECTORS[30:31])
    loaded = Index.load(tmp_path / "index")
    assert loaded.search(VECTORS[[30, 4]], 1).ids[:, 0].tolist() == ["a much longer name than the others", names[4]]


def test_one_writer_at_a_time_and_readers_catch_up(saved):
    _, folder = saved
    first, second = Index.load(folder), Index.load(folder)
    first.upsert([5_000], QUERIES[5:6])
    with pytest.raises(UserError, match="another process is changing"):
        second.delete([5_000])
    assert 5_000 not in second
    assert second.refresh()
    assert 5_000 in second
    assert not second.refresh()
    first.rebuild()
    first.delete([5_000])
    assert second.refresh()
    assert 5_000 not in second
    first.close()
    second.upsert([6_000], QUERIES[6:7])  # reads what it missed, then writes
    second.close()
    first.upsert([7_000], QUERIES[7:8])
    assert 6_000 in first
    first.close()


def test_a_damaged_byte_anywhere_is_a_sentence(saved):
    _, folder = saved
    paths = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size and p.suffix != ".journal"]
    assert len(paths) >= 6
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


def test_the_journal_ends_at_what_a_crash_cut_short(saved):
    _, folder = saved
    journal = next(folder.glob("*.journal"))
    whole = journal.read_bytes()
    ends = [end for _, end in read_updates(journal)]
    assert len(ends) == 2
    for cut in range(len(whole) + 1):
        journal.write_bytes(whole[:cut])
        assert [end for _, end in read_updates(journal)] == [end for end in ends if end <= cut]
    journal.write_bytes(whole + whole[:30])
    with Index.load(folder) as loaded:
        loaded.delete([10])
    assert 10 not in Index.load(folder)  # the half record was removed before the next one was written


def test_a_damaged_update_before_others_is_not_passed_over(saved):
    _, folder = saved
    journal = next(folder.glob("*.journal"))
    whole = journal.read_bytes()
    for place in (2, 6, 40):
        journal.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match="damaged at byte 0"):
            Index.load(folder)


def test_what_is_no_index_is_said(saved, tmp_path):
    _, folder = saved
    with pytest.raises(UserError, match="no index"):
        Index.load(tmp_path / "nothing")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        Index.load(folder)
    other = tmp_path / "photos"
    other.mkdir()
    (other / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="holds other files"):
        Index.build(VECTORS, np.arange(1_000)).save(other)
    with pytest.raises(UserError, match="is a file"):
        Index.build(VECTORS, np.arange(1_000)).save(other / "holiday.jpg")
    assert (other / "holiday.jpg").read_bytes() == b"x"


def test_nothing_foreign_is_loaded(saved):
    _, folder = saved
    place = generation(folder)
    strange = (place / "scann" if (place / "scann").is_dir() else place) / "scann_docids.pkl"
    strange.write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(UserError, match="not name"):
        Index.load(folder)


def test_a_failed_save_leaves_the_former_index(saved, monkeypatch):
    _, folder = saved
    loaded = Index.load(folder)
    loaded.delete([11])
    before = sorted(p.name for p in folder.iterdir())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space"):
        loaded.save(folder)
    monkeypatch.undo()
    assert sorted(p.name for p in folder.iterdir()) == before
    loaded.delete([12])
    loaded.close()
    again = Index.load(folder)
    assert 11 not in again
    assert 12 not in again


def test_a_failed_update_is_as_if_it_had_not_been(saved, monkeypatch):
    _, folder = saved
    loaded = Index.load(folder)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        loaded.delete([11])
    monkeypatch.undo()
    assert 11 in loaded
    loaded.delete([12])
    loaded.close()
    again = Index.load(folder)
    assert 11 in again
    assert 12 not in again


def test_an_error_after_the_swap_loses_no_later_update(saved, monkeypatch):
    """The new generation is the current one, and what follows goes there, whatever fails behind the swap."""
    _, folder = saved
    loaded = Index.load(folder)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "remove_others", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loaded.save(folder)
    monkeypatch.undo()
    loaded.delete([13])
    loaded.close()
    assert 13 not in Index.load(folder)


def test_a_stale_copy_does_not_overwrite_what_others_wrote(saved, monkeypatch):
    _, folder = saved
    stale, other = Index.load(folder), Index.load(folder)
    with other:
        other.upsert([9_000], QUERIES[9:10])
    monkeypatch.chdir(folder.parent)
    with stale:
        stale.save(folder.name)  # the same place by another name
        assert 9_000 in stale
    assert 9_000 in Index.load(folder)


@pytest.mark.parametrize("where", ["append", "conform"])
def test_an_update_that_is_interrupted_leaves_every_vector_with_its_id(saved, monkeypatch, where):
    _, folder = saved

    def interrupted(*_):
        raise KeyboardInterrupt

    for index in (Index.build(VECTORS, np.arange(1_000), ATTRIBUTES, backend="exact"), Index.load(folder)):
        wanted = index.project(QUERIES[2:3])
        index.upsert([3_000], QUERIES[:1])
        with monkeypatch.context() as patch:
            patch.setattr(AttributeTable, where, interrupted)
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


def test_other_programs_folders_are_left_alone(tmp_path):
    index = Index.build(VECTORS, np.arange(1_000))
    foreign = tmp_path / "records"
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"format": 1, "fingerprint": "x", "num_products": 3}')
    with pytest.raises(UserError, match=r"holds other files, such as manifest\.json"):
        index.save(foreign)
    index.save(tmp_path / "index")
    (tmp_path / "index/generation-1").mkdir()
    (tmp_path / "index/generation-1/data.txt").write_text("mine")
    index.save(tmp_path / "index")
    index.close()
    assert (tmp_path / "index/generation-1/data.txt").read_text() == "mine"
    assert len(list((tmp_path / "index").glob("generation-*.journal"))) == 1


def test_a_copied_folder_is_an_index(saved, tmp_path):
    index, folder = saved
    shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.rmtree(folder)
    moved = Index.load(tmp_path / "elsewhere")
    assert np.array_equal(moved.search(QUERIES, 5).ids, index.search(QUERIES, 5).ids)


def test_health_says_when_a_rebuild_is_due():
    index = Index.build(VECTORS, np.arange(1_000), ATTRIBUTES, backend="scann")
    assert not index.health().rebuild_due
    index.delete(np.arange(350))
    assert "35% of the indexed rows" in index.health().reasons[0]
    index.upsert(np.arange(5_000, 5_200), clustered(200, 16, seed=9))
    assert any("17% of the rows came since" in reason for reason in index.health().reasons)
    index.rebuild()
    assert index.health().reasons == ()
    assert len(index) == 850
