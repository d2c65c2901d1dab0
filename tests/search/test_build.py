"""Building: exact search is a candidate too, and backends are tuned no further than exact search is slow."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from search.clustered import clustered, truth, unit

from fashion_jax.search import build, planner, tuning
from fashion_jax.search.approximate import ApproximateSearcher
from fashion_jax.search.exact import HostCosts, search_rows
from fashion_jax.search.hnsw import HnswSearcher
from fashion_jax.search.index import Index
from fashion_jax.search.scann import ScannSearcher
from fashion_jax.system.errors import UserError

VECTORS, QUERIES = np.split(unit(clustered(660)).astype(np.float32), [600])
FIRST = 1e-3  # seconds of a query at an effort of 1


@pytest.fixture
def tried(monkeypatch):
    """The efforts that were tried, in order, by a clock that only searches move."""
    efforts: list[int] = []
    clock = SimpleNamespace(seconds=0.0, efforts=efforts)
    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: clock.seconds))
    return clock


def make_searcher(clock, enough: float) -> ApproximateSearcher:
    """Returns a searcher whose searches take a time as long as their effort, and find all from some effort on."""

    def search_at(self, queries, k, effort, reorder):
        clock.efforts.append(effort)
        clock.seconds += FIRST * effort * len(queries)
        scores, rows = search_rows(VECTORS, queries, k)
        return (scores, rows) if effort >= enough else (np.full_like(scores, -np.inf), np.full_like(rows, -1))

    found = {
        "search_at": search_at,
        "efforts": lambda self, neighbours: sorted({round(1.15**step) for step in range(100)}),
        "reorders": lambda self, neighbours: [0],
    }
    rest = dict.fromkeys(ApproximateSearcher.__abstractmethods__ - found.keys(), None)
    return type("Searcher", (ApproximateSearcher,), {**found, **rest})(len(VECTORS))


@pytest.mark.parametrize("enough", [1, 2, 7, 37, 99])
def test_tuning_finds_the_least_effort(tried, enough):
    points = tuning.tune(make_searcher(tried, enough), VECTORS, tuning.draw_sample(VECTORS), 0.95, most=1, limit=0.1)
    grid = {round(1.15**step) for step in range(100)}
    assert [point.effort for point in points] == [min(effort for effort in grid if effort >= enough)]


def test_tuning_ends_where_exact_search_is_faster(tried):
    sample = tuning.draw_sample(VECTORS)
    assert tuning.tune(make_searcher(tried, math.inf), VECTORS, sample, 0.95, limit=30 * FIRST) == ()
    assert 30 < max(tried.efforts) < 4 * 30 and len(tried.efforts) < 20


def make_exact(monkeypatch, seconds: float) -> None:
    """Lets exact search take so many seconds a query, by what is measured when an index is built."""
    costs = HostCosts((len(VECTORS),), (seconds,), seconds / len(VECTORS), 0.0)
    monkeypatch.setattr(HostCosts, "measure", classmethod(lambda cls, vectors: costs))
    monkeypatch.setattr(build, "_APPROXIMATE_FROM", 100)
    monkeypatch.setattr(ScannSearcher, "is_available", classmethod(lambda cls: False))


@pytest.mark.parametrize("batch", [1, 50])
def test_auto_takes_exact_search_where_that_is_faster(monkeypatch, batch):
    for seconds, backend in ((1e-9, "exact"), (1.0, "hnsw")):
        make_exact(monkeypatch, seconds)
        base = Index.build(VECTORS, np.arange(600), batch=batch).snapshot.base
        assert base.backend == backend and (planner.plan(base, batch, 10, None) is base.host) == (backend == "exact")


def test_an_asked_backend_is_kept_and_exact_search_answers_where_that_is_faster(monkeypatch):
    make_exact(monkeypatch, 1e-9)
    index = Index.build(VECTORS, np.arange(600), backend="hnsw")
    base = index.snapshot.base
    assert base.backend == "hnsw" and len(base.points) > 1
    assert all(planner.plan(base, count, 10, None) is base.host for count in (1, 50))
    assert np.array_equal(index.search(QUERIES, 10).ids, truth(VECTORS, QUERIES, 10))


def test_exact_search_answers_where_the_asked_recall_is_out_of_reach(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "tune", lambda *_, **__: ())
    index = Index.build(VECTORS, np.arange(600), backend="hnsw")
    index.save(tmp_path / "index")
    index.close()
    for same in (index, Index.load(tmp_path / "index")):
        assert same.snapshot.base.backend == "hnsw" and same.health().recall == 1
        assert np.array_equal(same.search(QUERIES, 10).ids, truth(VECTORS, QUERIES, 10))
        assert (same.search(QUERIES, 10, exclude=[0, 1, 2]).ids >= 3).all()


def test_auto_does_without_a_backend_that_refuses(monkeypatch, caplog):
    def refuse(cls, vectors, held):
        raise UserError("faiss cannot index this")

    make_exact(monkeypatch, 1.0)
    monkeypatch.setattr(HnswSearcher, "build", classmethod(refuse))
    assert Index.build(VECTORS, np.arange(600)).snapshot.base.backend == "exact"
    assert "faiss cannot index this; the index is built without HNSW" in caplog.text
    monkeypatch.setattr(ScannSearcher, "is_available", classmethod(lambda cls: True))
    assert Index.build(VECTORS, np.arange(600)).snapshot.base.backend == "scann"
    with pytest.raises(UserError, match="faiss cannot index this"):
        Index.build(VECTORS, np.arange(600), backend="hnsw")
