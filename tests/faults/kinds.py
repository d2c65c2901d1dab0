"""The kinds of stored things: how one of each is made, and the operation that reads it.

`make` writes a thing into a folder, and a twin of it: another thing of the same kind, whose files may be swapped in.
`read` does what a command does with the thing, and returns the result in named parts; two results are the same where
all parts are. It may change the folder. What `read` says to the user stands on standard error.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pandas as pd

from drawn_products import make_tiny_config
from fashion_jax import cli
from fashion_jax.config.fields import Config
from fashion_jax.data import staging
from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.drawn.catalogue import write_catalog
from fashion_jax.data.prepare import PrepareOptions, prepare
from fashion_jax.data.records import Prepared, open_prepared
from fashion_jax.data.schema import load_schema, save_schema
from fashion_jax.data.splits import SplitOptions
from fashion_jax.models.pretrained import load_pretrained
from fashion_jax.run import finish, session, sweep
from fashion_jax.run import train as run
from fashion_jax.run.start import ever_trained_on
from fashion_jax.search.index import Index
from fashion_jax.serving import embed, shards
from fashion_jax.serving.package import Package, load_package
from fashion_jax.serving.predictor import Predictor, load_model
from fashion_jax.system import files
from fashion_jax.system.errors import Interrupted, UserError
from fashion_jax.training.checkpoint import Checkpoints
from fashion_jax.training.state import TrainState
from stepping import StopAt

PRODUCTS = 60  # of a catalogue
# A small drawn catalogue has many bad photos for its size.
_LAX = PrepareOptions(max_bad_fraction=0.5, split=SplitOptions(fractions=(0.6, 0.2, 0.2)))
_SHARD_ROWS = 12  # photos of a shard or chunk, so that there are several
NOT_VERIFIED = "what cannot be read is whole to fashion-jax verify"
Parts = dict[str, str]  # name -> digest


@dataclass(frozen=True)
class Kind:
    """A kind of stored thing."""

    name: str
    make: Callable[[Things, Path, str], None]  # (things, new folder, "thing" or "twin")
    read: Callable[[Things, Path], Parts]  # (things, copy of the thing); it may write beside the copy
    share: int = 100  # of the inputs
    only: Callable[[str], bool] = lambda name: True  # whether a file belongs to it
    unchecked: Callable[[str], bool] = lambda name: False  # whether a file's format has no checksum of its own
    has_parts: bool = True  # whether one of its files can be of another thing; a source in one file is another source
    rows_may_lack: bool = False  # whether a part may be left out, if that is said


class Things:
    """A folder with one thing of each kind, which is made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: str) -> Path:
        return self.root / kind.replace(" ", "_")

    def of(self, kind: str, which: str = "thing") -> Path:
        """Returns the folder of a thing, or of its twin."""
        place = self.folder(kind) / which
        if not place.exists():
            place.mkdir(parents=True)
            try:
                KINDS[kind].make(self, place, which)
            except BaseException:
                shutil.rmtree(place)
                raise
        return place

    def earlier(self, kind: str) -> list[Path]:
        """Returns earlier states of a thing, which may be read in its place if that is said."""
        return sorted(self.folder(kind).glob("earlier-*"))

    def boundaries(self, kind: str) -> dict[str, list[int]]:
        """Returns where the records of a thing's files end: name -> bytes; lines are not listed."""
        path = self.folder(kind) / "boundaries.json"
        found: dict[str, list[int]] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def shop(self, which: str = "thing") -> Path:
        """Returns the folder of a drawn catalogue: styles.csv and images/."""
        place = self.root / "shop" / which
        if not place.exists():
            _draw_shop(place, which)
        return place


