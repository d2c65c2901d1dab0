"""The embedded catalogue: what it promises to hold, it holds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.drawn.catalogue import LABELLED, draw, plan, write_catalog, wrong_labels
from fashion_jax.data.drawn.colours import COLOURS, PLAIN, SHEEN, paint
from fashion_jax.data.drawn.shapes import SHAPES
from fashion_jax.data.photos import BadPhoto, normalise_photo
from fashion_jax.data.schema import DOCUMENTED
from fashion_jax.system.cielab import from_srgb, to_cielab


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("drawn")
    write_catalog(path, 400, 7)
    return path


def test_same_seed_same_bytes_other_seed_others(folder, tmp_path):
    write_catalog(tmp_path / "again", 400, 7)
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    assert all((folder / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)
    assert [s.id for s in plan(400, 7)] != [s.id for s in plan(400, 8)]


def test_it_has_the_documented_classes():
    specs = plan(3000, 0)
    for column, least in (("masterCategory", 4), ("subCategory", 24), ("baseColour", 44), ("gender", 5)):
        counts = Counter(s.truth[column] for s in specs)
        assert set(counts) <= set(DOCUMENTED[column])
        assert len(counts) >= least
        assert min(counts.values()) >= 25
    assert DOCUMENTED["baseColour"] == COLOURS
    counts = Counter(s.truth["baseColour"] for s in specs).most_common()
    assert counts[0][1] > 2 * counts[-1][1]  # a long tail


def test_colours_are_told_apart():
    for paints in (PLAIN, SHEEN):
        points = to_cielab(np.array(list(paints.values()), np.uint8))
        apart = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e3 * np.eye(len(points))
        assert apart.min() >= 12, apart.min()


@pytest.mark.parametrize("pattern", ["plain", "stripes", "dots", "check"])
def test_patterns_stay_nearer_to_their_colour_than_to_any_other(pattern):
    names = list(PLAIN)
    points = to_cielab(np.array([PLAIN[n] for n in names], np.uint8))
    for number, name in enumerate(names):
        cloth = paint(name, pattern, 60, 60, np.random.default_rng(0))
        distance = np.linalg.norm(points - from_srgb(cloth.reshape(-1, 3).mean(0) / 255), axis=1)
        assert int(distance.argmin()) == number


def test_wrong_labels_are_those_that_differ_from_the_truth():
    wrong = wrong_labels(3000, 0)
    assert 0.015 < len(wrong) / (3000 * len(LABELLED)) < 0.025
    for spec in plan(3000, 0):
        for column in LABELLED:
            differs = spec.written[column] not in ("NA", spec.truth[column])
            assert ((spec.id, column) in wrong) == differs
    missing = sum(spec.written[c] == "NA" for spec in plan(3000, 0) for c in LABELLED)
    assert 0.005 < missing / (3000 * len(LABELLED)) < 0.015


def test_the_reader_finds_its_faults(folder):
    catalog = open_catalog(folder)
    assert catalog.num_rows == 400
    assert catalog.repairs["surplus commas in the last column"] == 1
    assert len([r for r in catalog.rejected if "no photo" in r.reason]) >= 1
    repairs, bad = Counter(), 0
    for _, data in catalog.iter_photos(catalog.records):
        try:
            repairs.update(normalise_photo(data)[1])
        except BadPhoto:
            bad += 1
    assert bad >= 3
    assert {"rotated", "palette", "grey-scale", "truncated"} <= set(repairs)


def test_variants_and_copies_exist():
    specs = {s.id: s for s in plan(3000, 0)}
    assert len(specs) == 3000
    assert sum(s.shift != (0.0, 0.0) for s in specs.values()) > 60
    copies = [s for s in specs.values() if s.copy_of]
    assert len(copies) > 25 and all(specs[s.copy_of].look == s.look for s in copies)


def test_every_outline_is_drawn_on_white():
    specs = {spec.shape: spec for spec in plan(2000, 1)}
    assert set(specs) == set(range(len(SHAPES)))
    for image in map(draw, specs.values()):
        assert image.shape == (80, 60, 3)
        assert (image[0] > 235).mean() > 0.9
        assert 0.03 < (image.min(-1) < 235).mean() < 0.8
