"""Runs a model on photos one after the other, and on all products of a source."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fashion_jax.data.catalog import Catalog, Record, Rejected, open_catalog
from fashion_jax.data.photos import BadPhoto, decode_photos
from fashion_jax.data.prepare import format_quarantine
from fashion_jax.data.schema import Schema
from fashion_jax.data.tables import TABLE_SUFFIXES
from fashion_jax.serving.predictor import Outputs, Predictor
from fashion_jax.system import files
from fashion_jax.system.errors import UserError
from fashion_jax.system.progress import progress_bar

K = TypeVar("K")
_NAMED = 5  # rows, and kinds of files, that a sentence names


def predict_photos(
    model: Predictor,
    photos: Iterator[tuple[K, bytes | BadPhoto]],
    *,
    decode: Callable[[bytes], np.ndarray],
    reject: Callable[[K, BadPhoto], None] = lambda name, error: None,
    flip: bool | None = None,
    operating_point: str = "accuracy",
) -> Iterator[tuple[list[K], Outputs]]:
    """Runs a model on photos in batches, while threads decode the next ones.

    Args:
        photos: pairs of a name and the bytes of a photo, or the reason why it could not be read.
        decode: makes uint8 RGB of the model's size from bytes, or raises BadPhoto; runs in threads.
        reject: is called with each photo that cannot be used.
        flip: whether probabilities are means over a photo and its mirror image; None: as the package says.
        operating_point: "accuracy" or "macro_f1".

    Yields:
        The names of a batch's photos and their outputs, in the order of `photos`.
    """

    decoded = decode_photos(decode, photos)
    running: deque[list[K]] = deque()  # names of the batches that the model has been given

    def read_batches() -> Iterator[np.ndarray]:
        while batch := list(islice(decoded, model.batch_size)):
            names, images = [], []
            for name, image in batch:
                if isinstance(image, BadPhoto):
                    reject(name, image)
                else:
                    names.append(name)
                    images.append(image)
            if images:
                running.append(names)
                yield np.stack(images)

    with closing(decoded):
        for outputs in model.predict_batches(read_batches(), flip=flip, operating_point=operating_point):
            yield running.popleft(), outputs


class SourceRun:
    """One pass of a model over the products of a source.

    Attributes:
        catalog: the records; its rejected rows grow as photos turn out to be unusable.
        out: the file that will be written, links followed.
    """

    def __init__(
        self,
        model: Predictor,
        source: str | Path,
        out: str | Path | None,
        *,
        schema: Schema | None = None,
        progress: bool = True,
        flip: bool | None = None,
        operating_point: str = "accuracy",
    ) -> None:
        """Reads the table.

        Args:
            source: as `open_catalog` takes it.
            out: the file that will be written; it is checked before the work, which may take hours. None for none.
            schema: how to read the table; None: known or inferred.
            flip, operating_point: as `Predictor.predict_arrays` takes them.

        Raises:
            UserError: the source cannot be read or holds no usable row, `out` cannot be written, or the package has no
                such operating point.
        """
        model.check_operating_point(operating_point)
        self._model, self._source, self._progress = model, source, progress
        self._options: dict[str, Any] = {"flip": flip, "operating_point": operating_point}
        self._writes = out is not None
        self.out = Path(out or source).resolve()
        if self._writes:
            _check_out(self.out, Path(source))
            for path in (self.out, self._quarantine):
                files.remove_stale(path)
        self.catalog: Catalog = open_catalog(source, schema, labelled=False)
        self.check_enough(len(self.catalog.records))

    def batches(self, done: Collection[int] = (), doing: str = "predicting") -> Iterator[tuple[list[Record], Outputs]]:
        """Yields records with the model's outputs, in the order in which the source is read fastest.

        Args:
            done: numbers of records to leave out because an earlier run computed them.
            doing: what the progress bar says.

        Raises:
            UserError: at the end, where no photo was usable.
        """
        left = [r for r in self.catalog.records if r.number not in done] if done else self.catalog.records
        count, usable = len(self.catalog.records), len(done)
        bar = progress_bar(count, doing, show=self._progress, unit="photo", initial=count - len(left))

        def reject(record: Record, error: BadPhoto) -> None:
            self.catalog.rejected.append(Rejected(record.row, record.id, str(error)))
            bar.update()

        with bar:
            for records, outputs in predict_photos(
                self._model, self.catalog.iter_photos(left), decode=self._model.decode, reject=reject, **self._options
            ):
                usable += len(records)
                yield records, outputs
                bar.update(len(records))
        self.check_enough(usable)

    def check_enough(self, usable: int) -> None:
        """Raises UserError where no row was usable."""
        if not usable:
            examples = "; ".join(map(str, self.catalog.rejected[:3]))
            raise UserError(f"no row of {self._source} is usable: {examples or 'it has none'}")

    @property
    def _quarantine(self) -> Path:
        return self.out.with_name(self.out.name + ".quarantine.csv")

    def write_quarantine(self) -> str:
        """Writes `<out>.quarantine.csv` if rows were left out and `out` was given.

        Returns:
            What to say about rows that were left out, about repairs, and about files that were passed over.
        """
        path = self._quarantine
        rejected = sorted(self.catalog.rejected, key=lambda item: item.row)
        note = "no row was left out"
        if rejected and self._writes:
            files.write_text(path, format_quarantine(rejected))
            note = f"{len(rejected):,} rows were left out, with the reasons in {path}"
        elif rejected:
            note = f"{len(rejected):,} rows were left out: {'; '.join(map(str, rejected[:_NAMED]))}"
        elif self._writes:
            path.unlink(missing_ok=True)
        repairs = [f"repaired: {name}: {count:,}" for name, count in self.catalog.repairs.items()]
        others = ", ".join(f"{count:,} {kind}" for kind, count in self.catalog.passed_over.most_common(_NAMED))
        return "; ".join([note, *repairs, *([f"files passed over: {others}"] if others else [])])


def _check_out(out: Path, source: Path) -> None:
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the name of a file to write")
    if out.exists() and not out.is_file():
        raise UserError(f"{out} is a device or a pipe; give the name of a file to write")
    if source.is_dir() and out.is_relative_to(source.resolve()) and out.name.lower().endswith(TABLE_SUFFIXES):
        raise UserError(f"{out} lies in the source, and would be read as its table the next time; give another --out")
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"{out} is the source itself; give another --out")
    folder = next(parent for parent in out.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"the folder {folder} cannot be written; choose another place for {out.name}")
    if len(os.fsencode(out.name)) > 200:  # File systems allow 255, and temporary names are longer.
        raise UserError(f"the name {out.name[:40]}... is too long; give a shorter one")
