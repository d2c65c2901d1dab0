"""The start of JAX: devices, processes and the mesh. Call these functions before the first array is made."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import jax

from fashion_jax.system import stored
from fashion_jax.system.compilation import keep_nothing, keep_programs
from fashion_jax.system.errors import UserError
from fashion_jax.system.process import num_cores

if TYPE_CHECKING:
    from jax.sharding import Mesh

T = TypeVar("T")

DATA_AXIS = "data"
_LEAST_PHOTOS = 16  # on each CPU device, if a core has several
_FORCED_DEVICES = "xla_force_host_platform_device_count"
_CPU_INFO = Path("/proc/cpuinfo")
_COLLECTIVE_TIMEOUTS_S = {
    "xla_cpu_collective_call_terminate_timeout_seconds": 3600,
    "xla_cpu_collective_call_warn_stuck_timeout_seconds": 600,
}
_XLA_FLAGS_CHECKED_BELOW = (0, 13)  # jax versions known to have these flags; XLA ends a process at an unknown flag
_A_WEEK_IN_MS = 7 * 24 * 3600 * 1000
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h
_turns = itertools.count()  # every process counts the same calls, so the numbers agree


def start_devices(cpu_devices: int = 0, dtype: str = "float32", *, photos: int = 0, training: bool = True) -> None:
    """Sets how many CPU devices JAX will see. Without effect if JAX has started or the user has set the number.

    A ResNet's convolutions leave CPU cores idle when one device runs them. With several devices on the same cores,
    each with a part of the batch, training was 1.5 to 1.7 times as fast on two cores.

    Args:
        cpu_devices: the number of devices; 0 chooses it, unless `JAX_NUM_CPU_DEVICES` or `XLA_FLAGS` gives one. The
            choice is four per core and at most eight for float32 training with at least 16 photos for each of them. It
            is one per core, at most eight, for smaller batches: each device updates a copy of the parameters. It is one
            per core for bfloat16 training, whose matrix products keep a core busy, and for prediction, whose batch
            then fits into a core's cache; for prediction it is at most 16, because every device holds the weights.
        dtype: what will be trained: "float32", "bfloat16" or "auto".
        photos: that are trained at a time; the chosen number of devices divides them into equal, even numbers. 0:
            unknown.
        training: False where the model only predicts.
    """
    keep_programs()
    _wait_for_slow_devices()
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ or _FORCED_DEVICES in os.environ.get("XLA_FLAGS", "")
    if chosen and not cpu_devices:
        return
    try:
        jax.config.update("jax_num_cpu_devices", cpu_devices or _choose_cpu_devices(dtype, photos, training))
    except RuntimeError:
        # JAX has started already (a notebook, a test); what it has is used.
        return
    _keep_freed_memory()


def _choose_cpu_devices(dtype: str, photos: int, training: bool) -> int:
    cores = num_cores()
    if not training:
        return min(16, cores)
    several = min(8, 4 * cores)
    bfloat16 = dtype == "bfloat16" or (dtype == "auto" and _has_amx())
    count = cores if bfloat16 else several
    if 0 < photos < _LEAST_PHOTOS * several:
        count = min(cores, several)
    return next((n for n in range(count, 1, -1) if photos % (2 * n) == 0), 1)


def _wait_for_slow_devices() -> None:
    """Lets the devices of a CPU wait an hour for each other. By default XLA ends the process after a minute.

    Devices that share cores finish one after the other: with 64 photos of 224x224 for each of two devices on two cores,
    a step of a ResNet-50 made one device wait for 41 s. Flags that the user has set are kept.
    """
    if jax.__version_info__ >= _XLA_FLAGS_CHECKED_BELOW:
        return
    given = os.environ.get("XLA_FLAGS", "")
    added = [f"--{name}={value}" for name, value in _COLLECTIVE_TIMEOUTS_S.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()


def _keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning it to the kernel.

    XLA allocates the memory of a whole step anew for each step; on two cores, getting fresh pages took a tenth of the
    training time. Without effect on other systems, or where the user has set a `MALLOC_` variable for it.
    """
    if sys.platform != "linux" or any(name in os.environ for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def start_processes(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    local_device_ids: Sequence[int] | None = None,
) -> None:
    """Joins a run of several processes. Call it before anything uses a device.

    Args:
        coordinator_address: host:port of process 0. None, with `num_processes` None too: a single process, or with
            `FASHION_JAX_DISTRIBUTED=auto` whatever JAX finds on SLURM, Open MPI or Cloud TPU.
        process_id: the number of this process, from 0.
        local_device_ids: the accelerators that this process uses; None: all that it sees. Under SLURM and Open MPI
            with `FASHION_JAX_DISTRIBUTED=auto`, None is JAX's rule: one accelerator for each process.

    Raises:
        UserError: only some of the first three are given, the address has no port, or the coordinator cannot be
            reached.
    """
    given = [value is not None for value in (coordinator_address, num_processes, process_id)]
    ids = list(local_device_ids) if local_device_ids else None
    if not any(given):
        if os.environ.get("FASHION_JAX_DISTRIBUTED") == "auto":
            keep_nothing()
            try:
                jax.distributed.initialize(local_device_ids=ids)
            except (RuntimeError, ValueError) as error:
                raise UserError(
                    f"FASHION_JAX_DISTRIBUTED=auto finds no cluster to join ({error}); "
                    "give --coordinator-address, --num-processes and --process-id"
                ) from error
        return
    if not all(given):
        raise UserError("--coordinator-address, --num-processes and --process-id belong together; give all three")
    assert coordinator_address is not None and num_processes is not None and process_id is not None
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process-id={process_id} must be from 0 to {num_processes - 1}")
    host, _, port = coordinator_address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--coordinator-address={coordinator_address} is not of the form HOST:PORT")
    keep_nothing()
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            local_device_ids=ids,
            # Otherwise JAX would take one accelerator per process under SLURM and Open MPI.
            cluster_detection_method="deactivate",
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"process {process_id} cannot join the run at {coordinator_address}: {error}") from error


