"""Products with several photos: each is found once, by its best photo, as if all photos were compared one by one."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from search.clustered import clustered, recall, unit

from fashion_jax.search import query
from fashion_jax.search.index import Index
from fashion_jax.search.recommend import by_attributes, explain, keep_and_change
from fashion_jax.system.errors import UserError

ROWS, QUERIES = np.split(clustered(640, 16, clusters=20), [600])
CHANCE = np.random.default_rng(5)
NUMBERS = CHANCE.integers(0, 150, 600)  # 1 to 12 photos each, the photos of a product not side by side
COLUMNS = {
    "price": (NUMBERS % 40).tolist(),
    "colour": np.array(["red", "green", "blue"])[NUMBERS % 3].tolist(),
    "view": CHANCE.choice(["front", "back"], 600).tolist(),  # differs between the photos of a product
    "photo": [f"{row}.jpg" for row in range(600)],
}
PRODUCTS = list(dict.fromkeys(NUMBERS.tolist()))


@pytest.fixture(scope="module", params=["built", "loaded", "updated", "rebuilt", "texts", "scann"])
def index(request, tmp_path_factory):
    """The same products in indexes that came about differently."""
    kind = request.param
    ids = np.array([f"sku {n}" for n in NUMBERS]) if kind == "texts" else NUMBERS
    if kind in ("built", "texts", "scann"):
        backend = "scann" if kind == "scann" else "exact"
        yield Index.build(ROWS, ids, COLUMNS, backend=backend, target_recall=1.0)
        return
    start = NUMBERS % 3 == 0  # products that are there from the start, with other photos
    other = {name: ["x" if isinstance(v[0], str) else 1 for _ in range(start.sum())] for name, v in COLUMNS.items()}
    folder = tmp_path_factory.mktemp("photos") / "index"
    with Index.build(-ROWS[start], NUMBERS[start], other, backend="exact") as index:
        index.save(folder)
        index.upsert([900, 900, 901], ROWS[:3])
        for part in range(3):
            some = part == NUMBERS % 9 // 3
            index.upsert(NUMBERS[some], ROWS[some], {name: np.array(v)[some].tolist() for name, v in COLUMNS.items()})
        index.delete([900, 901])
        if kind == "rebuilt":
            index.rebuild()
    yield Index.load(folder) if kind == "loaded" else index


def number_of(name) -> int:
    return int(str(name).removeprefix("sku "))


def best_photos(queries, mask=None, groups=None):
    """Returns per query (product, score, row) of each product's best photo, best first; one for each group."""
    found = []
    for scores in unit(queries) @ unit(ROWS).T:
        rows = [row for row in np.argsort(-scores, kind="stable").tolist() if mask is None or mask[row]]
        rows = list({NUMBERS[row]: row for row in reversed(rows)}.values())[::-1]
        rows.sort(key=lambda row: -scores[row])
        if groups is not None:
            rows = sorted({groups[row]: row for row in reversed(rows)}.values(), key=lambda row: -scores[row])
        found.append([(int(NUMBERS[row]), float(scores[row]), row) for row in rows])
    return found


def same(index, hits, wanted, k):
    """Whether hits are the first k of `best_photos`."""
    for number, expected in enumerate(wanted):
        there = ~np.isneginf(hits.scores[number])
        expected = expected[:k]
        names = [number_of(name) for name in hits.ids[number][there]]
        assert names == [name for name, _, _ in expected]
        assert np.allclose(hits.scores[number][there], [score for _, score, _ in expected], atol=1e-5)
        rows = hits.attributes(number)
        assert [row["photo"] for row in rows] == [f"{row}.jpg" for _, _, row in expected]
        places = [np.flatnonzero(name == NUMBERS).tolist().index(row) for name, _, row in expected]
        assert hits.photos[number][there].tolist() == places
        assert (hits.photos[number][~there] == -1).all()


