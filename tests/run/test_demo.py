"""The demonstration: the whole of it, shortened, its count of clean rows, and the commands that it tells."""

from __future__ import annotations

import csv
import re
import shlex

import numpy as np

from fashion_jax import cli
from fashion_jax.config.files import load_config
from fashion_jax.data.drawn.catalogue import wrong_labels
from fashion_jax.data.records import open_prepared
from fashion_jax.run import demo


def test_it_ends_with_scores_paths_and_commands_that_work(tmp_path, monkeypatch, capsys):
    config = load_config("demo")
    config.data.source = "synthetic:200:3"
    config.model.pretrained, config.model.depth, config.model.width = "", 10, 4
    config.train.duration = config.train.evaluate_every = config.train.checkpoint_every = "3 steps"
    monkeypatch.setattr(demo, "load_config", lambda name: config)
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / "w"
    demo.run_demo(workdir)
    text = capsys.readouterr().out
    for name in ("catalogue", "photos", "evaluation/test/contact_sheet.png", "package", "index", "neighbours.png"):
        assert (workdir / name).exists()
        assert str(workdir / name) in text
    # Counted again, row by row, from the files.
    prepared, wrong = open_prepared(workdir / "records"), wrong_labels(200, 3)
    assert wrong
    with (workdir / "evaluation/test/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    places = {product: row for row, product in enumerate(prepared.ids)}
    for name in config.data.attributes:
        column, hits = prepared.attributes.index(name), []
        for row in rows:
            label = prepared.labels[places[row["id"]], column]
            if label >= 0 and (row["id"], name) not in wrong:
                hits.append(prepared.vocabularies[name][label] == row[name])
        assert f"{name:<16}{np.mean(hits):.4f}" in text
    commands = re.findall(r"^  fashion-jax (.*)$", text, re.M)
    assert [command.split()[0] for command in commands] == ["predict", "search", "search", "audit"]
    for command in commands[:3]:
        assert cli.main(shlex.split(command)) == 0, command
    assert cli.make_parser().parse_args(shlex.split(commands[3])).source == str(workdir / "catalogue")
    printed = capsys.readouterr().out
    assert all(f"\n{photo.stem} " in printed for photo in (workdir / "photos").iterdir())
