"""The costly judge of an audit: a whole network per fold, trained on the other folds as the workdir's was."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from fashion_jax.audit.judges import Probabilities, group_folds
from fashion_jax.data.photos import decode_photo
from fashion_jax.data.records import Prepared, is_prepared, open_prepared
from fashion_jax.data.schema import Schema, load_schema, save_schema
from fashion_jax.data.splits import SPLITS, write_splits
from fashion_jax.run.train import train
from fashion_jax.run.workdir import has_checkpoints, load_run_config
from fashion_jax.serving.predictor import Predictor, load_model
from fashion_jax.system.errors import UserError
from fashion_jax.system.progress import progress_bar

_VALIDATION_PARTS = 10  # of the rows that a network is not judging, one such part chooses its checkpoint


def run_schema(workdir: str | Path) -> Schema | None:
    """Returns how a run read its table; None where it was known or inferred.

    Raises:
        UserError: no workdir of a run.
    """
    if not has_checkpoints(Path(workdir)):
        raise UserError(f"{workdir} is no workdir with a run in it, and --retrain trains as a run did")
    data = load_run_config(Path(workdir)).data
    return load_schema(Path(data.schema)) if data.schema else None


def retrained_probabilities(
    workdir: str | Path,
    source: str | Path,
    folder: Path,
    prepared: Prepared,
    folds: Int64[np.ndarray, " n"],
    *,
    corrections: str | Path | None = None,
    schema: Schema | None = None,
    progress: bool = True,
) -> Probabilities:
    """Trains a network per fold and returns what each says of the fold that it did not see.

    The folds' rows are the test split of their run; a tenth of the others, by group, validates. A run that was stopped
    goes on where it was.

    Args:
        workdir: of a run, whose configuration is used, with its heads.
        source: the catalogue itself; prepared records cannot be split anew.
        folder: for the runs, `fold_0_...` and so on, with a digest of what they are of.
        prepared: the catalogue's records, in whose order the result is.
        folds: from `group_folds`.
        corrections: applied to the source.
        schema: how to read the source.
        progress: whether to show what is going on.

    Returns:
        Per attribute of the records, float32 (n, classes); for those without a head, equal shares.

    Raises:
        UserError: no workdir of a run, a prepared source, or what training refuses.
    """
    if is_prepared(Path(source)):
        raise UserError(f"{source} is prepared already, and --retrain splits anew; give the catalogue itself")
    config = load_run_config(Path(workdir))
    if config.model.pretrained and (Path(config.model.pretrained) / "config.json").is_file():
        print(
            f"warning: the run in {workdir} began with {config.model.pretrained}; where that was trained on these "
            "labels, its folds are not judged by networks that did not see them",
            file=sys.stderr,
        )
    data = config.data
    data.source, data.corrections = str(source), str(corrections or "")
    data.max_bad_fraction = 1.0
    if schema is not None:
        save_schema(schema, folder / "schema.json")
        data.schema = str(folder / "schema.json")
    numbers, counts = np.unique(folds, return_counts=True)
    result = [np.full((len(folds), len(v)), 1 / len(v), np.float32) for v in prepared.vocabularies.values()]
    places = {name: place for place, name in enumerate(prepared.ids.tolist())}
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        splits = folder / f"splits_{number}.csv"
        sides = np.full(len(folds), SPLITS.index("train"), np.int8)
        parts = group_folds(prepared.groups, _VALIDATION_PARTS, seed=number + 1)
        sides[parts == 0] = SPLITS.index("validation")
        sides[folds == number] = SPLITS.index("test")
        write_splits(splits, prepared.ids.tolist(), sides, prepared.groups)
        data.split = f"file:{splits}"
        # Other folds or corrections are other runs: what stands there of earlier ones is of no use to them.
        key = json.dumps([sides.tolist(), prepared.fingerprint, config.to_dict()]).encode()
        run = folder / f"fold_{number}_{hashlib.sha256(key).hexdigest()[:12]}"
        train(config, run, progress=progress)
        records, model = open_prepared(run / "records"), load_model(run)
        rows = records.indices("test")
        same = all(records.vocabularies[n] == prepared.vocabularies.get(n) for n in model.attributes)
        if len(rows) != count or not same:
            raise UserError(
                f"the run in {workdir} reads {source} otherwise than this audit does: {len(rows)} rows of a fold "
                f"instead of {count}, or other classes; give the schema of the run with --schema"
            )
        to = np.array([places[name] for name in records.ids[rows].tolist()])
        for head, shares in _predict(model, records, rows, progress).items():
            result[prepared.attributes.index(head)][to] = shares
    return result


def _predict(model: Predictor, records: Prepared, rows: np.ndarray, progress: bool) -> dict[str, np.ndarray]:
    parts = []
    with progress_bar(len(rows), "judging photos", show=progress, unit="photo") as bar:
        for start in range(0, len(rows), model.batch_size):
            chosen = rows[start : start + model.batch_size].tolist()
            images = np.stack([decode_photo(records.read_photo(row), *model.size) for row in chosen])
            parts.append(model.predict_arrays(images, whole_batches=len(rows) > model.batch_size).probabilities)
            bar.update(len(chosen))
    return {head: np.concatenate([part[head] for part in parts]) for head in model.attributes}
