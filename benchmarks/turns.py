"""Peers that take turns: each has a process of its own, and waits while another one works."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

_REST_S = 0.5  # between two turns, in which threads that wait actively go to sleep


def take_turns(
    commands: Mapping[str, list[str]], rounds: int, environment: Mapping[str, str] | None = None
) -> dict[str, list[tuple[float, float]]]:
    """Runs peers in turn. Returns peer -> for each round: things per second, and CPU seconds per thing.

    Args:
        commands: peer -> a command that calls `serve`.
        rounds: turns of each peer.
        environment: variables that are added to those of this process.
    """
    measured: dict[str, list[tuple[float, float]]] = {peer: [] for peer in commands}
    with contextlib.ExitStack() as stack:
        running = {}
        for peer, command in commands.items():
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
            stack.callback(process.kill)
            running[peer] = process
            if process.stdout.readline().strip() != "ready":
                sys.exit(f"{peer} did not start")
        for _ in range(rounds):
            for peer, process in running.items():
                time.sleep(_REST_S)
                print("go", file=process.stdin, flush=True)
                rate, cpu = map(float, process.stdout.readline().split())
                measured[peer].append((rate, cpu))
    return measured


def serve(work: Callable[[], Any], count: int) -> None:
    """Does a piece of work once, and then once for each line of standard input; prints what `take_turns` returns.

    Args:
        work: the piece of work; it returns when the work is done.
        count: things that it does, such as photos.
    """
    work()
    print("ready", flush=True)
    for _ in sys.stdin:
        cpu, begin = time.process_time(), time.perf_counter()
        work()
        wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
        print(count / wall, cpu / count, flush=True)


def summary(values: list[float], digits: int = 1) -> dict[str, Any]:
    """Returns median, spread and all values."""
    rounded = [round(value, digits) for value in values]
    return {
        "median": round(statistics.median(values), digits),
        "least": min(rounded),
        "most": max(rounded),
        "rounds": rounded,
    }


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Returns the median of the ratios of rounds that ran next to each other."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def versions(*packages: str, torch_python: str = "") -> dict[str, str]:
    """Returns the versions of packages, of Python, and of the torch of another Python."""
    found = {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
    if torch_python:
        code = "import torch; print(torch.__version__)"
        asked = subprocess.run([torch_python, "-c", code], capture_output=True, text=True, check=True)
        found["torch"] = asked.stdout.strip()
    return found


def machine() -> str:
    """Returns what the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.split(":")[1].strip() for line in info if "model name" in line)
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if any(flag in line for line in info)]
    load = f", load average {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return f"{os.cpu_count()} cores, {next(names, platform.processor())} ({', '.join(wide)}){load}"
