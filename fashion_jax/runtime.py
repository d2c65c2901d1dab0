"""Start of JAX: devices, processes and the mesh. Everything here runs before an array is made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import jax

from fashion_jax.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

DATA_AXIS = "data"


def start_devices(cpu_devices: int = 0) -> None:
    """Sets how many CPU devices JAX will see; without effect once JAX has started, or if the user has chosen.

    A ResNet's convolutions leave CPU cores idle when one device runs them, so the batch is shared out over several
    devices of the same cores, 1.5 to 1.7 times as fast in training (measured on two cores).

    Args:
        cpu_devices: the number; 0 stands for four per core and eight at most. `JAX_NUM_CPU_DEVICES` wins over it.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ and not cpu_devices:
        return
    try:
        jax.config.update("jax_num_cpu_devices", cpu_devices or min(8, 4 * _cores()))
    except RuntimeError:
        # JAX has started already (a notebook, a test); what it has is used.
        return


def start_processes(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins a multi-process run; must come before anything that touches a device.

    Args:
        coordinator_address: host:port of process 0; None: found by JAX itself on SLURM, Open MPI and Cloud TPU when
            `num_processes` is not given either and `FASHION_JAX_DISTRIBUTED=auto`, else a single process.
        num_processes: of the whole run.
        process_id: of this process, from 0.

    Raises:
        UserError: some of the three are given and others not, or the coordinator cannot be reached.
    """
    given = [value is not None for value in (coordinator_address, num_processes, process_id)]
    if not any(given):
        if os.environ.get("FASHION_JAX_DISTRIBUTED") == "auto":
            jax.distributed.initialize()
        return
    if not all(given):
        raise UserError("--coordinator-address, --num-processes and --process-id belong together; give all three")
    assert num_processes is not None and process_id is not None
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process-id={process_id} must lie in [0, {num_processes})")
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"process {process_id} cannot join the run at {coordinator_address}: {error}") from error


def make_mesh() -> Mesh:
    """Returns the one-dimensional mesh of all devices of all processes; its axis is `DATA_AXIS`."""
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def on_accelerator() -> bool:
    """True on GPU and TPU."""
    return jax.default_backend() != "cpu"


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))  # what a container or taskset leaves to this process
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
