"""Devices: what JAX is started with on a CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fashion_jax.run.train import train
from fashion_jax.run.workdir import load_run_config
from fashion_jax.system import devices as runtime

AMX = "flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\n"
AVX512_BF16 = "flags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n"
PLAIN = "flags\t\t: fpu avx2\n"


def count_devices(tmp_path, cpuinfo: str, call: str, **environment: str) -> int:
    """Devices after `call` of a fresh process on two cores whose /proc/cpuinfo says `cpuinfo`."""
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    code = (
        "import sys, pathlib, jax, fashion_jax.system.devices as runtime\n"
        "runtime._CPU_INFO, runtime.num_cores = pathlib.Path(sys.argv[1]), lambda: 2\n"
        f"runtime.{call}\nprint(jax.device_count())"
    )
    own = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    command = [sys.executable, "-c", code, str(tmp_path / "cpuinfo")]
    done = subprocess.run(command, env={**own, **environment}, capture_output=True, text=True, check=True)
    return int(done.stdout)


SLOW_DEVICE = """
import sys, time
import jax
import jax.numpy as jnp
import fashion_jax.system.devices as runtime
runtime._COLLECTIVE_TIMEOUTS_S = dict.fromkeys(runtime._COLLECTIVE_TIMEOUTS_S, int(sys.argv[1]))
runtime.start_devices(2)

def wait(index):
    time.sleep(4 * int(index[0]))
    return index

def meet(index):
    return jax.lax.psum(jax.pure_callback(wait, index, index), "data")

mesh, P = jax.sharding.Mesh(jax.devices(), "data"), jax.sharding.PartitionSpec
print(jax.jit(jax.shard_map(meet, mesh=mesh, in_specs=P("data"), out_specs=P()))(jnp.arange(2)))
"""


@pytest.mark.parametrize(("patience", "said", "code"), [("3600", "[1]", 0), ("1", "", -signal.SIGABRT)])
def test_a_slow_device_is_waited_for(patience, said, code):
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    command = [sys.executable, "-c", SLOW_DEVICE, patience]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == (said, code), done.stderr


@pytest.mark.parametrize(
    ("cpuinfo", "call", "devices"),
    [
        (PLAIN, "start_devices(0, 'auto')", 8),
        (AMX, "start_devices(0, 'auto')", 2),
        (AVX512_BF16, "start_devices(0, 'auto')", 2),
        (AMX, "start_devices(0, 'float32')", 8),
        (AMX, "start_devices()", 8),
        (PLAIN, "start_devices(training=False)", 2),
        (AMX, "start_devices(5, training=False)", 5),
        (PLAIN, "num_cores = lambda: 64; runtime.start_devices(training=False)", 16),
        (PLAIN, "start_devices(0, 'bfloat16')", 2),
        (AMX, "start_devices(3, 'auto')", 3),
    ],
)
def test_bfloat16_and_prediction_take_a_device_per_core_and_training_in_float32_four(tmp_path, cpuinfo, call, devices):
    assert count_devices(tmp_path, cpuinfo, call) == devices


def test_what_the_user_set_counts(tmp_path):
    assert count_devices(tmp_path, AMX, "start_devices(0, 'auto')", JAX_NUM_CPU_DEVICES="5") == 5
    limited = count_devices(tmp_path, AMX, "start_devices(0, 'auto')", XLA_FLAGS="--xla_cpu_max_isa=AVX512")
    assert limited == 8


def test_auto_is_bfloat16_only_where_it_is_faster(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    for text, trains, predicts in ((AMX, True, True), (AVX512_BF16, True, False), (PLAIN, False, False)):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(runtime, "_CPU_INFO", tmp_path / "cpuinfo")
        assert runtime._cpu_multiplies_bfloat16(training=True) == trains
        assert runtime._cpu_multiplies_bfloat16(training=False) == predicts
    monkeypatch.setattr(runtime, "_CPU_INFO", tmp_path / "absent")
    assert not runtime._cpu_multiplies_bfloat16(training=True)


def test_training_asks_how_a_run_began(tiny_config, prepared, tmp_path):
    config = tiny_config(model__dtype="bfloat16", train__duration="2 steps", train__evaluate_every="2 steps")
    train(config, tmp_path, progress=False, finish=False)
    config.model.dtype = "auto"  # float32 on a CPU, which would be refused
    train(config, tmp_path, progress=False, finish=False)
    assert load_run_config(tmp_path).model.dtype == "bfloat16"


BLAS = """
import threading, numpy, threadpoolctl
from fashion_jax.system.devices import one_blas_thread

def count():
    libraries = threadpoolctl.ThreadpoolController().info()
    return {library["num_threads"] for library in libraries if library["user_api"] == "blas"}

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

"""


@pytest.mark.parametrize(
    ("code", "counts"),
    [
        ("with one_blas_thread():\n    print(count())\nprint(count())", "{1} {2}"),
        ("try:\n    with one_blas_thread():\n        raise KeyError\nexcept KeyError:\n    print(count())", "{2}"),
        ("with one_blas_thread(), one_blas_thread():\n    print(count())\nprint(count())", "{1} {2}"),
        # Two threads, whichever leaves first.
        ("a, b = Guest(), Guest()\nprint(count())\na.go()\nb.go()\nprint(count())", "{1} {2}"),
        ("a, b = Guest(), Guest()\nprint(count())\nb.go()\nprint(count())\na.go()\nprint(count())", "{1} {1} {2}"),
        ("a, b = Guest(), Guest()\na.go()\nc = Guest()\nprint(count())\nb.go()\nc.go()\nprint(count())", "{1} {2}"),
    ],
)
def test_blas_is_limited_inside_and_left_as_it_was(code, counts):
    command = [sys.executable, "-c", BLAS + code]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == counts.split()
