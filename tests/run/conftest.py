"""One finished run, which the tests of runs share."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from fashion_jax.config.fields import Config
from fashion_jax.run.finish import Result
from fashion_jax.run.train import train


class Finished(NamedTuple):
    """A workdir, the configuration of its run, and what `train` returned."""

    workdir: Path
    config: Config
    result: Result


@pytest.fixture(scope="session")
def finished(tiny_config, tmp_path_factory) -> Finished:
    """A finished run of 12 steps that averages its weights; do not write to its folder."""
    config = tiny_config(train__average_decay=0.5)
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    return Finished(workdir, config, train(config, workdir, progress=False))
