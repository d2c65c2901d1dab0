"""Trains: `python -m fashion_jax.main --config=configs/X.py --workdir=W [--config.a.b=value ...]`.

Resumes by itself when the workdir holds checkpoints. With several processes, start the same command on each with
`--coordinator-address=HOST:PORT --num-processes=N --process-id=I`; on SLURM, Open MPI and Cloud TPU set
FASHION_JAX_DISTRIBUTED=auto instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fashion_jax.config.files import load_config
from fashion_jax.system.errors import UserError, exit_on_user_error
from fashion_jax.system.huge_pages import restart_with_huge_pages


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, 2 for bad input, 130 or 143 when stopped by a signal."""
    return exit_on_user_error(lambda: _run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fashion_jax.main", description="Trains a model; any --config.KEY=VALUE overrides the file."
    )
    parser.add_argument("--config", required=True, help="a configuration file, or the name of one that ships")
    parser.add_argument("--workdir", required=True, help="folder of the run: checkpoints, metrics, scores, the model")
    parser.add_argument("--corrections", help="a table of corrected labels; the same as --config.data.corrections")
    parser.add_argument("--coordinator-address", help="HOST:PORT of process 0, for several processes")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    parser.add_argument("--local-device-ids", type=_integers, help="accelerators of this process, such as 0,1,2,3")
    overrides, rest = split_overrides(arguments)
    flags = parser.parse_args(rest)
    if flags.corrections:
        overrides["data.corrections"] = flags.corrections
    config = load_config(flags.config, overrides)

    # JAX starts only after the flags are known to be sound, and devices are set before anything touches them.
    from fashion_jax.system.devices import start_devices, start_processes

    start_devices(config.runtime.cpu_devices, config.model.dtype)
    start_processes(flags.coordinator_address, flags.num_processes, flags.process_id, flags.local_device_ids)

    from fashion_jax.run.train import format_scores, train
    from fashion_jax.system.interrupt import Interrupted

    try:
        result = train(config, flags.workdir, owns_process=True)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    if result.test is not None:
        print(f"test scores of step {result.best_step}:\n{format_scores(result.test)}")
    print(f"scores: {result.workdir / 'evaluation'}\nmodel: {result.package}")
    return 0


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0,1") from None


def split_overrides(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Separates `--config.a.b=value` and `--config.a.b value` from the other arguments."""
    overrides: dict[str, str] = {}
    rest: list[str] = []
    items = iter(arguments)
    for item in items:
        if not item.startswith("--config."):
            rest.append(item)
            continue
        key, equals, value = item.removeprefix("--config.").partition("=")
        if not equals:
            following = next(items, "--")
            if following.startswith("--"):
                raise UserError(f"{item} needs a value: {item}=VALUE")
            value = following
        overrides[key] = value
    return overrides, rest


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main())
