"""The demonstration: the whole of it, shortened, and its count of clean rows."""

from __future__ import annotations

import numpy as np

from fashion_jax.config.files import load_config
from fashion_jax.data.drawn.catalogue import wrong_labels
from fashion_jax.data.records import open_prepared
from fashion_jax.run import demo as embedded


def test_it_ends_with_scores_and_paths_that_are_there(tmp_path, monkeypatch, capsys):
    config = load_config("demo")
    config.data.source = "synthetic:200:3"
    config.model.depth, config.model.width, config.train.duration = 10, 4, "3 steps"
    config.train.evaluate_every = config.train.checkpoint_every = "3 steps"
    monkeypatch.setattr(embedded, "load_config", lambda name: config)
    shown = {}
    real = embedded.clean_accuracy
    monkeypatch.setattr(embedded, "clean_accuracy", lambda *given: shown.setdefault("scores", real(*given)))
    assert embedded.run_demo(tmp_path / "w") == 0
    text = capsys.readouterr().out
    for name in ("evaluation/test/contact_sheet.png", "evaluation/test", "package", "index", "neighbours.png"):
        assert (tmp_path / "w" / name).exists()
        assert str(tmp_path / "w" / name) in text
    # Counted again, row by row, from the files.
    prepared, wrong = open_prepared(tmp_path / "w/records"), wrong_labels(200, 3)
    assert wrong
    lines = (tmp_path / "w/evaluation/test/predictions.csv").read_text().splitlines()
    header, rows = lines[0].split(","), [line.split(",") for line in lines[1:]]
    places = {product: row for row, product in enumerate(prepared.ids)}
    for name, accuracy in shown["scores"].items():
        column, hits = prepared.attributes.index(name), []
        for cells in rows:
            label = prepared.labels[places[cells[0]], column]
            if label >= 0 and (cells[0], name) not in wrong:
                hits.append(prepared.vocabularies[name][label] == cells[header.index(name)])
        assert accuracy == np.mean(hits)
        assert f"{name:<16}{accuracy:.4f}" in text
