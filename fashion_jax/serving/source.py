"""Runs a model over a whole source, streaming; what cannot be read goes to a quarantine file."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from fashion_jax import files
from fashion_jax.data.catalog import Catalog, Product, Rejected, open_catalog
from fashion_jax.data.photos import BadPhoto
from fashion_jax.data.prepare import format_quarantine
from fashion_jax.data.schema import Schema
from fashion_jax.errors import UserError
from fashion_jax.progress import progress_bar
from fashion_jax.serving.predictor import Outputs, Predictor

_AHEAD = 4  # batches that are decoded while the model computes

_Decoded = list[tuple[Product, np.ndarray | BadPhoto]]


class SourceRun:
    """One pass of a model over a source.

    Attributes:
        catalog: the source as read; its rejected rows grow by the photos that are not usable.
    """

    def __init__(
        self,
        model: Predictor,
        source: str | Path,
        out: Path,
        *,
        schema: Schema | None = None,
        progress: bool = True,
    ) -> None:
        """Reads the table.

        Args:
            model: that runs over it.
            source: as `open_catalog` takes it.
            out: the file that will be written; checked before the work, which may take hours.
            schema: how to read the table; None: known or inferred.
            progress: whether to show a bar.

        Raises:
            UserError: the source cannot be read, or `out` cannot be written.
        """
        _check_out(out, source)
        self._model, self._out, self._progress = model, out, progress
        self.catalog: Catalog = open_catalog(source, schema, labelled=False)

    def batches(self) -> Iterator[tuple[list[Product], Outputs]]:
        """Yields the usable products with the model's outputs, in the order that the source reads fastest."""
        bar = progress_bar(len(self.catalog.products), "predicting", show=self._progress, unit="photo")
        many = len(self.catalog.products) > self._model.batch_size
        with bar, ThreadPoolExecutor() as pool:
            for decoded in self._decode_ahead(pool):
                good = [(p, image) for p, image in decoded if not isinstance(image, BadPhoto)]
                bad = [Rejected(p.row, p.id, str(image)) for p, image in decoded if isinstance(image, BadPhoto)]
                self.catalog.rejected += bad
                if good:
                    images = np.stack([image for _, image in good])
                    yield [p for p, _ in good], self._model.predict_arrays(images, whole_batches=many)
                bar.update(len(decoded))

    def _decode_ahead(self, pool: ThreadPoolExecutor) -> Iterator[_Decoded]:
        photos = self.catalog.iter_photos(self.catalog.products)
        waiting: deque[Future[_Decoded]] = deque()
        while batch := list(islice(photos, self._model.batch_size)):
            waiting.append(pool.submit(self._decode_all, batch))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _decode_all(self, batch: list[tuple[Product, bytes | BadPhoto]]) -> _Decoded:
        return [(product, self._decode(data)) for product, data in batch]

    def _decode(self, data: bytes | BadPhoto) -> np.ndarray | BadPhoto:
        if isinstance(data, BadPhoto):
            return data
        try:
            return self._model.decode(data)
        except BadPhoto as error:
            return error

    def write_quarantine(self) -> str:
        """Writes `<out>.quarantine.csv` where rows were left out, and returns a sentence about them."""
        path = self._out.with_name(self._out.name + ".quarantine.csv")
        rejected = sorted(self.catalog.rejected, key=lambda item: item.row)
        if not rejected:
            path.unlink(missing_ok=True)
            return "no row was left out"
        files.write_text(path, format_quarantine(rejected))
        return f"{len(rejected):,} rows were left out, with the reasons in {path}"


def _check_out(out: Path, source: str | Path) -> None:
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the name of a file to write")
    if out.exists() and Path(source).exists() and out.samefile(source):
        raise UserError(f"{out} is the source itself; give another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {out.parent} cannot be made: {error.strerror}") from error
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"the folder {out.parent} cannot be written; choose another place for {out.name}")
