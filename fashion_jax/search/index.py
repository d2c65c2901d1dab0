"""The index of products: built, searched, changed while searches go on, saved and loaded."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fashion_jax.search import storage
from fashion_jax.search.attributes import make_table
from fashion_jax.search.build import build_base, check_options
from fashion_jax.search.inputs import check_ids, check_vectors
from fashion_jax.search.journal import Update
from fashion_jax.search.projection import fit_projection
from fashion_jax.search.query import Refinement, find
from fashion_jax.search.ranking import Hits
from fashion_jax.search.saved import SavedIndex
from fashion_jax.search.snapshot import Snapshot
from fashion_jax.search.subspaces import check_subspaces
from fashion_jax.search.updates import Writing, has_many_dead_additions, rebase, without_dead_additions
from fashion_jax.search.view import IndexView
from fashion_jax.system.errors import UserError


class Index(IndexView, contextlib.AbstractContextManager["Index"]):
    """Products' vectors with their ids and attributes.

    One thread or process changes it at a time and any number search; each search sees one whole version. An index
    that was saved or loaded keeps every acknowledged change in a journal beside it, also through a crash.
    """

    def __init__(self, snapshot: Snapshot, settings: dict[str, Any]) -> None:
        super().__init__(snapshot, settings)
        self._lock = threading.RLock()  # of the writers
        self._writing: Writing | None = None  # made for the first change: searching needs none of it
        self._saved: SavedIndex | None = None
        self._rebuilds = 0  # under way: they count on rows staying where they are

    @classmethod
    def build(
        cls,
        embeddings: Any,
        ids: Any,
        attributes: Any = None,
        *,
        target_recall: float = 0.95,
        backend: str = "auto",
        batch: int = 1,
        pca: int | None = None,
        whiten: bool = False,
        model: str = "",
        subspaces: Mapping[str, int] | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> Index:
        """Builds an index.

        Args:
            embeddings: real numbers (n, features), of any length; at least one row.
            ids: n integers from 0 on, or n texts, each once.
            attributes: columns to filter and group by: a DataFrame, or a mapping from names to n values each.
            target_recall: mean share of the true nearest products that a search finds, in (0, 1]; met on a sample of
                the rows with a margin for the sample's error.
            backend: "exact", "scann", or "auto", which chooses by size, batch and device.
            batch: queries per search that are typical.
            pca: principal components that are kept, or None for the features as they are.
            whiten: whether the components are scaled to the same variance.
            model: fingerprint of the model that made the embeddings, so that queries of another one are refused.
            subspaces: name -> features of the embeddings' parts, in order, that searches may weigh.
            seed: of what is sampled.
            progress: whether to show a bar.

        Raises:
            UserError: a ValueError that says what is wrong with which argument.
        """
        vectors = check_vectors(embeddings, None, "embeddings")
        if not len(vectors):
            raise UserError("an index needs at least one product")
        names = check_ids(ids, len(vectors))
        table = make_table(attributes, len(vectors))
        check_options(target_recall=target_recall, backend=backend, batch=batch, pca=pca, whiten=whiten, seed=seed)
        target = float(target_recall)
        parts = check_subspaces(subspaces, vectors.shape[1], projected=pca is not None)
        projection = None
        if pca is not None:
            projection = fit_projection(vectors, int(pca), whiten=whiten, seed=seed)
            vectors = check_vectors(projection.apply(vectors), None, "projected embeddings")
        base = build_base(vectors, backend, target, batch=int(batch), seed=seed, progress=progress)
        every = np.ones(len(names), bool)
        snapshot = Snapshot(1, names, every, len(names), base, base.vectors[:0], table, projection)
        chosen = {"model": str(model), "backend": backend, "batch": int(batch), "seed": int(seed)}
        return cls(snapshot, chosen | {"subspaces": parts, "about": {}})

    @classmethod
    def load(cls, path: str | Path) -> Index:
        """Loads an index with every acknowledged change; UserError where there is none, or it is damaged."""
        saved = SavedIndex(Path(path))
        index = cls(*saved.read())
        index._saved = saved
        index._catch_up()
        return index

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        where: str | None = None,
        group_by: str | None = None,
        diversity: float = 0.0,
        min_score: float | None = None,
        exclude: Any = None,
        weights: Mapping[str, float] | None = None,
    ) -> Hits:
        """Finds the nearest products by cosine similarity.

        Args:
            queries: (num_queries, features), or one (features,); of any length.
            k: products per query, in [1, len(index)].
            where: a filter such as "gender == 'Women' and baseColour in ['Red', 'Maroon']"; see `search.where`.
            group_by: a column; of products with equal values the nearest alone is returned.
            diversity: in [0, 1]; above 0, products too similar to better ones give way (maximal marginal relevance).
            min_score: similarity below which nothing is returned; with weights, to the weighted query.
            exclude: ids that are not returned, such as the query's own.
            weights: of the embedding's `subspaces`, such as {"baseColour": 3}; 1 where not named. Unless all are equal,
                every product is compared, as the index is not tuned on such queries.

        Returns:
            Hits. As many as there are, up to k: the filter never costs any.

        Raises:
            UserError: a ValueError that says what is wrong with which argument.
        """
        snapshot = self._snapshot  # one version, whatever is written meanwhile
        vectors, exact = self._weigh(snapshot.project(queries, "queries"), weights)
        return find(snapshot, vectors, k, Refinement(where, group_by, diversity, min_score, exclude, exact))

    def search_projected(
        self, queries: Any, k: int = 10, *, weights: Mapping[str, float] | None = None, **options: Any
    ) -> Hits:
        """Does what `search` does, with the same options, for queries that `project` or `vectors` returned."""
        snapshot = self._snapshot
        vectors = check_vectors(queries, snapshot.base.vectors.shape[1], "queries")
        vectors, exact = self._weigh(vectors, weights)
        return find(snapshot, vectors, k, Refinement(**options, exact=exact))

    def upsert(self, ids: Any, embeddings: Any, attributes: Any = None) -> None:
        """Adds products, or replaces those that are there; all of them in one step, or none.

        Args:
            ids: as in `build`; each once.
            embeddings: (n, features).
            attributes: as in `build`, columns of the index alone. A column that is not given keeps its value where
                the product was there, and is missing where it is new.

        Raises:
            UserError: bad input, another process is writing, or the disk; the index is as it was.
        """
        with self._lock:
            writing, snapshot = self._start_writing()
            vectors = snapshot.project(embeddings, "embeddings")
            names = check_ids(ids, len(vectors), snapshot.ids.dtype.kind)
            given = make_table(attributes, len(names))
            table = writing.complete(snapshot, names, given)
            if len(names):
                self._commit(Update(False, names, vectors, table.to_lists()))

    def delete(self, ids: Any) -> None:
        """Removes products, all of them in one step; KeyError where one is not there, and nothing is removed then."""
        with self._lock:
            _, snapshot = self._start_writing()
            names = check_ids(ids, None, snapshot.ids.dtype.kind)
            snapshot.find(names.tolist())
            if len(names):
                self._commit(Update(True, names))

    def rebuild(self, *, progress: bool = False) -> None:
        """Indexes the live products anew; searches and changes go on meanwhile. A saved index is saved again."""
        with self._lock:
            before = self._snapshot
            self._rebuilds += 1
        try:
            rows = np.flatnonzero(before.live)
            if not len(rows):
                raise UserError("an index without products cannot be rebuilt; add some first")
            backend, target = self._settings["backend"], before.base.target_recall
            chosen = {name: self._settings[name] for name in ("batch", "seed")}
            base = build_base(before.vectors(rows), backend, target, **chosen, progress=progress)
            with self._lock:
                _, now = self._start_writing()
                if now.base is not before.base:
                    raise UserError("the index was rebuilt by someone else meanwhile")
                self._writing, self._snapshot = None, rebase(before, now, base)
                if self._saved is not None:
                    self.save(self._saved.folder)
        finally:
            with self._lock:
                self._rebuilds -= 1

    def save(self, path: str | Path) -> None:
        """Writes the index into a folder, in one step, and keeps later changes there.

        UserError where the folder holds something else, another process is changing it, or it cannot be written.
        """
        with self._lock:
            saved = self._saved
            if saved is not None and saved.is_at(Path(path)):
                self._start_writing()  # what another process has changed since is saved with the rest
            else:
                storage.check_place(Path(path))
                saved = SavedIndex(Path(path))
                saved.lock()
            self._drop_dead_additions()
            try:
                saved.replace(self._snapshot, self._settings)
            except BaseException:
                # Whichever generation is the current one now is found out by the next change.
                saved.let_go()
                raise
            if saved is not self._saved:
                self.close()
            self._saved = saved

    def refresh(self) -> bool:
        """Takes over what another process has changed since; returns whether there was anything."""
        with self._lock:
            before = self._snapshot
            if self._saved is not None and not self._saved.is_writer:
                self._catch_up()
            return self._snapshot is not before

    def close(self) -> None:
        """Lets another process change the index; searching goes on."""
        with self._lock:
            if self._saved is not None:
                self._saved.let_go()

    @property
    def folder(self) -> Path | None:
        """Where it was saved or loaded last, or None."""
        return self._saved.folder if self._saved is not None else None

    @property
    def unread(self) -> str:
        """A sentence about bytes behind the last update on the disk that are no whole one; empty where there are none.

        A crash leaves such, of an update that was never acknowledged; a damaged disk may, of one that was.
        """
        return self._saved.rest if self._saved is not None else ""

    def __exit__(self, *_: object) -> None:
        self.close()

    def _writer(self) -> Writing:
        if self._writing is None:
            self._writing = Writing(self._snapshot)
        return self._writing

    def _drop_dead_additions(self) -> None:
        if not self._rebuilds:
            following = without_dead_additions(self._snapshot)
            if following is not self._snapshot:
                self._writing, self._snapshot = None, following

    def _start_writing(self) -> tuple[Writing, Snapshot]:
        saved = self._saved
        if saved is not None and not saved.is_writer:
            saved.lock()
            try:
                self._catch_up()
                saved.open_journal()
            except BaseException:
                saved.let_go()
                raise
        return self._writer(), self._snapshot

    def _commit(self, update: Update) -> None:
        saved = self._saved
        try:
            if saved is not None:
                saved.append(update)  # on the disk first: what a search has shown is never lost
            self._snapshot = self._writer().apply(self._snapshot, update)
            if saved is not None:
                saved.advance()
        except BaseException:
            # Half of it may have been done; the next change starts from the snapshot, and reads the disk again.
            self._writing = None
            if saved is not None:
                saved.let_go()
            raise
        self._tidy()

    def _tidy(self) -> None:
        """Drops and saves away what has piled up. The change is done and on the disk: nothing of this may undo it."""
        saved = self._saved
        try:
            if has_many_dead_additions(self._snapshot):
                self._drop_dead_additions()
            if saved is not None and saved.journal_is_long:
                saved.put_off()  # should it fail, not every change tries again
                self.save(saved.folder)
        except Exception as error:
            logging.getLogger(__name__).warning("the index could not be tidied up: %s", error)

    def _catch_up(self) -> None:
        """Reads what is on the disk and not yet here."""
        saved = self._saved
        assert saved is not None
        try:
            while True:
                if saved.is_replaced():
                    self._writing = None
                    self._snapshot, self._settings = saved.read()
                updates = saved.updates(self._snapshot)
                if updates:
                    self._snapshot = self._writer().apply_all(self._snapshot, updates)
                    saved.advance()
                    if has_many_dead_additions(self._snapshot):
                        self._drop_dead_additions()
                # A journal that went because a new generation came meanwhile looks like one without updates.
                if not saved.is_replaced():
                    return
        except BaseException:
            self._writing = None  # it may be ahead of the snapshot
            raise
