"""Hierarchies: found where they are, sums that are probabilities, decisions that do not contradict."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.special

from fashion_jax.data.schema import MISSING
from fashion_jax.decision import decisions, hierarchy
from fashion_jax.decision.decisions import Decision, HeadDecision, choose_labels, log_probabilities, sum_along
from fashion_jax.decision.hierarchy import (
    count_contradictions,
    count_pairs,
    joint_heads,
    measure_applicability,
    measure_pairs,
)

CLASSES = {"top": 3, "middle": 6, "fine": 12, "free": 4}


def catalogue(count: int = 2000, noise: float = 0.005) -> dict[str, np.ndarray]:
    """Labels in which fine gives middle gives top, but for a few rows, and `free` follows from nothing."""
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 12, count)
    middle = np.where(rng.random(count) < noise, rng.integers(0, 6, count), fine // 2)
    top = np.where(rng.random(count) < noise, rng.integers(0, 3, count), middle // 2)
    labels = {"top": top, "middle": middle, "fine": fine, "free": rng.integers(0, 4, count)}
    labels["middle"][:50] = MISSING
    return labels


def heads(labels, *, strength: float = 0.0, middle: decisions.Link | None = None) -> dict[str, HeadDecision]:
    """Decisions of all heads; `middle` is the link of that head."""
    found = {}
    for name, count in CLASSES.items():
        rows = np.bincount(labels[name][labels[name] >= 0], minlength=count)
        found[name] = HeadDecision(1.0, rows, {"accuracy": strength}, {}, None, middle if name == "middle" else None)
    return found


def logits(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(count, n)).astype(np.float32) * 2 for name, n in CLASSES.items()}


def test_pairs_are_found_where_they_are():
    pairs = measure_pairs(catalogue(), CLASSES)
    assert {(p.finer, p.coarser) for p in pairs} == {("fine", "middle"), ("fine", "top"), ("middle", "top")}
    assert all(0.98 < p.determined <= 1 for p in pairs)
    assert measure_pairs(catalogue(noise=0.1), CLASSES) == []
    # What names every row determines nothing, and nothing need determine what hardly changes.
    rng = np.random.default_rng(0)
    assert measure_pairs({"id": np.arange(500), "kind": rng.integers(0, 3, 500)}, {"id": 500, "kind": 3}) == []
    constant = {"fine": rng.integers(0, 9, 500), "flag": (np.arange(500) == 7).astype(int)}
    assert measure_pairs(constant, {"fine": 9, "flag": 2}) == []


@pytest.mark.parametrize("kinds", [2, 12])
def test_does_not_apply_is_left_out_where_it_cannot_be(kinds):
    rng = np.random.default_rng(0)
    kind = rng.integers(0, kinds, 2000)  # even kinds have a sleeve: long (0) or short (2); it does not apply to others
    sleeve = np.where(kind % 2 == 0, rng.choice([0, 2], 2000), 1)
    sleeve[:40] = MISSING
    sleeve[40:44] = 1 - kind[40:44] % 2  # wrong labels
    labels, sizes = {"kind": kind, "sleeve": sleeve, "free": rng.integers(0, 4, 2000)}, {"kind": kinds, "sleeve": 3}
    found = measure_applicability(labels, {**sizes, "free": 4}, {"sleeve": 1})
    assert found["sleeve"].finer == "kind" and found["sleeve"].number == 1
    assert found["sleeve"].never.tolist() == [n % 2 == 0 for n in range(kinds)]
    assert not measure_applicability(labels, {"sleeve": 3, "free": 4}, {"sleeve": 1})  # nothing determines it

    plain = {n: HeadDecision(1.0, np.ones(c, int), {"accuracy": 0.0}, {}, label_set=0.2) for n, c in sizes.items()}
    decision = Decision(plain, applicability=found)
    sure, unsure = np.full(kinds, 0.01), np.full(kinds, 0.01)
    sure[0], unsure[:2] = 0.9, 0.45  # surely an even kind; an even or an odd one
    log_probs = {
        "kind": np.log(np.stack([sure, unsure, unsure])),
        "sleeve": np.log(np.array([[0.25, 0.45, 0.3], [0.25, 0.45, 0.3], [0.5, 0.3, 0.2]])),
    }
    chosen = choose_labels(decision, log_probs)
    assert chosen["sleeve"].tolist() == [2, 2, 0]  # without the hierarchy 1, 1, 0
    sets = decisions.choose_sets(decision, log_probs, chosen)["sleeve"]
    assert sets.tolist() == [[True, False, True], [True, True, True], [True, True, True]]


def test_the_share_is_what_leaving_each_row_out_gives():
    rng = np.random.default_rng(0)
    finer, coarser = rng.integers(0, 8, 120), rng.integers(0, 3, 120)
    right = 0
    for row in range(120):
        others = np.delete(coarser, row)[np.delete(finer, row) == finer[row]]
        counts = np.bincount(others, minlength=3)
        right += counts[coarser[row]] > max(np.delete(counts, coarser[row]))
    counts = count_pairs(finer, coarser, (8, 3))
    assert hierarchy.share_determined(counts) == pytest.approx(right / 120)
    # Rows that lack a label do not count.
    given = np.append(finer, [MISSING, 1]), np.append(coarser, [1, MISSING])
    assert np.array_equal(count_pairs(*given, (8, 3)), counts)


def test_sums_along_the_hierarchy_are_probabilities():
    counts = np.array([[5, 0, 0], [3, 1, 0], [0, 0, 0], [0, 0, 9]])
    chances = decisions.conditional_chances(counts)
    assert np.allclose(chances.sum(1), 1) and (chances >= 0).all()
    assert np.allclose(chances[2], counts.sum(0) / counts.sum())  # nothing is known of it but what all rows are
    finer = scipy.special.log_softmax(np.random.default_rng(0).normal(size=(50, 4)) * 3, axis=1)
    summed = np.exp(sum_along(finer, counts))
    assert np.allclose(summed.sum(1), 1)
    slowly = [[sum(np.exp(row[f]) * chances[f, c] for f in range(4)) for c in range(3)] for row in finer]
    assert np.allclose(summed, slowly)


@pytest.mark.parametrize("pooling", ["linear", "log"])
def test_mixtures_are_probabilities_between_their_parts(pooling):
    labels, given = catalogue(), logits(40)
    counts = count_pairs(labels["fine"], labels["middle"], (12, 6))
    alone = log_probabilities(Decision(heads(labels)), given)
    for weight in (0.0, 0.4, 1.0):
        link = decisions.Link("fine", counts, pooling, weight, 1.0)
        mixed = log_probabilities(Decision(heads(labels, middle=link)), given)
        assert np.allclose(np.exp(mixed["middle"]).sum(1), 1)
        assert np.array_equal(mixed["fine"], alone["fine"])
        if weight in (0.0, 1.0):
            wanted = alone["middle"] if weight == 0 else sum_along(alone["fine"], counts)
            assert np.allclose(np.exp(mixed["middle"]), np.exp(wanted))


def test_contradictions_are_counted_as_by_hand():
    labels = catalogue()
    pairs, said = measure_pairs(labels, CLASSES), {n: v.argmax(1) for n, v in logits(300).items()}
    said["middle"][:20] = MISSING
    found, rows = count_contradictions(pairs, said), np.zeros(300, bool)
    for pair in pairs:
        finer, coarser, against = labels[pair.finer], labels[pair.coarser], np.zeros(300, bool)
        for row, (f, c) in enumerate(zip(said[pair.finer], said[pair.coarser], strict=True)):
            if f != MISSING and c != MISSING:
                share = np.mean(coarser[(finer == f) & (coarser != MISSING)] == c)
                of_class = finer[(coarser == c) & (finer != MISSING)]
                against[row] = share < 0.01 and np.bincount(of_class).argmax() != f
        assert found[f"{pair.finer} -> {pair.coarser}"]["contradictions"] == against.sum() > 100
        rows |= against
    assert found["any"]["contradictions"] == rows.sum()


@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_decided_together_nothing_contradicts_and_what_agreed_stays(strength):
    labels = catalogue()
    pairs = measure_pairs(labels, CLASSES)
    (group,) = joint_heads(pairs, labels)
    assert set(group.names) == {"top", "middle", "fine"}
    decision = Decision(heads(labels, strength=strength), (group,))
    log_probs = log_probabilities(decision, logits(400))
    alone, together = (choose_labels(decision, log_probs, joint=joint) for joint in (False, True))
    assert count_contradictions(pairs, alone)["any"]["contradictions"] > 200
    assert count_contradictions(pairs, together)["any"]["contradictions"] == 0
    assert np.array_equal(alone["free"], together["free"])
    joined = np.stack([together[name] for name in group.names], 1)
    # The best of all combinations, looked for one by one; so what agreed stays.
    scores = []
    for name in group.names:
        rows = decision.heads[name].class_rows
        scores.append(log_probs[name] - strength * np.log(rows / rows.sum())[None])
    for row in range(400):
        best = max(group.combinations.tolist(), key=lambda c: sum(s[row, k] for s, k in zip(scores, c, strict=True)))
        assert best == joined[row].tolist()


@pytest.mark.parametrize("hide", ["nothing", "top of the rarer middle", "top or fine of all", "middle of one fine"])
def test_what_training_rows_have_can_be_said(hide, monkeypatch):
    monkeypatch.setattr(hierarchy, "DETERMINED", 0.9)
    middle, fine = np.repeat([0, 0, 1, 1, 2, 2], 100), np.repeat(np.arange(6), 100)
    middle[:20] = 1  # the finest class is soft
    top = (middle > 0).astype(int)
    if hide == "top of the rarer middle":
        top[:20] = MISSING
    elif hide == "top or fine of all":  # two catalogues in one
        top[::2] = MISSING
        fine[1::2] = MISSING
    elif hide == "middle of one fine":
        middle[-100:] = MISSING
        middle[-1], fine[-1] = 2, MISSING
    labels = {"top": top, "middle": middle, "fine": fine}
    pairs = measure_pairs(labels, {"top": 2, "middle": 3, "fine": 6})
    assert ("fine", "middle") in {(pair.finer, pair.coarser) for pair in pairs}
    (group,) = joint_heads(pairs, labels)
    rows = np.unique(np.stack([labels[name] for name in group.names], 1), axis=0)
    for row in rows:
        assert ((group.combinations == row) | (row == MISSING)).all(1).any(), row
    columns = dict(zip(group.names, group.combinations.T, strict=True))
    # No top goes with the finest class and with the middle that it has in those rows alone.
    against = sum((~pair.allowed()[columns[pair.finer], columns[pair.coarser]]).sum() for pair in pairs)
    assert against == (2 if hide == "top of the rarer middle" else 0)
    if hide == "nothing":
        assert np.array_equal(group.combinations, rows)


def test_soft_hierarchies_allow_both():
    # Socks stand under two master categories.
    finer, coarser = np.repeat([0, 0, 1, 2], [60, 40, 100, 100]), np.repeat([0, 1, 0, 1], [60, 40, 100, 100])
    pair = hierarchy.Pair("sub", "master", count_pairs(finer, coarser, (3, 2)), 0.9)
    assert pair.allowed().tolist() == [[True, True], [True, False], [False, True]]
    for f, c in itertools.product(range(3), range(2)):
        said = {"sub": np.array([f]), "master": np.array([c])}
        assert count_contradictions([pair], said)["any"]["contradictions"] == (not pair.allowed()[f, c])
