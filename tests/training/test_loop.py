"""The loop, with parts that do nothing."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from unittest import mock

import pytest

from fashion_jax.system.errors import UserError
from fashion_jax.system.interrupt import StopRequest
from fashion_jax.training import loop
from fashion_jax.training.loop import EarlyStopping, Schedule, Training, run_loop
from stepping import mesh_of


def test_a_run_that_fails_compiles_nothing_more(monkeypatch):
    monkeypatch.setattr(loop, "CompileAhead", mock.MagicMock())
    steps = iter([(SimpleNamespace(step=1), mock.MagicMock())])

    def compute(state, batch):
        for step in steps:
            return step
        raise UserError("the disk is full")

    training = Training(
        schedule=Schedule(total=9, log=9, evaluate=9, checkpoint=9),
        mesh=mesh_of(1),
        step_at=lambda step: compute,
        later_functions=lambda step: [],
        batches=itertools.repeat({}),
        add_photos=lambda batch: batch,
        evaluate=None,
        lower_is_better=False,
        learning_rate=lambda step: 0.0,
        name_batch=str,
    )
    parts = {name: mock.MagicMock() for name in ("checkpoints", "writer", "progress")}
    with pytest.raises(UserError, match="full"):
        run_loop(SimpleNamespace(step=0), EarlyStopping("loss"), training, stop=StopRequest(), **parts)
    loop.CompileAhead.return_value.cancel.assert_called_once_with()
