"""Compares losses of multi-valued heads on the drawn catalogue with tags: asymmetric, focal, and plain cross-entropy.

Command: python experiments/2026-11-30-tag-loss/run.py --out results --seeds 0 1
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fashion_jax.config.files import load_config
from fashion_jax.run.train import train
from fashion_jax.training import losses
from fashion_jax.training.losses import is_labelled

ROOT = Path(__file__).resolve().parents[2]
ASYMMETRIC = losses.tag_losses
SCORES = ("map", "micro_f1", "macro_f1")


def focal(logits: jax.Array, labels: jax.Array, gamma: float = 2.0) -> jax.Array:
    """Lin et al., ICCV 2017, without alpha; gamma 0 is cross-entropy."""
    signed = jnp.where(labels == 1, logits, -logits)
    right = jnp.maximum(jax.nn.sigmoid(-signed), 1e-7) ** gamma
    return jnp.where(is_labelled(labels), jnp.sum(-right * jax.nn.log_sigmoid(signed), -1), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--products", type=int, default=1500)
    flags = parser.parse_args()
    kinds = {
        "asymmetric": ASYMMETRIC,
        "focal": focal,
        "cross-entropy": lambda logits, labels: focal(logits, labels, 0.0),
    }
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for seed in flags.seeds:
        for kind, loss in kinds.items():
            losses.tag_losses = loss
            config = load_config(ROOT / "configs/demo.py")
            config.data.source, config.data.attributes = f"synthetic-tags:{flags.products}:{seed}", ()
            config.train.seed = seed
            with tempfile.TemporaryDirectory() as folder:
                test = train(config, Path(folder) / "run", progress=False).test
            assert test is not None
            scores = {f"{name}/{key}": s[key] for name, s in test.tags.items() for key in SCORES}
            sleeve = test.summaries["sleeve"]["per_class"]["does not apply"]["f1"]
            found[kind].append({"seed": seed, "sleeve does not apply/f1": sleeve, **scores})
            print(kind, found[kind][-1], flush=True)
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "scores.json").write_text(json.dumps(found, indent=1) + "\n")
    names = [name for name in found["focal"][0] if name != "seed"]
    lines = ["| score | " + " | ".join(kinds) + " |", "|---|" + "---|" * len(kinds)]
    for name in names:
        cells = (" ".join(f"{run[name]:.3f}" for run in found[kind]) for kind in kinds)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    means = (np.mean([[run[n] for n in names if n.endswith("map")] for run in found[kind]]) for kind in kinds)
    lines.append("| mean mAP | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    (flags.out / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
