"""Who may go on in a workdir: the same configuration on the same records; nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drawn_products import write_products
from fashion_jax.data.prepare import prepare
from fashion_jax.run.resolve import resolve
from fashion_jax.run.start import ever_trained_on
from fashion_jax.run.train import train
from fashion_jax.run.workdir import (
    check_workdir,
    claim_workdir,
    find_records,
    load_run_config,
    prepare_records,
    run_name,
    trained_on,
)
from fashion_jax.system import files, stored
from fashion_jax.system.errors import UserError


@pytest.fixture
def begun(tiny_config, prepared, tmp_path):
    """The workdir of a run that has saved a checkpoint."""
    claim_workdir(tmp_path / "w", resolve(tiny_config(), prepared), prepared)
    (tmp_path / "w/checkpoints/step_4").mkdir(parents=True)
    return tmp_path / "w"


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("train.duration was '12 steps', now '14 steps'", {"train__duration": "14 steps"}),
        ("data.attributes was", {"data__attributes": ("colour", "kind")}),
        ("optimizer.multipliers was", {"optimizer__multipliers": {"heads": 2.0}}),
    ],
)
def test_a_changed_field_is_refused_by_its_name(begun, tiny_config, prepared, key, changes):
    config = resolve(tiny_config(**changes), prepared)
    with pytest.raises(UserError, match=rf"{key}.*; use a new --workdir$"):
        check_workdir(begun, config, prepared)
    (begun / "package").mkdir()  # of a finished run
    with pytest.raises(UserError, match=rf"{key}.*--config\.model\.pretrained={begun}$"):
        check_workdir(begun, config, prepared)
    (begun / "checkpoints/step_4").rmdir()  # nothing is lost where nothing was saved
    check_workdir(begun, config, prepared)


def test_other_records_are_refused_and_free_fields_are_free(begun, tiny_config, prepared, tmp_path):
    free = {"train__checkpoint_every": "2 steps", "decision__precision": 0.9, "data__storage": "stream"}
    check_workdir(begun, resolve(tiny_config(**free), prepared), prepared)
    others = prepare(write_products(tmp_path / "shop", 90), tmp_path / "others", progress=False)
    with pytest.raises(UserError, match=r"on other records.*; use a new --workdir"):
        check_workdir(begun, resolve(tiny_config(), others), others)


def test_damaged_records_of_a_run_are_made_again_only_from_the_same_source(tiny_config, tmp_path):
    workdir, config = tmp_path / "w", tiny_config(data__source=str(write_products(tmp_path / "shop", 90)))
    prepare_records(config, workdir, progress=False)
    prepared = find_records(config, workdir)
    claim_workdir(workdir, resolve(config, prepared, workdir), prepared)
    (workdir / "checkpoints/step_4").mkdir(parents=True)
    other = tiny_config(data__source=str(write_products(tmp_path / "other", 80)))
    for name in ("manifest.json", "products.csv", *prepared.photo_files("train")):
        (workdir / "records" / name).write_bytes(b"damaged")
        with pytest.raises(UserError, match="gives other records than the run"):
            prepare_records(other, workdir, progress=False)
        assert (workdir / "records" / name).read_bytes() == b"damaged"
        prepare_records(config, workdir, progress=False)
        assert find_records(config, workdir).fingerprint == prepared.fingerprint


def test_a_run_notes_what_it_is_trained_on(begun, tiny_config, prepared, tmp_path):
    ids = json.loads((begun / "trained_on.json").read_text())["ids"]
    assert ids == sorted(map(str, prepared.ids[prepared.indices("train")])) and trained_on(begun) == set(ids)
    # Without a column of ids the numbers of rows would be found among other numbers of rows, and mean nothing.
    table = write_products(tmp_path / "shop", 90)
    table.write_text("\n".join(line.partition(",")[2] for line in table.read_text().splitlines()) + "\n")
    nameless = prepare(table, tmp_path / "nameless", progress=False)
    claim_workdir(tmp_path / "v", resolve(tiny_config(), nameless), nameless)
    assert nameless.schema.id_column == "" and trained_on(tmp_path / "v") is None


def test_two_runs_in_one_workdir_are_refused(tiny_config, tmp_path):
    with (
        files.hold_lock(tmp_path / "w/.lock", what="", busy=""),
        pytest.raises(UserError, match="another run is using"),
    ):
        train(tiny_config(), tmp_path / "w", progress=False)


DAMAGE = {
    "other type": lambda path: path.write_text("[1]"),
    "nested": lambda path: path.write_bytes(b"[" * 100_000),
    "hand edit": lambda path: path.write_text(path.read_text().replace("0", "1")),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "ids": lambda path: sign_again(path, ids=[3], data={"height": 10**400}),
    "types": lambda path: sign_again(path, fingerprint=None, run=[]),
    "values": lambda path: sign_again(path, fingerprint="other", data={"height": "x"}),
}


def sign_again(path: Path, **changes) -> None:
    stored.write_document(path, {**stored.read_document(path, remedy=""), **changes})


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_configuration_is_refused(begun, tiny_config, prepared, damage):
    damage(begun / "config.json")
    for read in (load_run_config, lambda path: check_workdir(path, resolve(tiny_config(), prepared), prepared)):
        with pytest.raises(UserError, match=r"w/config\.json is .* on the command line, with a new --workdir$"):
            read(begun)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_ids_are_refused_and_written_anew(begun, tiny_config, prepared, damage):
    known = trained_on(begun)
    damage(begun / "trained_on.json")
    for read in (trained_on, ever_trained_on):
        with pytest.raises(UserError, match=r"trained_on\.json (is|belongs).*run the same fashion-jax train"):
            read(begun)
    config = resolve(tiny_config(), prepared)
    check_workdir(begun, config, prepared)
    claim_workdir(begun, config, prepared)
    assert trained_on(begun) == known


def test_a_package_names_no_products(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 1}')  # of the package
    assert trained_on(tmp_path) is ever_trained_on(tmp_path) is None


def test_a_run_keeps_its_name_and_another_one_has_another(begun, tiny_config, prepared, tmp_path):
    name = run_name(begun)
    free = resolve(tiny_config(decision__precision=0.9), prepared)
    assert claim_workdir(begun, free, prepared) == claim_workdir(tmp_path / "x", free, prepared) == name
    other = resolve(tiny_config(train__seed=5), prepared)
    assert claim_workdir(tmp_path / "y", other, prepared) == run_name(tmp_path / "y") != name
