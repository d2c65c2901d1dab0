"""The console script `fashion-jax`: one subcommand per thing that a person does. No logic of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_jax import main as main_module
from fashion_jax.commands.index import add_index_commands
from fashion_jax.system.errors import exit_on_user_error
from fashion_jax.system.huge_pages import restart_with_huge_pages

if TYPE_CHECKING:
    from fashion_jax.data.schema import Schema


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns its exit code: 0, 2 for bad input, 130 or 143 when stopped by a signal."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"] and not {"-h", "--help"} & set(given):
        if arguments is None:  # this process is the command's own
            restart_with_huge_pages()
        return main_module.main(given[1:])
    parser = _parser()
    if given[:1] == ["sweep"]:
        return exit_on_user_error(lambda: _sweep(parser, given))
    flags = parser.parse_args(given)
    return exit_on_user_error(lambda: flags.run(flags))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fashion-jax", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: object, about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(run=run)
        return command

    sources = "zip, tar, folder, CSV, TSV, Parquet, synthetic[:N], kaggle:OWNER/NAME or hf:OWNER/NAME"
    prepare = add("prepare", _prepare, "reads a catalogue, repairs it, splits it and writes records")
    prepare.add_argument("--source", required=True, help=sources)
    prepare.add_argument("--out", required=True, type=Path, help="folder for the records")
    prepare.add_argument("--schema", type=Path, help="a schema.json; without it the schema is known or inferred")
    prepare.add_argument("--max-side", type=int, default=256, help="pixels to which larger photos are scaled (256)")
    prepare.add_argument("--max-bad-fraction", type=float, default=0.05, help="share of bad rows that stops (0.05)")
    prepare.add_argument("--split", default="group", help="group, random, column or file:PATH")
    prepare.add_argument("--split-fractions", type=_three_shares, default=(0.7, 0.1, 0.2), help="0.7,0.1,0.2")
    prepare.add_argument("--split-seed", type=int, default=0)
    prepare.add_argument("--corrections", type=Path, help="a table of corrected labels, such as an audit's findings")

    train = add("train", None, "trains, or goes on training: --config C --workdir W [--config.KEY=VALUE ...]")
    train.add_argument("--config", required=True)
    train.add_argument("--workdir", required=True)
    train.add_argument("--corrections", help="a table of corrected labels, such as an audit's findings")

    sweep = add("sweep", None, "searches fields of a configuration for the best validation score, by Optuna")
    sweep.add_argument("--config", required=True)
    sweep.add_argument("--space", required=True, type=Path, help="JSON: field -> list of values, or low and high")
    sweep.add_argument("--out", required=True, type=Path, help="folder of the search; the same one goes on")
    sweep.add_argument("--trials", type=int, default=20, help="in all (20); --config.KEY=VALUE holds for each of them")

    evaluate = add("evaluate", _evaluate, "scores the best checkpoint of a workdir")
    evaluate.add_argument("--workdir", required=True, type=Path)
    evaluate.add_argument("--split", default="test", choices=("train", "validation", "test"))
    evaluate.add_argument("--retrieval", action="store_true", help="score neighbours instead, beside baselines")

    audit = add("audit", _audit, "looks for wrong labels in a catalogue")
    audit.add_argument("--model", required=True, type=Path, help="a workdir, a model package, or small")
    audit.add_argument("--source", required=True, help=f"{sources}, or prepared records")
    audit.add_argument("--out", type=Path, default=Path("audit"), help="folder for the findings (audit)")
    audit.add_argument("--attributes", type=_names, default=(), help="to audit, such as category,colour (the heads)")
    audit.add_argument("--folds", type=int, default=5, help="each judged by what was fitted on the others (5)")
    audit.add_argument("--judge", default="linear", choices=("linear", "neighbours"), help="of the photos (linear)")
    audit.add_argument(
        "--describe-by", default="features", choices=("features", "embeddings"), help="what the judges see of photos; "
        "embeddings find more where labels went wrong after the network had learnt the right ones (features)",
    )  # fmt: skip
    audit.add_argument("--retrain", action="store_true", help="judge by whole networks, one trained per fold")
    audit.add_argument("--corrections", type=Path, help="corrected labels; the audit looks for what is left")
    audit.add_argument("--schema", type=Path, help="a schema.json; without it the schema is known or inferred")

    for name, run, about, out in (
        ("predict", _predict, "labels the products of a source with a trained model", "predictions.csv"),
        ("embed", _embed, "writes the embeddings of a source's products", "embeddings.npz"),
    ):
        command = add(name, run, about)
        command.add_argument("--model", required=True, type=Path, help="a workdir, a model package, or small")
        command.add_argument("--source", required=True, help=f"{sources}; a photo or a folder of photos will do")
        command.add_argument("--out", type=Path, default=Path(out))
        command.add_argument("--schema", type=Path, help="a schema.json; without it the schema is known or inferred")
        if name == "predict":
            points = ("accuracy", "macro_f1")
            command.add_argument(
                "--operating-point",
                default=points[0],
                choices=points,
                help="the validation score that labels are to be best in",
            )
        if name == "embed":
            command.add_argument("--dtype", default="float32", choices=("float32", "float16"))

    add_index_commands(add, sources)

    demo = add("demo", _demo, "trains on the embedded catalogue and shows what came of it")
    demo.add_argument("--workdir", type=Path, default=Path("runs/demo"))
    return parser


def _prepare(flags: argparse.Namespace) -> int:
    from fashion_jax.data.catalog_report import format_report
    from fashion_jax.data.prepare import prepare

    prepared = prepare(
        flags.source,
        flags.out,
        schema=_schema(flags),
        max_side=flags.max_side,
        max_bad_fraction=flags.max_bad_fraction,
        split=flags.split,
        split_fractions=flags.split_fractions,
        split_seed=flags.split_seed,
        corrections=flags.corrections,
    )
    print(format_report(prepared.report))
    print(f"records: {prepared.folder}")
    return 0


def _evaluate(flags: argparse.Namespace) -> int:
    _start_devices_of(flags.workdir)
    if flags.retrieval:
        from fashion_jax.run.neighbours import format_retrieval, score_retrieval

        print(format_retrieval(score_retrieval(flags.workdir, flags.split)))
        print(f"details: {flags.workdir / 'evaluation' / flags.split / 'retrieval.json'}")
        return 0
    from fashion_jax.run.train import evaluate, format_scores

    print(format_scores(evaluate(flags.workdir, flags.split)))
    print(f"details: {flags.workdir / 'evaluation' / flags.split}")
    return 0


def _sweep(parser: argparse.ArgumentParser, given: list[str]) -> int:
    overrides, rest = main_module.split_overrides(given)
    flags = parser.parse_args(rest)
    from fashion_jax.config.files import load_config
    from fashion_jax.system.devices import start_devices

    config = load_config(flags.config, overrides)
    start_devices(config.runtime.cpu_devices, config.model.dtype)
    from fashion_jax.run.sweep import format_trials, sweep
    from fashion_jax.system.interrupt import Interrupted

    try:
        trials = sweep(
            flags.config, flags.space, flags.out, num_trials=flags.trials, overrides=overrides, owns_process=True
        )
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    print(format_trials(trials))
    print(f"all of them: {flags.out / 'trials.csv'}, and as a picture: {flags.out / 'trials.png'}")
    return 0


def _audit(flags: argparse.Namespace) -> int:
    from fashion_jax.run.workdir import has_checkpoints

    if flags.retrain and has_checkpoints(flags.model):
        _start_devices_of(flags.model)
    else:
        _start_devices(training=False)
    from fashion_jax.audit.audit import audit, format_audit
    from fashion_jax.system.interrupt import Interrupted

    try:
        result = audit(
            flags.model,
            flags.source,
            flags.out,
            attributes=flags.attributes,
            num_folds=flags.folds,
            judge="retrain" if flags.retrain else flags.judge,
            describe_by=flags.describe_by,
            corrections=flags.corrections,
            schema=_schema(flags),
        )
    except Interrupted as stop:  # while it retrained
        print(stop, file=sys.stderr)
        return stop.exit_code
    print(format_audit(result))
    print(f"to look at: {flags.out / 'findings.html'}\nto edit:    {flags.out / 'findings.csv'}")
    return 0


def _predict(flags: argparse.Namespace) -> int:
    _start_devices(training=False)
    from fashion_jax.serving.predict import predict_source
    from fashion_jax.serving.predictor import load_model

    model, point = load_model(flags.model), flags.operating_point
    predict_source(model, flags.source, flags.out, schema=_schema(flags), operating_point=point)
    return 0


def _embed(flags: argparse.Namespace) -> int:
    _start_devices(training=False)
    from fashion_jax.serving.embed import embed_source
    from fashion_jax.serving.predictor import load_model

    embed_source(load_model(flags.model), flags.source, flags.out, dtype=flags.dtype, schema=_schema(flags))
    return 0


def _demo(flags: argparse.Namespace) -> int:
    _start_devices(training=True)
    from fashion_jax.run.demo import run_demo

    return run_demo(flags.workdir)


def _schema(flags: argparse.Namespace) -> Schema | None:
    from fashion_jax.data.schema import load_schema

    return load_schema(flags.schema) if flags.schema else None


def _start_devices(*, training: bool) -> None:
    from fashion_jax.system.devices import start_devices

    start_devices(training=training)


def _start_devices_of(workdir: Path) -> None:
    """Starts what the workdir's run was trained on."""
    from fashion_jax.run.workdir import load_run_config
    from fashion_jax.system.devices import start_devices

    config = load_run_config(workdir)
    start_devices(config.runtime.cpu_devices, config.model.dtype)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _three_shares(text: str) -> tuple[float, float, float]:
    try:
        train, validation, test = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers such as 0.7,0.1,0.2") from None
    return train, validation, test


if __name__ == "__main__":
    sys.exit(main())
