"""Huge pages: asked for once, with the same command, and only where they can be had."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fashion_jax import cli
from fashion_jax.system import huge_pages

PROGRAM = """
import os, pathlib, sys
from fashion_jax.system import huge_pages
huge_pages._KERNEL_SETTING = pathlib.Path(sys.argv[1])
print("began", flush=True)
huge_pages.restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES", ""), sys.argv[2:])
"""


def run_program(tmp_path, setting: str, **environment: str) -> list[str]:
    program, kernel = tmp_path / "program.py", tmp_path / "enabled"
    program.write_text(PROGRAM)
    kernel.write_text(setting)
    own = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    command = [sys.executable, str(program), str(kernel), "a b", "--c=d"]
    done = subprocess.run(command, env={**own, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(not huge_pages._can_ask_for_huge_pages(), reason="this system gives no huge pages on request")
def test_the_same_command_starts_again_once(tmp_path):
    assert run_program(tmp_path, "always [madvise] never") == ["began"] * 2 + [
        "glibc.malloc.hugetlb=1 ['a b', '--c=d']"
    ]
    others = run_program(tmp_path, "always [madvise] never", GLIBC_TUNABLES="glibc.malloc.check=0")
    assert others[-1].startswith("glibc.malloc.check=0:glibc.malloc.hugetlb=1 ")


@pytest.mark.parametrize("setting", ["[always] madvise never", "always madvise [never]"])
def test_nothing_happens_where_the_kernel_decides(tmp_path, setting):
    assert run_program(tmp_path, setting) == ["began", " ['a b', '--c=d']"]


def test_what_the_user_set_stays(tmp_path):
    off = "glibc.malloc.hugetlb=0"
    assert run_program(tmp_path, "always [madvise] never", GLIBC_TUNABLES=off) == ["began", f"{off} ['a b', '--c=d']"]


@pytest.mark.parametrize("version", ["glibc 2.34", "musl 1.2", "", None])
def test_older_and_other_c_libraries_are_left_alone(tmp_path, monkeypatch, version):
    (tmp_path / "enabled").write_text("always [madvise] never")
    monkeypatch.setattr(huge_pages, "_KERNEL_SETTING", tmp_path / "enabled")
    monkeypatch.setattr(os, "confstr", lambda _: version)
    assert not huge_pages._can_ask_for_huge_pages()
    monkeypatch.setattr(huge_pages, "_KERNEL_SETTING", tmp_path / "absent")
    assert not huge_pages._can_ask_for_huge_pages()


def test_the_train_command_restarts_its_own_process_alone(monkeypatch):
    happened = []
    monkeypatch.setattr(cli, "restart_with_huge_pages", lambda: happened.append("restart"))
    monkeypatch.setattr(cli.main_module, "main", lambda arguments: happened.append(arguments) or 0)
    assert cli.main(["train", "--config=c"]) == 0  # called by another program
    monkeypatch.setattr(sys, "argv", ["fashion-jax", "train", "--config=c"])
    assert cli.main() == 0
    assert happened == [["--config=c"], "restart", ["--config=c"]]
