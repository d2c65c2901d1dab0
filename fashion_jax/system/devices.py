"""Start of JAX: devices, processes and the mesh. Everything here runs before an array is made."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import threadpoolctl

from fashion_jax.system.errors import UserError
from fashion_jax.system.process import num_cores

if TYPE_CHECKING:
    from jax.sharding import Mesh

DATA_AXIS = "data"
_FORCED_DEVICES = "xla_force_host_platform_device_count"
_CPU_INFO = Path("/proc/cpuinfo")
_PATIENCE_S = {
    "xla_cpu_collective_call_terminate_timeout_seconds": 3600,
    "xla_cpu_collective_call_warn_stuck_timeout_seconds": 600,
}
_XLA_FLAGS_UNKNOWN_SINCE = (0, 13)  # XLA ends a process with a flag that it does not know: raise this after a look
_A_WEEK_IN_MS = 7 * 24 * 3600 * 1000
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_blas_lock = threading.Lock()
_turns = itertools.count()  # every process takes part in each turn, so all count alike


def start_devices(cpu_devices: int = 0, dtype: str = "float32", *, training: bool = True) -> None:
    """Sets how many CPU devices JAX will see; without effect once JAX has started, or if the user has chosen.

    A ResNet's convolutions leave CPU cores idle when one device runs them, so the batch is shared out over several
    devices of the same cores, 1.5 to 1.7 times as fast in training (measured on two cores).

    Args:
        cpu_devices: the number; 0 stands for four per core and eight at most. Without a number, what
            `JAX_NUM_CPU_DEVICES` or `XLA_FLAGS` say is left alone.
        dtype: "float32", "bfloat16" or "auto", of what will be trained. Matrix products, as which bfloat16
            convolutions are computed, keep a core busy with one device: 0 stands for one per core then.
        training: whether something will be trained. Prediction chooses its batches, and is fastest, in either dtype
            (measured on two cores), with one device per core whose batch its own cache holds: 0 stands for one per
            core then, and 16 at most, as each holds the weights.
    """
    _wait_for_slow_devices()
    one_per_core = not training or dtype == "bfloat16" or (dtype == "auto" and _cpu_multiplies_bfloat16(training=True))
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ or _FORCED_DEVICES in os.environ.get("XLA_FLAGS", "")
    if chosen and not cpu_devices:
        return
    automatic = num_cores() if one_per_core else min(8, 4 * num_cores())
    try:
        jax.config.update("jax_num_cpu_devices", cpu_devices or (automatic if training else min(16, automatic)))
    except RuntimeError:
        # JAX has started already (a notebook, a test); what it has is used.
        return
    _keep_freed_memory()


def _wait_for_slow_devices() -> None:
    """Lets devices of a CPU wait for each other for an hour; XLA ends the process after a minute, as if they hung.

    Devices that share cores finish one after the other: in a step of a ResNet-50 with 64 photos of 224x224 for each of
    two, on two cores, one waited for 41 s. Without effect where JAX has started, and on flags that the user has set.
    """
    if jax.__version_info__ >= _XLA_FLAGS_UNKNOWN_SINCE:
        return
    given = os.environ.get("XLA_FLAGS", "")
    added = [f"--{name}={value}" for name, value in _PATIENCE_S.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()


def _keep_freed_memory() -> None:
    """Lets glibc keep what is freed instead of giving it back to the kernel, which hands it out again page by page.

    XLA allocates the space of a whole step anew at each step: on two cores a tenth of the training time went into
    fresh pages. Without effect on other systems, or where the user has set one of these by its `MALLOC_` variable.
    """
    if sys.platform != "linux" or any(name in os.environ for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keeps NumPy's matrix products to one thread, for small ones between two runs of a network.

    BLAS's other threads wait for more work in a loop, some 25 ms long, and take from XLA the cores that it runs the
    next batch on: a third of the time of prediction on two cores. The limit is of the whole process. Where another
    Python thread is inside, nothing is done, so that its leaving restores what there was before it.
    """
    if not _blas_lock.acquire(blocking=False):
        yield
        return
    try:
        with _blas_libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        _blas_lock.release()


