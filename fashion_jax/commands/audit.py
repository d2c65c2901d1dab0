"""`fashion-jax audit`: wrong labels in a catalogue."""

from __future__ import annotations

import argparse
from pathlib import Path

from fashion_jax.commands.command import MODEL, SOURCES, Command, add_schema_flag, read_schema, start_for_prediction


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, help=MODEL)
    parser.add_argument("--source", required=True, help=f"a folder that fashion-jax prepare wrote, or {SOURCES}")
    parser.add_argument("--out", type=Path, default=Path("audit"), help="folder for the findings")
    parser.add_argument(
        "--attributes",
        type=_names,
        default=(),
        help="attributes to audit, such as category,colour (default: all attributes of the model)",
    )
    parser.add_argument(
        "--folds",
        type=int,
        default=5,
        help="number of parts of the cross-validation: each is checked by a classifier that is fitted on the others",
    )
    parser.add_argument(
        "--corrections",
        type=Path,
        help="a table of corrected labels, such as an earlier findings.csv; it is applied before the audit",
    )
    add_schema_flag(parser)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _run(flags: argparse.Namespace) -> int:
    start_for_prediction()
    from fashion_jax.audit.audit import audit, format_audit

    result = audit(
        flags.model,
        flags.source,
        flags.out,
        attributes=flags.attributes,
        num_folds=flags.folds,
        corrections=flags.corrections,
        schema=read_schema(flags),
    )
    print(format_audit(result))
    print(f"to look at: {flags.out / 'findings.html'}")
    print(f"to correct: {flags.out / 'findings.csv'}, in its columns decision and corrected")
    return 0


AUDIT = Command(
    "audit",
    "finds labels that are probably wrong, and shows them on a page",
    _add_flags,
    _run,
    ("fashion-jax audit --model small --source products.csv --out audit",),
)
