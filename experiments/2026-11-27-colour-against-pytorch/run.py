"""How good is our colour head beside a PyTorch recipe that has the same rows, network, time and machine?

Command: python experiments/2026-11-27-colour-against-pytorch/run.py --records runs/small_cpu/records \
             --peer peer_torch.py --seconds 2700 --out DIR

Writes the training rows and the test rows of prepared records as two archives in Kaggle's layout, and gives them to the
peer's `recipe`, once with plain cross-entropy and once weighted by inverse class frequency, as the original project had
it. The peer knows four heads, and leaves out rows that lack one of their labels, and classes of few training rows. What
it prints goes to DIR/plain.txt and DIR/weighted.txt; our own figures are in the run's evaluation/test/metrics.json.
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
import zipfile
from pathlib import Path

from fashion_jax import files
from fashion_jax.data.manifest import Prepared, open_prepared
from fashion_jax.data.schema import MISSING

COLUMNS = (
    "id", "gender", "masterCategory", "subCategory", "articleType", "baseColour", "season", "year", "usage",
    "productDisplayName",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", required=True, type=Path)
    parser.add_argument("--peer", required=True, type=Path, help="the PyTorch script")
    parser.add_argument("--seconds", type=int, required=True, help="of training, each time")
    parser.add_argument("--width", type=int, default=32, help="of the ResNet-18's first stage")
    parser.add_argument("--out", required=True, type=Path)
    flags = parser.parse_args()
    prepared = open_prepared(flags.records)
    archives = {split: flags.out / f"{split}.zip" for split in ("train", "test")}
    for split, path in archives.items():
        if not path.exists():
            write_archive(prepared, split, path)
    for name, weighted in (("plain", []), ("weighted", ["--weighted"])):
        report = flags.out / f"{name}.txt"
        if report.exists():
            continue
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
