"""The console script `fashion-jax`: gathers the subcommands of `commands/`, without logic of its own."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from fashion_jax.commands.audit import AUDIT
from fashion_jax.commands.catalogue import PREPARE, SCHEMA
from fashion_jax.commands.command import Command
from fashion_jax.commands.demo import DEMO
from fashion_jax.commands.index import INDEX
from fashion_jax.commands.prediction import EMBED, EXPORT, PREDICT
from fashion_jax.commands.search import SEARCH
from fashion_jax.commands.training import EVALUATE, SWEEP, TRAIN, split_settings
from fashion_jax.commands.verify import VERIFY
from fashion_jax.system.errors import exit_on_user_error

GROUPS: dict[str, tuple[Command, ...]] = {
    "Label photos": (PREDICT, EXPORT),
    "Find products that look alike": (INDEX, SEARCH, EMBED),
    "Find wrong labels": (AUDIT,),
    "Train on your own catalogue": (SCHEMA, PREPARE, TRAIN, EVALUATE, SWEEP),
    "Check what is stored": (VERIFY,),
    "Try everything on generated products": (DEMO,),
}

_ABOUT = """Labels fashion products by their photos, finds products that look alike, and finds wrong labels.

Try first, with a photo of a product:
  fashion-jax predict --model small --source photo.jpg

A source is a catalogue, or photos (predict, embed). A workdir is the folder of a training.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns its exit code: 0, 2 for bad input, 130 or 143 when stopped by a signal."""
    return exit_on_user_error(lambda: _run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    settings, rest = split_settings(arguments)
    parser = make_parser()
    for place, argument in enumerate(rest):
        if not argument.strip() or re.fullmatch(r"--[\w-]+=\s*", argument):  # as a path it would be the current folder
            flag = argument.strip(" =") or rest[max(place - 1, 0)]
            parser.error(f"{flag} has an empty value; give a value (perhaps a variable of the shell is not set)")
    flags = parser.parse_args(rest)
    if settings and not flags.takes_settings:
        parser.error("--config.KEY=VALUE belongs to train and sweep")
    flags.settings = settings
    return flags.run(flags)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all subcommands; its help lists them by what a person wants to do."""
    lists = [f"{title}\n" + "\n".join(f"  {c.name:<10}{c.about}" for c in group) for title, group in GROUPS.items()]
    parser = argparse.ArgumentParser(
        prog="fashion-jax",
        usage="fashion-jax COMMAND [...]",
        description=_ABOUT + "\n" + "\n\n".join(lists),
        epilog="fashion-jax COMMAND --help shows the flags of a command, with examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", prog="fashion-jax", help=argparse.SUPPRESS)
    for group in GROUPS.values():
        for command in group:
            command.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