@functools.cache
def _blas_libraries() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController().select(user_api="blas")


def start_processes(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    local_device_ids: Sequence[int] | None = None,
) -> None:
    """Joins a multi-process run; must come before anything that touches a device.

    Args:
        coordinator_address: host:port of process 0; None: found by JAX itself on SLURM, Open MPI and Cloud TPU when
            `num_processes` is not given either and `FASHION_JAX_DISTRIBUTED=auto`, else a single process.
        num_processes: of the whole run.
        process_id: of this process, from 0.
        local_device_ids: accelerators that this process takes; None for all that it sees, but under SLURM and Open MPI
            with `FASHION_JAX_DISTRIBUTED=auto` for one per process, which is JAX's rule there.

    Raises:
        UserError: some of the first three are given and others not, the address has no port, or the coordinator
            cannot be reached.
    """
    given = [value is not None for value in (coordinator_address, num_processes, process_id)]
    ids = list(local_device_ids) if local_device_ids else None
    if not any(given):
        if os.environ.get("FASHION_JAX_DISTRIBUTED") == "auto":
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
        raise UserError(f"--process-id={process_id} must lie in [0, {num_processes})")
    host, _, port = coordinator_address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--coordinator-address={coordinator_address} is not of the form HOST:PORT")
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            local_device_ids=ids,
            # Under SLURM and Open MPI it would take one accelerator per process, whatever is asked for here.
            cluster_detection_method="deactivate",
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"process {process_id} cannot join the run at {coordinator_address}: {error}") from error


def first_process_does(what: str, work: Callable[[], None]) -> None:
    """Calls `work` on process 0 while the others wait for it, however long it takes.

    They wait on the coordination service: a collective of arrays gives up after half a minute.

    Args:
        what: names the work in the others' error.
        work: whose UserError is raised on every process.

    Raises:
        UserError: `work` raised one, or process 0 failed otherwise.
    """
    if jax.process_count() == 1:
        work()
        return
    # The one thing here that is not public; Orbax and others use it likewise.
    from jax._src.distributed import global_state

    client = global_state.client
    assert client is not None
    key = f"fashion_jax/{next(_turns)}"
    if jax.process_index() != 0:
        outcome = client.blocking_key_value_get(key, _A_WEEK_IN_MS)
        if outcome != "done":
            raise UserError(outcome)
        return
    outcome = f"process 0 failed at {what}; its own messages say why"
    try:
        work()
        outcome = "done"
    except UserError as error:
        outcome = str(error)
        raise
    finally:
        client.key_value_set(key, outcome)


def make_mesh() -> Mesh:
    """Returns the one-dimensional mesh of all devices of all processes; its axis is `DATA_AXIS`."""
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def on_accelerator() -> bool:
    """True on GPU and TPU."""
    return jax.default_backend() != "cpu"


def computes_bfloat16_faster(*, training: bool) -> bool:
    """True where convolutions of bfloat16 are faster than those of float32: GPUs, TPUs, CPUs with AMX.

    On CPUs with AVX-512 BF16 alone training is (1.2 times on two cores of a Zen 4), and prediction is not (0.9 times).
    With several processes on CPUs it is False: their machines may differ, and all must compute the same.
    """
    return on_accelerator() or (jax.process_count() == 1 and _cpu_multiplies_bfloat16(training=training))


def _cpu_multiplies_bfloat16(*, training: bool) -> bool:
    """True with what pays for it, unless the user keeps XLA from the newest instructions."""
    if "xla_cpu_max_isa" in os.environ.get("XLA_FLAGS", ""):
        return False
    try:
        text = _CPU_INFO.read_text()
    except OSError:  # not on macOS and Windows
        return False
    return " amx_bf16" in text or (training and " avx512_bf16" in text)
