"""`fashion-jax verify`: what is undamaged is called ok, and one changed byte of any file is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from fashion_jax.cli import main
from fashion_jax.run.train import train
from fashion_jax.run.verify import verify
from fashion_jax.search.index import Index
from fashion_jax.system import files, stored
from fashion_jax.system.errors import UserError
from fashion_jax.training.checkpoint import Checkpoints

# Nothing is computed from these; Orbax writes two of them after our digests.
UNREAD = {"metrics.jsonl", ".lock", "README.md", "_CHECKPOINT_METADATA", "commit_success.txt"}


@pytest.fixture(scope="module")
def workdir(products_csv: Path, tiny_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its own records, a package, pretrained weights, and an index beside them."""
    folder = tmp_path_factory.mktemp("verify")
    train(tiny_config(data__source=str(products_csv)), folder / "before", progress=False)
    config = tiny_config(data__source=str(products_csv), model__pretrained=str(folder / "before"))
    train(config, folder / "run", progress=False)
    vectors = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    with Index.build(vectors, list(range(20))) as index:
        index.save(folder / "run" / "index")
        index.delete([3])
    return folder / "run"


def test_an_undamaged_run_is_ok(workdir, capsys):
    parts = list(verify(workdir))
    assert not any(part.problem for part in parts)
    names = {part.path.relative_to(workdir).as_posix() for part in parts}
    assert {
        "config.json",
        "trained_on.json",
        "pretrained",
        "records",
        "package",
        "index",
        "checkpoints/step_12",
    } <= names
    assert main(["verify", str(workdir)]) == 0
    assert capsys.readouterr().out.endswith("nothing is damaged\n")


def test_one_changed_byte_of_any_file_is_named(workdir, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    tried = 0
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        name = path.relative_to(copy).as_posix()
        if name.startswith("evaluation") or path.name in UNREAD:
            continue
        data = path.read_bytes()
        place = len(data) // 2
        if name.endswith(".journal"):
            place = len(data) - 10  # between the heads there is room that means nothing
        for changed in (data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :] if data else b"x", None):
            if changed is None:
                path.unlink()
            else:
                path.write_bytes(changed)
            found = [part for part in verify(copy) if part.problem]
            assert found, f"{name} {'is gone' if changed is None else 'was changed'}"
            assert any(str(part.path) in str(path) or str(path) in part.problem for part in found), name
            tried += 1
        path.write_bytes(data)
    assert tried > 60
    (copy / "package" / "labels.json").write_bytes(b"{}")
    num_parts = len(list(verify(copy)))
    assert main(["verify", str(copy)]) == 2
    out, error = capsys.readouterr()
    assert "DAMAGED" in out and "labels.json" in out and error == f"error: 1 of {num_parts} parts is damaged\n"


def test_without_the_configuration_checkpoints_are_not_checked(workdir, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    (copy / "config.json").write_bytes(b"{}")
    assert [part.path.name for part in verify(copy) if part.problem] == ["config.json"]
    assert main(["verify", str(copy)]) == 2
    out = capsys.readouterr().out
    assert f"-        {copy / 'checkpoints/step_12'}: checkpoint of step 12, not checked: config.json is damaged" in out


def test_a_sweep_is_checked_with_its_trials(workdir, tmp_path):
    (tmp_path / "trials").mkdir()
    shutil.copytree(workdir, tmp_path / "trials/0123456789ab")
    stored.write_document(tmp_path / "space.json", {"a": 1})
    (tmp_path / "study.jsonl").write_bytes(b"{}\n")
    stored.write_document(tmp_path / "study.json", {"bytes": 3, "digest": files.digest(b"{}\n")})
    parts = list(verify(tmp_path))
    assert len(parts) > 5 and not any(part.problem for part in parts)
    (tmp_path / "study.jsonl").write_bytes(b"[]\n")
    assert [part.path.name for part in verify(tmp_path) if part.problem] == ["study.json"]


def test_what_is_not_ours_is_refused(tmp_path):
    for path, sentence in ((tmp_path / "absent", "no folder"), (tmp_path, "give a workdir, or a folder")):
        with pytest.raises(UserError, match=sentence):
            list(verify(path))


def test_a_package_is_not_replaced_by_one_of_a_worse_checkpoint(workdir, products_csv, tiny_config, monkeypatch):
    config = tiny_config(data__source=str(products_csv), model__pretrained=str(workdir.parent / "before"))
    before = (workdir / "package/config.json").stat().st_mtime_ns
    monkeypatch.setattr(Checkpoints, "lost_best", 6)
    with pytest.raises(UserError, match=r"step 6, the best one of this run, .* stays as it is"):
        train(config, workdir, progress=False)
    assert (workdir / "package/config.json").stat().st_mtime_ns == before
