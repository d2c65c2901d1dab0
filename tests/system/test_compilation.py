"""Programs that are kept for the next command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fashion_jax.system import compilation

TESTS = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("home", ["", "/", "somewhere"])
def test_without_a_home_there_is_no_folder(monkeypatch, tmp_path, home):
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert compilation._choose_folder() is None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in compilation._choose_folder().parents
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert compilation._choose_folder() == tmp_path / "cache" / "fashion_jax" / "programs"


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
    folder.rmdir()
    folder.write_text("")


@pytest.mark.parametrize("change", [write_by_all, write_by_group, link, open_parent, make_file])
def test_a_folder_that_others_may_change_is_not_private(tmp_path, change):
    tmp_path.chmod(0o700)
    folder = tmp_path / "programs"
    assert compilation._is_private(folder) and folder.stat().st_mode & 0o777 == 0o700
    change(folder)
    assert not compilation._is_private(folder)


def give_away(path: Path, monkeypatch) -> None:
    """Makes a folder one of another user."""
    if os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    else:  # root owns every user's parent folders
        os.chown(path, 1, 1)


def test_nothing_is_made_or_used_in_the_folder_of_another_user(tmp_path, monkeypatch):
    folder = tmp_path / "programs"
    assert compilation._is_private(folder)
    give_away(folder, monkeypatch)
    assert not compilation._is_private(folder)
    assert not compilation._is_private(folder / "deeper" / "folder") and not list(folder.iterdir())


def test_the_oldest_programs_of_all_machines_are_removed(tmp_path, monkeypatch):
    paths = [tmp_path / machine / f"jit_step-{number}-cache" for machine in "ab" for number in range(3)]
    for age, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10))
        os.utime(path, (age, age))
    monkeypatch.setattr(compilation, "_LIMIT_BYTES", 25)
    compilation._remove_oldest(tmp_path)
    assert [path for path in paths if path.exists()] == paths[-2:]


def test_a_line_is_printed_only_while_jax_compiles(monkeypatch, capsys):
    monkeypatch.setattr(compilation, "_MOMENT_SECONDS", 0.1)
    announce = compilation._Announcer()
    announce(compilation._LOWERED, 0.0)  # what is lowered need not be compiled
    announce(compilation._LOWERED, 0.0)
    announce(compilation._COMPILED, 0.0)
    time.sleep(0.3)
    assert not capsys.readouterr().err
    for _ in range(2):
        announce(compilation._LOWERED, 0.0)
        time.sleep(0.3)
    assert capsys.readouterr().err == "compiling\n"


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
    assert hits == 0 and misses > 0 and said == "compiling\n"
    (folder,) = (home / "fashion_jax" / "programs").iterdir()
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o500)  # a folder that cannot be written serves as well
    assert end(start(SMALL, home))[:3] == (result, misses, 0)
    # JAX's own settings count.
    assert end(start(SMALL, tmp_path / "none", JAX_ENABLE_COMPILATION_CACHE="false"))[:3] == (result, 0, 0)
    given = tmp_path / "given"
    assert end(start(SMALL, tmp_path / "none", JAX_COMPILATION_CACHE_DIR=str(given)))[:3] == (result, 0, misses)
    assert any(given.glob("jit*-cache")) and not any((tmp_path / "none").iterdir())


FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
"""


@pytest.mark.parametrize("environment", [{}, {"PYTHONWARNINGS": "ignore"}], ids=str)
def test_a_half_written_program_is_replaced(tmp_path, environment):
    home = tmp_path / "home"
    result, _, misses, said = end(start(FULL_DISK + SMALL, home, **environment))
    assert said == "compiling\n"
    halves = [path for path in home.rglob("jit*-cache") if path.stat().st_size == 1000]
    assert halves
    healed, hits, written, said = end(start(SMALL, home, **environment))
    assert (healed, hits + written) == (result, misses) and written == len(halves)
    assert said.count("is damaged; it is compiled again\n") == written and "Warning" not in said
    assert end(start(SMALL, home, **environment))[:3] == (result, misses, 0)


def test_a_run_of_several_processes_keeps_nothing(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join = f"devices.start_processes('127.0.0.1:{port}', 1, 0)\n"
    assert end(start(join + SMALL, tmp_path / "home"))[1:3] == (0, 0)
    assert not list(tmp_path.rglob("*-cache"))


@pytest.mark.slow
def test_training_is_the_same_to_the_bit_with_and_without_kept_programs(prepared, tmp_path):
    work = TRAINING.format(source=str(prepared.folder), place=str(tmp_path / "run"))
    without, hits, misses, _ = end(start(work, tmp_path / "none", JAX_ENABLE_COMPILATION_CACHE="false"))
    assert hits == misses == 0
    both = [start(work, tmp_path / "home") for _ in range(2)]  # they compile and write the same programs at once
    assert [end(process)[0] for process in both] == [without, without]
    kept, hits, misses, _ = end(start(work, tmp_path / "home"))
    assert kept == without and hits > 0 and misses == 0