@pytest.mark.parametrize("k", [1, 10, len(PRODUCTS)])
@pytest.mark.parametrize("num_queries", [1, 40])
def test_a_hit_is_a_product_by_its_best_photo(index, k, num_queries):
    assert len(index) == len(PRODUCTS) and index.num_photos == 600
    same(index, index.search(QUERIES[:num_queries], k), best_photos(QUERIES[:num_queries]), k)
    with pytest.raises(UserError, match=f"has {len(PRODUCTS)} products"):
        index.search(QUERIES, len(PRODUCTS) + 1)


def test_filters_groups_and_exclusions_are_of_products(index, monkeypatch):
    front, cheap = np.array(COLUMNS["view"]) == "front", np.array(COLUMNS["price"]) < 7
    same(index, index.search(QUERIES, 8, where="view == 'front'"), best_photos(QUERIES, front), 8)
    same(index, index.search(QUERIES, 40, where="price < 7"), best_photos(QUERIES, cheap), 40)
    for column in ("price", "view", "colour"):
        same(index, index.search(QUERIES, 5, group_by=column), best_photos(QUERIES, None, COLUMNS[column]), 5)
    names = index.ids[:30].tolist()
    mask = ~np.isin(NUMBERS, [number_of(name) for name in names])
    same(index, index.search(QUERIES, 9, exclude=[*names, "absent" if isinstance(names[0], str) else 10**9]),
         best_photos(QUERIES, mask), 9)  # fmt: skip
    monkeypatch.setattr(query, "_FEW_EXCLUDED", 5)  # many are left out in another way
    same(index, index.search(QUERIES, 9, exclude=names), best_photos(QUERIES, mask), 9)
    monkeypatch.setattr(query, "_MOST_FETCHED", 2)  # all rows are fetched
    same(index, index.search(QUERIES, 9, where="view == 'front'"), best_photos(QUERIES, front), 9)


def test_smallest_scores_variety_and_weights_are_of_products(index):
    wanted = best_photos(QUERIES[:1])
    lowest = wanted[0][3][1] - 1e-6
    same(index, index.search(QUERIES[:1], 10, min_score=lowest), [wanted[0][:4]], 10)
    hits = index.search(QUERIES, 12, diversity=0.5)
    assert all(len(set(names)) == 12 for names in hits.ids.tolist())
    plain = index.search(QUERIES, 12, diversity=1e-9)
    assert np.array_equal(plain.ids, index.search(QUERIES, 12).ids)
    subspaces = {"one": 6, "two": 10}
    weighted = Index(index.snapshot, {"subspaces": subspaces})
    factors = np.repeat([3.0, 0.5], [6, 10])
    hits = weighted.search(QUERIES, 7, weights={"one": 3, "two": 0.5})
    # Rows keep their length of 1 and the query is weighted, as for one photo each.
    same(index, hits, best_photos(unit(QUERIES) * factors), 7)


def test_vectors_and_attributes_of_products(index):
    names = index.ids.tolist()
    assert sorted(map(number_of, names)) == sorted(PRODUCTS)
    vectors, rows = index.vectors(names[::-1])[::-1], index.attributes(names)
    for name, vector, row in zip(names, vectors, rows, strict=True):
        places = np.flatnonzero(number_of(name) == NUMBERS)
        assert np.allclose(vector, unit(unit(ROWS[places]).mean(0)), atol=1e-5)
        assert row["photo"] == f"{places[0]}.jpg"
    assert names[3] in index and "no such product" not in index


def test_recommendations_name_the_photo_and_never_the_query(index):
    name = index.ids.tolist()[4]
    hits = explain(index.search(index.vectors([name]), 20, exclude=[name]), {"colour": "red"})
    assert name not in [hit.id for hit in hits] and len({hit.id for hit in hits}) == 20
    assert all(NUMBERS[int(hit.photo.removesuffix(".jpg"))] == number_of(hit.id) for hit in hits)
    labels = index.attributes([name])[0]
    changed = keep_and_change(index, index.vectors([name]), labels, [], {"colour": "red"}, 9, exclude=[name])
    assert len({hit.id for hit in changed}) == 9 and all(hit.attributes["colour"] == "red" for hit in changed)
    described = by_attributes(index, {"colour": "red"}, 500)
    assert sorted(number_of(hit.id) for hit in described) == sorted(n for n in PRODUCTS if n % 3 == 0)
    one_each = by_attributes(index, {"colour": "red"}, 500, group_by="price")
    assert len(one_each) == len({hit.attributes["price"] for hit in described})


