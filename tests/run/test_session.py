"""Where photos live: every process decides by its own memory, and all do the same."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from fashion_jax.data.loader import STORAGES
from fashion_jax.run import session
from fashion_jax.run.resolve import resolve
from fashion_jax.run.session import Session


@pytest.mark.parametrize("choices", list(itertools.product(STORAGES, repeat=3)), ids="-".join)
def test_all_processes_take_the_most_careful_choice(choices, tiny_config, prepared, tmp_path, monkeypatch):
    """Three processes, one after the other; the first round tells what each would send to the others."""
    sent: list[np.ndarray] = []
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: sent.append(mine) or np.array([mine]))
    for choice in choices:
        session._agree(choice)
    everything = np.stack(sent)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: everything)
    careful = max(choices, key=["device", "host", "stream"].index)
    for choice in choices:
        monkeypatch.setattr(session, "choose_storage", lambda *args, choice=choice, **kwargs: choice)
        own = Session(resolve(tiny_config(), prepared, tmp_path), prepared, tmp_path, progress=False)
        assert own.storage == own.with_second_heads(()).storage == careful
