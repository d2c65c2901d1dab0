"""Sessions of tiny configurations, and the batches that they train on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fashion_jax.data.loader import StreamedPhotos, training_batches
from stepping import session_on


@pytest.fixture
def session_of(tiny_config, prepared, tmp_path) -> Callable:
    """Makes the session of a tiny configuration on a number of devices."""
    return lambda devices, **changes: session_on(tiny_config(**changes), prepared, tmp_path, devices)


@pytest.fixture
def batch_of(prepared) -> Callable:
    """Makes the batch of a step, on the host."""
    photos = StreamedPhotos(prepared, 32, 24)
    return lambda step: dict(next(iter(training_batches(prepared, photos, batch_size=16, seed=0, start_step=step))))
