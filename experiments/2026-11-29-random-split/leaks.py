"""How much of a random split's score is that its test products have relatives among the training products?

Command: python experiments/2026-11-29-random-split/leaks.py --workdir W \
             --out experiments/2026-11-29-random-split/results

W is the workdir of a finished run with `data.split=random`. Its test rows are told apart by whether a training row is
in their group (near-duplicates and variants, which `data.split=group` keeps on one side), and what the package says of
them is scored on either kind. Writes table.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from fashion_jax import files
from fashion_jax.data.manifest import open_prepared
from fashion_jax.data.schema import MISSING

HEADER = "| attribute | rows with relatives | accuracy | rows without | accuracy |\n|---|---|---|---|---|\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="of a run with data.split=random")
    parser.add_argument("--out", required=True, type=Path)
    flags = parser.parse_args()
    prepared = open_prepared(flags.workdir / "records")
    test = prepared.indices("test")
    related = np.isin(prepared.groups[test], prepared.groups[prepared.indices("train")])
    predictions = pd.read_csv(
        flags.workdir / "evaluation" / "test" / "predictions.csv", dtype=str, keep_default_na=False
    )
    said = predictions.set_index("id").loc[[str(i) for i in prepared.ids[test]]]
    lines = [HEADER]
    for column, (name, classes) in enumerate(prepared.vocabularies.items()):
        labels = prepared.labels[test, column]
        right = np.asarray(said[name]) == np.asarray(classes)[labels]
        cells = [name]
        for kind in (related, ~related):
            chosen = kind & (labels != MISSING)
            cells += [f"{chosen.sum():,}", f"{right[chosen].mean():.4f}"]
        lines.append(f"| {' | '.join(cells)} |\n")
    flags.out.mkdir(parents=True, exist_ok=True)
    files.write_text(flags.out / "table.md", "".join(lines))
    print("".join(lines), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
