"""`fashion-jax schema` says how a catalogue is read, and `fashion-jax prepare` makes records of it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fashion_jax.commands.command import SOURCES, Command, add_schema_flag, read_schema
from fashion_jax.system import stored
from fashion_jax.system.errors import UserError


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, help=SOURCES)
    parser.add_argument("--out", required=True, type=Path, help="folder for the checked catalogue (records)")
    add_schema_flag(parser)
    parser.add_argument(
        "--max-side", type=int, default=256, help="photos with a longer side are scaled down to it, in pixels"
    )
    parser.add_argument(
        "--max-bad-fraction", type=float, default=0.05, help="stop if a larger share of the rows cannot be used"
    )
    parser.add_argument(
        "--split",
        default="group",
        help="group keeps near-duplicates together; random; column: the schema's split_column; file:PATH, a CSV "
        "with the columns id and split",
    )
    parser.add_argument(
        "--split-fractions", type=_three_shares, default="0.7,0.1,0.2", help="shares for training, validation and test"
    )
    parser.add_argument("--split-seed", type=int, default=0, help="another number gives another split")
    parser.add_argument("--corrections", type=Path, help="a table of corrected labels, such as an audit's findings.csv")


def _three_shares(text: str) -> tuple[float, float, float]:
    try:
        train, validation, test = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers such as 0.7,0.1,0.2") from None
    return train, validation, test


def _run(flags: argparse.Namespace) -> int:
    from fashion_jax.data.catalog_report import format_report
    from fashion_jax.data.prepare import PrepareOptions, prepare
    from fashion_jax.data.records import remedy
    from fashion_jax.data.splits import SplitOptions

    options = PrepareOptions(
        read_schema(flags),
        flags.max_side,
        flags.max_bad_fraction,
        SplitOptions(flags.split, flags.split_fractions, flags.split_seed),
        flags.corrections,
    )
    prepared = prepare(flags.source, flags.out, options)
    with stored.reading(prepared.folder / "manifest.json", remedy(prepared.folder)):
        print(format_report(prepared.report))
    print(f"records: {prepared.folder}")
    return 0


def _add_schema_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, help=SOURCES)
    parser.add_argument("--out", type=Path, default=Path("schema.json"), help="the schema to write; it must not exist")
    parser.add_argument("--json", action="store_true", help="print what was understood as JSON")
    add_schema_flag(parser)


def _run_schema(flags: argparse.Namespace) -> int:
    from fashion_jax.data.catalog import open_catalog
    from fashion_jax.data.catalog_report import describe_catalog, format_understood
    from fashion_jax.data.schema import save_schema

    if flags.out.exists():
        raise UserError(f"{flags.out} exists, and may hold your edits; give another --out")
    catalog = open_catalog(flags.source, read_schema(flags))
    report = describe_catalog(catalog)
    save_schema(catalog.schema, flags.out)
    print(json.dumps(report, ensure_ascii=False, indent=2) if flags.json else format_understood(report))
    if not flags.json:
        print(f"written: {flags.out}; edit it, and give it with --schema {flags.out}")
    return 0


SCHEMA = Command(
    "schema",
    "shows how a catalogue is read, and writes that to a file which you can edit",
    _add_schema_flags,
    _run_schema,
    ("fashion-jax schema --source products.csv --out schema.json",),
)
PREPARE = Command(
    "prepare",
    "checks a catalogue, splits it into training, validation and test, and writes the result",
    _add_flags,
    _run,
    ("fashion-jax prepare --source synthetic:500 --out runs/records",),
)
