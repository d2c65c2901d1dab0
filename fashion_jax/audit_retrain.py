"""The costly judge of an audit: a whole network per fold, trained on the other folds as the workdir's was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int64

from fashion_jax.data.manifest import Prepared, is_prepared, open_prepared
from fashion_jax.data.photos import decode_photo
from fashion_jax.data.schema import Schema, save_schema
from fashion_jax.data.splits import SPLITS, write_splits
from fashion_jax.errors import UserError
from fashion_jax.evaluation.out_of_fold import Probabilities, group_folds
from fashion_jax.experiment import train
from fashion_jax.progress import progress_bar
from fashion_jax.serving.predictor import Predictor, load_model
from fashion_jax.workdir import load_run_config

_VALIDATION_PARTS = 10  # of the rows that a network is not judging, one such part chooses its checkpoint


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
        folder: for the runs, `fold_0` and so on.
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
    data = config.data
    data.source, data.prepared, data.corrections = str(source), "", str(corrections or "")
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
        run = folder / f"fold_{number}"
        train(config, run, progress=progress)
        records, model = open_prepared(run / "records"), load_model(run)
        rows = records.indices("test")
        assert len(rows) == count
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
