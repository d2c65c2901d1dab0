"""`fashion-jax index build`, `add`, `update`, `delete`, `info` and `rebuild`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_jax.commands.command import MODEL, SOURCES, Command, add_schema_flag, read_schema, start_for_prediction
from fashion_jax.system.errors import UserError

if TYPE_CHECKING:
    from fashion_jax.search.index import Index
    from fashion_jax.search.planner import Health


def _add_flags(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for action in _ACTIONS:
        action.add_to(actions)


def _add_index_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", required=True, type=Path, help="folder of the index")


def _add_products_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, help=SOURCES)
    parser.add_argument(
        "--table", type=Path, help="more columns to filter by, such as prices: a table with a column of product ids"
    )
    add_schema_flag(parser)


def _add_build_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, dest="index", help="folder for the index")
    parser.add_argument("--model", required=True, type=Path, help=MODEL)
    _add_products_flags(parser)
    parser.add_argument("--target-recall", type=float, default=0.95, help="share of the nearest products to find")
    parser.add_argument(
        "--backend",
        default="auto",
        help="exact compares all products; scann (Linux) and hnsw are faster for many; auto chooses by size and speed",
    )
    parser.add_argument("--batch", type=int, default=1, help="number of queries that you usually send at once")


def _add_add_flags(parser: argparse.ArgumentParser) -> None:
    _add_index_flag(parser)
    parser.add_argument("--model", type=Path, help="the model that made the index, if its folder has moved")
    _add_products_flags(parser)


def _add_update_flags(parser: argparse.ArgumentParser) -> None:
    _add_index_flag(parser)
    parser.add_argument(
        "--table",
        required=True,
        type=Path,
        help="a table with a column of product ids, and the columns to change or to add",
    )


def _add_delete_flags(parser: argparse.ArgumentParser) -> None:
    _add_index_flag(parser)
    parser.add_argument("--id", required=True, nargs="+", help="ids of the products")


def _build(flags: argparse.Namespace) -> int:
    from fashion_jax.search.gallery import build_index
    from fashion_jax.serving.predictor import load_model

    start_for_prediction()
    begin = time.monotonic()
    index = build_index(
        load_model(flags.model),
        flags.source,
        flags.index,
        table=flags.table,
        schema=read_schema(flags),
        target_recall=flags.target_recall,
        backend=flags.backend,
        batch=flags.batch,
    )
    print(f"{_summary(index)}; took {time.monotonic() - begin:.0f} s")
    return 0


def _add(flags: argparse.Namespace) -> int:
    from fashion_jax.commands.queries import load_index_model
    from fashion_jax.search.gallery import add_products
    from fashion_jax.search.index import Index

    start_for_prediction()
    with Index.load(flags.index) as index:
        model = load_index_model(index, flags.model)
        add_products(index, model, flags.source, table=flags.table, schema=read_schema(flags))
    return 0


def _update(flags: argparse.Namespace) -> int:
    from fashion_jax.search.columns import update_columns
    from fashion_jax.search.index import Index

    with Index.load(flags.index) as index:
        update_columns(index, flags.table)
    return 0


def _info(flags: argparse.Namespace) -> int:
    from fashion_jax.search.attributes import KINDS
    from fashion_jax.search.columns import kinds_of
    from fashion_jax.search.index import Index

    index = Index.load(flags.index)
    base, health = index.snapshot.base, index.health()
    print(f"products   {len(index):,}")
    print(f"photos     {index.num_photos:,}")
    kinds = {name: "" if kind == "text" else f" ({KINDS[kind]})" for name, kind in kinds_of(index).items()}
    print(f"columns    {', '.join(name + kind for name, kind in kinds.items()) or 'none'}")
    print(f"vectors    {base.vectors.shape[1]} values")
    if index.subspaces:
        print(f"parts      {', '.join(f'{name} {size}' for name, size in index.subspaces.items())}")
    print(f"model      {index.about.get('model') or 'unknown'} (checksum {index.model or 'unknown'})")
    print(f"catalogue  {index.about.get('source') or 'unknown'}")
    print(f"backend    {_summary(index)}")
    for point in base.points:
        does = base.approximate.describe(point) if base.approximate else ""
        print(
            f"  up to {point.neighbours:>5,} results: {does}, "
            f"finds {point.recall:.4f} of the nearest; "
            f"{point.single_seconds * 1e6:.0f} microseconds a query, "
            f"{1 / point.batch_seconds:,.0f} queries a second in batches"
        )
    if index.journal_warning:
        print(f"journal    {index.journal_warning}")
    print(f"health     {_describe(health, flags.index)}")
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


def _describe(health: Health, folder: Path) -> str:
    rebuild = f"run fashion-jax index rebuild --index {folder}: {'; '.join(health.reasons)}"
    due = rebuild if health.rebuild_due else "no rebuild is due"
    return f"a search finds {health.recall:.4f} of the 10 nearest products; {due}"


def _summary(index: Index) -> str:
    from fashion_jax.search.planner import plan

    base = index.snapshot.base
    if base.approximate is None:
        return "exact search"
    if plan(base, 1, 1, None) is base.host:
        return f"exact search; {base.approximate.library} does not reach the recall {base.target_recall:g} in less time"
    point = base.points[0]
    return (
        f"{base.approximate.library}, finds {point.recall:.4f} of the {point.neighbours} nearest products (asked for: "
        f"{base.target_recall:g}), {point.single_seconds * 1e6:.0f} microseconds a query"
    )


_ACTIONS = (
    Command(
        "build",
        "embeds the products of a catalogue and writes an index",
        _add_build_flags,
        _build,
        ("fashion-jax index build --model small --source products.csv --out index",),
    ),
    Command("add", "adds products, or replaces products that have the same ids", _add_add_flags, _add),
    Command(
        "update",
        "changes columns of products, such as prices, to the values of a table; photos stay as they are",
        _add_update_flags,
        _update,
        ("fashion-jax index update --index index --table prices.csv",),
    ),
    Command(
        "delete", "removes products", _add_delete_flags, _delete, ("fashion-jax index delete --index index --id 7",)
    ),
    Command("info", "shows what an index holds, how good it is, and whether to rebuild it", _add_index_flag, _info),
    Command("rebuild", "rebuilds the index from its products; searches go on meanwhile", _add_index_flag, _rebuild),
)
INDEX = Command(
    "index",
    "builds an index of products, shows it and changes it",
    _add_flags,
    None,
    ("fashion-jax index build --model small --source products.csv --out index", "fashion-jax index info --index index"),
)
