"""What should a colour head see besides what it sees? Heads are fitted anew on a trained network's features.

Command: python experiments/2026-11-28-colour-features/run.py --workdir runs/small_cpu --attribute baseColour \
             --seeds 2 --out DIR

The workdir's network must have a colour head without `colour_histogram`. Minutes instead of an hour per idea, at the
price that the features were learnt on the same training rows. Writes DIR/table.md: accuracy on training, validation and
test rows, mean over a photo and its mirror image, by seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fashion_jax import files, load_model
from fashion_jax.data.manifest import open_prepared
from fashion_jax.data.photos import decode_photo
from fashion_jax.models.colour import colour_histogram, foreground, grid_colours, shrink, to_cielab
from fashion_jax.models.heads import Head
from fashion_jax.progress import progress_bar

SPLITS = ("train", "validation", "test")
BATCH, EPOCHS, RATE = 256, 15, 2e-3
# What is seen, and the dropout of it and of the hidden values. "answers" are the other heads' log-probabilities.
IDEAS = (
    (("features", "colour"), 0.0),
    (("features", "colour"), 0.2),
    (("features", "colour", "histogram"), 0.2),
    (("features", "colour", "grid"), 0.2),
    (("features", "colour", "histogram", "grid"), 0.2),
    (("answers", "colour"), 0.2),
    (("answers", "colour", "histogram", "grid"), 0.2),
    (("answers", "histogram", "grid"), 0.2),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--attribute", default="baseColour")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", required=True, type=Path)
    flags = parser.parse_args()
    model, prepared = load_model(flags.workdir), open_prepared(flags.workdir / "records")
    column = prepared.attributes.index(flags.attribute)
    seen: dict[str, dict[str, np.ndarray]] = {}
    for split in SPLITS:
        rows = [row for row in prepared.indices(split) if prepared.labels[row, column] >= 0]
        photos = np.stack(
            [decode_photo(prepared.read_photo(int(r)), *model.size) for r in progress_bar_over(rows, split)]
        )
        plain, mirrored = (observe(model, p, flags.attribute) for p in (photos, photos[:, :, ::-1].copy()))
        seen[split] = {"labels": prepared.labels[rows, column], **{k: np.stack([plain[k], mirrored[k]]) for k in plain}}
    lines = [
        "| what the new head sees | training | validation | test | test with the network's own |",
        "|---|" + "---|" * 4,
    ]
    own = {split: of["logits"] for split, of in seen.items()}
    lines.append(f"| (the network's own head) | {' | '.join(score(own[s], seen[s]['labels']) for s in SPLITS)} | |")
    for names, dropout in IDEAS:
        found = [fit(seen, names, dropout, seed) for seed in range(flags.seeds)]
        cells = [", ".join(score(f[s], seen[s]["labels"]) for f in found) for s in SPLITS]
        both = ", ".join(score(np.concatenate([f["test"], own["test"]]), seen["test"]["labels"]) for f in found)
        name = f"{', '.join(names)}; dropout {dropout}"
        lines.append(f"| {name} | {' | '.join(cells)} | {both} |")
        print(lines[-1], flush=True)
        flags.out.mkdir(parents=True, exist_ok=True)
        files.write_text(flags.out / "table.md", "\n".join(lines) + "\n")
    return 0


def progress_bar_over(rows, split):  # type: ignore[no-untyped-def]
    """Yields rows under a bar."""
    with progress_bar(len(rows), f"decoding {split} photos", show=True, unit="photo") as bar:
        for row in rows:
            yield row
            bar.update()


def observe(model, photos: np.ndarray, attribute: str) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
    """Returns what is seen of photos, (n, size) each."""
    said = model.run_network(photos, flip=False)
    pixels = [pixel_features(photos[start : start + 512]) for start in range(0, len(photos), 512)]
    histogram, grid = (np.concatenate(parts) for parts in zip(*pixels, strict=True))
    sure = {name: np.asarray(jax.nn.log_softmax(logits)) for name, logits in said.logits.items()}
    answers = np.concatenate([values for name, values in sure.items() if name != attribute], -1)
    return {
        "features": said.features,
        "colour": said.colour,
        "logits": sure[attribute],
        "answers": answers,
        "histogram": histogram,
        "grid": grid,
    }


@jax.jit
def pixel_features(photos: jax.Array) -> tuple[jax.Array, jax.Array]:
    rgb = photos.astype(jnp.float32) / 255
    fine, coarse = to_cielab(rgb), to_cielab(shrink(rgb, 2))
    return colour_histogram(coarse, foreground(coarse)), grid_colours(fine, foreground(fine))


def fit(seen: dict, names: tuple[str, ...], dropout: float, seed: int) -> dict[str, np.ndarray]:
    """Returns log-probabilities (2, n, classes) of each split by a head that was fitted on the training rows."""
    inputs = {split: np.concatenate([of[name] for name in names], -1) for split, of in seen.items()}
    mean, std = inputs["train"].mean((0, 1)), inputs["train"].std((0, 1)) + 1e-3
    inputs = {split: ((x - mean) / std).astype(np.float32) for split, x in inputs.items()}
    labels, classes = seen["train"]["labels"], seen["train"]["logits"].shape[-1]
    head = Head(len(mean), classes, hidden=(512,), dropout=dropout, input_dropout=dropout, rngs=nnx.Rngs(seed))
    steps = EPOCHS * (len(labels) // BATCH)
    optimizer = nnx.Optimizer(
        head, optax.adamw(optax.linear_schedule(RATE, 0.0, steps), weight_decay=0.05), wrt=nnx.Param
    )
    random = np.random.default_rng(seed)
    for number in range(steps):
        rows, mirrored = random.choice(len(labels), BATCH, replace=False), random.integers(0, 2, BATCH)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), BATCH)
        improve(head, optimizer, inputs["train"][mirrored, rows], labels[rows], keys)
    return {split: np.asarray(jax.nn.log_softmax(predict(head, x))) for split, x in inputs.items()}


@nnx.jit(donate_argnums=(0, 1))
def improve(head, optimizer, inputs, labels, keys) -> None:  # type: ignore[no-untyped-def]
    def loss(head):  # type: ignore[no-untyped-def]
        logits = head(inputs, train=True, dropout_keys=keys)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.1)
        return optax.softmax_cross_entropy(logits, targets).mean()

    optimizer.update(head, nnx.grad(loss)(head))


@nnx.jit
def predict(head, inputs) -> jax.Array:  # type: ignore[no-untyped-def]
    return head(inputs, train=False)


def score(log_probabilities: np.ndarray, labels: np.ndarray) -> str:
    """Returns the accuracy of the mean over the first axis."""
    return f"{(log_probabilities.mean(0).argmax(-1) == labels).mean():.4f}".lstrip("0")


if __name__ == "__main__":
    raise SystemExit(main())
