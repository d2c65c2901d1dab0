"""From prepared records to batches, through Grain.

The order of training rows is a function of (seed, step) alone: it is the same for any number of processes and workers,
and a run resumes at a step by starting there, with no iterator state to save.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Int32, Int64, UInt8

from fashion_jax.data.photos import BadPhoto, decode_photo, decode_photos
from fashion_jax.data.records import Prepared
from fashion_jax.system.progress import progress_bar

# Batch: name -> array of this process's rows.
#   image  uint8 (rows, height, width, 3), absent when the photos are on the device
#   row    int32 (rows,), row number in the prepared records
#   label  int32 (rows, attributes), MISSING where unknown
#   valid  bool (rows,), False for padding
Batch = dict[str, np.ndarray]

_SHARE_OF_MEMORY = 0.4  # of what is free, that decoded photos may take
_CONTROL_GROUP = Path("/sys/fs/cgroup")


class PhotoSource(Protocol):
    """Returns photos by row number."""

    def __call__(self, rows: np.ndarray) -> UInt8[np.ndarray, "rows height width 3"]: ...


class StreamedPhotos:
    """Decodes photos each time they are asked for."""

    def __init__(self, prepared: Prepared, height: int, width: int) -> None:
        self._prepared, self._height, self._width = prepared, height, width

    def __call__(self, rows: np.ndarray) -> UInt8[np.ndarray, "rows height width 3"]:
        images = np.empty((len(rows), self._height, self._width, 3), np.uint8)
        for place, row in enumerate(rows):
            images[place] = decode_photo(self._prepared.read_photo(int(row)), self._height, self._width)
        return images


class ResidentPhotos:
    """Decodes photos once and keeps them in memory.

    Attributes:
        images: uint8 (n, height, width, 3).
        places: int32 (rows of the catalogue,), where a row stands in `images`; -1 if it does not.
    """

    def __init__(
        self, prepared: Prepared, rows: np.ndarray, height: int, width: int, *, label: str = "", progress: bool = True
    ) -> None:
        self.images = np.empty((len(rows), height, width, 3), np.uint8)
        self.places = np.full(len(prepared), -1, np.int32)
        self.places[rows] = np.arange(len(rows), dtype=np.int32)
        photos = ((place, prepared.read_photo(int(row))) for place, row in enumerate(rows))
        bar = progress_bar(len(rows), f"decoding {label} photos", show=progress, unit="photo", leave=False)
        with bar:
            for place, image in decode_photos(partial(decode_photo, height=height, width=width), photos):
                if isinstance(image, BadPhoto):
                    raise image
                self.images[place] = image
                bar.update()

    def __call__(self, rows: np.ndarray) -> UInt8[np.ndarray, "rows height width 3"]:
        return self.images[self.places[rows]]


def choose_storage(wanted: str, num_photos: int, height: int, width: int, *, device_bytes: int) -> str:
    """Decides where the decoded training photos live.

    Args:
        wanted: "device", "host" or "stream" are taken as they are; "auto" picks the first of them that fits.
        num_photos: of all splits.
        height: of a decoded photo.
        width: likewise.
        device_bytes: free memory of an accelerator; 0 where the host computes.
    """
    if wanted != "auto":
        return wanted
    needed = num_photos * height * width * 3
    if needed <= device_bytes // 4:
        return "device"
    return "host" if needed <= _free_memory() * _SHARE_OF_MEMORY else "stream"


def training_batches(
    prepared: Prepared,
    photos: PhotoSource | None,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Yields this process's part of every training batch, for ever, in an order that differs from epoch to epoch.

    Batches run over the ends of epochs, so every row comes exactly once in each epoch and none is dropped.

    Args:
        prepared: the records.
        photos: reads images; None leaves them out (photos on the device).
        batch_size: over all processes.
        seed: of the order.
        start_step: the first batch's number; resuming at a step yields what the whole run would have had there.
        process_index: of this process.
        num_processes: of the run; divides `batch_size`.
        num_workers: processes that read ahead; 0 for threads of this one.
    """
    assert batch_size % num_processes == 0
    order = grain.MapDataset.source(prepared.indices("train")).seed(seed).shuffle().repeat()
    batches = order[process_index::num_processes].batch(batch_size // num_processes)
    chosen = batches.map(_Reader(photos, prepared.labels))[start_step:]
    # Decoding takes threads; what is in memory is only copied.
    threads = 8 if isinstance(photos, StreamedPhotos) else 1
    iterable = chosen.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain asks absl's flags, which only an absl program has parsed
        iterable = iterable.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers), worker_init_fn=_leave_ctrl_c_to_the_run
        )
    return iter(iterable)


def _leave_ctrl_c_to_the_run(worker_index: int, worker_count: int) -> None:
    """Keeps a terminal's Ctrl-C, which reaches every process, from ending workers before the run has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def evaluation_batches(
    prepared: Prepared,
    photos: PhotoSource | None,
    rows: np.ndarray,
    *,
    batch_size: int,
    process_index: int = 0,
    num_processes: int = 1,
) -> Iterator[Batch]:
    """Yields this process's part of batches that hold every given row exactly once.

    The last batch is padded with rows whose `valid` is False, and every process takes the same number of steps.

    Args:
        prepared: the records.
        photos: reads images; None leaves them out.
        rows: int64 (n,), row numbers.
        batch_size: over all processes, which divide it.
        process_index: of this process.
        num_processes: of the run.
    """
    assert batch_size % num_processes == 0
    part, read = batch_size // num_processes, _Reader(photos, prepared.labels)
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        mine = chunk[process_index * part : (process_index + 1) * part]
        padding = part - len(mine)
        batch = read(np.concatenate([mine, np.full(padding, rows[0], rows.dtype)]))
        batch["valid"][part - padding :] = False
        yield batch


class _Reader:
    """Turns row numbers into a batch; a class, because worker processes need to receive it."""

    def __init__(self, photos: PhotoSource | None, labels: Int32[np.ndarray, "n attributes"]) -> None:
        self._photos, self._labels = photos, labels

    def __call__(self, rows: np.ndarray) -> Batch:
        rows = np.asarray(rows)
        valid: Bool[np.ndarray, " rows"] = np.ones(len(rows), bool)
        batch = {"row": rows.astype(np.int32), "label": self._labels[rows], "valid": valid}
        return batch if self._photos is None else {"image": self._photos(rows), **batch}


def spread_rows(rows: Int64[np.ndarray, " n"], count: int) -> Int64[np.ndarray, " kept"]:
    """Returns at most `count` rows, evenly spread: the first ones may be of few classes."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))] if len(rows) else rows


def _free_memory() -> int:
    """Bytes that this process may still take; a container's limit counts."""
    import psutil

    limits = [int(psutil.virtual_memory().available)]
    # A control group's folder as seen from inside a container, in versions 2 and 1. Its caches give way when asked.
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError, KeyError):
            limit_file = _CONTROL_GROUP / limit
            stat = dict(line.split() for line in limit_file.with_name("memory.stat").read_text().splitlines())
            taken = int((_CONTROL_GROUP / used).read_text()) - int(stat[cache])
            limits.append(int(limit_file.read_text()) - taken)
    return max(0, min(limits))
