"""What prediction and embedding of a whole source share: reading ahead, batching, and what is left out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fashion_jax.data.catalog import Catalog, Product, Rejected, open_catalog
from fashion_jax.data.parallel import RawPhoto, map_photos
from fashion_jax.data.photos import BadPhoto
from fashion_jax.data.prepare import format_quarantine
from fashion_jax.data.schema import Schema
from fashion_jax.data.tables import TABLE_SUFFIXES
from fashion_jax.serving.predictor import Outputs, Predictor
from fashion_jax.system import files
from fashion_jax.system.errors import UserError
from fashion_jax.system.progress import progress_bar


class SourceRun:
    """One pass of a model over a catalogue.

    Attributes:
        catalog: whose products are run over; its rejected rows grow as photos turn out bad.
        out: the file that will be written, links followed.
    """

    def __init__(
        self,
        model: Predictor,
        source: str | Path,
        out: str | Path,
        *,
        schema: Schema | None = None,
        progress: bool = True,
        flip: bool | None = None,
        operating_point: str = "accuracy",
    ) -> None:
        """Reads the table.

        Args:
            model: that runs over it.
            source: as `open_catalog` takes it.
            out: the file that will be written; checked before the work, which may take hours.
            schema: how to read the table; None: known or inferred.
            progress: whether to show a bar.
            flip: as `Predictor.predict_arrays` takes it.
            operating_point: likewise.

        Raises:
            UserError: the source cannot be read or holds no usable row, `out` cannot be written, or the package has no
                such operating point.
        """
        model.check_operating_point(operating_point)
        self._model, self._source, self._progress = model, source, progress
        self._how: dict[str, Any] = {"flip": flip, "operating_point": operating_point}
        self.out = Path(out).resolve()
        _check_out(self.out, Path(source))
        self.catalog: Catalog = open_catalog(source, schema, labelled=False)
        self._check_enough(len(self.catalog.products))

    def batches(self, done: Collection[int] = ()) -> Iterator[tuple[list[Product], Outputs]]:
        """Yields the usable products with the model's outputs, in the order that the source reads fastest.

        Args:
            done: rows that are left out, since an earlier run has seen to them.

        Raises:
            UserError: at the end, when no photo was usable.
        """
        left = [p for p in self.catalog.products if p.row not in done] if done else self.catalog.products
        count, usable = len(self.catalog.products), len(done)
        bar = progress_bar(count, "predicting", show=self._progress, unit="photo", initial=count - len(left))
        decoded = map_photos(self._decode, self.catalog.iter_photos(left))
        running: deque[list[Product]] = deque()  # the products of batches that the model has been given

        def read_batches() -> Iterator[np.ndarray]:
            while batch := list(islice(decoded, self._model.batch_size)):
                good = [(p, image) for p, image in batch if not isinstance(image, BadPhoto)]
                bad = [Rejected(p.row, p.id, str(image)) for p, image in batch if isinstance(image, BadPhoto)]
                self.catalog.rejected += bad
                bar.update(len(bad))
                if good:
                    running.append([p for p, _ in good])
                    yield np.stack([image for _, image in good])

        many = count > self._model.batch_size
        with bar, closing(decoded):
            for outputs in self._model.predict_batches(read_batches(), whole_batches=many, **self._how):
                products = running.popleft()
                usable += len(products)
                yield products, outputs
                bar.update(len(products))
        self._check_enough(usable)

    def _check_enough(self, usable: int) -> None:
        if not usable:
            examples = "; ".join(f"row {r.row} (id {r.id!r}): {r.reason}" for r in self.catalog.rejected[:3])
            raise UserError(f"no row of {self._source} is usable: {examples or 'it has none'}")

    def _decode(self, photo: RawPhoto) -> tuple[Product, np.ndarray | BadPhoto]:
        product, data = photo
        if isinstance(data, BadPhoto):
            return product, data
        try:
            return product, self._model.decode(data)
        except BadPhoto as error:
            return product, error

    def write_quarantine(self) -> str:
        """Writes `<out>.quarantine.csv` where rows were left out, and returns a sentence about them."""
        path = self.out.with_name(self.out.name + ".quarantine.csv")
        rejected = sorted(self.catalog.rejected, key=lambda item: item.row)
        if not rejected:
            path.unlink(missing_ok=True)
            return "no row was left out"
        files.write_text(path, format_quarantine(rejected))
        return f"{len(rejected):,} rows were left out, with the reasons in {path}"


def _check_out(out: Path, source: Path) -> None:
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the name of a file to write")
    if out.exists() and not out.is_file():
        raise UserError(f"{out} is no regular file; give the name of a file to write")
    if source.is_dir() and out.is_relative_to(source.resolve()) and out.name.lower().endswith(TABLE_SUFFIXES):
        raise UserError(f"{out} lies in the source, whose table it would be the next time; give a place outside of it")
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"{out} is the source itself; give another --out")
    folder = next(parent for parent in out.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"the folder {folder} cannot be written; choose another place for {out.name}")
    if len(os.fsencode(out.name)) > 200:  # 255 with what is added to it on the way
        raise UserError(f"the name {out.name[:40]}... is too long; give a shorter one")
