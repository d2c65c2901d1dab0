"""Searching an index: against plain numpy, under filters, in groups, and with arguments that are none."""

from __future__ import annotations

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from search.clustered import attributes_of, clustered, recall, truth, unit

from fashion_jax.search import approximate, exact, planner, query
from fashion_jax.search.exact import DeviceSearcher, HostCosts, HostSearcher, PassingRows
from fashion_jax.search.index import Index

VECTORS, QUERIES = np.split(clustered(6_200), [6_000])
ATTRIBUTES = attributes_of(VECTORS)
IDS = np.arange(6_000) * 7 + 3


@pytest.fixture(scope="module", params=["exact", "scann", "hnsw"])
def index(request) -> Index:
    return Index.build(VECTORS, IDS, ATTRIBUTES, backend=request.param)


APPROXIMATE = pytest.mark.parametrize("index", ["scann", "hnsw"], indirect=True)


def positions(hits) -> np.ndarray:
    return np.where(hits.ids >= 0, (hits.ids - 3) // 7, -1)


def same_neighbours(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether two lists are the same, but for neighbours whose similarities single precision cannot tell apart."""
    rows, queries = unit(VECTORS), unit(QUERIES)
    differ = np.argwhere(found != wanted)
    apart = [queries[q] @ (rows[found[q, place]] - rows[wanted[q, place]]) for q, place in differ]
    return len(differ) < found.size / 100 and np.array_equal(found < 0, wanted < 0) and np.allclose(apart, 0, atol=1e-6)


def test_exact_search_is_exact():
    index = Index.build(VECTORS, IDS, backend="exact")
    for k in (1, 10, 33, 1000):
        hits = index.search(QUERIES, k)
        assert same_neighbours(positions(hits), truth(VECTORS, QUERIES, k))
        assert (np.diff(hits.scores, axis=1) <= 0).all() and hits.scores.dtype == np.float32


def test_scores_are_cosine_similarities(index):
    hits = index.search(QUERIES * 1e6, 5)
    for scale in (1e-25, 1e25):
        assert np.array_equal(index.search(QUERIES * np.float32(scale), 5).ids, hits.ids)
    wanted = np.einsum("qd,qkd->qk", unit(QUERIES), unit(VECTORS)[positions(hits)])
    assert np.allclose(hits.scores, wanted, atol=1e-5)
    single = index.search(QUERIES[3], 5)
    assert np.allclose(single.scores, hits.scores[3:4], atol=1e-5)


@pytest.mark.parametrize("target", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("backend", ["scann", "hnsw"])
def test_the_asked_recall_is_met_on_other_queries(target, backend, monkeypatch):
    monkeypatch.setattr(planner, "_GAIN", np.inf)  # the index answers, also where exact search is faster
    index = Index.build(VECTORS, IDS, backend=backend, target_recall=target)
    for k in (1, 10, 100):
        assert recall(positions(index.search(QUERIES, k)), truth(VECTORS, QUERIES, k)) >= target - 0.01
    assert [p.neighbours for p in index.snapshot.base.points] == [10, 30, 100, 300, 1000]
    assert all(p.recall >= target for p in index.snapshot.base.points)


@pytest.mark.parametrize("share", [1.0, 0.3, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("num_queries", [1, 200])
def test_a_filter_costs_neither_hits_nor_recall(index, share, num_queries):
    mask = np.array(ATTRIBUTES["share"]) < share
    parts = np.split(QUERIES, len(QUERIES) // num_queries)
    found = np.concatenate([positions(index.search(part, 10, where=f"share < {share}")) for part in parts])
    wanted = truth(VECTORS, QUERIES, 10, mask)
    assert np.array_equal(found >= 0, wanted >= 0) and mask[found[found >= 0]].all()
    assert recall(found, wanted) >= 0.95


@pytest.mark.parametrize("share", [0.7, 0.3, 0.05])
@pytest.mark.parametrize("copy", [0.0, 1.0])
def test_exact_search_may_mask_or_copy_rows_that_it_cannot_keep(share, copy, monkeypatch):
    monkeypatch.setattr(exact, "_KEPT_BYTES", 0)
    passing = PassingRows(np.array(ATTRIBUTES["share"]) < share)
    searcher = HostSearcher(unit(VECTORS), HostCosts((1, 6_000), (1e-6, 1e-3), 1e-9, copy))
    wanted = truth(VECTORS, QUERIES, 10, passing.mask)
    assert same_neighbours(searcher.search(unit(QUERIES), 10, passing)[1], wanted)
    singly = [searcher.search(query[None], 10, passing)[1] for query in unit(QUERIES[:50])]
    assert same_neighbours(np.concatenate(singly), wanted[:50])
    assert passing._copy is None
    assert (searcher.seconds(1, 10, passing) < 1e-3) == (copy == 0 and share < 0.5)


@APPROXIMATE
def test_queries_that_a_filter_leaves_short_are_searched_exactly(index, monkeypatch):
    # As if the index were always the faster one, also where the nearest products are all on the other side.
    monkeypatch.setattr(planner, "plan", lambda base, n, k, passing: base.index)
    monkeypatch.setattr(approximate, "candidates", lambda k, share: 4 * k)
    mask = np.array(ATTRIBUTES["side"]) == "left"
    found = positions(index.search(QUERIES, 10, where="side == 'left'"))
    assert (found >= 0).all() and mask[found].all()
    assert recall(found, truth(VECTORS, QUERIES, 10, mask)) >= 0.95
    assert index.snapshot.select("side == 'left'").base.short > 0


@APPROXIMATE
def test_the_plan_follows_the_measured_costs(index):
    base, passing = index.snapshot.base, index.snapshot.select("share < 0.5").base
    host_wins, index_wins = (
        dataclasses.replace(base, host=HostSearcher(base.vectors, dataclasses.replace(base.host.costs, batch=batch)))
        for batch in (0.0, 1.0)
    )
    assert planner.plan(index_wins, 1000, 10, passing) is base.index
    assert planner.plan(index_wins, 1000, 10, None) is base.index
    assert planner.plan(host_wins, 1000, 10, passing) is host_wins.host
    assert planner.plan(host_wins, 1000, 10, None) is host_wins.host
    passing.searched, passing.short = 100, 90  # most queries would be searched twice
    assert planner.plan(index_wins, 1000, 10, passing) is index_wins.host
    assert planner.plan(index_wins, 1000, 5_000, None) is index_wins.host  # nothing was tuned for that many


def test_groups_give_their_nearest_alone(index):
    hits = index.search(QUERIES[:20], 10, group_by="title")
    groups = np.array([i // 3 for i in range(6_000)])
    every = truth(VECTORS, QUERIES[:20], 200)
    for found, order in zip(positions(hits), every, strict=True):
        _, first = np.unique(groups[order], return_index=True)
        wanted = order[np.sort(first)[:10]]
        assert len(set(groups[found])) == 10
        assert len(set(found) & set(wanted)) >= 8  # all ten where the search is exact
    side = index.search(QUERIES[:2], 10, group_by="side")
    assert (side.ids[:, :2] >= 0).all() and (side.ids[:, 2:] == -1).all()


def test_few_groups_among_many_rows_are_found_in_bounded_memory(index, monkeypatch):
    monkeypatch.setattr(query, "_MOST_FETCHED", 16)
    monkeypatch.setattr(exact, "_HOST_TILE_SCORES", 30_000)
    sides = np.array(ATTRIBUTES["side"])
    hits = index.search(QUERIES[:20], 9, group_by="side", where="share < 0.5", exclude=IDS[:20])
    mask = (np.array(ATTRIBUTES["share"]) < 0.5) & (np.arange(6_000) >= 20)
    for side in ("left", "right"):
        best = truth(VECTORS, QUERIES[:20], 1, mask & (sides == side))[:, 0]
        assert all(row in found for row, found in zip(best, positions(hits)[:, :2], strict=True))
    assert (hits.ids[:, 2:] == -1).all() and (np.diff(hits.scores[:, :2], axis=1) <= 0).all()
    titles = index.search(QUERIES[:3], 30, group_by="title")
    monkeypatch.undo()
    assert np.allclose(titles.scores, index.search(QUERIES[:3], 30, group_by="title").scores, atol=0.05)


def test_diversity_is_maximal_marginal_relevance():
    index = Index.build(VECTORS[:200], IDS[:200], backend="exact")
    rows = unit(VECTORS[:200])
    relevance = rows @ unit(QUERIES[0])
    pool, picks = np.argsort(-relevance)[:50].tolist(), []
    while len(picks) < 6:
        value = [0.6 * relevance[i] - 0.4 * max((rows[i] @ rows[j] for j in picks), default=0.0) for i in pool]
        picks.append(pool.pop(int(np.argmax(value))))
    assert positions(index.search(QUERIES[0], 6, diversity=0.4))[0].tolist() == picks
    few = index.search(QUERIES[:2], 10, diversity=0.4, exclude=IDS[8:200])
    assert (np.sort(positions(few)[:, :8], axis=1) == np.arange(8)).all() and (few.ids[:, 8:] == -1).all()


def test_a_smallest_score_and_exclusions(index, monkeypatch):
    plain = index.search(QUERIES[:4], 10)
    lowest = float(plain.scores[0, 4])
    cut = index.search(QUERIES[:4], 10, min_score=lowest)
    assert np.array_equal(cut.ids >= 0, plain.scores >= lowest)
    without = index.search(VECTORS[5], 3, exclude=[IDS[5]])
    assert IDS[5] not in without.ids and (without.ids >= 0).all()
    options = {"exclude": IDS[:400:2], "where": "share < 0.4"}
    few = index.search(QUERIES[:10], 8, **options)
    monkeypatch.setattr(query, "_FEW_EXCLUDED", 0)  # many are left out in another way
    assert same_neighbours(positions(few), positions(index.search(QUERIES[:10], 8, **options)))
    assert not np.isin(few.ids, options["exclude"]).any()


def test_memory_of_exact_search_is_bounded_by_tiles(monkeypatch):
    for name, small in (("_TILE_ROWS", 512), ("_TILE_QUERIES", 64), ("_HOST_TILE_SCORES", 10_000)):
        monkeypatch.setattr(exact, name, small)
    mask = np.array(ATTRIBUTES["share"]) < 0.05
    for searcher in (DeviceSearcher(unit(VECTORS)), HostSearcher(unit(VECTORS))):
        for passing in (None, PassingRows(mask)):
            wanted = truth(VECTORS, QUERIES, 600, None if passing is None else mask)
            assert same_neighbours(searcher.search(unit(QUERIES), 600, passing)[1], wanted)


@pytest.mark.parametrize(("call", "message"), [
    (lambda i: i.search([np.nan] + [1.0] * 31), "1 of 1 rows hold NaN"), (lambda i: i.vectors(None), "ids must"),
    (lambda i: i.search(np.zeros((2, 32))), "all zeros"), (lambda i: i.search(np.zeros((0, 32))), "no query"),
    (lambda i: i.search(np.ones((2, 31))), "shape"), (lambda i: i.search(1j * QUERIES), "real numbers"),
    (lambda i: i.search(QUERIES, 0), "at least 1"), (lambda i: i.search(QUERIES, 10**400), "has 6,000 products"),
    (lambda i: i.search(QUERIES, 2.5), "integer"), (lambda i: i.search(QUERIES, True), "integer"),
    (lambda i: i.search(QUERIES, 3, where=["side"]), "is a text"),
    (lambda i: i.search(QUERIES, 3, group_by="titel"), "did you mean 'title'"),
    (lambda i: i.search(QUERIES, 3, group_by=["title"]), "name of a column"),
    (lambda i: i.search(QUERIES, 3, min_score="high"), "min_score"),
    (lambda i: i.search(QUERIES, 3, min_score=10**400), "min_score"),
    (lambda i: i.search(QUERIES, 3, exclude=[[1], [2, 3]]), "list of integers or of texts"),
    (lambda i: i.upsert([1], QUERIES[:1], {"share": [10**400]}), "too large"),
    (lambda i: i.upsert([1], QUERIES[:1], {"side": ["\ud800"]}), "not valid Unicode"),
    (lambda i: i.upsert([True], QUERIES[:1]), "true and false"), (lambda i: i.upsert([10**400], QUERIES[:1]), "63"),
    (lambda i: i.delete([3, 3]), "2 times"), (lambda i: i.upsert([1, 2], QUERIES[:1]), "2 ids for 1"),
    (lambda i: i.upsert([-1], QUERIES[:1]), "63"), (lambda i: i.upsert(["x"], QUERIES[:1]), "integers as ids"),
    (lambda i: i.upsert([1.5], QUERIES[:1]), "ids must"), (lambda i: i.search(QUERIES[:1], diversity=2), "diversity"),
    (lambda i: Index.build(VECTORS[:2], ["", "b"]), "characters"), (lambda i: Index.build([], []), "shape"),
    (lambda i: Index.build(VECTORS[:2], [1, "1"]), "all texts"), (lambda i: Index.build(VECTORS[:0], []), "least one"),
    (lambda i: Index.build(VECTORS[:2], ["a\0", "b"]), "NUL character"),
    (lambda i: Index.build(VECTORS, IDS, backend=None), "no backend"),
])  # fmt: skip
def test_misuse_is_a_sentence_and_changes_nothing(index, call, message):
    before = index.snapshot
    with pytest.raises(ValueError, match=message):
        call(index)
    assert index.snapshot is before
    assert index.search(QUERIES[0], 1).ids.shape == (1, 1)


def test_stored_things_are_found_by_id_and_others_are_key_errors(index):
    assert np.allclose(index.vectors([IDS[2]]), unit(VECTORS[2]), atol=1e-6)
    assert index.attributes([IDS[2]])[0]["title"] == "title 0"
    assert IDS[2] in index and np.array_equal(index.ids, IDS)
    with pytest.raises(KeyError, match="no product 5"):
        index.delete([IDS[0], 5])
    assert len(index) == 6_000
    for strange in (4, True, 3.0, "3", 10**400, -1, None, (3,)):
        assert strange not in index
        with pytest.raises(KeyError, match="no product"):
            index.vectors([IDS[0], strange])


def test_ids_of_any_width_and_kind_of_array_are_found():
    index = Index.build(VECTORS[:50], [f"sku-{i}" for i in range(50)], {"n": list(range(50))}, backend="exact")
    hits = index.search(VECTORS[7], 3, where="n < 2")
    assert set(hits.ids[0, :2]) == {"sku-0", "sku-1"} and hits.ids[0, 2] == "" and np.isneginf(hits.scores[0, 2])
    assert "sku-7" in index and "sku-7 but much longer than any other" not in index and "x" * 1_000 not in index
    index.upsert(["a longer one than the others"], VECTORS[50:51])
    assert "a longer one than the others" in index
    assert index.vectors(["sku-3", "a longer one than the others"]).shape == (2, 32)
    numbers = Index.build(VECTORS[:50], jnp.arange(50), backend="exact")
    assert numbers.vectors(jnp.array([3, 4])).shape == (2, 32)
    assert numbers.vectors(jnp.array(3)).shape == (1, 32)
    numbers.delete(jnp.array([3]))
    assert 3 not in numbers


def test_auto_chooses_by_size(monkeypatch):
    monkeypatch.setattr(planner, "_GAIN", np.inf)  # exact search is never the faster one
    assert Index.build(VECTORS[:4_000], IDS[:4_000]).snapshot.base.backend == "exact"
    assert Index.build(VECTORS, IDS).snapshot.base.backend in ("scann", "hnsw")  # the faster one
    for few, backend in itertools.product((1, 2), ("scann", "hnsw")):
        assert Index.build(VECTORS[:few], IDS[:few], backend=backend).search(QUERIES, few).ids.shape == (200, few)


@pytest.mark.parametrize("backend", ["scann", "hnsw"])
def test_equal_vectors_do_no_harm(backend):
    same = np.ones((5_500, 8), np.float32)
    hits = Index.build(same, np.arange(5_500), backend=backend).search(same[0], 20)
    assert len(set(hits.ids[0].tolist())) == 20
    assert np.allclose(hits.scores, 1, atol=1e-5)
