"""What a subcommand is, and the flags that several of them share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fashion_jax.data.schema import Schema

SOURCES = (
    "the products: a table (CSV, TSV, Parquet), a zip or tar archive, a folder, synthetic[:N], "
    "kaggle:OWNER/NAME or hf:OWNER/NAME"
)
MODEL = "small (it comes with the library), a workdir, or the folder of a model package"


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand of `fashion-jax`."""

    name: str  # what a user types
    about: str  # one line for `--help`
    add_flags: Callable[[argparse.ArgumentParser], None]  # adds the flags to the command's parser
    # does the work and returns the exit code; None for a command that has subcommands of its own
    run: Callable[[argparse.Namespace], int] | None
    examples: tuple[str, ...] = ()  # commands that work as typed, one a line
    takes_settings: bool = False  # whether `--config.KEY=VALUE` may be given; `run` finds them in `flags.settings`

    def add_to(self, commands: Any) -> None:
        """Adds the command's parser to what `ArgumentParser.add_subparsers` returned."""
        parser = commands.add_parser(
            self.name,
            help=self.about,
            description=self.about[0].upper() + self.about[1:] + ".",
            epilog="\n  ".join(("examples:", *self.examples)) if self.examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_flags(parser)
        if self.run is not None:
            parser.set_defaults(run=self.run, takes_settings=self.takes_settings)


def add_schema_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--schema`, which `read_schema` reads."""
    parser.add_argument("--schema", type=Path, help="a schema.json; by default the schema is known or inferred")


def read_schema(flags: argparse.Namespace) -> Schema | None:
    """Returns the schema that `--schema` names; None without the flag."""
    from fashion_jax.data.schema import load_schema

    return load_schema(flags.schema) if flags.schema else None


def start_for_prediction() -> None:
    """Starts JAX with the number of CPU devices that predicts fastest."""
    from fashion_jax.system.devices import start_devices

    start_devices(training=False)
