"""The index of products: built, searched, changed while searches go on, saved and loaded."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from fashion_jax.search import storage
from fashion_jax.search.attributes import PHOTO, Scalar, make_table
from fashion_jax.search.build import backend_here, build_base, check_target
from fashion_jax.search.inputs import as_list, check_ids, check_k, check_vectors
from fashion_jax.search.planner import Health, measure_health
from fashion_jax.search.query import PLAIN, Hits, Refinement, check_subspaces, find, weigh
from fashion_jax.search.snapshot import (
    Snapshot,
    Update,
    Updater,
    drop_dead_additions,
    find_first_photos,
    has_many_dead_additions,
    photo_starts,
    replace_base,
    sort_by_product,
)
from fashion_jax.system.errors import UserError


class Index(contextlib.AbstractContextManager["Index"]):
    """Products with their ids, the vectors of their photos, and attributes.

    A product has one photo or several. Where a sentence speaks of rows, a row is a photo.

    One thread or process at a time changes the index; any number search it. Each search sees one whole version. An
    index that was saved or loaded keeps every change in a journal on the disk, so that a crash loses none.
    """

    def __init__(self, snapshot: Snapshot, settings: dict[str, Any]) -> None:
        self._snapshot, self._settings = snapshot, settings
        self._lock = threading.RLock()  # of the writers
        self._updater: Updater | None = None  # made for the first change: searching does not need it
        self._saved: storage.SavedIndex | None = None
        self._rebuilds = 0  # rebuilds that are running; they need rows to stay where they are

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
        model: str = "",
        subspaces: Mapping[str, int] | None = None,
        progress: bool = False,
    ) -> Index:
        """Builds an index.

        Args:
            embeddings: real numbers (n, features), of any length; at least one row. A row is a photo.
            ids: of the photos' products, n integers of at least 0, or n texts. Rows with the same id are photos of
                one product.
            attributes: columns to filter and group by: a DataFrame, or a mapping from names to n values each. The
                column "photo" names the photos. A column holds texts, numbers, booleans or dates (`datetime.date` or
                `datetime`).
            target_recall: mean share of the true nearest photos that a search finds, in (0, 1]. It is met on a
                sample of the rows, with a margin for the sample's error.
            backend: "exact", "scann", "hnsw", or "auto", which chooses by size, device, and what it measures.
            batch: typical number of queries in one search; "auto" takes what is fastest for it.
            model: fingerprint of the model that made the embeddings; queries of another model are refused.
            subspaces: name -> number of values of each part of the embeddings, in order; searches may weigh them.

        Raises:
            UserError: a ValueError that says what is wrong with which argument.
        """
        vectors = check_vectors(embeddings, None, "embeddings")
        if not len(vectors):
            raise UserError("an index needs at least one product")
        names = check_ids(ids, len(vectors), repeats=True)
        table = make_table(attributes, len(vectors))
        if (order := sort_by_product(names)) is not None:
            names, vectors, table = names[order], vectors[order], table.take(order)
        check_target(target_recall, backend)
        parts, batch = check_subspaces(subspaces, vectors.shape[1]), check_k(batch, "batch")
        base = build_base(vectors, float(target_recall), backend, batch=batch, progress=progress)
        every, products = np.ones(len(names), bool), len(photo_starts(names))
        first = None if order is None else find_first_photos(names, every, len(names))
        snapshot = Snapshot(1, names, every, len(names), products, base, base.vectors[:0], table, first)
        settings = {"model": str(model), "backend": backend, "batch": batch, "subspaces": parts, "about": {}}
        return cls(snapshot, settings)

    @classmethod
    def load(cls, path: str | Path, *, updates: bool = True) -> Index:
        """Loads an index with every change; UserError where there is none, or it is damaged.

        Args:
            updates: False reads the index as it was last built, rebuilt or saved, without the changes since: use it
                where the journal of these changes is lost. The index is in memory only; `save` writes it.
        """
        saved = storage.SavedIndex(Path(path))
        index = cls(*saved.read())
        if updates:
            index._saved = saved
            index._read_changes()
        return index

    @classmethod
    def verify(cls, path: str | Path) -> Index:
        """Loads an index and checks every byte of it.

        UserError says what is damaged and what to do: also damage of which a copy exists, so that `load` goes on.
        """
        index = cls.load(path)
        if index._saved is not None and index._saved.damage:
            raise UserError(index._saved.damage)
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
        """Finds the nearest products by cosine similarity. A product is found once, by its nearest photo.

        Args:
            queries: (num_queries, features), or one (features,); of any length.
            k: products per query, in [1, len(index)].
            where: a filter such as "gender == 'Women' and baseColour in ['Red', 'Maroon']"; `search.where` describes
                the language. A filter never reduces the number of results: if ten products match, you get ten. Where
                the photos of a product differ in a column, only the photos that pass are looked at.
            group_by: a column; of products with equal values only the nearest is returned. The value of a product is
                that of its nearest photo.
            diversity: in [0, 1]; above 0, a product that is too similar to a better one is passed over (maximal
                marginal relevance).
            min_score: cosine similarity below which nothing is returned; with weights, to the weighted query.
            exclude: ids that are not returned, such as the query's own.
            weights: factors of the embedding's `subspaces`, such as {"baseColour": 3}; 1 for the others. Unless all
                factors are equal, the query is compared with every product, because the index is not tuned for it.

        Returns:
            Hits: k for each query, or all that there are.

        Raises:
            UserError: a ValueError that says what is wrong with which argument.
        """
        snapshot = self._snapshot  # one version, whatever is changed meanwhile
        vectors, exact = check_vectors(queries, snapshot.width, "queries", copy=False), False
        no_filter = where is None and group_by is None and min_score is None and exclude is None
        if no_filter and weights is None and not diversity:
            return find(snapshot, vectors, k, PLAIN)
        if weights is not None:
            vectors, exact = self._weigh(vectors, weights)
        return find(snapshot, vectors, k, Refinement(where, group_by, diversity, min_score, exclude, exact))

    def upsert(self, ids: Any, embeddings: Any, attributes: Any = None) -> None:
        """Adds products, or replaces products with the same ids: all of them in one step, or none.

        All photos of a replaced product are replaced.

        Args:
            ids: as in `build`.
            embeddings: (n, features).
            attributes: as in `build`; only columns that the index has. For a column that is not given, a replaced
                product keeps the value of its first photo, and a new product has none. Names of photos are not kept,
                nor confidences of labels that change.

        Raises:
            UserError: bad input, another process is writing, or the disk cannot be written; the index is unchanged.
        """
        with self._lock:
            updater, snapshot = self._begin_change()
            vectors = check_vectors(embeddings, snapshot.width, "embeddings", copy=False)
            names = check_ids(ids, len(vectors), snapshot.ids.dtype.kind, repeats=True)
            given = make_table(attributes, len(names))
            if (order := sort_by_product(names)) is not None:
                names, vectors, given = names[order], vectors[order], given.take(order)
            table = updater.complete(snapshot, names, given)
            if len(names):
                self._commit(Update(False, names, vectors, table.to_lists()))

    def update(self, ids: Any, attributes: Any) -> None:
        """Changes attributes of products, without their photos: all of them in one step, or none.

        All photos of a product get the values. Other columns, and other products, keep theirs.

        Args:
            ids: each once.
            attributes: as in `build`, with a value for each id; None removes a value. A column that the index lacks is
                added, and is empty for other products. A column of texts that are no labels becomes one of another
                kind (numbers, yes and no, dates) only if all products are given. Where a label changes, and its
                confidence is not given, the product has no confidence then.

        Raises:
            KeyError: a product is not there.
            UserError: bad input, a column of another kind, another process is writing, or the disk cannot be written.
                The index is unchanged after every error.
        """
        with self._lock:
            _, snapshot = self._begin_change()
            names = check_ids(ids, None, snapshot.ids.dtype.kind)
            given = make_table(attributes, len(names))
            if PHOTO in given.names and snapshot.has_several_photos:
                raise UserError(f"the column {PHOTO!r} names each photo, and update changes products; use upsert")
            known = snapshot.attributes.take(snapshot.find(names.tolist()))
            outdated = known.outdated_confidences(given)
            given = given.replace(outdated, outdated.names)
            whole = len(names) == snapshot.num_products
            kinds = snapshot.attributes.choose_kinds(given, whole=whole, fixed=self.labels)
            if len(names) and kinds:
                columns = snapshot.attributes.with_kinds(kinds).select(kinds).conform(given)
                self._commit(Update(False, names, None, columns.to_lists(), kinds))

    def delete(self, ids: Any) -> None:
        """Removes products with all their photos in one step. KeyError where one is not there; then none is removed."""
        with self._lock:
            _, snapshot = self._begin_change()
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
            settings = self._settings
            base = build_base(
                before.vectors(rows),
                before.base.target_recall,
                backend_here(settings["backend"]),
                batch=settings["batch"],
                progress=progress,
            )
            with self._lock:
                _, now = self._begin_change()
                if now.base is not before.base:
                    raise UserError("another process has just rebuilt the index; this rebuild was not saved")
                self._updater, self._snapshot = None, replace_base(before, now, base)
                if self._saved is not None:
                    self.save(self._saved.folder)
        finally:
            with self._lock:
                self._rebuilds -= 1

    def health(self) -> Health:
        """Measures recall on the stored sample as the index is now, and says whether a rebuild is due, and why."""
        return measure_health(self._snapshot)

    def save(self, path: str | Path) -> None:
        """Writes the index into a folder, in one step. Later changes are kept there too.

        Raises:
            UserError: the folder holds something else, another process is changing it, or it cannot be written.
        """
        with self._lock:
            saved = self._saved
            if saved is not None and saved.is_at(Path(path)):
                self._begin_change()  # what another process has changed since is saved with the rest
            else:
                storage.check_place(Path(path))
                saved = storage.SavedIndex(Path(path))
                saved.lock()
            self._drop_dead_additions()
            try:
                saved.replace(self._snapshot, self._settings)
            except BaseException:
                # The next change finds out which generation is the current one now.
                saved.release()
                raise
            if saved is not self._saved:
                self.close()
            self._saved = saved

    def refresh(self) -> bool:
        """Reads what another process has changed since; returns whether there was anything."""
        with self._lock:
            before = self._snapshot
            if self._saved is not None and not self._saved.is_writer:
                self._read_changes()
            return self._snapshot is not before

    def close(self) -> None:
        """Lets another process change the index; searching goes on."""
        with self._lock:
            if self._saved is not None:
                self._saved.release()

    def __exit__(self, *_: object) -> None:
        self.close()

    def vectors(self, ids: Any) -> Float32[np.ndarray, "n dim"]:
        """Returns a vector of length 1 for each product: the mean direction of its photos.

        For a product with one photo that is the photo's vector. KeyError where a product is not there.
        """
        snapshot = self._snapshot
        return snapshot.product_vectors(snapshot.find(as_list(ids)))

    def attributes(self, ids: Any) -> list[dict[str, Scalar]]:
        """Returns the attributes of products (of their first photos), None where one is missing.

        KeyError where a product is not there.
        """
        snapshot = self._snapshot
        return [snapshot.attributes.row(row) for row in snapshot.find(as_list(ids)).tolist()]

    def __contains__(self, name: object) -> bool:
        try:
            return bool(len(self._snapshot.find([name])))
        except KeyError:
            return False

    def __len__(self) -> int:
        return self._snapshot.num_products

    @property
    def num_photos(self) -> int:
        """The number of photos of all products."""
        return self._snapshot.num_live

    @property
    def snapshot(self) -> Snapshot:
        """The current version."""
        return self._snapshot

    @property
    def ids(self) -> np.ndarray:
        """The products' ids, each once, in the order in which they were added."""
        snapshot = self._snapshot
        if not snapshot.has_several_photos:
            return snapshot.ids[snapshot.live]
        return snapshot.ids[snapshot.live & (snapshot.first == np.arange(len(snapshot.ids)))]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the attributes."""
        return self._snapshot.attributes.names

    @property
    def model(self) -> str:
        """Fingerprint of the model that made the embeddings; empty where it is not known."""
        return str(self._settings["model"])

    @property
    def subspaces(self) -> dict[str, int]:
        """Parts of the embeddings that a search may weigh: name -> number of values, in order; empty for none."""
        return dict(self._settings["subspaces"])

    @property
    def labels(self) -> frozenset[str]:
        """The columns of labels and tags; empty where they are not known."""
        schema = self.about.get("schema") or {}
        named = [item["name"] for key in ("attributes", "multi_valued") for item in schema.get(key, ())]
        return frozenset([*named, *self.about.get("labels", ())])

    @property
    def about(self) -> dict[str, Any]:
        """JSON values that are saved with the index, for its users."""
        about: dict[str, Any] = self._settings["about"]
        return about

    @property
    def folder(self) -> Path | None:
        """Where the index was saved or loaded last, or None."""
        return self._saved.folder if self._saved is not None else None

    @property
    def journal_warning(self) -> str:
        """A sentence about what a crash left in the journal, or about damage that lost no change; empty for none."""
        return "" if self._saved is None else self._saved.damage or self._saved.note

    def _weigh(
        self, queries: Float32[np.ndarray, "n dim"], weights: Mapping[str, float]
    ) -> tuple[Float32[np.ndarray, "n dim"], bool]:
        """Returns weighted queries, and whether they differ from those that the index was tuned on."""
        weighted = weigh(queries, self.subspaces, weights)
        return weighted, len({weights.get(name, 1.0) for name in self.subspaces}) > 1

    def _begin_change(self) -> tuple[Updater, Snapshot]:
        saved = self._saved
        if saved is not None and not saved.is_writer:
            saved.lock()
            try:
                self._read_changes()
                saved.open_journal()
            except BaseException:
                saved.release()
                raise
        return self._get_updater(), self._snapshot

    def _get_updater(self) -> Updater:
        if self._updater is None:
            self._updater = Updater(self._snapshot)
        return self._updater

    def _commit(self, update: Update) -> None:
        saved = self._saved
        try:
            if saved is not None:
                saved.append(update)  # on the disk first: what a search has shown is never lost
            self._snapshot = self._get_updater().apply(self._snapshot, update)
            if saved is not None:
                saved.mark_applied()
        except BaseException:
            # Half of it may have been done; the next change starts from the snapshot, and reads the disk again.
            self._updater = None
            if saved is not None:
                saved.release()
            raise
        self._clean_up()

    def _clean_up(self) -> None:
        """Drops dead rows and saves a long journal. The change is done and on the disk: an error here is a warning."""
        saved = self._saved
        try:
            if has_many_dead_additions(self._snapshot):
                self._drop_dead_additions()
            if saved is not None and saved.journal_is_long:
                saved.delay_save()  # so that a failure is not repeated with every change
                self.save(saved.folder)
        except Exception as error:
            logging.getLogger(__name__).warning("the index could not be cleaned up: %s", error)

    def _drop_dead_additions(self) -> None:
        if not self._rebuilds:
            following = drop_dead_additions(self._snapshot)
            if following is not self._snapshot:
                self._updater, self._snapshot = None, following

    def _read_changes(self) -> None:
        """Reads what is on the disk and not yet here."""
        saved = self._saved
        assert saved is not None
        try:
            while True:
                if saved.is_replaced():
                    self._updater = None
                    self._snapshot, self._settings = saved.read()
                try:
                    updates = saved.read_new_updates(self._snapshot)
                except UserError:
                    if saved.is_replaced():  # the journal went with its generation
                        continue
                    raise
                if updates:
                    self._snapshot = self._get_updater().apply_all(self._snapshot, updates)
                    saved.mark_applied()
                    if has_many_dead_additions(self._snapshot):
                        self._drop_dead_additions()
                if not saved.is_replaced():
                    return
        except BaseException:
            self._updater = None  # it may be ahead of the snapshot
            raise
