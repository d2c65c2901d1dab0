"""`fashion-jax index ...` and `fashion-jax search`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion_jax.system.errors import UserError

if TYPE_CHECKING:
    from fashion_jax.search.index import Index


def add_index_commands(add: Callable[..., argparse.ArgumentParser], sources: str) -> None:
    """Adds `index` and `search` to the console script.

    Args:
        add: makes a subcommand from its name, what it runs, and what it is about.
        sources: what a source may be, for the help.
    """
    index = add("index", None, "builds, shows and changes an index of a catalogue's embeddings")
    actions = index.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: object, about: str, *, place: str = "--index") -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=about, description=about)
        parser.set_defaults(run=run)
        parser.add_argument(place, required=True, type=Path, dest="index", help="folder of the index")
        return parser

    build = action("build", _build, "embeds a catalogue and indexes it", place="--out")
    more = action("add", _add, "adds products, or replaces those whose ids are there")
    for parser in (build, more):
        parser.add_argument("--source", required=True, help=sources)
        parser.add_argument("--table", type=Path, help="a table with an id column and more columns to filter by")
        parser.add_argument("--schema", type=Path, help="a schema.json; without it the schema is known or inferred")
    build.add_argument("--model", required=True, type=Path, help="a workdir or a model package")
    more.add_argument("--model", type=Path, help="that made the index; without it where the index says it was")
    build.add_argument("--target-recall", type=float, default=0.95, help="share of the true nearest to find (0.95)")
    build.add_argument("--backend", default="auto", help="auto, exact or scann")
    build.add_argument("--batch", type=int, default=1, help="queries per search that are typical (1)")
    build.add_argument("--pca", type=int, help="principal components to keep; without it the features as they are")
    build.add_argument("--whiten", action="store_true", help="scale the components to the same variance")
    action("info", _info, "shows what an index holds, how well it finds, and whether a rebuild is due")
    remove = action("delete", _delete, "removes products")
    remove.add_argument("--id", required=True, nargs="+", help="of the products")
    action("rebuild", _rebuild, "indexes the live products anew; searches go on meanwhile")
    action("verify", _verify, "reads every byte of an index and compares its answers with exact search")

    search = add("search", _search, "finds products that look like a photo or a product, or that are as described")
    search.add_argument("--index", required=True, type=Path, help="folder of the index")
    search.add_argument("--image", type=Path, nargs="+", help="photos of one product")
    search.add_argument("--id", nargs="+", help="products of the index; each is a query")
    search.add_argument("--attribute", nargs="+", metavar="COLUMN=VALUE", help="a description, such as baseColour=Red")
    search.add_argument("--keep", nargs="+", default=[], metavar="COLUMN", help="hits have the query's value there")
    search.add_argument("--change", nargs="+", default=[], metavar="COLUMN=VALUE", help="hits have this value instead")
    search.add_argument("-k", type=int, default=10, help="products to find (10)")
    search.add_argument("--where", help="a filter, such as \"gender == 'Women' and baseColour in ['Red', 'Maroon']\"")
    search.add_argument("--group-by", metavar="COLUMN", help="one product per value, such as title")
    search.add_argument("--diversity", type=float, default=0.0, help="in [0, 1]: variety among the hits (0)")
    search.add_argument(
        "--weigh", nargs="+", default=[], metavar="PART=FACTOR", help="parts of the similarity, such as baseColour=3"
    )
    search.add_argument("--min-score", type=float, help="similarity below which nothing is shown")
    search.add_argument("--model", type=Path, help="for --image; without it the one that made the index")
    search.add_argument("--source", help="of the photos on the sheet; without it the catalogue of the index")
    search.add_argument("--contact-sheet", type=Path, metavar="PNG", help="a picture of the queries and their hits")
    search.add_argument("--json", action="store_true", help="print JSON")


def _build(flags: argparse.Namespace) -> int:
    from fashion_jax.search.gallery import build_index
    from fashion_jax.serving.predictor import load_model
    from fashion_jax.system.devices import start_devices

    start_devices(training=False)
    begin = time.monotonic()
    options = {name: getattr(flags, name) for name in ("target_recall", "backend", "batch", "pca", "whiten")}
    model = load_model(flags.model)
    index = build_index(model, flags.source, flags.index, table=flags.table, schema=_schema(flags), **options)
    print(f"{_summary(index)}; took {time.monotonic() - begin:.0f} s")
    return 0


def _add(flags: argparse.Namespace) -> int:
    from fashion_jax.commands.search import load_index_model
    from fashion_jax.search.gallery import add_products
    from fashion_jax.search.index import Index
    from fashion_jax.system.devices import start_devices

    start_devices(training=False)
    with Index.load(flags.index) as index:
        model = load_index_model(index, flags.model)
        add_products(index, model, flags.source, table=flags.table, schema=_schema(flags))
    return 0


def _info(flags: argparse.Namespace) -> int:
    from fashion_jax.search.index import Index

    index = Index.load(flags.index)
    base, health = index.snapshot.base, index.health()
    print(f"products   {len(index):,}")
    print(f"columns    {', '.join(index.columns) or 'none'}")
    features = f"{base.vectors.shape[1]} features"
    if index.projection is not None:
        features += f", of {index.num_features}, with {index.projection.explained:.1%} of the variance"
    print(f"vectors    {features}")
    if index.subspaces:
        print(f"parts      {', '.join(f'{name} {size}' for name, size in index.subspaces.items())}")
    print(f"model      {index.about.get('model') or 'unknown'} ({index.model or 'no fingerprint'})")
    print(f"catalogue  {index.about.get('source') or 'unknown'}")
    print(f"backend    {_summary(index)}")
    for point in base.points:
        print(
            f"  up to {point.neighbours:>5,} neighbours: {point.leaves} of {max(1, base.structure.leaves)} leaves, "
            f"{point.reorder:,} candidates; recall {point.recall:.4f}, one query {point.single_seconds * 1e6:.0f} us, "
            f"batches {1 / point.batch_seconds:,.0f} queries/s"
        )
    state = "; ".join(health.reasons)
    if index.unread:
        print(f"journal    {index.unread}")
    print(f"health     recall@10 now {health.recall:.4f}; {f'rebuild it: {state}' if state else 'no rebuild is due'}")
    return 0


def _delete(flags: argparse.Namespace) -> int:
    from fashion_jax.search.index import Index

    with Index.load(flags.index) as index:
        from fashion_jax.search.answers import parse_ids

        names = parse_ids(index, flags.id)
        try:
            index.delete(names)
        except KeyError as error:  # gone since it was looked for
            raise UserError(str(error.args[0])) from None
        print(f"{len(flags.id):,} removed, {len(index):,} products left")
    return 0


def _rebuild(flags: argparse.Namespace) -> int:
    from fashion_jax.search.index import Index

    with Index.load(flags.index) as index:
        index.rebuild(progress=True)
        print(_summary(index))
    return 0


def _verify(flags: argparse.Namespace) -> int:
    from fashion_jax.search.index import Index

    index = Index.load(flags.index)
    if index.unread:
        raise UserError(index.unread)
    health = index.health()
    print(f"{flags.index}: every byte is as it was saved; {len(index):,} products; recall@10 {health.recall:.4f}")
    if health.rebuild_due:
        print(f"a rebuild is due: {'; '.join(health.reasons)}")
    return 0


def _search(flags: argparse.Namespace) -> int:
    from fashion_jax.commands.search import run_search

    return run_search(flags)


def _summary(index: Index) -> str:
    base = index.snapshot.base
    if base.backend == "exact":
        return "exact search"
    point = base.points[0]
    return (
        f"ScaNN, asked for recall {base.target_recall:g}, has {point.recall:.4f} at {point.neighbours} neighbours, "
        f"{point.single_seconds * 1e6:.0f} us a query"
    )


def _schema(flags: argparse.Namespace) -> Any:
    from fashion_jax.data.schema import load_schema

    return load_schema(flags.schema) if flags.schema else None