def test_health_counts_photos(index):
    assert index.health().recall == 1


def test_an_index_of_one_photo_each_answers_as_if_there_were_no_products(monkeypatch):
    index = Index.build(ROWS, np.arange(600), COLUMNS, backend="exact")
    assert index.snapshot.first is None and len(index) == index.num_photos == 600
    monkeypatch.setattr(query, "first_of_groups", lambda *_: pytest.fail("rows were joined to products"))
    scores = unit(QUERIES) @ unit(ROWS).T
    assert np.array_equal(index.search(QUERIES, 9).ids, np.argsort(-scores, axis=1, kind="stable")[:, :9])
    monkeypatch.undo()
    index.upsert([3, 3, 700], ROWS[:3])
    assert index.search(ROWS[1], 1).photos.tolist() == [[0]] and len(index) == 601 and index.num_photos == 602
    assert index.search(ROWS[1], 2, exclude=[1]).ids[0, 0] == 3
    index.upsert([3], ROWS[:1])  # one photo each again
    assert not index.snapshot.has_several_photos and len(index) == index.num_photos == 601


def test_scann_finds_products_as_well_as_photos():
    """Photos of a product that lie close together leave no query without enough products."""
    products = clustered(2_000, 32)
    rows = np.repeat(products, 3, axis=0) + 0.1 * np.random.default_rng(1).normal(size=(6_000, 32)).astype(np.float32)
    index, queries = Index.build(rows, np.repeat(np.arange(2_000), 3), backend="scann"), clustered(200, 32, seed=2)
    found = index.search(queries, 10).ids
    scores = (unit(queries) @ unit(rows).T).reshape(200, 2_000, 3).max(2)
    assert (found >= 0).all() and recall(found, np.argsort(-scores, axis=1)[:, :10]) >= 0.94


def test_opposite_photos_have_the_direction_of_the_first():
    index = Index.build(np.stack([ROWS[0], -ROWS[0], ROWS[1]]), ["a", "a", "b"])
    assert np.allclose(index.vectors(["a", "b"]), unit(ROWS[:2]), atol=1e-6)


def test_a_replaced_product_does_not_keep_the_names_of_its_photos():
    index = Index.build(ROWS[:3], [1, 1, 2], {"photo": ["a", "b", "c"], "price": [5, 5, 6]})
    index.upsert([1, 9], ROWS[3:5])
    assert index.attributes([1, 9, 2]) == [
        {"photo": None, "price": 5}, {"photo": None, "price": None}, {"photo": "c", "price": 6}
    ]  # fmt: skip


@pytest.mark.parametrize("ids", [[1, 2, 1], [5, 5, 5], [7, 8, 9]])
def test_rows_in_any_order_become_products(ids, tmp_path):
    index = Index.build(ROWS[:3], ids, {"row": [0, 1, 2]})
    assert index.ids.tolist() == list(dict.fromkeys(ids))
    for name in ids:
        assert index.attributes([name])[0]["row"] == ids.index(name)
    index.save(tmp_path / "index")
    index.close()
    again = Index.load(tmp_path / "index")
    assert np.array_equal(again.vectors(ids), index.vectors(ids)) and len(again) == len(set(ids))
    for left in set(ids):
        again.delete([left])
    assert len(again) == again.num_photos == 0
    again.close()


def test_a_half_dead_product_on_the_disk_is_damage(tmp_path):
    from fashion_jax.search import storage

    index = Index.build(ROWS[:4], [1, 1, 2, 2])
    for name, live in (("half", [True, False, True, True]), ("apart", [True] * 4)):
        ids = np.array([1, 1, 2, 2] if name == "half" else [1, 2, 1, 2])
        broken = dataclasses.replace(index.snapshot, ids=ids, live=np.array(live))
        storage.write_index(tmp_path / name, broken, index._settings)
        with pytest.raises(UserError, match="damaged"):
            Index.load(tmp_path / name)
    assert json.loads((tmp_path / "half/manifest.json").read_text())["products"] == 2
