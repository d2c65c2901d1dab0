"""HNSW: the graph finds what exact search finds, with vectors and with codes; and "auto" takes what is fastest."""

from __future__ import annotations

import os
import subprocess
import sys

import faiss
import numpy as np
import pytest
from search.clustered import attributes_of, clustered, recall, truth, unit

from fashion_jax.search import build
from fashion_jax.search.approximate import OperatingPoint
from fashion_jax.search.hnsw import HnswSearcher
from fashion_jax.search.index import Index
from fashion_jax.search.scann import ScannSearcher

VECTORS, QUERIES = np.split(unit(clustered(3_200)).astype(np.float32), [3_000])


@pytest.fixture(scope="module")
def forms():
    return tuple(HnswSearcher.build(VECTORS, np.arange(0))[coded].complete() for coded in (0, 1))


@pytest.mark.parametrize("coded", [False, True])
def test_both_forms_find_the_nearest_and_tell_exact_scores(forms, coded):
    searcher = forms[coded]
    assert searcher.coded == coded
    scores, rows = searcher.search_at(QUERIES, 10, 100)  # enough queries to be sorted on the way
    assert recall(rows, truth(VECTORS, QUERIES, 10)) > 0.98
    assert np.allclose(scores, np.einsum("qd,qkd->qk", QUERIES, VECTORS[rows]), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    for place in range(5):
        alone = searcher.search_at(QUERIES[place : place + 1], 10, 100)
        assert np.allclose(alone[0], scores[place : place + 1], atol=1e-6) and np.array_equal(alone[1][0], rows[place])


def test_all_rows_are_as_many_as_there_are(forms):
    for searcher in (*forms, *HnswSearcher.build(VECTORS[:2], np.array([1]))):
        scores, rows = searcher.search_at(QUERIES[:3], searcher.count, searcher.count)
        for found, score in zip(rows, scores, strict=True):
            assert len(set(found[found >= 0])) == (found >= 0).sum() and np.array_equal(found < 0, np.isneginf(score))


@pytest.mark.parametrize("coded", [False, True])
def test_rows_that_are_held_back_come_with_the_complete_graph(coded):
    held = np.random.default_rng(0).choice(3_000, 300, replace=False)
    others = np.delete(np.arange(3_000), held)
    before = HnswSearcher.build(VECTORS, held)[coded]
    assert before.count == 2_700
    assert recall(before.search_at(QUERIES, 10, 50)[1], truth(VECTORS[others], QUERIES, 10)) > 0.95
    complete = before.complete()
    assert complete.count == 3_000
    assert recall(complete.search_at(QUERIES, 10, 50)[1], truth(VECTORS, QUERIES, 10)) > 0.95
    assert (complete.search_at(VECTORS, 1, 50)[1][:, 0] == np.arange(3_000)).mean() > 0.99  # each row finds itself


@pytest.mark.parametrize("coded", [False, True])
def test_what_is_saved_searches_as_before(forms, coded, tmp_path):
    searcher = forms[coded]
    searcher.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["levels.npy", "links.npy"]
    loaded = HnswSearcher.load(tmp_path, VECTORS, searcher.about(), ())
    for one, other in zip(searcher.search_at(QUERIES, 7, 30), loaded.search_at(QUERIES, 7, 30), strict=True):
        assert np.array_equal(one, other)


_FORKS = """
import os, signal, sys
import numpy as np
from fashion_jax.search.hnsw import HnswSearcher
vectors = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
forms = HnswSearcher.build(vectors, np.arange(0))
def search():
    return [form.search_at(vectors[:count], 5, 10)[1] for form in forms for count in (1, 2, 31, 100)]
before = search()
child = os.fork()
if not child:
    signal.alarm(20)
    os._exit(0 if all(np.array_equal(*pair) for pair in zip(before, search())) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_searches_too():
    subprocess.run([sys.executable, "-c", _FORKS], check=True, timeout=60)


def test_building_leaves_the_threads_of_the_program_alone():
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(before + 3)
    try:
        HnswSearcher.build(VECTORS[:100], np.arange(0))
        assert faiss.omp_get_max_threads() == before + 3
    finally:
        faiss.omp_set_num_threads(before)


def test_deleted_products_are_not_found_and_new_ones_are():
    index = Index.build(VECTORS, np.arange(3_000), attributes_of(VECTORS), backend="hnsw")
    index.delete(np.arange(0, 3_000, 2))
    index.upsert([7, 5_000], QUERIES[:2])
    live = np.arange(3_000) % 2 == 1
    live[7] = False
    for options in ({}, {"where": "share < 0.4"}):
        mask = live if not options else live & (np.array(attributes_of(VECTORS)["share"]) < 0.4)
        found = index.search(QUERIES[2:], 10, **options).ids
        assert (found >= 0).all()
        assert recall(np.where((found == 7) | (found == 5_000), -1, found), truth(VECTORS, QUERIES[2:], 10, mask)) > 0.9
    assert index.search(QUERIES[:2], 1).ids[:, 0].tolist() == [7, 5_000]


def test_auto_takes_what_was_measured_fastest_for_the_batch():
    def searcher(single, batch):
        return forms[0].with_points((OperatingPoint(10, 10, 0, 0.96, single, batch),))

    forms = HnswSearcher.build(VECTORS[:100], np.arange(0))
    soon, often = searcher(1e-5, 9e-6), searcher(2e-5, 5e-6)
    every = [forms[0], often, soon]  # without an operating point the target was missed
    assert build.fastest(every, batch=1) is soon and build.fastest(every, batch=64) is often
    assert build.fastest([forms[0]], batch=1) is forms[0] and build.fastest([], batch=1) is None


@pytest.mark.parametrize(("count", "scann", "chosen"), [
    (4_999, True, []), (5_000, True, ["scann", "hnsw"]), (50_001, True, ["scann"]),
    (5_000, False, ["hnsw"]), (10**6, False, ["hnsw"]),
])  # fmt: skip
def test_auto_builds_all_backends_for_few_rows_and_one_for_many(monkeypatch, count, scann, chosen):
    monkeypatch.setattr(ScannSearcher, "is_available", classmethod(lambda cls: scann))
    assert [kind.backend for kind in build._choose_backends("auto", count, 32, 1)] == chosen
