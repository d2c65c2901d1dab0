"""The model package of a run."""

from __future__ import annotations

from pathlib import Path

from flax import traverse_util

from fashion_jax.evaluation.evaluate import Evaluation
from fashion_jax.run.finish import Trust
from fashion_jax.run.second_heads import TRIED
from fashion_jax.run.session import Session
from fashion_jax.serving.package import write_package
from fashion_jax.training.placement import to_host
from fashion_jax.training.state import TrainState


def write_run_package(
    session: Session, state: TrainState, folder: Path, step: int, test: Evaluation | None, trust: Trust | None
) -> None:
    """Writes what `load_model` reads.

    Args:
        session: of the run, with the second heads that were kept.
        state: whose judged weights are packaged.
        folder: a package that is there is replaced.
        step: of the checkpoint.
        test: scores of the test split; None where it is empty.
        trust: what was fitted on the validation rows; None where there are none.
    """
    params, batch_stats = state.scored
    flat = traverse_util.flatten_dict({"params": to_host(params), "batch_stats": to_host(batch_stats)})
    data = session.config.data
    write_package(
        folder,
        weights={"/".join(map(str, path)): array for path, array in flat.items()},
        model=session.arguments,
        vocabularies=session.vocabularies,
        preprocessing={
            "height": data.height,
            "width": data.width,
            "max_side": session.prepared.max_side,
            "mean": list(data.mean),
            "std": list(data.std),
            "test_time_flip": data.test_time_flip,
        },
        extra={
            "step": step,
            "fingerprint": session.prepared.fingerprint,
            "test": test.scalars() if test else None,
            TRIED: list(session.config.model.second_heads),
        },
        decision=None if trust is None else trust.decision,
        embedding=None if trust is None else trust.embedding,
    )
