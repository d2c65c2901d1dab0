"""From prepared records to batches, through Grain.

The order of the training rows depends on the seed and the step only. It is the same for any number of processes and
workers, and a run resumes at a step by starting there, without any saved state of an iterator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import grain
import numpy as np
from jaxtyping import Bool, Int64, UInt8

from fashion_jax.data.photos import BadPhoto, decode_photo, decode_photos
from fashion_jax.data.records import Prepared, remedy
from fashion_jax.system import stored
from fashion_jax.system.errors import UserError
from fashion_jax.system.progress import progress_bar

# Name -> array of this process's rows:
#   image  uint8 (rows, height, width, 3); absent when the photos are on the device
#   row    int32 (rows,), row number in the records
#   label  int32 (rows, attributes), MISSING where there is none
#   tags/<multi-valued attribute>  int8 (rows, classes), 1, 0, or MISSING in all classes
#   valid  bool (rows,), False for padding
Batch = dict[str, np.ndarray]
TAGS = "tags/"
STORAGES = ("device", "host", "stream")  # where decoded photos may live; each needs less memory than those before it

_SHARE_OF_MEMORY = 0.4  # of the free memory, which decoded photos may take
_CONTROL_GROUP = Path("/sys/fs/cgroup")


PhotoSource = Callable[[np.ndarray], UInt8[np.ndarray, "rows height width 3"]]  # row numbers -> photos


class StreamedPhotos:
    """Decodes photos each time that they are needed."""

    def __init__(self, prepared: Prepared, height: int, width: int) -> None:
        self._prepared, self._height, self._width = prepared, height, width

    def __call__(self, rows: np.ndarray) -> UInt8[np.ndarray, "rows height width 3"]:
        images = np.empty((len(rows), self._height, self._width, 3), np.uint8)
        for place, row in enumerate(rows):
            data = self._prepared.read_photo(int(row))
            with _decoding(self._prepared, int(row)):
                images[place] = decode_photo(data, self._height, self._width)
        return images


class ResidentPhotos:
    """Decodes photos once and keeps them in memory.

    Attributes:
        images: uint8 (n, height, width, 3).
        places: int32 (rows of the records,), the place of a row in `images`; -1 where it has none.
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
                    with _decoding(prepared, int(rows[place])):
                        raise image
                self.images[place] = image
                bar.update()

    def __call__(self, rows: np.ndarray) -> UInt8[np.ndarray, "rows height width 3"]:
        return self.images[self.places[rows]]


@contextlib.contextmanager
def _decoding(prepared: Prepared, row: int) -> Iterator[None]:
    """Turns what a decoder raises into a sentence: records hold only photos that were decoded before."""
    try:
        yield
    except (MemoryError, ImportError):
        raise
    except Exception as error:
        about = f"the photo of row {row} in {prepared.folder} cannot be decoded ({stored.first_line(error)})"
        raise UserError(f"{about}; {remedy(prepared.folder)}") from error


def choose_storage(wanted: str, num_photos: int, height: int, width: int, *, device_bytes: int) -> str:
    """Decides where the decoded training photos live.

    Args:
        wanted: "device", "host" or "stream" is returned unchanged; "auto" takes the first of them that fits.
        num_photos: of all splits.
        height: of a decoded photo, in pixels.
        width: of a decoded photo, in pixels.
        device_bytes: free memory of an accelerator; 0 where the CPU computes.
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
) -> Iterator[Batch]:
    """Yields this process's part of every training batch, without end. Every epoch has another order.

    A batch may hold the end of one epoch and the start of the next, so every row comes exactly once in each epoch.

    Args:
        photos: reads the photos; None: batches without photos, because the photos are on the device.
        batch_size: of all processes together.
        start_step: the number of the first batch; from there on the batches are those of a run from step 0.
        num_processes: the number of processes; it divides `batch_size`.
    """
    assert batch_size % num_processes == 0
    order = grain.MapDataset.source(prepared.indices("train")).seed(seed).shuffle().repeat()
    batches = order[process_index::num_processes].batch(batch_size // num_processes)
    chosen = batches.map(_Reader(photos, prepared))[start_step:]
    threads = 1  # for photos in memory, which are only copied
    if isinstance(photos, StreamedPhotos):
        threads = 8
        # Imported before the threads start: if a thread imports TFDS, imports in other threads may give a LazyModule.
        import fashion_jax.data.tfds_files  # noqa: F401
    return iter(chosen.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)))


def evaluation_batches(
    prepared: Prepared,
    photos: PhotoSource | None,
    rows: np.ndarray,
    *,
    batch_size: int,
    process_index: int = 0,
    num_processes: int = 1,
) -> Iterator[Batch]:
    """Yields this process's part of batches that together hold every given row exactly once.

    The last batch is padded with rows whose `valid` is False, so that all processes take the same number of steps.

    Args:
        photos: reads the photos; None: batches without photos.
        rows: int64 (n,), row numbers.
        batch_size: of all processes together.
        num_processes: the number of processes; it divides `batch_size`.
    """
    assert batch_size % num_processes == 0
    part, read = batch_size // num_processes, _Reader(photos, prepared)
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        mine = chunk[process_index * part : (process_index + 1) * part]
        padding = part - len(mine)
        batch = read(np.concatenate([mine, np.full(padding, rows[0], rows.dtype)]))
        batch["valid"][part - padding :] = False
        yield batch


class _Reader:
    """Turns row numbers into a batch."""

    def __init__(self, photos: PhotoSource | None, prepared: Prepared) -> None:
        self._photos, self._labels, self._tags = photos, prepared.labels, prepared.tags

    def __call__(self, rows: np.ndarray) -> Batch:
        rows = np.asarray(rows)
        valid: Bool[np.ndarray, " rows"] = np.ones(len(rows), bool)
        batch = {"row": rows.astype(np.int32), "label": self._labels[rows], "valid": valid}
        batch |= {f"{TAGS}{name}": vectors[rows] for name, vectors in self._tags.items()}
        return batch if self._photos is None else {"image": self._photos(rows), **batch}


def spread_rows(rows: Int64[np.ndarray, " n"], count: int) -> Int64[np.ndarray, " kept"]:
    """Returns at most `count` rows, evenly spread, because the first rows may be of few classes."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))] if len(rows) else rows


def _free_memory() -> int:
    """Returns the bytes of memory that this process may still use; a container's limit counts."""
    import psutil

    limits = [int(psutil.virtual_memory().available)]
    # The files of control groups, versions 2 and 1, inside a container. Memory that caches files can be taken back.
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