def first_process_does(what: str, work: Callable[[], T]) -> T:
    """Calls `work` on process 0 and returns its value on every process. The others wait, however long it takes.

    They wait on the coordination service, because a collective of arrays gives up after half a minute.

    Args:
        what: names the work in the error of the other processes.
        work: the function. Its value is JSON: with several processes, tuples become lists. Its UserError is raised on
            every process.

    Raises:
        UserError: `work` raised one, or process 0 failed in another way.
    """
    if jax.process_count() == 1:
        return work()
    # Not public API, but Orbax and others use it too.
    from jax._src.distributed import global_state

    client = global_state.client
    assert client is not None
    key = f"fashion_jax/{next(_turns)}"
    if jax.process_index() != 0:
        outcome = json.loads(client.blocking_key_value_get(key, _A_WEEK_IN_MS))
        if "error" in outcome:
            raise UserError(outcome["error"])
        return cast(T, outcome["value"])
    outcome = {"error": f"process 0 failed at {what}; see its messages"}
    try:
        value = work()
        outcome = {"value": value}
    except UserError as error:
        outcome = {"error": str(error)}
        raise
    finally:
        client.key_value_set(key, json.dumps(outcome))
    return value


def make_mesh() -> Mesh:
    """Returns the one-dimensional mesh of all devices of all processes; its axis is `DATA_AXIS`."""
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def on_accelerator() -> bool:
    """True on GPU and TPU. UserError where JAX cannot start the devices that JAX_PLATFORMS names."""
    try:
        return jax.default_backend() != "cpu"
    except (RuntimeError, AssertionError) as error:  # JAX asserts it where JAX_PLATFORMS=cuda finds no GPU
        reason = stored.first_line(error) if str(error) else "there are none"
        raise UserError(
            f"JAX cannot start the devices of JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {reason}; "
            "set JAX_PLATFORMS=cpu, or install JAX's plugin for these devices"
        ) from error


def computes_bfloat16_faster() -> bool:
    """True where bfloat16 convolutions are faster than float32: on GPUs, TPUs and CPUs with AMX.

    CPUs with AVX-512 BF16 but without AMX are slower in bfloat16 (0.9 times the speed on two cores of a Zen 4). With
    several processes on CPUs it is False, because their CPUs may differ and all must compute alike.
    """
    return on_accelerator() or (jax.process_count() == 1 and _has_amx())


def _has_amx() -> bool:
    """True on CPUs with AMX for bfloat16, unless a flag of the user keeps XLA from using it."""
    if "xla_cpu_max_isa" in os.environ.get("XLA_FLAGS", ""):
        return False
    try:
        return " amx_bf16" in _CPU_INFO.read_text()
    except OSError:  # not on macOS and Windows
        return False
