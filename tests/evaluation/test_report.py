"""Reports: numbers on the disk are the numbers measured, and pictures can be opened."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
from PIL import Image

from fashion_jax.evaluation.metrics import summarize
from fashion_jax.evaluation.report import write_evaluation, write_prediction_sheet


def test_files_hold_what_was_measured(tmp_path):
    names = ('plain "quoted", comma', "b", "never seen")
    confusion = np.array([[5, 1, 0], [2, 7, 0], [0, 0, 0]])
    scores = summarize(confusion, 15, 15, float("nan"), names)
    write_evaluation(tmp_path, {"kind": scores}, {"kind": confusion}, {"kind": names}, {"step": 3})
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    kind = metrics["attributes"]["kind"]
    assert (metrics["step"], kind["accuracy"], kind["loss"]) == (3, 12 / 15, None)
    rows = list(csv.reader(io.StringIO((tmp_path / "confusion/kind.csv").read_text())))
    assert rows[0][1:] == list(names)
    assert [list(map(int, r[1:])) for r in rows[1:]] == confusion.tolist()
    classes = list(csv.DictReader(io.StringIO((tmp_path / "per_class/kind.csv").read_text())))
    assert classes[0] == {
        "class": names[0], "precision": "0.7143", "recall": "0.8333", "f1": "0.7692", "support": "6",
    }  # fmt: skip
    assert classes[2] == {"class": "never seen", "precision": "", "recall": "", "f1": "", "support": "0"}
    assert Image.open(tmp_path / "confusion/kind.png").size[0] > 300


def test_contact_sheet_shows_right_and_wrong(tmp_path):
    photos = [np.full((80, 60, 3), 40 * i, np.uint8) for i in range(5)]
    truths = [{"kind": "x"}, {"kind": "y"}, {"kind": None}, {"kind": "x"}, {"kind": "x"}]
    write_prediction_sheet(tmp_path / "s.png", photos, truths, [{"kind": ("x", 0.5)}] * 5)
    image = np.asarray(Image.open(tmp_path / "s.png").convert("RGB")).astype(int)
    red = ((image[..., 0] > 150) & (image[..., 1] < 90)).any(0)
    green = ((image[..., 1] > 90) & (image[..., 0] < 60) & (image[..., 2] < 90)).any(0)
    width = image.shape[1] // 5
    assert [bool(red[i * width : (i + 1) * width].any()) for i in range(5)] == [False, True, False, False, False]
    assert [bool(green[i * width : (i + 1) * width].any()) for i in range(5)] == [True, False, False, True, True]
    write_prediction_sheet(tmp_path / "empty.png", [], [], [])
    assert Image.open(tmp_path / "empty.png").size[0] > 0
