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
    query.add_argument(
        "--attribute", nargs="+", metavar="COLUMN=VALUE", help="values that results must have, such as baseColour=Red"
    )
    results = parser.add_argument_group("which results to show")
    results.add_argument("-k", type=int, default=10, help="number of results")
    results.add_argument("--where", help="a filter, such as \"gender == 'Women' and baseColour in ['Red', 'Maroon']\"")
    results.add_argument(
        "--keep",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="results must have the query's value (a photo's is predicted)",
    )
    results.add_argument(
        "--change", nargs="+", default=[], metavar="COLUMN=VALUE", help="results must have this value, not the query's"
    )
    results.add_argument(
        "--group-by", metavar="COLUMN", help="show only the best product for each value of this column, such as title"
    )
    results.add_argument(
        "--diversity", type=float, default=0.0, help="0 to 1; with higher values the results differ more"
    )
    results.add_argument(
        "--weigh",
        nargs="+",
        default=[],
        metavar="PART=FACTOR",
        help="baseColour=3: this part of the embedding counts three times; index info lists the parts",
    )
    results.add_argument("--min-score", type=float, help="leave out products with a lower similarity (1: identical)")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--csv", type=Path, metavar="FILE", help="write the results with all their columns as CSV")
    output.add_argument("--contact-sheet", type=Path, metavar="PNG", help="write a picture of queries and results")
    output.add_argument(
        "--source", help="the catalogue with the photos for --contact-sheet; by default that of the index"
    )
    output.add_argument("--model", type=Path, help="the model that made the index, if its folder has moved")


def _run(flags: argparse.Namespace) -> int:
    from fashion_jax.commands.queries import run_search

    return run_search(flags)


SEARCH = Command(
    "search",
    "finds products that look like a photo or a product, or that have given attributes",
    _add_flags,
    _run,
    (
        "fashion-jax search --index runs/demo/index --id 1001 -k 5",
        "fashion-jax search --index runs/demo/index --attribute baseColour=Red gender=Women",
    ),
)
