"""What a subcommand is, and the flags that several of them share."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion_jax.system.errors import UserError

if TYPE_CHECKING:
    from fashion_jax.data.schema import Schema

SOURCES = (
    "a table (CSV, TSV, JSON, Excel, Parquet), a folder, zip or tar archive with a table, "
    "synthetic:N (N generated products), synthetic-tags:N (with several values of an attribute), "
    "kaggle:OWNER/NAME or hf:OWNER/NAME (data sets of Kaggle and Hugging Face; they need the extra [hub])"
)
MODEL = "'small' (comes with the library), the --workdir of a training, or the folder of a model package"

_SETTINGS = " docs/configuration.md lists all settings."


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Adds "(default: X)" to the help of every flag with a default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        none = action.default is None or action.default is False or action.default in ("", [], (), argparse.SUPPRESS)
        return action.help if none else f"{action.help} (default: %(default)s)"


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
            description=f"{self.about[0].upper()}{self.about[1:]}." + (_SETTINGS if self.takes_settings else ""),
            epilog="\n  ".join(("examples:", *self.examples)) if self.examples else None,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self.add_flags(parser)
        if self.run is not None:
            parser.set_defaults(run=self.run, takes_settings=self.takes_settings)


def add_schema_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--schema`, `--photos` and `--group-by-name`, which `read_schema` reads."""
    parser.add_argument(
        "--schema",
        type=Path,
        help="a schema.json, which says what the columns mean; without it they are guessed (docs/your-catalogue.md)",
    )
    parser.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help="folder of the photos, if they do not lie beside the table; no photo outside of it is read",
    )
    parser.add_argument(
        "--group-by-name",
        nargs="?",
        const="usual",
        default="",
        metavar="PATTERN",
        help="treat photos with similar names, such as FS-1400_1.jpg and FS-1400_2.jpg, as photos of one product; a "
        "PATTERN such as '{id}_{n}' says how the names are made",
    )


def read_schema(flags: argparse.Namespace) -> Schema | None:
    """Returns the schema that `--schema` names, with what `--photos` and `--group-by-name` say; None without them."""
    from fashion_jax.data.schema import Schema, load_schema

    schema = load_schema(flags.schema) if flags.schema else None
    changes: dict[str, Any] = {}
    if flags.photos is not None:
        if not flags.photos.exists():
            raise UserError(f"there is no folder {flags.photos}; check --photos")
        changes["image_root"] = str(flags.photos.resolve())
    if flags.group_by_name:
        changes["group_by_name"] = flags.group_by_name
    return dataclasses.replace(schema or Schema("", ()), **changes) if changes else schema


def start_for_prediction() -> None:
    """Sets the number of CPU devices with which JAX searches fastest, and keeps compiled programs."""
    from fashion_jax.system.devices import start_devices

    start_devices(training=False)
