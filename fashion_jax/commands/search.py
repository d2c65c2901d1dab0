"""`fashion-jax search`: its flags. `queries.py` carries it out."""

from __future__ import annotations

import argparse
from pathlib import Path

from fashion_jax.commands.command import Command


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", required=True, type=Path, help="folder of the index")
    query = parser.add_argument_group("what to search for (one of these)")
    query.add_argument("--image", type=Path, nargs="+", help="photos of one product")
    query.add_argument("--id", nargs="+", help="ids of products in the index; each is a query of its own")
    query.add_argument("--attribute", nargs="+", metavar="COLUMN=VALUE", help="a description, such as baseColour=Red")
    results = parser.add_argument_group("which results to show")
    results.add_argument("-k", type=int, default=10, help="number of results (10)")
    results.add_argument("--where", help="a filter, such as \"gender == 'Women' and baseColour in ['Red', 'Maroon']\"")
    results.add_argument("--keep", nargs="+", default=[], metavar="COLUMN", help="results share the query's value")
    results.add_argument(
        "--change", nargs="+", default=[], metavar="COLUMN=VALUE", help="results have this value instead of the query's"
    )
    results.add_argument("--group-by", metavar="COLUMN", help="show one product for each value, such as of a title")
    results.add_argument("--diversity", type=float, default=0.0, help="variety among the results, in [0, 1] (0)")
    results.add_argument(
        "--weigh", nargs="+", default=[], metavar="PART=FACTOR", help="weights in the similarity, such as baseColour=3"
    )
    results.add_argument("--min-score", type=float, help="the least similarity of a result")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--contact-sheet", type=Path, metavar="PNG", help="draw the queries and their results")
    output.add_argument("--source", help="where the photos of the picture are; by default the index's catalogue")
    output.add_argument("--model", type=Path, help="the model that made the index; needed when it has moved")


def _run(flags: argparse.Namespace) -> int:
    from fashion_jax.commands.queries import run_search

    return run_search(flags)


SEARCH = Command(
    "search",
    "finds products that look like a photo or a product, or that fit a description",
    _add_flags,
    _run,
    (
        "fashion-jax search --index runs/demo/index --id 1001 -k 5",
        "fashion-jax search --index runs/demo/index --attribute baseColour=Red gender=Women",
    ),
)
