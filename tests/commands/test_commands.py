"""The console script's parsers: help that works without JAX, and refusals that name the flag."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

import pytest

from fashion_jax import cli, main
from fashion_jax.commands import prediction
from fashion_jax.commands.index import _ACTIONS
from fashion_jax.commands.training import split_settings
from fashion_jax.serving import predictor
from fashion_jax.system.errors import UserError

COMMANDS = {command.name: command for group in cli.GROUPS.values() for command in group}


def shown(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_fits_on_a_screen_and_says_what_to_try_first(capsys):
    text = shown(capsys)
    lines = text.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    assert text.index("Try first") < text.index("predict --model small") < text.index("Label photos")
    for name, command in COMMANDS.items():
        assert f"  {name:<10}{command.about}" in lines


@pytest.mark.parametrize("command", [*COMMANDS.values(), *_ACTIONS], ids=lambda c: c.name)
def test_every_command_explains_itself_with_examples_that_can_be_parsed(command, capsys):
    words = ["index", command.name] if command in _ACTIONS else [command.name]
    text = shown(capsys, *words)
    assert text.startswith(f"usage: fashion-jax {' '.join(words)}")
    for example in command.examples:
        settings, rest = split_settings(shlex.split(example)[1:])
        assert not settings or cli.make_parser().parse_args(rest).takes_settings
        cli.make_parser().parse_args(rest)
        assert example in text


def test_every_flag_says_what_it_is():
    def check(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for inner in action.choices.values():
                    check(inner)
            else:
                assert action.help, f"{parser.prog}: {action.dest}"

    check(cli.make_parser())


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("", "COMMAND"), ("trian", "trian"), ("predict --source x", "--model"), ("train --config=demo", "--workdir"),
        ("predict --model small --source x --config.train.seed=1", "--config.KEY=VALUE"), ("index", "ACTION"),
        ("train --config=demo --workdir=w --config.train.seed", "--config.train.seed"),
        ("train --config=dmeo --workdir=w", "did you mean 'demo'"), ("evaluate --workdir=absent", "absent"),
        ("train --config=demo --workdir=w --config.train.sed=1", "seed"), ("index info --index absent", "absent"),
        ("train --config=demo --workdir=w --local-device-ids=a", "--local-device-ids"), ("search --index=i", "--image"),
        ("train --config=demo --workdir=w --process-id=0", "--num-processes"),
        ("prepare --source=s --out=o --split-fractions=1,2", "--split-fractions"),
        ("audit --model=small --source=s --judge=me", "--judge"),
        ("search --index=i --id=1 --image=p.jpg", "only one"),
        ("search --index=i --attribute a=b --keep c", "--keep"),
        ("search --index=i --attribute a=b --diversity 0.5", "--diversity"),
        ("sweep --config=demo --space=absent.json --out=o", "absent.json"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name_with_code_2(arguments, names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(arguments.split())
    except SystemExit as stop:  # argparse's own
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and names in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_settings_are_split_from_flags():
    given = ["--config=c", "--config.a.b=1=2", "--workdir", "w", "--config.x", "y z"]
    assert split_settings(given) == ({"a.b": "1=2", "x": "y z"}, ["--config=c", "--workdir", "w"])


@pytest.mark.parametrize(("engine", "prepared"), [("jax", ["devices"]), ("onnx", [])])
@pytest.mark.parametrize("command", ["predict", "embed"])
def test_devices_are_set_before_jax_predicts(monkeypatch, command, engine, prepared):
    calls = []

    def stop(package, *, engine):
        calls.append(engine)
        raise UserError("far enough")

    monkeypatch.setattr(predictor, "choose_engine", lambda package: engine)
    monkeypatch.setattr(predictor, "Predictor", stop)
    monkeypatch.setattr(prediction, "start_for_prediction", lambda: calls.append("devices"))
    assert cli.main([command, "--model=small", "--source=photo.jpg"]) == 2
    assert calls == [*prepared, engine]


def test_the_module_is_train(monkeypatch):
    got = []
    monkeypatch.setattr(cli, "main", lambda arguments: got.append(arguments) or 3)
    assert main.main(["--config=c", "--config.train.seed=4"]) == 3
    assert got == [["train", "--config=c", "--config.train.seed=4"]]


def test_help_does_not_wait_for_jax():
    code = "import sys\nfrom fashion_jax import cli\ncli.make_parser()\nassert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
