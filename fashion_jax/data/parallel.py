"""Work on many photos in threads: in order, and with a bound on the bytes that wait in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fashion_jax.data.catalog import Product
from fashion_jax.data.photos import BadPhoto
from fashion_jax.system.process import num_cores

K = TypeVar("K")
T = TypeVar("T")
RawPhoto = tuple[Product, bytes | BadPhoto]

_BATCH_PHOTOS, _BATCH_BYTES = 64, 4_000_000  # whichever comes first makes a piece of work for a thread
_HELD_BYTES = 256_000_000  # of raw photos that wait or are worked on


def map_photos(
    function: Callable[[tuple[K, bytes | BadPhoto]], T],
    photos: Iterator[tuple[K, bytes | BadPhoto]],
    *,
    num_workers: int | None = None,
) -> Generator[T, None, None]:
    """Yields `function(photo)` in the order of `photos`, computed ahead in threads.

    Args:
        function: runs in a thread (the codecs release the interpreter's lock); an exception in it is raised here.
        photos: read in this thread, with no more than 256 MB of raw photos in memory at once.
        num_workers: threads; None for one per core.
    """
    workers = num_workers or num_cores()
    pool = ThreadPoolExecutor(workers)
    waiting: deque[tuple[Future[list[T]], int]] = deque()
    held = 0
    try:
        for batch, size in _batches(photos):
            waiting.append((pool.submit(_map_all, function, batch), size))
            held += size
            while len(waiting) > 4 * workers or held > _HELD_BYTES:
                done, released = waiting.popleft()
                yield from done.result()
                held -= released
        for done, _ in waiting:
            yield from done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(
    photos: Iterator[tuple[K, bytes | BadPhoto]],
) -> Iterator[tuple[list[tuple[K, bytes | BadPhoto]], int]]:
    batch: list[tuple[K, bytes | BadPhoto]] = []
    size = 0
    for photo in photos:
        batch.append(photo)
        size += len(photo[1]) if isinstance(photo[1], bytes) else 0
        if len(batch) == _BATCH_PHOTOS or size >= _BATCH_BYTES:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


def _map_all(function: Callable[[tuple[K, bytes | BadPhoto]], T], batch: list[tuple[K, bytes | BadPhoto]]) -> list[T]:
    return [function(photo) for photo in batch]
