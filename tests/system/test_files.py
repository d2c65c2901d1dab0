"""Files are whole or absent; errors are sentences."""

from __future__ import annotations

import csv
import datetime
import errno
import itertools
import os
import threading
import time
from decimal import Decimal
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


BLANK = ["", " ", "\u00a0", "\u200b", "\ufeff", "\u202e", "\u3000", "\u3164", "\u2800", "\ufe0f", "\x00", " \t\u2060"]
SIGNS = [*"=+-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b\u2212\t\r\n"]  # full width, small, minus
TEXTS = st.text() | st.builds("".join, st.lists(st.sampled_from([*BLANK, *SIGNS, "'", '"', ",", "a", "1"]), max_size=6))


@pytest.mark.parametrize("sign", SIGNS)
def test_no_cell_is_a_formula(sign):
    for text in (f"{blank}{sign}1+1" for blank in BLANK):
        assert files.escape_cell(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", ["", " ", "a", "1-2", "e=mc", "(+)", "größe", "'", "'80s", "''", "'=", "'-12", "“=1”", "é"]
)
def test_other_texts_stay_and_none_is_mistaken(text):
    assert files.escape_cell(text) == (f"'{text}" if text.startswith("'") else text)
    assert files.unescape_cell(files.escape_cell(text)) == text
    assert files.unescape_cell("'80s") == "'80s"  # as a person writes it


@given(TEXTS)
def test_every_text_comes_back(text):
    cell = files.escape_cell(text)
    assert files.unescape_cell(cell) == text and files.escape_cell(cell).startswith("'") == cell.startswith("'")
    assert not cell.lstrip("".join(BLANK).replace("\t", "")).startswith(tuple(SIGNS))


@given(st.lists(st.lists(TEXTS, min_size=3, max_size=3), max_size=4))
def test_every_table_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "table.csv"
    names = ["=id", "a\rb", "'c"]
    path.write_bytes(files.format_csv([names, *rows]).encode("utf-8", "surrogatepass"))
    assert files.read_csv(path) == [dict(zip(names, row, strict=True)) for row in rows]


def test_numbers_stay_numbers():
    row = [
        -1,
        -0.5,
        np.float32(-0.25),
        np.int64(-3),
        Decimal("-1.50"),
        None,
        True,
        datetime.date(2026, 1, 2),
        np.str_("-1"),
    ]
    assert files.format_csv([row]) == "-1,-0.5,-0.25,-3,-1.50,,True,2026-01-02,'-1\n"


def test_a_line_end_in_a_cell_ends_no_row():
    for end in ("\r", "\n", "\r\n"):
        text = files.format_csv([["a", f"b{end}=c"], ["d", ""]])
        assert list(csv.reader(text.splitlines(keepends=True))) == [["a", f"b{end}=c"], ["d", ""]]


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


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path):
    left, other = tmp_path / ".f.0123abcd.part", tmp_path / ".f.v2.0123abcd.part"
    for path in (left, other):
        path.write_text("half")
    with files.replace_file(tmp_path / "f") as file:
        file.write(b"whole")
        files.remove_stale(tmp_path / "f")
        assert not left.exists() and other.exists()
    assert (tmp_path / "f").read_bytes() == b"whole" and set(tmp_path.iterdir()) == {tmp_path / "f", other}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_are_as_open_as_the_umask_says_and_those_of_other_threads_too(tmp_path, mask, monkeypatch):
    set_umask = os.umask
    before, ended = set_umask(mask), threading.Event()
    # Whoever changes the umask does so for long enough that another thread sees it.
    monkeypatch.setattr(os, "umask", lambda mask: (set_umask(mask), time.sleep(0.005))[0])
    (tmp_path / "others").mkdir()

    def make_others() -> None:
        for number in itertools.count():
            (tmp_path / "others" / str(number)).touch()
            time.sleep(0.001)
            if ended.is_set():
                return

    other = threading.Thread(target=make_others)
    try:
        other.start()
        for _ in range(5):
            files.write_text(tmp_path / "file", "text")
        with files.replace_directory(tmp_path / "folder") as aside:
            (aside / "inner").touch()
        ended.set()
        other.join()
    finally:
        set_umask(before)
    modes = {path.relative_to(tmp_path).parts[0]: path.stat().st_mode & 0o777 for path in tmp_path.glob("f*")}
    assert modes == {"file": 0o666 & ~mask, "folder": 0o777 & ~mask}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "others").iterdir()} == {0o666 & ~mask}


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("what was wrong"), 2, "error: what was wrong"), (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left", "/x/y"), 2, "the disk is full at /x/y"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "no permission at /x"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), 2, "No such file at /x"),
        (OSError(errno.EIO, "Input/output error", "/x"), 2, "the system reports: Input/output error at /x"),
        (OSError("no number\nand more"), 2, "reports: no number; check"), (OSError(), 2, "reports: OSError;"),
        (ConnectionResetError(104, "Connection reset by peer"), 2, "reports: Connection reset by peer; check"),
        (OSError(99_999, "odd"), 2, "reports: odd;"), (BrokenPipeError(32, "Broken pipe"), 2, "has ended"),
        (MemoryError("Unable to allocate 3. TiB"), 2, "the memory is too small (Unable to allocate 3. TiB)"),
        (MemoryError(), 2, "the memory is too small; use a smaller batch"),
    ],
)  # fmt: skip
def test_exit_codes(capsys, error, code, message):
    assert exit_on_user_error(Mock(side_effect=error)) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_our_own_faults_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_on_user_error(lambda: 1 // 0)
    assert exit_on_user_error(lambda: None) == 0
