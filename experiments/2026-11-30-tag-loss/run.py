"""Compares losses of multi-valued heads on the drawn catalogue with tags: asymmetric, focal, and plain cross-entropy.

Command: python experiments/2026-11-30-tag-loss/run.py --out experiments/2026-11-30-tag-loss/results --seeds 0 1
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
SCORES = ("map", "micro_f1", "macro_f1")


def asymmetric(logits: jax.Array, labels: jax.Array, gamma: float = 4.0, margin: float = 0.05) -> jax.Array:
    """Ridnik et al., ICCV 2021, by default with their numbers."""
    shifted = jnp.maximum(jax.nn.sigmoid(logits) - margin, 0.0)
    absent = -(jnp.maximum(shifted, 1e-7) ** gamma) * jnp.log1p(-shifted)
    rows = jnp.sum(jnp.where(labels == 1, -jax.nn.log_sigmoid(logits), absent), -1)
    return jnp.where(is_labelled(labels), rows, 0.0)


def focal(logits: jax.Array, labels: jax.Array, gamma: float = 2.0) -> jax.Array:
    """Lin et al., ICCV 2017, without alpha; gamma 0 is cross-entropy."""
    signed = jnp.where(labels == 1, logits, -logits)
    right = jnp.maximum(jax.nn.sigmoid(-signed), 1e-7) ** gamma
    return jnp.where(is_labelled(labels), jnp.sum(-right * jax.nn.log_sigmoid(signed), -1), 0.0)


KINDS = {
    "asymmetric": asymmetric,
    "asymmetric, gamma 1, no margin": lambda logits, labels: asymmetric(logits, labels, 1.0, 0.0),
    "focal": focal,
    "focal, four times the weight": lambda logits, labels: 4 * focal(logits, labels),
    "cross-entropy": lambda logits, labels: focal(logits, labels, 0.0),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--products", type=int, default=1500)
    parser.add_argument("--losses", nargs="+", default=list(KINDS), help="others are kept as --out has them")
    flags = parser.parse_args()
    stored = flags.out / "scores.json"
    found: dict[str, list[dict[str, float]]] = json.loads(stored.read_text()) if stored.exists() else {}
    found |= {kind: [] for kind in flags.losses}
    for seed in flags.seeds:
        for kind in flags.losses:
            losses.tag_losses = KINDS[kind]
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
    kinds = [kind for kind in KINDS if kind in found]
    stored.write_text(json.dumps(found, indent=1) + "\n")
    names = [name for name in found[kinds[0]][0] if name != "seed"]
    lines = ["| score | " + " | ".join(kinds) + " |", "|---|" + "---|" * len(kinds)]
    for name in names:
        cells = (" ".join(f"{run[name]:.3f}" for run in found[kind]) for kind in kinds)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    means = (np.mean([[run[n] for n in names if n.endswith("map")] for run in found[kind]]) for kind in kinds)
    lines.append("| mean mAP | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    (flags.out / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
