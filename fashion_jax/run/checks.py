"""What would stop a run later, or make it worthless, is found before its first step."""

from __future__ import annotations

import sys

from fashion_jax.data.schema import MISSING
from fashion_jax.run.session import Session
from fashion_jax.system.errors import UserError, nearest
from fashion_jax.training.placement import check_batch_size


def check_training(session: Session, *, compared: bool = False) -> None:
    """Finds before the first step what would stop the run later, and says on standard error what may be a mistake.

    Args:
        session: of training.
        compared: whether somebody waits for the scores of validation rows.

    Raises:
        UserError: the batch does not divide over the devices or into pairs to mix, a colour would never be trained, a
            duration ends after the run, embeddings are to compare what is not trained or does not fit, batch norm is
            frozen without pretrained weights, the photos are larger than the records' are, `train.best_metric` is
            not measured, or there are no validation rows to compare runs on.
    """
    train, data, devices = session.config.train, session.config.data, session.mesh.size
    always = train.mix.probability == 1 and session.steps(train.mix.until) >= session.total_steps
    if train.mix.active and always and session.colours:
        raise UserError(
            f"config.train.mix.probability=1 mixes every photo, and mixed photos teach nothing of colours: "
            f"{session.colours[0]} would not be trained; set it below 1, or leave the colour out of data.attributes"
        )
    check_batch_size(train.batch_size, train.accumulation_steps, session.mesh)
    if train.mix.active and (train.batch_size // train.accumulation_steps) % (2 * devices):
        raise UserError(
            f"config.train.mix mixes rows in pairs on a device, and config.train.batch_size={train.batch_size} leaves "
            f"an odd number for each of {devices} devices and {train.accumulation_steps} parts; make it a multiple of "
            f"{2 * devices * train.accumulation_steps}"
        )
    if train.progressive_scale < 1 and session.steps(train.progressive_until) >= session.total_steps:
        raise UserError(
            f"config.train.progressive_until={train.progressive_until!r} is no earlier than the end of the run "
            f"({session.total_steps:,} steps), so that no photo of full size would be trained on; set it lower"
        )
    for pattern, duration in session.config.optimizer.unfreeze.items():
        if session.steps(duration) >= session.total_steps:
            raise UserError(
                f"config.optimizer.unfreeze: {pattern!r} after {duration!r} is no earlier than the end of the run "
                f"({session.total_steps:,} steps); set it lower, or name it under freeze"
            )
    if session.config.optimizer.freeze_batch_norm and not session.config.model.pretrained:
        raise UserError(
            "config.optimizer.freeze_batch_norm=true keeps running statistics as they begin, and without "
            "config.model.pretrained they begin as nothing's; leave it out"
        )
    if train.mix.active and not session.colours and session.progress:
        print(
            "note: no attribute counts as a colour, so that mixed photos teach all of them; if one is a colour, say "
            "--config.model.colour_heads=NAME",
            file=sys.stderr,
            flush=True,
        )
    _check_embedding(session)
    if max(data.height, data.width) > session.prepared.max_side:
        raise UserError(
            f"config.data.height={data.height} and width={data.width} are larger than the records' photos, which "
            f"were scaled down to {session.prepared.max_side} pixels; prepare them with a larger max_side"
        )
    labels = session.prepared.labels[session.prepared.indices("validation")]
    labelled = [n for n, c in zip(session.attributes, session.columns, strict=True) if (labels[:, c] != MISSING).any()]
    measured = ["loss", "mean/accuracy", "mean/macro_f1"]
    measured += [f"{name}/{key}" for name in labelled for key in ("accuracy", "macro_f1", "loss")]
    if compared and not len(labels):
        raise UserError(
            "runs are compared on the validation split, which is empty; give it a share in config.data.split_fractions"
        )
    if len(labels) and train.best_metric not in measured:
        raise UserError(
            f"config.train.best_metric={train.best_metric!r} is not among the validation split's: "
            f"{', '.join(sorted(measured))}{nearest(train.best_metric, measured)}"
        )


def _check_embedding(session: Session) -> None:
    embedding = session.config.embedding
    if embedding.kind != "labels" or embedding.attributes == ("auto",):
        return
    for name in embedding.attributes:
        if name not in session.attributes:
            raise UserError(
                f"config.embedding.attributes names {name!r}, which is not trained"
                f"{nearest(name, session.attributes)}; there are {', '.join(session.attributes)}"
            )
    taken = sum(len(session.vocabularies[name]) for name in embedding.attributes)
    if taken > embedding.size or len(set(embedding.attributes)) < len(embedding.attributes):
        raise UserError(
            f"config.embedding.attributes={','.join(embedding.attributes)} have {taken} classes, and "
            f"config.embedding.size={embedding.size} features hold no more than that many, each attribute once"
        )
