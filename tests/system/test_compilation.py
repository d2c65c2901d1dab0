"""Programs that are kept for the next command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fashion_jax.system import compilation, files
from fashion_jax.system.compilation import ProgramCache

TESTS = Path(__file__).resolve().parent.parent
KEY, OTHER, THIRD = (f"jit_step-{letter * 64}" for letter in "abc")
VALUE = bytes(range(256)) * 4
FILE_SIZE = 36 + len(VALUE)


@pytest.fixture
def cache(tmp_path) -> ProgramCache:
    tmp_path.chmod(0o700)
    return ProgramCache(tmp_path / "programs")


def only_file(cache: ProgramCache) -> Path:
    (path,) = cache._path.iterdir()
    return path


def test_what_is_put_is_got_by_the_same_machine(cache, monkeypatch):
    assert cache.get(KEY) is None
    cache.put(KEY, VALUE)
    assert cache.get(KEY) == VALUE and cache.get(OTHER) is None
    assert cache._path.stat().st_mode & 0o777 == 0o700
    # A home that two kinds of machines share.
    monkeypatch.setattr(compilation, "num_cores", lambda: 3)
    assert ProgramCache(cache._path).get(KEY) is None


def test_the_last_program_of_a_name_says_how_long_compiling_takes(cache, monkeypatch):
    assert cache.seconds("jit(step)") is None
    for key, seconds in ((KEY, 2.0), (OTHER, 7.0)):
        now = iter([0.0, seconds])
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda now=now: next(now))
            cache.get(key)
            cache.put(key, VALUE)
        os.utime(cache._file(key), (seconds, seconds))
    assert cache.seconds("jit(step)") == 7 and cache.seconds("jit(steps)") is None


@pytest.mark.parametrize("place", [0, 31, 32, 35, 36, FILE_SIZE - 1, "half", "empty", "name"])
def test_a_damaged_file_is_told_and_removed(cache, capsys, place):
    cache.put(KEY, VALUE)
    path = only_file(cache)
    data = bytearray(path.read_bytes())
    assert len(data) == FILE_SIZE
    if place == "name":
        path = path.rename(cache._file(OTHER))
    elif isinstance(place, str):
        path.write_bytes(data[: len(data) // 2 if place == "half" else 0])
    else:
        data[place] ^= 1
        path.write_bytes(data)
    key = OTHER if place == "name" else KEY
    assert cache.get(key) is None and not path.exists()
    assert capsys.readouterr().err.count(f"warning: {path} is damaged") == 1
    cache.put(key, VALUE)
    assert cache.get(key) == VALUE


def test_the_files_unused_for_longest_make_room(cache):
    cache._limit = 2 * FILE_SIZE
    for age, key in enumerate((KEY, OTHER)):
        cache.put(key, VALUE)
        os.utime(cache._file(key), (age, age))
    cache.get(KEY)
    (cache._path / "folder").mkdir()
    cache.put(THIRD, VALUE)
    assert (cache.get(KEY), cache.get(OTHER), cache.get(THIRD)) == (VALUE, None, VALUE)
    cache.put(OTHER, 3 * VALUE)  # larger than all
    assert (cache.get(KEY), cache.get(OTHER), cache.get(THIRD)) == (VALUE, None, VALUE)


def write_by_all(folder: Path) -> None:
    folder.chmod(0o777)


def write_by_group(folder: Path) -> None:
    folder.chmod(0o720)


def link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


def open_parent(folder: Path) -> None:
    folder.parent.chmod(0o777)


def make_file(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("")


@pytest.mark.parametrize("change", [write_by_all, write_by_group, link, open_parent, make_file])
def test_a_folder_of_others_is_neither_read_nor_written(cache, capsys, change):
    cache.put(KEY, VALUE)
    change(cache._path)
    before = sorted(cache._path.parent.rglob("*"))
    assert cache.get(KEY) is None
    cache.put(OTHER, VALUE)
    cache.put(THIRD, VALUE)
    assert sorted(cache._path.parent.rglob("*")) == before
    said = capsys.readouterr().err
    assert said.count("note: compiled programs are not kept") == 1 and "JAX_COMPILATION_CACHE_DIR" in said


def give_away(path: Path, monkeypatch) -> None:
    """Makes a folder one of another user."""
    if os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    else:  # root owns every user's parent folders
        os.chown(path, 1, 1)


def test_another_owner_is_refused(cache, capsys, monkeypatch):
    cache.put(KEY, VALUE)
    give_away(cache._path, monkeypatch)
    assert cache.get(KEY) is None
    cache.put(OTHER, VALUE)
    assert "note: compiled programs are not kept" in capsys.readouterr().err


def test_nothing_is_made_in_the_home_of_another_user(tmp_path, monkeypatch):
    give_away(tmp_path, monkeypatch)
    ProgramCache(tmp_path / "home" / "programs").put(KEY, VALUE)
    assert not (tmp_path / "home").exists()


def test_a_full_disk_is_told_once_and_stops_nothing(cache, capsys, monkeypatch):
    def refuse(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_bytes", refuse)
    cache.put(KEY, VALUE)
    cache.put(OTHER, VALUE)
    assert capsys.readouterr().err.count(f"No space left on device at {cache._path}") == 1
    assert cache.get(KEY) is None


PROGRAM = """
import collections, json
from fashion_jax.system import compilation, devices
compilation._MOMENT_SECONDS = 0.0
devices.start_devices(2)
import jax, jax.numpy as jnp
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rsplit("/")[-1]]))
{work}
print(json.dumps([result, counts["cache_hits"], counts["cache_misses"]]))
"""
SMALL = """
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
result = float(jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.ones((8, 8))))
"""
TRAINING = """
from pathlib import Path
from drawn_products import make_tiny_config
from fashion_jax.data.records import open_prepared
from fashion_jax.system.files import digest
from stepping import run, session_on
source, place = Path({source!r}), Path({place!r})
session = session_on(make_tiny_config(source), open_prepared(source), place, 2)
state, losses, _ = run(session, 3)
result = digest([digest(jax.device_get(leaf).tobytes()) for leaf in jax.tree.leaves((state.params, state.opt_state))])
"""


def start(work: str, home: Path, **environment: str) -> subprocess.Popen[str]:
    home.mkdir(mode=0o700, exist_ok=True)
    own = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    places = {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(home), "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    command = [sys.executable, "-c", PROGRAM.format(work=work)]
    return subprocess.Popen(
        command, env={**own, **places, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> tuple[object, int, int, str]:
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return *json.loads(output.splitlines()[-1]), errors


def test_the_next_process_reads_what_the_first_one_compiled(tmp_path):
    home = tmp_path / "home"
    result, hits, misses, said = end(start(SMALL, home))
    assert hits == 0 and misses > 0 and said.count("compiling") == 1
    assert (home / "fashion_jax" / "programs").stat().st_mode & 0o777 == 0o700
    assert end(start(SMALL, home))[:3] == (result, misses, 0)
    # JAX's own settings count.
    assert end(start(SMALL, tmp_path / "none", JAX_ENABLE_COMPILATION_CACHE="false"))[:3] == (result, 0, 0)
    given = tmp_path / "given"
    assert end(start(SMALL, tmp_path / "none", JAX_COMPILATION_CACHE_DIR=str(given)))[:3] == (result, 0, misses)
    assert any(given.glob("jit*-cache")) and not any((tmp_path / "none").iterdir())


@pytest.mark.slow
def test_training_is_the_same_to_the_bit_with_and_without_kept_programs(prepared, tmp_path):
    work = TRAINING.format(source=str(prepared.folder), place=str(tmp_path / "run"))
    without, hits, misses, _ = end(start(work, tmp_path / "none", JAX_ENABLE_COMPILATION_CACHE="false"))
    assert hits == misses == 0
    both = [start(work, tmp_path / "home") for _ in range(2)]  # they compile and write the same programs at once
    assert [end(process)[0] for process in both] == [without, without]
    kept, hits, misses, _ = end(start(work, tmp_path / "home"))
    assert kept == without and hits > 0 and misses == 0
    assert not list((tmp_path / "home").rglob("*.part"))
