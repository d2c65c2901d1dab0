"""Changes to an index: against a dictionary, under readers, after crashes."""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from search.clustered import clustered, unit
from search.journals import forge_update

from fashion_jax.search import index as index_module
from fashion_jax.search import planner
from fashion_jax.search import snapshot as versions
from fashion_jax.search.index import Index
from fashion_jax.search.snapshot import Update, Updater
from fashion_jax.system.errors import UserError

DIM = 8
POOL = clustered(4_000, DIM, clusters=30)
COLOURS = ("Red", "Blue", "")
SEEDS = st.integers(0, 10**6)


@pytest.fixture(autouse=True)
def index_answers(monkeypatch):
    """The index answers, also where exact search is faster."""
    monkeypatch.setattr(planner, "_GAIN", np.inf)


class Model(RuleBasedStateMachine):
    """An index and a dictionary do the same things; both must give the same answers at every step."""

    backend = "exact"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.products: dict[int, tuple[np.ndarray, str]] = {}  # id -> vectors of its photos, colour
        self.prices: dict[int, float] = {}  # given by `update` alone; its column comes with the first one
        self.index: Index

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()
        shutil.rmtree(self.folder)

    def put(self, ids: list[int], seed: int, most: int) -> tuple[list[int], np.ndarray, list[str]]:
        """Gives each product 1 to `most` photos; returns the photos' products, vectors and colours, in any order."""
        chance = np.random.default_rng(seed)
        rows = chance.permutation(np.repeat(ids, chance.integers(1, most + 1, len(ids))).astype(int))
        vectors = POOL[chance.integers(0, len(POOL), len(rows))].reshape(-1, DIM)
        for i in ids:
            self.products[i] = vectors[rows == i], COLOURS[(i + seed) % 3]
        return rows.tolist(), vectors, [COLOURS[(i + seed) % 3] for i in rows.tolist()]

    @initialize(count=st.integers(1, 200), seed=SEEDS, most=st.sampled_from([1, 3]))
    def build(self, count: int, seed: int, most: int) -> None:
        rows, vectors, colours = self.put(list(range(count)), seed, most)
        # A target of 1 makes ScaNN look at everything, so that its answers can be compared one by one.
        self.index = Index.build(vectors, rows, {"colour": colours}, backend=self.backend, target_recall=1.0)

    @rule(
        ids=st.lists(st.integers(0, 300), max_size=12, unique=True),
        seed=SEEDS,
        most=st.sampled_from([1, 3]),
        with_colours=st.booleans(),
    )
    def upsert(self, ids: list[int], seed: int, most: int, with_colours: bool) -> None:
        before = dict(self.products)
        rows, vectors, colours = self.put(ids, seed, most)
        if not with_colours:
            self.products.update({i: (self.products[i][0], before[i][1] if i in before else "") for i in ids})
        self.index.upsert(rows, vectors, {"colour": colours} if with_colours else None)

    @precondition(lambda self: self.products)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.products)), max_size=6, unique=True))
        self.index.delete(ids)
        for i in ids:
            del self.products[i]
            self.prices.pop(i, None)

    @precondition(lambda self: self.products)
    @rule(data=st.data(), price=st.sampled_from([1, 2.5, None]), colour=st.sampled_from([None, "Red", "Green"]))
    def update(self, data: st.DataObject, price: float | None, colour: str | None) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.products)), min_size=1, max_size=6, unique=True))
        columns = {"price": [price] * len(ids)} if price or "price" in self.index.columns else {}
        if colour:
            columns["colour"] = [colour] * len(ids)
            self.products.update({i: (self.products[i][0], colour) for i in ids})
        self.index.update(ids, columns)
        for i in ids:
            self.prices[i] = price

    @rule(i=st.integers(301, 400), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
    def change_wrongly(self, i: int, bad: float) -> None:
        with pytest.raises(KeyError):
            self.index.delete([*sorted(self.products)[:1], i])
        with pytest.raises(KeyError):
            self.index.update([*sorted(self.products)[:1], i], {"colour": ["Red"] * (1 + bool(self.products))})
        with pytest.raises(UserError):
            self.index.upsert([1, 2], np.stack([POOL[0], np.full(DIM, bad)]))

    @rule()
    def save(self) -> None:
        self.index.save(self.folder / "index")

    @precondition(lambda self: (self.folder / "index").exists() and self.index._saved is not None)
    @rule()
    def crash_and_load(self) -> None:
        # What is in memory is lost, as if the process had ended: only the lock is released.
        self.index._saved._lock.close()
        self.index = Index.load(self.folder / "index")

    @precondition(lambda self: self.products)
    @rule()
    def rebuild(self) -> None:
        self.index.rebuild()

    @precondition(lambda self: self.products)
    @rule(seed=SEEDS, k=st.integers(1, 12), colour=st.sampled_from([None, "Red", "Blue", ""]))
    def search(self, seed: int, k: int, colour: str | None) -> None:
        queries = POOL[np.random.default_rng(seed).integers(0, len(POOL), 3)] + np.float32(0.01)
        k = min(k, len(self.products))
        where = None if colour is None else f"colour == {colour!r}" if colour else "colour == none"
        hits = self.index.search(queries, k, where=where)
        names = [i for i, (_, c) in self.products.items() if colour is None or c == colour]
        assert ((hits.ids >= 0).sum(1) == min(k, len(names))).all()
        if not names:
            return
        # The best photo of each product, one by one.
        scores = np.stack([(unit(queries) @ unit(self.products[i][0]).T).max(1) for i in names], axis=1)
        best = -np.sort(-scores, axis=1)[:, :k]
        assert np.allclose(hits.scores[:, : best.shape[1]], best, atol=1e-5)
        for query, (found, values) in enumerate(zip(hits.ids, hits.scores, strict=True)):
            for place, (i, value) in enumerate(zip(found[found >= 0].tolist(), values, strict=False)):
                assert abs(scores[query, names.index(i)] - value) < 1e-5
                photo = unit(self.products[i][0])[hits.photos[query, place]]
                assert abs(unit(queries[query]) @ photo - value) < 1e-5

    @invariant()
    def same_products(self) -> None:
        assert len(self.index) == len(self.products)
        assert self.index.num_photos == sum(len(photos) for photos, _ in self.products.values())
        assert sorted(self.index.ids.tolist()) == sorted(self.products)
        some = sorted(self.products)[:3]
        means = [unit(unit(self.products[i][0]).mean(0)) for i in some]
        assert np.allclose(self.index.vectors(some), np.reshape(means, (-1, DIM)), atol=1e-5)
        rows = self.index.attributes(some)
        assert [row["colour"] or "" for row in rows] == [self.products[i][1] for i in some]
        assert [row.get("price") for row in rows] == [self.prices.get(i) for i in some]
        if "price" in self.index.columns and self.products:
            queries, dear = POOL[:1], [i for i in self.products if self.prices.get(i) == 2.5]
            found = self.index.search(queries, len(self.products), where="price > 2").ids[0]
            assert sorted(found[found >= 0].tolist()) == sorted(dear)


class ScannModel(Model):
    backend = "scann"


EXAMPLES = int(os.environ.get("FASHION_MODEL_EXAMPLES", "12"))
STEPS = settings(stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
TestExactModel = Model.TestCase
TestExactModel.settings = settings(STEPS, max_examples=EXAMPLES)
TestScannModel = ScannModel.TestCase
TestScannModel.settings = settings(STEPS, max_examples=max(2, EXAMPLES // 4), stateful_step_count=25)


def test_readers_see_whole_versions_beside_a_writer():
    """Every product of version n has the stamp n; a reader must never see two stamps in one answer."""
    seconds = float(os.environ.get("FASHION_READER_SECONDS", "3"))
    products, pool, stop = np.arange(200), unit(POOL), threading.Event()
    index = Index.build(POOL[:200], products, {"stamp": [0] * 200})

    def read(number: int) -> int:
        queries, answers = pool[number : number + 4], 0
        while not stop.is_set():
            hits = index.search(queries, 20)
            for query, ids in enumerate(hits.ids):
                (stamp,) = {row["stamp"] for row in hits.attributes(query)}
                assert len(set(ids.tolist())) == 20 and (ids >= 0).all()
                # The vectors of a version follow from its stamp: ids, attributes and scores must be of one version.
                assert np.allclose(pool[stamp % 1000 + ids] @ queries[query], hits.scores[query], atol=1e-5)
            answers += 1
        return answers

    with ThreadPoolExecutor(8) as threads:
        readers = [threads.submit(read, number) for number in range(8)]
        end, stamp = time.monotonic() + seconds, 0
        try:
            while time.monotonic() < end and not any(reader.done() for reader in readers):
                stamp += 1
                index.upsert(products, POOL[stamp % 1000 : stamp % 1000 + 200], {"stamp": [stamp] * 200})
                if stamp % 50 == 0:
                    index.rebuild()
        finally:
            stop.set()
    assert min(reader.result() for reader in readers) > 0 and stamp > 10


def test_reading_waits_for_no_writer():
    index = Index.build(POOL[:100], np.arange(100), {"n": list(range(100))})
    index.upsert([100], POOL[100:101], {"n": [100]})
    with ThreadPoolExecutor(1) as threads, index._lock:  # as a writer has it that saves or rebuilds
        read = threads.submit(
            lambda: (index.attributes([3, 100]), index.vectors([3]).shape, 100 in index, 101 in index)
        )
        assert read.result(timeout=20) == ([{"n": 3}, {"n": 100}], (1, 8), True, False)


def test_rows_that_were_added_and_count_no_more_are_dropped(monkeypatch):
    monkeypatch.setattr(versions, "_DEAD_ADDITIONS", 10)
    index = Index.build(POOL[:20], np.arange(20), {"n": list(range(20))})
    for step in range(50):
        index.upsert([3, 100 + step % 2], POOL[step : step + 2], {"n": [step, -step]})
        assert len(index.snapshot.added) <= 20
    assert [row["n"] for row in index.attributes([3, 100, 101, 4])] == [49, -48, -49, 4]
    assert len(index) == 22
    assert np.allclose(index.vectors([3, 101]) @ index.vectors([3, 101]).T, unit(POOL[49:51]) @ unit(POOL[49:51]).T)


@pytest.mark.parametrize("name", [int, "sku {}".format])
def test_many_updates_at_once_are_one_after_the_other(name):
    chance = np.random.default_rng(0)
    start = [name(i) for i in range(30)]
    one, other = (Index.build(POOL[:30], start, {"n": [0] * 30, "c": ["a"] * 30}) for _ in range(2))
    updates = []
    for step in range(80):
        if step % 3 == 2:
            names = chance.choice(one.ids, 2, replace=False)
            updates.append(Update(True, names))
            one.delete(names)
        elif step % 7 == 6:
            # Two changes in a row, of new and of known columns.
            for kinds in ({"n": "number", f"new {step % 2}": "date"}, {"c": "text"}, {"c": "text"}):
                names = chance.choice(one.ids, 4, replace=False)
                values = {"n": [step, None, 3, 4], "c": ["changed", None, "b", f"w {step}"]}
                columns = {name: values.get(name, ["2026-01-31", None, "2026-02-01 10:30:00", None]) for name in kinds}
                updates.append(Update(False, names, None, columns, kinds))
                given = {
                    name: [v and datetime.datetime.fromisoformat(v) for v in values]
                    if kinds[name] == "date"
                    else values
                    for name, values in columns.items()
                }
                one.update(names, given)
        else:
            # Of these three photos the last two are of one product, in some steps.
            names = np.array([name(i) for i in chance.choice(60, 3, replace=False)])
            names[2] = names[1] if step % 4 == 3 else names[2]
            columns = {"n": [step] * 3, "c": [f"word {step % 7}", None, "b"]}
            columns |= {name: ["2026-03-01", None, None] for name in one.columns[2:]}
            vectors = unit(POOL[step : step + 3])
            updates.append(Update(False, names, vectors, columns))
            one.upsert(names, vectors, columns)
    before = other.snapshot
    after = Updater(before).apply_all(before, updates)
    assert after.ids[after.live].tolist() == one.snapshot.ids[one.snapshot.live].tolist()
    assert after.num_products == len(one) < after.num_live == one.num_photos
    rows = after.find(one.ids.tolist())
    assert [after.attributes.row(row) for row in rows] == one.attributes(one.ids)
    assert np.allclose(after.product_vectors(rows), one.vectors(one.ids), atol=1e-6)
    assert before.num_live == 30 and before.attributes.row(5) == {"n": 0, "c": "a"}  # versions never change


def test_changes_made_during_a_rebuild_are_kept(monkeypatch):
    index = Index.build(POOL[:100], np.arange(100), {"n": list(range(100))})
    real = index_module.build_base

    def slow(*args, **kwargs):
        base = real(*args, **kwargs)
        index.upsert([5, 500], POOL[200:202], {"n": [-5, 500]})
        index.delete([7, 8])
        index.upsert([8], POOL[300:301], {"n": [-8]})
        return base

    monkeypatch.setattr(index_module, "build_base", slow)
    index.rebuild()
    assert len(index) == 100 and 7 not in index
    assert [a["n"] for a in index.attributes([5, 8, 9, 500])] == [-5, -8, 9, 500]
    assert index.search(POOL[[200, 201, 300, 9]], 1).ids[:, 0].tolist() == [5, 500, 8, 9]


def test_attributes_change_without_photos(tmp_path):
    """`update` changes what is given, for all photos of a product, in memory and on the disk; and nothing else."""
    rows, ids = POOL[:6], ["a", "b", "a", "c", "c", "c"]
    index = Index.build(rows, ids, {"price": [5, 6, 5, 7, 7, 7], "size": ["M", "L", "M", "9", "9", "9"]})
    index.save(tmp_path / "index")
    index.update(["c", "a"], {"price": [70, None], "sold": [False, True], "since": [datetime.date(2026, 1, 31), None]})
    for version in (index, Index.load(tmp_path / "index")):
        assert version.attributes(["a", "b", "c"]) == [
            {"price": None, "size": "M", "sold": True, "since": None},
            {"price": 6, "size": "L", "sold": None, "since": None},
            {"price": 70, "size": "9", "sold": False, "since": "2026-01-31"},
        ]
        for where, found in (("price > 10", "c"), ("sold == yes", "a"), ("since == '31.01.2026'", "c")):
            assert version.search(rows, 3, where=where).ids[0].tolist() == [found, "", ""]
        assert np.allclose(version.snapshot.vectors(np.arange(6)), unit(rows[[0, 2, 1, 3, 4, 5]]), atol=1e-6)
    index.upsert(["c", "d"], rows[:2], {"price": [8, 9]})
    assert index.attributes(["c", "d"])[1] == {"price": 9, "size": None, "sold": None, "since": None}
    assert index.attributes(["c"])[0] == {"price": 8, "size": "9", "sold": False, "since": "2026-01-31"}
    index.close()


@pytest.mark.parametrize(("ids", "columns", "message"), [
    (["a"], {"price": ["12 EUR/kg"]}, "holds numbers, not texts such as '12 EUR/kg'"),
    (["a"], {"size": [3]}, "holds texts, not numbers such as 3"), (["a", "a"], {"price": [1, 2]}, "2 times"),
    (["a"], {"price": [1, 2]}, "2 rows and there are 1"), ([1], {"price": [1]}, "texts as ids"),
    (["a"], {"stock": [None]}, "new column 'stock' holds no value"), (["a"], {"photo": ["x"]}, "use upsert"),
    (["a"], {"price": [True], "size": [datetime.date(2026, 1, 1)]}, "not dates such as '2026-01-01'"),
])  # fmt: skip
def test_a_change_that_does_not_fit_changes_nothing(ids, columns, message):
    index = Index.build(POOL[:3], ["a", "a", "b"], {"price": [5, 5, 6], "size": ["M", "M", "L"]})
    before = index.snapshot
    with pytest.raises(UserError, match=message):
        index.update(ids, columns)
    with pytest.raises(KeyError, match="no product 'x'"):
        index.update(["a", "x"], {"price": [1, 2]})
    assert index.snapshot is before


def test_a_whole_column_may_become_one_of_another_kind(tmp_path):
    with Index.build(POOL[:3], ["a", "a", "b"], {"price": ["5 EUR/kg", "5 EUR/kg", "6"]}) as index:
        index.save(tmp_path / "index")
        index.update(["b", "a"], {"price": [6, 5.5]})
        index.update(["b"], {"price": [7]})
        assert index.search(POOL[0], 1, where="price < 6").ids.tolist() == [["a"]]
        assert Index.load(tmp_path / "index").attributes(["a", "b"]) == [{"price": 5.5}, {"price": 7}]


@pytest.mark.parametrize(("ids", "columns", "wanted"), [
    (["a"], {"size": ["M"]}, [None, 0.6]), (["a", "b"], {"size": ["S", "M"]}, [0.9, None]),
    (["a"], {"size": [None]}, [None, 0.6]), (["a"], {"price": [3]}, [0.9, 0.6]),
    (["a"], {"size": ["M"], "size confidence": [0.5]}, [0.5, 0.6]),
])  # fmt: skip
def test_a_label_that_changes_loses_its_confidence(ids, columns, wanted):
    labels = {"size": ["S", "S", "L"], "size confidence": [0.9, 0.9, 0.6], "price": [1, 1, 2]}
    index, other = (Index.build(POOL[:3], ["a", "a", "b"], labels) for _ in range(2))
    index.update(ids, columns)
    other.upsert(ids, POOL[: len(ids)], columns)
    for changed in (index, other):
        assert [row["size confidence"] for row in changed.attributes(["a", "b"])] == wanted


@pytest.mark.parametrize("values", [[36, 38], [True, False], [datetime.date(2026, 1, 1)] * 2])
def test_labels_stay_texts_and_numbers_stay_numbers(values):
    index = Index.build(POOL[:2], ["a", "b"], {"size": ["x", "y"], "price": [1, 2], "note": ["x", "y"]})
    index.about["labels"] = ["size"]
    with pytest.raises(UserError, match="'size' holds texts"):
        index.update(["a", "b"], {"size": values})
    with pytest.raises(UserError, match="'price' holds numbers, not texts such as 'ask'"):
        index.update(["a", "b"], {"price": ["3", "ask"]})
    index.update(["a", "b"], {"note": values})
    assert index.attributes(["a"])[0]["note"] == (values[0] if not hasattr(values[0], "year") else "2026-01-01")


def test_a_change_of_attributes_is_whole_or_not_there(tmp_path):
    """A process that is stopped at any byte of the journal leaves the values of before or of after."""
    with Index.build(POOL[:4], [1, 1, 2, 3], {"price": [5, 5, 6, 7]}) as index:
        index.save(tmp_path / "index")
        (journal,) = (tmp_path / "index").glob("*.journal")
        before = journal.read_bytes()
        index.update([1, 3], {"price": [50, None], "brand": ["Ä", "b"]})
    whole = journal.read_bytes()
    record = whole[len(before) :]
    # In order of time: more and more of the record, then the head that names it.
    states = [before + record[:kept] for kept in range(0, len(record) + 1, 3)] + [whole]
    for state in states:
        journal.write_bytes(state)
        rows = Index.load(tmp_path / "index").attributes([1, 2, 3])
        after = state is whole
        assert [row["price"] for row in rows] == ([50, 6, None] if after else [5, 6, 7])
        assert [row.get("brand") for row in rows] == (["Ä", None, "b"] if after else [None] * 3)


@pytest.mark.parametrize("update", [
    Update(False, np.array([1]), None, {"price": [3]}, {"price": "money"}), Update(False, np.array([1]), None, {}, {}),
    Update(False, np.array([1]), None, {"price": ["x"]}, {"price": "number"}),
    Update(False, np.array([1, 1]), None, {"price": [1, 2]}, {"price": "number"}),
    Update(False, np.array(["a"]), None, {"price": [1]}, {"price": "number"}),
    Update(False, np.array([1]), None, {"price": [3]}, {"stock": "number"}),
])  # fmt: skip
def test_changes_that_no_index_wrote_are_refused(tmp_path, update):
    with Index.build(POOL[:2], [1, 2], {"price": [5, 6]}) as index:
        index.save(tmp_path / "index")
    forge_update(tmp_path / "index", update)
    with pytest.raises(UserError, match=r"no index writes|another index"):
        Index.load(tmp_path / "index")