def fingerprint(value: Any) -> str:
    """Returns a digest of nested values: mappings, sequences, dataclasses, arrays, texts and numbers."""
    found = hashlib.sha256()
    _add(found, value)
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    found.update(f"{type(value).__name__}:".encode())
    if isinstance(value, Mapping):
        for key, item in value.items():
            _add(found, key)
            _add(found, item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _add(found, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(found, item)
    elif isinstance(value, (set, frozenset)):
        _add(found, sorted(map(repr, value)))
    elif isinstance(value, bytes):
        found.update(value)
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value)
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
    else:
        found.update(repr(value).encode())
    found.update(b";")


def _verified(read: Callable[[Things, Path], Parts], name: str = "") -> Callable[[Things, Path], Parts]:
    """Also asks `fashion-jax verify` about a thing that cannot be read, and says if it finds no damage."""

    def both(things: Things, place: Path) -> Parts:
        try:
            return read(things, place)
        except UserError:
            if cli.main(["verify", str(place / name)]) == 0:
                say(NOT_VERIFIED)
            raise

    return both


def say(text: str) -> None:
    """Says what a command would say."""
    print(text, file=sys.stderr)


# ---------------------------------------------------------------------------------------------------- catalogues


def _draw_shop(place: Path, which: str) -> None:
    write_catalog(place, PRODUCTS, 0 if which == "thing" else 1)


def record_options() -> PrepareOptions:
    """Returns how the records are prepared."""
    return _LAX


def record_parts(prepared: Prepared) -> Parts:
    """Returns a part for each record: product, title, labels and photo."""
    parts = {}
    for row, name in enumerate(prepared.ids.tolist()):
        labels = {
            column: classes[label] if (label := prepared.labels[row, place]) >= 0 else None
            for place, (column, classes) in enumerate(prepared.vocabularies.items())
        }
        parts[f"record {name}"] = fingerprint([name, prepared.titles[row], labels, prepared.read_photo(row)])
    return parts


def _prepare(source: Path, out: Path, options: PrepareOptions = _LAX) -> Parts:
    prepared = prepare(source, out, options, progress=False)
    for row in csv.DictReader((out / "quarantine.csv").open()):
        say(f"left out: row {row['row']}, {row['reason'][:100]}")
    return record_parts(prepared)


def _make_folder(things: Things, place: Path, which: str) -> None:
    shutil.copytree(things.shop(which), place, dirs_exist_ok=True)


def _make_archive(name: str, things: Things, place: Path, which: str) -> None:
    shop = things.shop(which)
    if name.endswith("zip"):
        with zipfile.ZipFile(place / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(shop.rglob("*")):
                archive.write(path, path.relative_to(shop))
    else:
        mode = name.removeprefix("shop.tar").replace(".", ":")
        with tarfile.open(place / name, f"w{mode}") as archive:
            archive.add(shop, ".")


def _make_table(name: str, things: Things, place: Path, which: str) -> None:
    """Writes the table of a catalogue in another format, beside its photos; a Parquet file holds the photos."""
    frame = pd.read_csv(things.shop(which) / "styles.csv", dtype=str, keep_default_na=False)
    if name.endswith("parquet"):
        photos = {path.stem: path.read_bytes() for path in (things.shop(which) / "images").iterdir()}
        frame["photo"] = [photos.get(product, b"") for product in frame["id"]]
        frame.to_parquet(place / name)
        return
    shutil.copytree(things.shop(which) / "images", place / "images")
    if name.endswith("xlsx"):
        frame.to_excel(place / name, index=False)
    else:
        frame.to_json(place / name, orient="records", lines=True)


def _is_table(name: str) -> bool:
    return not name.endswith(".jpg")


def _make_corrections(things: Things, place: Path, which: str) -> None:
    frame = pd.read_csv(things.shop() / "styles.csv", dtype=str, keep_default_na=False)
    colours = open_catalog(things.shop()).vocabularies["baseColour"]
    found = frame[frame["baseColour"].isin(colours)]
    start = 0 if which == "thing" else 20
    rows = [
        [row["id"], "baseColour", row["baseColour"], next(c for c in colours if c != row["baseColour"])]
        for _, row in found[start : start + 20].iterrows()
    ]
    files.write_text(place / "corrections.csv", files.format_csv([["id", "attribute", "given", "corrected"], *rows]))


def _read_corrections(things: Things, place: Path) -> Parts:
    catalog = open_catalog(things.shop(), corrections=place / "corrections.csv")
    return {f"{record.id} {record.number}": fingerprint(record.labels) for record in catalog.records}


def _make_schema(things: Things, place: Path, which: str) -> None:
    schema = open_catalog(things.shop()).schema
    if which == "twin":
        schema = dataclasses.replace(schema, attributes=schema.attributes[:2])
    save_schema(schema, place / "schema.json")


def _read_schema(things: Things, place: Path) -> Parts:
    options = dataclasses.replace(_LAX, schema=load_schema(place / "schema.json"))
    return _prepare(things.shop(), place.with_name("out"), options)


# ------------------------------------------------------------------------------------------------------- records


def _make_records(things: Things, place: Path, which: str) -> None:
    prepare(things.shop(which), place / "records", _LAX, progress=False)


def prepared_parts(prepared: Prepared) -> Parts:
    """Returns every field of records, and their photos."""
    fields = {field.name: getattr(prepared, field.name) for field in dataclasses.fields(prepared)}
    fields.pop("folder")
    fields.pop("files", None)  # digests: TFDS does not write the same bytes each time
    photos = [prepared.read_photo(row) for row in range(len(prepared))]
    return {**{name: fingerprint(value) for name, value in fields.items()}, "photos": fingerprint(photos)}


def _read_records(things: Things, place: Path) -> Parts:
    return prepared_parts(open_prepared(place / "records"))


def _prepare_again(things: Things, place: Path) -> Parts:
    parts = prepared_parts(prepare(things.shop(), place / "records", _LAX, progress=False))
    del parts["report"]  # it counts the seconds
    return parts


@contextlib.contextmanager
def small_chunks() -> Iterator[None]:
    """Makes chunks of staging, and shards of embedding, of a few photos."""
    with mock.patch.object(staging, "_CHUNK", _SHARD_ROWS), mock.patch.object(embed, "SHARD_ROWS", _SHARD_ROWS):
        yield


def _make_staging(things: Things, place: Path, which: str) -> None:
    """Stops a preparation between the photos and the records."""
    with (
        small_chunks(),
        mock.patch.object(files, "replace_directory", side_effect=KeyboardInterrupt),
        contextlib.suppress(KeyboardInterrupt),
    ):
        prepare(things.shop(which), place / "out", _LAX, progress=False)


def _read_staging(things: Things, place: Path) -> Parts:
    with small_chunks():
        parts = prepared_parts(prepare(things.shop(), place / "out", _LAX, progress=False))
    del parts["report"]
    return parts


# ---------------------------------------------------------------------------------------------------------- runs


def small_config(things: Things, which: str = "thing", **changes: Any) -> Config:
    """Returns a configuration that trains twelve steps on the records."""
    # Nothing that a run does after its training should take longer than the training.
    finish._SHEET_PHOTOS, finish.NOT_PRODUCTS_PER_KIND, session.EVALUATION_BATCH_SIZE = 4, 2, 8
    return make_tiny_config(
        things.of("records", which) / "records",
        data__attributes=("baseColour", "gender"),
        model__colour_heads=("baseColour",),
        **changes,
    )


def train_noting_states(config: Config, workdir: Path) -> dict[str, str]:
    """Trains to the end without scoring; returns step -> digest of the state, of every state saved or restored."""
    states: dict[str, str] = {}
    save, restore = Checkpoints.save, Checkpoints.restore

    def note(value: Any) -> None:
        if isinstance(value, TrainState):
            states[str(int(value.step))] = fingerprint(jax.tree.leaves(jax.device_get(value)))
        elif isinstance(value, (tuple, list)):
            for item in value:
                note(item)

    def saving(self: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        note(state)
        return save(self, state, *args, **kwargs)

    def restoring(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = restore(self, *args, **kwargs)
        note(found)
        return found

    with mock.patch.object(Checkpoints, "save", saving), mock.patch.object(Checkpoints, "restore", restoring):
        run.train(config, workdir, progress=False, finish=False)
    return states


def _make_trained_run(things: Things, place: Path, which: str) -> None:
    config = small_config(things, which, model__pretrained=str(things.of("package", which)))
    files.write_json(place.with_name(f"states-{which}.json"), train_noting_states(config, place))


def _make_stopped_run(things: Things, place: Path, which: str) -> None:
    """Leaves a run that was stopped after eight of its twelve steps."""
    config = small_config(things, which, model__pretrained=str(things.of("package", which)))
    stop = mock.patch.object(run, "stop_on_signals", lambda **_: contextlib.nullcontext(StopAt(8)))
    with stop, contextlib.suppress(Interrupted):
        run.train(config, place, progress=False, finish=False)


def _continue_run(things: Things, place: Path) -> Parts:
    """Trains to the end. Every state must be that of the run that was never stopped."""
    before = ever_trained_on(place)
    states = train_noting_states(small_config(things, model__pretrained=str(things.of("package"))), place)
    true = json.loads((things.of("trained run").with_name("states-thing.json")).read_text())
    return {
        "wrong states": fingerprint({step: state for step, state in states.items() if true.get(step) != state}),
        "last step": max(states, key=int, default=""),
        "trained on": fingerprint(before),
        "trained on after": fingerprint(ever_trained_on(place)),
    }


def _make_finished_run(things: Things, place: Path, which: str) -> None:
    run.train(small_config(things, which, model__second_heads=("baseColour",)), place, progress=False)
    if which == "thing":
        for step in [path.name for path in (place / "checkpoints").glob("step_*") if path.is_dir()]:
            earlier = shutil.copytree(place, place.with_name(f"earlier-{step}"))
            for path in list(earlier.rglob(f"{step}*")):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _read_finished_run(things: Things, place: Path) -> Parts:
    """Scores the run again: its best checkpoint, with the second heads of its package."""
    session.EVALUATION_BATCH_SIZE = 8
    found = run.evaluate(place, progress=False)
    return {"scores": fingerprint(found.summaries), "trained on": fingerprint(ever_trained_on(place))}


def _make_package(things: Things, place: Path, which: str) -> None:
    shutil.copytree(things.of("finished run", which) / "package", place, dirs_exist_ok=True)


def _read_package(things: Things, place: Path) -> Parts:
    """Loads a package, and predicts where it is another one than before."""
    parts, package = _load(place)
    if parts != _load(things.of("package"))[0]:
        photos = sorted((things.shop() / "images").iterdir())[:2]
        say(f"predicted {len(Predictor(package).predict(photos))} photos")
    return parts


def _load(folder: Path) -> tuple[Parts, Package]:
    package = load_package(folder)
    names = [field.name for field in dataclasses.fields(package) if field.name not in ("folder", "fingerprint")]
    return {name: fingerprint(getattr(package, name)) for name in names}, package


def _read_pretrained(things: Things, place: Path) -> Parts:
    loaded = load_pretrained(str(place))
    info = {k: v for k, v in dataclasses.asdict(loaded.info).items() if k not in ("source", "digest")}
    return {"weights": fingerprint(dict(sorted(loaded.weights.items()))), "info": fingerprint(info)}


# --------------------------------------------------------------------------------------------------------- index


def _vectors(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)


def _make_index(backend: str, things: Things, place: Path, which: str) -> None:
    """Builds an index and changes it five times; the states before are kept."""
    count, seed = 300, int(which == "twin")
    columns = {"colour": [("red", "blue", "green")[n % 3] for n in range(count)], "price": np.arange(count) / 4}
    ids = [f"p{n}" for n in range(count)]
    with Index.build(_vectors(count, seed), ids, columns, backend=backend, model="a model") as index:
        index.save(place / "index")
        changes = [
            lambda: index.upsert(["p1", "new"], _vectors(2, 7 + seed), {"colour": ["red", "black"], "price": [1, 2]}),
            lambda: index.update(["p2", "p3"], {"price": [3.5 + seed, 4]}),
            lambda: index.delete(["p4"]),
            lambda: index.update(["p5"], {"colour": ["white"]}),
            lambda: index.upsert(["newer"], _vectors(1, 9 + seed), {"colour": ["red"], "price": [5]}),
        ]
        ends: dict[str, list[int]] = {}
        for number, change in enumerate(changes):
            if which == "thing":
                shutil.copytree(place, place.with_name(f"earlier-{number}"))
            for path in place.rglob("*journal*"):
                if path.is_file() and path.stat().st_size:
                    ends.setdefault(path.relative_to(place).as_posix(), []).append(path.stat().st_size)
            change()
    if which == "thing":
        files.write_json(place.with_name("boundaries.json"), ends)


def _read_index(things: Things, place: Path) -> Parts:
    """Loads an index with its changes, asks it, and changes it once more."""
    with Index.load(place / "index") as index:
        if index.journal_warning:
            say(index.journal_warning)
        parts = _index_parts(index)
        index.update([index.ids[0]], {"price": [99]})
        again = Index.load(place / "index").attributes([index.ids[0]])[0]
        assert again["price"] == 99, "a change that was acknowledged is lost"
    return parts


def _index_parts(index: Index) -> Parts:
    hits = index.search(_vectors(5, 3), 4)
    filtered = index.search(_vectors(5, 3), 4, where="colour == 'red' and price < 40")
    return {
        "ids": fingerprint(index.ids),
        "attributes": fingerprint(index.attributes(index.ids)),
        "vectors": fingerprint(index.vectors(index.ids)),
        "answers": fingerprint([hits.ids, np.round(hits.scores, 5)]),
        "filtered": fingerprint([filtered.ids, np.round(filtered.scores, 5)]),
        "about": fingerprint([index.model, index.subspaces, index.about]),
    }


# ---------------------------------------------------------------------------------------------------- embeddings


@functools.cache
def _model(things: Things, which: str) -> Predictor:
    return load_model(things.of("package", which))


def _make_shards(things: Things, place: Path, which: str) -> None:
    """Leaves the shards of an embedding that was stopped before its end."""
    with mock.patch.object(shards.Shards, "remove"):
        _embed(things, place, which)
    for path in [path for path in place.iterdir() if path.is_file()]:
        path.unlink()


def _embed(things: Things, place: Path, which: str = "thing") -> Parts:
    with small_chunks():
        embed.embed_source(_model(things, which), things.shop(which), place / "embeddings.npz", progress=False)
    return embedding_parts(place / "embeddings.npz")


def embedding_parts(path: Path) -> Parts:
    """Returns the arrays of a file of embeddings."""
    with np.load(path, allow_pickle=False) as arrays:
        # The same photo in batches of other sizes differs in the last bits.
        rounded = np.round(arrays["embeddings"].astype(np.float64), 4) + 0.0
        return {**{name: fingerprint(arrays[name]) for name in ("ids", "photos")}, "embeddings": fingerprint(rounded)}


# -------------------------------------------------------------------------------------------------------- sweeps

_SPACE = {"optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "model.drop_path": [0, 0.1]}


def _fake_train(config: Config, workdir: Path, *, on_evaluation: Any, finish: bool, **_: Any) -> run.Result:
    for step in (1, 2):
        on_evaluation(step, 2, {"mean/accuracy": 0.8 - abs(config.optimizer.learning_rate - 1e-3) + step / 10})
    return run.Result(workdir, 2)


def _sweep(things: Things, place: Path, which: str) -> list[dict[str, Any]]:
    records = things.of("records", which) / "records"
    config, space = things.root / f"sweep-{which}.py", things.root / f"space-{which}.json"
    files.write_text(
        config, f"from drawn_products import make_tiny_config as make\nget_config = lambda: make({str(records)!r})\n"
    )
    files.write_json(space, _SPACE)
    with mock.patch.object(sweep, "train", _fake_train):
        return sweep.sweep(config, space, place, num_trials=4, progress=False)


def _make_sweep(things: Things, place: Path, which: str) -> None:
    _sweep(things, place / "sweep", which)


def _read_sweep(things: Things, place: Path) -> Parts:
    trials = _sweep(things, place / "sweep", "thing")
    return {"trials": fingerprint([{k: v for k, v in trial.items() if k != "workdir"} for trial in trials])}


# --------------------------------------------------------------------------------------------------------- kinds


def _never(name: str) -> bool:
    return False


def _always(name: str) -> bool:
    return True


def _source(kind: str, name: str, *, unchecked: bool, share: int = 80) -> Kind:
    """Returns the kind of a source that is one file; what a damaged row or photo takes out of it is said."""
    make = functools.partial(_make_archive if "zip" in name or "tar" in name else _make_table, name)
    return Kind(
        f"source {kind}",
        make,
        lambda things, place: _prepare(place / name, place.with_name("out")),
        share,
        only=_is_table,
        unchecked=_always if unchecked else _never,
        has_parts=False,
        rows_may_lack=True,
    )


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "source folder",
            _make_folder,
            lambda things, place: _prepare(place, place.with_name("out")),
            60,
            unchecked=_always,
            rows_may_lack=True,
        ),
        _source("zip", "shop.zip", unchecked=False),
        _source("tar", "shop.tar", unchecked=True),
        _source("tar.gz", "shop.tar.gz", unchecked=False),
        _source("tar.xz", "shop.tar.xz", unchecked=False),
        _source("parquet", "shop.parquet", unchecked=True),
        _source("xlsx", "styles.xlsx", unchecked=False, share=60),
        _source("jsonl", "styles.jsonl", unchecked=True, share=60),
        Kind("corrections", _make_corrections, _read_corrections, 60, unchecked=_always, has_parts=False),
        Kind("schema", _make_schema, _read_schema, 100, unchecked=_always, has_parts=False),
        Kind("records", _make_records, _verified(_read_records, "records"), 320),
        Kind("records prepared again", _make_records, _prepare_again, 60),
        Kind("staging", _make_staging, _read_staging, 100),
        Kind("trained run", _make_trained_run, _verified(_continue_run), 240),
        Kind("stopped run", _make_stopped_run, _verified(_continue_run), 60),
        Kind("finished run", _make_finished_run, _verified(_read_finished_run), 80),
        Kind("package", _make_package, _verified(_read_package), 250),
        Kind("pretrained weights", _make_package, _read_pretrained, 60),
        Kind("index exact", functools.partial(_make_index, "exact"), _verified(_read_index, "index"), 270),
        Kind("index hnsw", functools.partial(_make_index, "hnsw"), _verified(_read_index, "index"), 170),
        Kind("index scann", functools.partial(_make_index, "scann"), _verified(_read_index, "index"), 170),
        Kind("shards", _make_shards, _embed, 100),
        Kind("sweep", _make_sweep, _read_sweep, 100),
    )
}
