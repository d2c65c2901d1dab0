"""Steps compiled for accelerators without having one, and what is read from the compiled programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
PROGRAM = """\
HloModule jit_step, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, may-alias) }, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[256])) -> (s32[], f32[256]) {
  %state = (s32[], f32[256]{0}) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %values = f32[256]{0} get-tuple-element(%state), index=1
  %shared = f32[256]{0} all-reduce(%values), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %out = (s32[], f32[256]{0}) tuple(%count, %shared)
}

%condition (state: (s32[], f32[256])) -> pred[] {
  %state = (s32[], f32[256]{0}) parameter(0)
  ROOT %go = pred[] constant(false)
}

%cut (whole: f32[1024,1024]) -> f32[8,128] {
  %whole = f32[1024,1024]{1,0} parameter(0)
  ROOT %part = f32[8,128]{1,0} slice(%whole), slice={[0:8], [0:128]}
}

ENTRY %main (x: f32[1024,1024], y: u8[100,3], z: (s32[], f32[256])) -> f32[8,128] {
  %x = f32[1024,1024]{1,0} parameter(0)
  %y = u8[100,3]{1,0:T(8,128)(4,1)} parameter(1)
  %z = (s32[], f32[256]{0}) parameter(2)
  %loop = (s32[], f32[256]{0}) while(%z), condition=%condition, body=%body
  %picked = u8[100,3]{1,0:T(8,128)(4,1)S(1)} gather(%y, %x), offset_dims={1}, slice_sizes={1,3}
  %ahead = ((f32[1024,1024]{1,0}), f32[64,128]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:64], [0:128]}
  %part = f32[64,128]{1,0:S(1)} slice-done(%ahead)
  %near = (f32[8,128]{1,0:S(1)}, f32[8,128]{1,0}, u32[]{:S(2)}) copy-start(%small)
  ROOT %small = f32[8,128]{1,0} fusion(%x), kind=kLoop, calls=%cut, backend_config={"estimated_cycles":"77"}
}
"""


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_program_is_read(benchmarks):
    import hlo

    program = hlo.read_program(PROGRAM)
    assert program.collectives == {"all-reduce": 1} and program.collective_bytes == 1024
    assert (program.loops, program.loops_with_collectives) == (1, 1)
    assert (program.largest_gather, program.cycles, program.aliased) == (300, 77, 2)
    # The gather reads y, padded to 104 x 128, and all of x; its result is not in the main memory. The fusion reads and
    # writes 8 x 128; a copy reads them once more. The loop reads and writes 256 numbers and one. Of x, 64 x 128 are
    # fetched ahead.
    assert program.traffic == {"f32": 4 * (2**20 + 3 * 8 * 128 + 2 * 256 + 64 * 128), "u8": 104 * 128, "s32": 8}


def test_flops_are_counted_forwards_and_backwards(benchmarks, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    import accelerators

    def forward(kernel, x):
        step = lambda y, _: (y @ jnp.ones((6, 6)), None)  # noqa: E731
        y = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.lax.scan(step, y, None, length=3)[0].sum()

    kernel, x = jnp.ones((3, 3, 4, 6)), jnp.ones((2, 8, 8, 4))
    convolution, products = 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4), 3 * 2 * (2 * 4 * 4 * 6) * 6
    count = lambda f: accelerators.count_flops(jax.make_jaxpr(f)(kernel, x).jaxpr)  # noqa: E731
    assert count(forward) == convolution + products
    # Both gradients of the convolution, and one of the products, whose other side is constant.
    assert count(jax.grad(forward, (0, 1))) == pytest.approx(3 * convolution + 2 * products)


@pytest.mark.slow
def test_a_step_for_sixteen_chips(tmp_path):
    pytest.importorskip("libtpu", reason="libtpu compiles for TPUs: pip install -e '.[tpu]'")
    command = [sys.executable, str(BENCHMARKS / "accelerators.py"), "--configs", "small_cpu", "--targets", "v5e:4x4",
               "--steps", "train", "--set", "model.depth=10", "--out", str(tmp_path)]  # fmt: skip
    run = partial(
        subprocess.run, command, check=True, stdout=subprocess.PIPE, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    assert run().stdout.startswith(b"1/1 ")
    (report,) = json.loads((tmp_path / "results.json").read_text())["reports"]
    assert report["fits"] and not report["error"]
    assert report["largest_gather"] <= report["per_device"]  # labels' scores, but no pixels
    assert report["loops_with_collectives"] == 0
    assert sum(report["collectives"].values()) <= 12
    assert report["aliased"] == report["state_arrays"]
    table = (tmp_path / "table.md").read_text()
    assert "| v5e:4x4 | small_cpu | train |" in table and "small_cpu (evaluate, embed)" in table
    assert run().stdout == b""  # the code is the same
