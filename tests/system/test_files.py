"""Files are whole or absent; errors are sentences."""

from __future__ import annotations

import errno
from unittest.mock import Mock

import pytest

from fashion_jax.system import files
from fashion_jax.system.errors import UserError, exit_on_user_error


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a" / "f.json"
    files.write_json(path, {"x": 1})

    full = OSError(errno.ENOSPC, "No space left on device", str(path))
    monkeypatch.setattr(files.os, "fsync", Mock(side_effect=full))
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"x": 2})
    assert path.read_text() == '{\n  "x": 1\n}\n'
    assert [p.name for p in path.parent.iterdir()] == ["f.json"]


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        files.write_json(tmp_path / "f.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "d"
    for text in ("one", "two"):
        with files.replace_directory(target) as aside:
            (aside / "sub").mkdir()
            (aside / "sub" / "f").write_text(text)
    with pytest.raises(RuntimeError), files.replace_directory(target) as aside:
        (aside / "f").write_text("three")
        raise RuntimeError
    assert (target / "sub" / "f").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("what was wrong"), 2, "error: what was wrong"), (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left", "/x/y"), 2, "the disk is full at /x/y"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "no permission at /x"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), 2, "No such file at /x"),
    ],
)  # fmt: skip
def test_exit_codes(capsys, error, code, message):
    assert exit_on_user_error(Mock(side_effect=error)) == code
    assert message in capsys.readouterr().err


def test_our_own_faults_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_on_user_error(lambda: 1 // 0)
    assert exit_on_user_error(lambda: None) == 0
