"""How good is our colour head beside a PyTorch recipe that has the same rows, network, time and machine?

Command: python experiments/2026-11-27-colour-against-pytorch/run.py --workdir runs/small_cpu --peer peer_torch.py \
             --seconds SECONDS --out DIR

SECONDS is the time that our run took, all included; the peer has it for training alone. Writes the training rows and
the test rows of the run's records as two archives in Kaggle's layout, and gives them to the peer's `recipe`, once with
plain cross-entropy and once weighted by inverse class frequency, as the original project had it. The peer knows four
heads, leaves out rows that lack one of their labels and training rows of rare classes, and scores a head on rows whose
class it knows. Our package is judged on exactly these rows, as it decides and at its operating point for macro-F1.
What the peer prints goes to DIR/plain.txt and DIR/weighted.txt, ours to DIR/ours.txt; finished ones are not run again.
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd

from fashion_jax import files
from fashion_jax.data.manifest import Prepared, open_prepared
from fashion_jax.data.schema import MISSING
from fashion_jax.evaluation.metrics import summarize

RUNS = ("ours", "weighted", "plain")
HEADS = ("masterCategory", "subCategory", "baseColour", "gender")
# What peer_torch.py takes: these categories, and training rows of classes of more rows than these, one after the other.
MASTER_CATEGORIES = ("Accessories", "Apparel", "Footwear", "Personal Care")
SMALLEST = {"subCategory": 20, "articleType": 10, "baseColour": 10}
COLUMNS = (
    "id", "gender", "masterCategory", "subCategory", "articleType", "baseColour", "season", "year", "usage",
    "productDisplayName",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="of our run")
    parser.add_argument("--peer", required=True, type=Path, help="the PyTorch script")
    parser.add_argument("--seconds", type=int, required=True, help="of training, each time")
    parser.add_argument("--width", type=int, default=32, help="of the ResNet-18's first stage")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--out", required=True, type=Path)
    flags = parser.parse_args()
    prepared = open_prepared(flags.workdir / "records")
    archives = {split: flags.out / f"{split}.zip" for split in ("train", "test")}
    for split, path in archives.items():
        if not path.exists():
            write_archive(prepared, split, path)
    for name in flags.runs:
        report = flags.out / f"{name}.txt"
        if report.exists():
            continue
        if name == "ours":
            text = score_ours(prepared, flags.workdir, flags.out)
            files.write_text(report, text)
            print(text, flush=True)
            continue
        weighted = ["--weighted"] if name == "weighted" else []
        command = [
            sys.executable, str(flags.peer.resolve()), "recipe", "--data", str(archives["train"].resolve()), "--test",
            str(archives["test"].resolve()), "--depth", "18", "--net-width", str(flags.width), "--seconds",
            str(flags.seconds), *weighted,
        ]  # fmt: skip
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return done.returncode
        files.write_text(report, done.stdout)
        print(done.stdout, flush=True)
    return 0


def score_ours(prepared: Prepared, workdir: Path, out: Path) -> str:
    """Returns our accuracy and macro-F1 by head at both operating points, on the rows that the peer is judged on."""
    known = peer_vocabularies(table(prepared, "train"))
    truth = table(prepared, "test")
    truth = truth[truth["masterCategory"].isin(MASTER_CATEGORIES) & truth[[*HEADS, *SMALLEST]].notna().all(axis=1)]
    lines = []
    for point in ("accuracy", "macro_f1"):
        predictions = out / f"ours_{point}.csv"
        subprocess.run(
            [
                sys.executable, "-m", "fashion_jax.cli", "predict", "--model", str(workdir), "--source",
                str(out / "test.zip"), "--operating-point", point, "--out", str(predictions),
            ],
            check=True,
        )  # fmt: skip
        said = pd.read_csv(predictions, dtype=str, keep_default_na=False).set_index("id").loc[truth.index]
        lines.append(f"fashion_jax, operating point {point}:")
        for head in HEADS:
            rows = truth[head].isin(known[head])
            labels, guesses = truth.loc[rows, head], said.loc[rows, head]
            classes = sorted({*labels, *guesses})
            confusion = pd.crosstab(labels, guesses).reindex(index=classes, columns=classes, fill_value=0).to_numpy()
            scores = summarize(confusion, 0, len(labels), 0.0, tuple(classes))
            lines.append(
                f"  {head}: accuracy {scores['accuracy']:.4f} macro-F1 {scores['macro_f1']:.4f} ({len(labels)} rows)"
            )
    return "\n".join(lines) + "\n"


def table(prepared: Prepared, split: str) -> pd.DataFrame:
    """Returns a split's labels by attribute, a row per id; a missing label is None."""
    rows = prepared.indices(split)
    columns: dict[str, list[str | None]] = {
        name: [
            None if (label := int(prepared.labels[row, column])) == MISSING else prepared.vocabularies[name][label]
            for row in rows
        ]
        for column, name in enumerate(prepared.attributes)
    }
    return pd.DataFrame(columns, index=[str(prepared.ids[row]) for row in rows])


def peer_vocabularies(train: pd.DataFrame) -> dict[str, set[str]]:
    """Returns the classes by head that the peer's `load` keeps of training rows."""
    train = train[train["masterCategory"].isin(MASTER_CATEGORIES)]
    for name, smallest in SMALLEST.items():
        train = train[train.groupby(name)[name].transform("size") > smallest]
    train = train[train[list(HEADS)].notna().all(axis=1)]
    return {head: set(train[head]) for head in HEADS}


def write_archive(prepared: Prepared, split: str, path: Path) -> None:
    """Writes a split as Kaggle does: styles.csv and images/<id>.jpg."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    with files.replace_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for row in prepared.indices(split):
            product = {"id": prepared.ids[row]}
            for column, name in enumerate(prepared.attributes):
                label = int(prepared.labels[row, column])
                product[name] = "" if label == MISSING else prepared.vocabularies[name][label]
            writer.writerow(product)
            archive.writestr(f"images/{product['id']}.jpg", prepared.read_photo(int(row)))
        archive.writestr("styles.csv", text.getvalue())


if __name__ == "__main__":
    raise SystemExit(main())
