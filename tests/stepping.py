"""Runs of a few training steps, for tests."""

from __future__ import annotations

from itertools import islice

import jax
import numpy as np

from fashion_jax.config.fields import Config
from fashion_jax.data.loader import StreamedPhotos, training_batches
from fashion_jax.run.resolve import fill_in
from fashion_jax.run.session import Session
from fashion_jax.system.interrupt import StopRequest
from fashion_jax.training.placement import put_batch
from fashion_jax.training.state import TrainState, create_state


def mesh_of(count: int):
    return jax.make_mesh((count,), ("data",), devices=jax.devices()[:count], axis_types=(jax.sharding.AxisType.Auto,))


def session_on(config: Config, prepared, tmp_path, devices: int) -> Session:
    # Without the checks of whole runs: a few steps may do what a run must not.
    return Session(fill_in(config, prepared), prepared, tmp_path, mesh=mesh_of(devices), progress=False)


def run(session: Session, steps: int = 5, order: np.ndarray | None = None, state: TrainState | None = None):
    if state is None:
        state = create_state(
            session.arguments, session.optimizer, session.config.train.seed, session.mesh, averaged=session.averaged
        )
    losses = []
    size = session.config.train.batch_size
    photos = StreamedPhotos(session.prepared, session.config.data.height, session.config.data.width)
    for number, batch in enumerate(islice(training_batches(session.prepared, photos, batch_size=size, seed=0), steps)):
        if order is not None:
            batch = {name: array[order] for name, array in batch.items()}
        step = session.train_step(number)
        state, metrics = step(state, put_batch(batch, session.mesh))
        losses.append(metrics.read())
    return state, losses, step


class StopAt(StopRequest):
    """A signal that comes while a step is computed."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def reached(self, step: int) -> bool:
        self.signal_number = 15 if step == self._step else 0
        return bool(self.signal_number)
