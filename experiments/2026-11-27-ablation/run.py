"""What is each part of the recipe worth, in runs of the same length on the same rows?

Command: python experiments/2026-11-27-ablation/run.py --source RECORDS --out DIR

Every variant is `configs/small_cpu.py`, shortened and without second heads, with a few fields changed, and a workdir of
its own; what came of it is kept in results/ beside this file and is not run again, so the command goes on where it was
stopped. "retrained heads" is `configs/retrain_heads.py` on the network of the baseline, whose workdir must be there, in
addition to its time. The table has test accuracy and macro-F1 as the network says; as the package decides, that is with
the hierarchy, at the operating point for accuracy, and baseColour at that for macro-F1; the share of rows that
contradict the hierarchy, before and after; P@10 of the embeddings, and of the pooled features alone; and the seconds
from start to scores (of the last start, where a variant was stopped; most ran on one core of two, side by side).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fashion_jax import files

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHOWN = ("subCategory", "articleType", "baseColour", "gender", "season", "usage")
DECIDED = ("subCategory", "articleType", "baseColour")
PLACED = "articleType:128,baseColour:64,gender:32"

VARIANTS: dict[str, dict[str, str]] = {
    "baseline": {},
    "retrained heads": {
        "config": "retrain_heads", "model.pretrained": "baseline", "model.width": "32", "data.height": "60",
        "data.width": "45", "train.duration": "2 epochs", "train.evaluate_every": "1 epochs",
    },
    "no colour head": {"model.colour_heads": ""},
    "colour histogram": {"model.colour_histogram": "true", "model.colour_dropout": "0.2"},
    "second heads": {"model.stacked_heads": "auto"},
    "soft colours .2": {"loss.colour_softness": "0.2"},
    "balanced": {"loss.imbalance": "balanced"},
    "effective": {"loss.imbalance": "effective"},
    "logit adjustment": {"loss.imbalance": "logit_adjustment"},
    "prior": {"loss.imbalance": "prior"},
    "focal": {"loss.imbalance": "focal"},
    "auto": {"loss.imbalance": "auto", "loss.pilot_duration": "1 epochs"},
    "normalised softmax": {"model.metric_heads": PLACED, "embedding.kind": "learned"},
    "supervised contrastive": {
        "model.metric_heads": PLACED, "embedding.kind": "learned", "loss.metric": "supervised_contrastive",
    },
    "proxy anchor": {
        "model.metric_heads": PLACED, "embedding.kind": "learned", "loss.metric": "proxy_anchor",
        "loss.metric_weight": "0.05",
    },
    "no label smoothing": {"loss.label_smoothing": "0"},
    "label-aware smoothing": {"loss.rare_label_smoothing": "0"},
    "no mixing": {"train.mix.mixup_alpha": "0", "train.mix.cutmix_alpha": "0"},
    "mixup alone": {"train.mix.cutmix_alpha": "0"},
    "CutMix alone": {"train.mix.mixup_alpha": "0"},
    "no crops": {"data.augment.min_crop_area": "1"},
    "RandAugment 1 x .2": {"data.augment.rand_operations": "1", "data.augment.rand_magnitude": "0.2"},
    "erasing .25": {"data.augment.erase_probability": "0.25"},
    "moving average .998": {"train.average_decay": "0.998"},
    "GeM": {"model.pooling": "gem"},
    "ResNet-D's shortcut": {"model.deep_shortcut": "true"},
    "ImageNet's stem": {"model.stem": "imagenet"},
    "ResNet-D's stem": {"model.stem": "deep"},
    "stochastic depth .1": {"model.drop_path": "0.1"},
    "photos of 80x60": {"data.height": "80", "data.width": "60"},
    "60x45, then 80x60 from 60 %": {
        "data.height": "80", "data.width": "60", "train.progressive_scale": "0.75",
        "train.progressive_until": "60 percent",
    },
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="prepared records, or a catalogue")
    parser.add_argument("--out", required=True, type=Path, help="folder for the workdirs")
    parser.add_argument("--duration", default="3 epochs")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="some of them, by name")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="of every variant, such as train.seed=1"
    )
    flags = parser.parse_args()
    source = Path(flags.source).resolve() if Path(flags.source).exists() else flags.source
    folder = "_".join(["results", *sorted(flags.set)])
    for name in flags.variants:
        result = HERE / folder / file_name(name)
        workdir = flags.out.resolve() / folder / result.stem
        if not result.exists() and not run(workdir, source, settings_of(name, flags), result):
            return 1
        # Those of earlier calls stay in the table.
        rows = []
        for other in VARIANTS:
            path = HERE / folder / file_name(other)
            if path.exists():
                rows.append((other, json.loads(path.read_text(encoding="utf-8"))))
            if path.exists() and rows[-1][1]["settings"] != settings_of(other, flags):
                print(f"{path} is of other settings; move {folder}/ away", file=sys.stderr)
                return 1
        if len({found["records"] for _, found in rows}) > 1:
            print(f"not all of {folder}/ is of the same records; move it away", file=sys.stderr)
            return 1
        files.write_text(HERE / folder / "table.md", table(rows, flags))
        print(table([row for row in rows if row[0] == name], flags).splitlines()[-1], flush=True)
    return 0


def file_name(variant: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in variant) + ".json"


def settings_of(variant: str, flags: argparse.Namespace) -> dict[str, str]:
    return {
        "model.stacked_heads": "", "train.duration": flags.duration, "train.evaluate_every": flags.duration,
        **dict(pair.split("=", 1) for pair in flags.set), **VARIANTS[variant],
    }  # fmt: skip


def run(workdir: Path, source: str | Path, settings: dict[str, str], result: Path) -> bool:
    """Trains and scores a variant; False where that fails, which has been said then."""
    begin = time.monotonic()
    python = [sys.executable, "-m"]
    config = ROOT / "configs" / f"{settings.get('config', 'small_cpu')}.py"
    train = [*python, "fashion_jax.main", f"--config={config}", f"--workdir={workdir}"]
    fields = {"data.source": str(source), **{key: value for key, value in settings.items() if key != "config"}}
    if "model.pretrained" in fields:
        fields["model.pretrained"] = str(workdir.parent / fields["model.pretrained"])
    train += [f"--config.{key}={value}" for key, value in fields.items()]
    score = [*python, "fashion_jax.cli", "evaluate", "--workdir", str(workdir), "--retrieval"]
    for command in (train, score):
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            return False
    folder = workdir / "evaluation" / "test"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    scores, decided = metrics["attributes"], metrics["trust"]["heads"]
    neighbours = json.loads((folder / "retrieval.json").read_text(encoding="utf-8"))
    found = {
        "settings": settings,
        "records": json.loads((workdir / "data.json").read_text(encoding="utf-8"))["fingerprint"],
        "seconds": time.monotonic() - begin,
        "accuracy": {n: scores[n]["accuracy"] for n in scores},
        "macro_f1": {n: scores[n]["macro_f1"] for n in scores},
        "decided": {n: decided[n]["operating_points"] for n in decided},
        "contradictions": {k: v["any"]["share"] for k, v in metrics["trust"]["contradictions"].items() if k != "pairs"},
        "p@10": {
            kind: {label: values["p@10"] for label, values in neighbours[kind].items()}
            for kind in ("model", "its pooled features")
            if kind in neighbours
        },
    }
    files.write_json(result, found)
    return True


def table(rows: list[tuple[str, dict[str, Any]]], flags: argparse.Namespace) -> str:
    """Returns a Markdown table, a line per variant."""
    lines = [
        f"# {flags.duration} each, accuracy / macro-F1; P@10 of articleType, baseColour, gender, all three",
        "",
        "| variant | "
        + " | ".join(SHOWN)
        + "".join(f" | {name} decided" for name in DECIDED)
        + " | baseColour at macro_f1 | contradictions | neighbours | seconds |",
        "|---" * (len(SHOWN) + len(DECIDED) + 5) + "|",
    ]
    for variant, found in rows:
        cells = [f"{found['accuracy'][n]:.4f} / {found['macro_f1'][n]:.3f}" for n in SHOWN]
        neighbours = []
        for near in found["p@10"].values():
            joint = next(label for label in near if " and " in label)
            neighbours.append(
                ", ".join(f"{near[label]:.3f}" for label in ("articleType", "baseColour", "gender", joint))
            )
        points = found["decided"]
        for name in DECIDED:
            point = points[name]["accuracy"]
            cells.append(f"{point['accuracy']:.4f} / {point['macro_f1']:.3f}")
        rare = points["baseColour"]["macro_f1"]
        cells.append(f"{rare['accuracy']:.4f} / {rare['macro_f1']:.3f}")
        against = found["contradictions"]
        cells.append(f"{against['before']:.2%}, {against['after (accuracy)']:.2%}")
        cells.append("; ".join(neighbours))
        lines.append(f"| {variant} | " + " | ".join(cells) + f" | {found['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
