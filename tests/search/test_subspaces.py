"""Searches that weigh parts of the embedding: the ranking is that of the weighted sum of the parts' similarities."""

from __future__ import annotations

import numpy as np
import pytest

from fashion_jax.search.index import Index
from fashion_jax.system.errors import UserError

PARTS = {"shape": 6, "colour": 4}


def drawn(count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    parts = [rng.normal(size=(count, size)) for size in PARTS.values()]
    return np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts], 1)


VECTORS, QUERIES = drawn(400), drawn(9)


def make(**options) -> Index:
    return Index.build(VECTORS, np.arange(400), backend="exact", **{"subspaces": PARTS, **options})


@pytest.mark.parametrize("weights", [{}, {"colour": 3.0}, {"shape": 0, "colour": 1}, {"shape": 0.5, "colour": 2}])
def test_weights_rank_by_the_weighted_sum(weights):
    shape, colour = QUERIES[:, :6] @ VECTORS[:, :6].T, QUERIES[:, 6:] @ VECTORS[:, 6:].T
    wanted = weights.get("shape", 1) * shape + weights.get("colour", 1) * colour
    hits = make().search(QUERIES, 20, weights=weights)
    assert np.array_equal(hits.ids, np.argsort(-wanted, axis=1, kind="stable")[:, :20])
    assert (np.abs(hits.scores) <= 1 + 1e-6).all()


@pytest.fixture(scope="module")
def tuned() -> tuple[Index, np.ndarray, np.ndarray]:
    """An index that was tuned on other queries, its vectors and the kind of each."""
    vectors, kinds = drawn(3000), np.array(["a", "b", "c"])[np.arange(3000) % 3]
    index = Index.build(vectors, np.arange(3000), {"kind": kinds}, backend="scann", target_recall=0.5, subspaces=PARTS)
    index.upsert([3000], QUERIES[:1], {"kind": ["a"]})
    # Where the weights are equal, what was tuned serves: at this recall it misses some.
    found = index.search(QUERIES, 20, weights={"shape": 2, "colour": 2}).ids
    assert (found != np.argsort(-(QUERIES @ vectors.T), axis=1)[:, :20]).any()
    return index, np.concatenate([vectors, QUERIES[:1]]), np.append(kinds, "a")


@pytest.mark.parametrize("options", [{}, {"where": "kind == 'a'"}, {"group_by": "kind"}, {"exclude": [3, 4]}])
def test_weights_compare_every_product(tuned, options):
    index, vectors, kinds = tuned
    wanted = QUERIES[:, 6:] @ vectors[:, 6:].T
    wanted[:, options.get("exclude", [])] = -9
    if "where" in options:
        wanted[:, kinds != "a"] = -9
    order = np.argsort(-wanted, axis=1, kind="stable")[:, :20]
    if "group_by" in options:
        order = np.array([row[np.sort(np.unique(kinds[row], return_index=True)[1])] for row in order])
    hits = index.search(QUERIES, order.shape[1], weights={"shape": 0}, **options)
    assert np.array_equal(hits.ids, order)


def test_parts_are_kept_on_the_disk_and_by_changes(tmp_path):
    with make() as index:
        index.save(tmp_path / "index")
    with Index.load(tmp_path / "index") as loaded:
        loaded.upsert([900], QUERIES[:1])
        assert loaded.search(QUERIES[0], 1, weights={"colour": 5}).ids[0, 0] == 900
        loaded.rebuild()
        assert loaded.subspaces == PARTS


@pytest.mark.parametrize(("weights", "message"), [
    ({"color": 2}, "no part 'color'.*colour"), ({"colour": 0, "shape": 0}, "leave nothing"),
    *[({"colour": bad}, "weight of 'colour' must be") for bad in (-1, float("nan"), True, "2")],
    ([("colour", 2)], "must map parts"),
])  # fmt: skip
def test_bad_weights_get_a_sentence(weights, message):
    with pytest.raises(UserError, match=message):
        make().search(QUERIES, 3, weights=weights)


@pytest.mark.parametrize("parts", [{"shape": 6}, {"shape": 0, "colour": 10}, {"": 10}, [6, 4], {"shape": "10"}])
def test_parts_must_make_up_the_embedding(parts):
    with pytest.raises(UserError, match="parts"):
        make(subspaces=parts)
