"""Devices: what JAX is started with on a CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fashion_jax.system import devices
from fashion_jax.system.errors import UserError

AMX = "flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\n"
AVX512_BF16 = "flags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n"
PLAIN = "flags\t\t: fpu avx2\n"
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}


def run(code: str, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, check=check)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Calls `start_devices` as if on a CPU of two cores; returns the number of devices that JAX is asked for."""

    def call(cpuinfo: str, *arguments, cores: int = 2, environment: dict[str, str] | None = None, **options):
        asked = []
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        with monkeypatch.context() as patch:
            for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):
                patch.delenv(name, raising=False)
            for name, value in (environment or {}).items():
                patch.setenv(name, value)
            patch.setattr(devices, "_CPU_INFO", tmp_path / "cpuinfo")
            patch.setattr(devices, "num_cores", lambda: cores)
            patch.setattr(devices, "_keep_freed_memory", lambda: None)
            patch.setattr(devices.jax.config, "update", lambda name, value: asked.append(value))
            devices.start_devices(*arguments, **options)
        return asked

    return call


def test_bfloat16_and_prediction_take_a_device_per_core_and_training_in_float32_four(start):
    assert start(PLAIN, 0, "auto") == [8]
    assert start(AVX512_BF16, 0, "auto") == [8]
    assert start(AMX, 0, "auto") == start(PLAIN, 0, "bfloat16") == [2]
    assert start(AMX, 0, "float32") == start(AMX) == [8]
    assert start(PLAIN, training=False) == [2]
    assert start(PLAIN, training=False, cores=64) == [16]
    assert start(AMX, 3, "auto") == start(AMX, 3, training=False) == [3]
    # What the user has set counts.
    assert start(AMX, 0, "auto", environment={"JAX_NUM_CPU_DEVICES": "5"}) == []
    assert start(AMX, 0, "auto", environment={"XLA_FLAGS": "--xla_cpu_max_isa=AVX512"}) == [8]


def test_devices_share_a_batch_equally_in_pairs_and_small_batches_get_a_device_per_core(start):
    assert start(PLAIN, photos=128) == [8]
    assert start(PLAIN, photos=64) == start(PLAIN, photos=4) == [2]
    assert start(PLAIN, photos=144, cores=64) == [8]
    assert start(PLAIN, photos=32, cores=6) == [4]
    assert start(PLAIN, photos=3) == [1]
    assert start(PLAIN, photos=64, cores=64) == start(AMX, 0, "auto", photos=64, cores=64) == [8]
    assert start(PLAIN, 0, "bfloat16", photos=100, cores=4) == [2]


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'tpu'"), AssertionError()])
def test_devices_that_are_not_there_get_a_sentence(monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(devices.jax, "default_backend", fail)
    with pytest.raises(UserError, match=rf"JAX_PLATFORMS=.*{error or 'there are none'}; set JAX_PLATFORMS=cpu"):
        devices.on_accelerator()


def test_jax_gets_the_devices():
    code = "import jax\nfrom fashion_jax.system import devices\ndevices.start_devices(3)\nprint(jax.device_count())"
    assert run(code).stdout == "3\n"


def test_auto_is_bfloat16_only_where_it_is_faster(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(devices, "_CPU_INFO", tmp_path / "cpuinfo")
    assert not devices.computes_bfloat16_faster()  # the file is absent
    for text, faster in ((AMX, True), (AVX512_BF16, False), (PLAIN, False)):
        (tmp_path / "cpuinfo").write_text(text)
        assert devices.computes_bfloat16_faster() == faster


SLOW_DEVICE = """
import sys, time
import jax
import jax.numpy as jnp
from fashion_jax.system import devices
devices._COLLECTIVE_TIMEOUTS_S = dict.fromkeys(devices._COLLECTIVE_TIMEOUTS_S, int(sys.argv[1]))
devices.start_devices(2)

def wait(index):
    time.sleep(4 * int(index[0]))
    return index

def meet(index):
    return jax.lax.psum(jax.pure_callback(wait, index, index), "data")

mesh, P = jax.sharding.Mesh(jax.devices(), "data"), jax.sharding.PartitionSpec
print(jax.jit(jax.shard_map(meet, mesh=mesh, in_specs=P("data"), out_specs=P()))(jnp.arange(2)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("timeout", "printed", "code"), [("3600", "[1]", 0), ("1", "", -signal.SIGABRT)])
def test_a_slow_device_is_waited_for(timeout, printed, code):
    done = run(SLOW_DEVICE, timeout, check=False)
    assert (done.stdout.strip(), done.returncode) == (printed, code), done.stderr


BLAS = """
import sys, threading, numpy, threadpoolctl
from fashion_jax.system.blas import one_blas_thread

def count():
    libraries = threadpoolctl.ThreadpoolController().info()
    return max(library["num_threads"] for library in libraries if library["user_api"] == "blas")

def enter(inside, leave):
    with one_blas_thread():
        inside.set()
        leave.wait()

class Guest:
    def __init__(self):
        self.inside, self.leave = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=enter, args=(self.inside, self.leave))
        self.thread.start()
        self.inside.wait()
    def go(self):
        self.leave.set()
        self.thread.join()
        return self

for code in sys.argv[1:]:
    exec(code)
"""


def test_blas_is_limited_inside_and_left_as_it_was():
    expected = {
        "with one_blas_thread(): print(count())\nprint(count())": "1 2",
        "try:\n    with one_blas_thread(): raise KeyError\nexcept KeyError: print(count())": "2",
        "with one_blas_thread(), one_blas_thread(): print(count())\nprint(count())": "1 2",
        # Two threads, whichever leaves first.
        "a, b = Guest(), Guest(); print(count()); a.go(); b.go(); print(count())": "1 2",
        "a, b = Guest(), Guest(); print(count()); b.go(); print(count()); a.go(); print(count())": "1 1 2",
        "a, b = Guest(), Guest(); a.go(); c = Guest(); print(count()); b.go(); c.go(); print(count())": "1 2",
    }
    done = run(BLAS, *expected, OPENBLAS_NUM_THREADS="2")
    assert done.stdout.split() == " ".join(expected.values()).split()
