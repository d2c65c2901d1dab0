"""Devices: what JAX is started with on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fashion_jax import files
from fashion_jax.config import Config
from fashion_jax.experiment import train
from fashion_jax.workdir import keep_dtype, load_run_config


def count_devices(call: str, **environment: str) -> int:
    """Devices after `call` of a fresh process on two cores."""
    code = (
        "import jax, fashion_jax.runtime as runtime\n"
        f"runtime._cores = lambda: 2\nruntime.{call}\nprint(jax.device_count())"
    )
    own = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**own, **environment}, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize(
    ("call", "devices"),
    [
        ("start_devices()", 8),
        ("start_devices(0, 'auto')", 8),
        ("start_devices(0, 'bfloat16')", 2),
        ("start_devices(3, 'bfloat16')", 3),
    ],
)
def test_bfloat16_takes_a_device_per_core_and_float32_four(call, devices):
    assert count_devices(call) == devices


def test_what_the_user_set_counts():
    assert count_devices("start_devices(0, 'bfloat16')", JAX_NUM_CPU_DEVICES="5") == 5
    assert count_devices("start_devices()", XLA_FLAGS="--xla_force_host_platform_device_count=3") == 3


def test_a_run_goes_on_as_it_began_on_another_machine(tmp_path):
    config = Config()
    assert keep_dtype(config, tmp_path).model.dtype == "auto"
    began = Config()
    began.model.dtype = "bfloat16"
    files.write_json(tmp_path / "config.json", began.to_dict())
    assert keep_dtype(config, tmp_path).model.dtype == "auto"  # nothing was saved yet
    (tmp_path / "checkpoints" / "step_3").mkdir(parents=True)
    assert keep_dtype(config, tmp_path).model.dtype == "bfloat16" and config.model.dtype == "auto"
    config.model.dtype = "float32"  # what is asked for is asked for
    assert keep_dtype(config, tmp_path).model.dtype == "float32"


def test_training_asks_how_a_run_began(tiny_config, prepared, tmp_path):
    config = tiny_config(model__dtype="bfloat16", train__duration="2 steps", train__evaluate_every="2 steps")
    train(config, tmp_path, progress=False, finish=False)
    config.model.dtype = "auto"  # float32 on a CPU, which would be refused
    train(config, tmp_path, progress=False, finish=False)
    assert load_run_config(tmp_path).model.dtype == "bfloat16"
