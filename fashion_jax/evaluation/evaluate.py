"""Scores a model on every row of a split, once, on the mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.sharding import Mesh
from jaxtyping import Float32, Int32, Int64

from fashion_jax.evaluation.metrics import HeadMetrics, summarize
from fashion_jax.evaluation.tags import TAG_SCORES, summarize_tags
from fashion_jax.models.classifier import mean_energy, mean_of_mirrored, merge_network
from fashion_jax.training.placement import batch_sharding, put_batch, replicated
from fashion_jax.training.step import NetworkSpec

_SMALL = ("row", "valid", "predictions", "tags", "tag_labels")
EvaluationStep = Callable[[Any, Any, Mapping[str, HeadMetrics], Mapping[str, jax.Array]], tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class RowOutputs:
    """The network's outputs for n rows."""

    # per attribute, float32 (n, classes); with mirror images, logarithms of the mean probabilities
    logits: dict[str, Float32[np.ndarray, "n classes"]]
    # float32 (n, features), what the backbone pools of the photos themselves
    features: Float32[np.ndarray, "n features"]
    # float32 (n,), mean over the heads of -logsumexp(logits) of the photos themselves
    energies: Float32[np.ndarray, " n"]
    # per attribute, float32 (n, classes), of the photos themselves
    own_logits: dict[str, Float32[np.ndarray, "n classes"]]
    # per multi-valued attribute, float32 (n, classes); with mirror images, log odds of the mean probabilities
    tags: dict[str, Float32[np.ndarray, "n classes"]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of a split."""

    summaries: dict[str, dict[str, Any]]  # per attribute, as `metrics.summarize` returns them
    # per attribute, int64 (classes, classes), [label, prediction]
    confusions: dict[str, Int64[np.ndarray, "classes classes"]]
    # int32 (n,), the row numbers that were scored; in the order of the batches, on every process
    rows: Int32[np.ndarray, " n"]
    # per attribute, int32 (n,), the class with the highest score, beside `rows`
    predictions: dict[str, Int32[np.ndarray, " n"]]
    # the network's outputs for each row, beside `rows`; None where they were not kept
    outputs: RowOutputs | None = None
    decisions: dict[str, Any] | None = None  # the report of `score_decision`; None where no decision was fitted
    # attribute -> rows, accuracy and macro-F1 of products' labels; None where each product has one photo
    products: dict[str, dict[str, float]] | None = None
    # colour attribute -> what `colour_report.colour_scores` returns; None where it was not asked for
    colours: dict[str, dict[str, float]] | None = None
    # per multi-valued attribute, as `tags.summarize_tags` returns them; at the threshold 0.5 without a decision
    tags: dict[str, dict[str, Any]] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """Returns `<attribute>/accuracy`, `/macro_f1`, `/loss`, their means as `mean/...`, and the summed `loss`.

        A multi-valued attribute has `/map`, `/micro_f1`, `/macro_f1` and `/loss`, and no part in the means. An
        attribute without a labelled row has no scores.
        """
        scored = {name: s for name, s in self.summaries.items() if s["count"]}
        flat = {
            f"{name}/{key}": float(s[key]) for name, s in scored.items() for key in ("accuracy", "macro_f1", "loss")
        }
        for key in ("accuracy", "macro_f1"):
            flat[f"mean/{key}"] = float(np.mean([s[key] for s in scored.values()])) if scored else 0.0
        tags = {name: s for name, s in self.tags.items() if s["count"]}
        flat |= {f"{name}/{key}": s[key] for name, s in tags.items() for key in TAG_SCORES if s[key] is not None}
        flat["loss"] = float(sum(s["loss"] for s in (*scored.values(), *tags.values())))
        return flat


def make_evaluation_step(network: NetworkSpec, mesh: Mesh, *, test_time_flip: bool = False) -> EvaluationStep:
    """Returns (params, batch_stats, metrics so far, batch) -> (metrics, rows).

    `rows` holds `row` and `valid` of the whole batch, `predictions` and `logits` per attribute, `tags` (logits) and
    `tag_labels` per multi-valued attribute, `features`, `energies` and, with mirror images, `own_logits`; all of it
    ends up on every device, so that every process can read it.

    Args:
        test_time_flip: whether each photo's mirror image is asked too.
    """

    def step(
        params: Any, batch_stats: Any, totals: Mapping[str, HeadMetrics], batch: Mapping[str, jax.Array]
    ) -> tuple[dict[str, HeadMetrics], dict[str, Any]]:
        model, images = merge_network(network.graph, params, batch_stats), network.normalize(batch["image"])
        outputs = model(images, train=False)
        every, tags = outputs.logits, outputs.tags
        if test_time_flip:
            every, tags = mean_of_mirrored(model, images, outputs)
        merged, predictions = {}, {}
        for name, labels in network.labels(batch).items():
            logits = every[name]
            merged[name] = totals[name].merge(HeadMetrics.from_logits(logits, labels, batch["valid"]))
            predictions[name] = jnp.argmax(logits, -1)
        rows = {"row": batch["row"], "valid": batch["valid"], "predictions": predictions}
        rows |= {"tags": tags, "tag_labels": network.tag_labels(batch)}
        kept = {"logits": every, "features": outputs.features, "energies": mean_energy(outputs.logits)}
        if test_time_flip:
            kept["own_logits"] = outputs.logits
        return merged, {**rows, **kept}

    everywhere, rows = replicated(mesh), batch_sharding(mesh)
    return jax.jit(
        step, in_shardings=(everywhere, everywhere, everywhere, rows), out_shardings=(everywhere, everywhere)
    )


def evaluate_split(
    step: EvaluationStep,
    params: Any,
    batch_stats: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    mesh: Mesh,
    vocabularies: Mapping[str, tuple[str, ...]],
    tags: Mapping[str, tuple[str, ...]],
    prepare_batch: Callable[[dict[str, jax.Array]], dict[str, jax.Array]] = lambda batch: batch,
    keep_outputs: bool = False,
) -> Evaluation:
    """Runs the model over batches and sums up.

    Args:
        step: from `make_evaluation_step`.
        batches: this process's rows, from `evaluation_batches`.
        vocabularies: attribute -> class names, in the order of the labels.
        tags: multi-valued attribute -> class names.
        prepare_batch: adds what lives on the devices.
        keep_outputs: whether to keep the network's outputs for every row.
    """
    totals = jax.device_put({name: HeadMetrics.empty(len(v)) for name, v in vocabularies.items()}, replicated(mesh))
    kept = []
    for batch in batches:
        totals, rows = step(params, batch_stats, totals, prepare_batch(put_batch(dict(batch), mesh)))
        # What is large leaves the devices at once; what is small waits, so that nothing waits for it.
        kept.append(jax.device_get(rows) if keep_outputs else {k: v for k, v in rows.items() if k in _SMALL})
    host = jax.device_get(totals)
    host = {name: host[name] for name in vocabularies}  # JAX sorts a dictionary by name
    confusions = {name: np.asarray(m.confusion, np.int64) for name, m in host.items()}
    summaries = {
        name: summarize(confusions[name], int(m.top5), int(m.count), float(m.loss), vocabularies[name])
        for name, m in host.items()
    }
    read = jax.device_get(kept)

    def join(parts: list[np.ndarray], dtype: type) -> np.ndarray:
        valid = [part[batch["valid"]] for part, batch in zip(parts, read, strict=True)]
        return np.concatenate(valid).astype(dtype) if valid else np.empty(0, dtype)

    tag_logits, tag_labels = (
        {name: join([batch[key][name] for batch in read], kind).reshape(-1, len(tags[name])) for name in tags}
        for key, kind in (("tags", np.float32), ("tag_labels", np.int8))
    )
    outputs = None
    if keep_outputs and read:

        def join_heads(key: str) -> dict[str, np.ndarray]:
            return {name: join([batch[key][name] for batch in read], np.float32) for name in vocabularies}

        logits = join_heads("logits")
        outputs = RowOutputs(
            logits,
            join([batch["features"] for batch in read], np.float32),
            join([batch["energies"] for batch in read], np.float32),
            join_heads("own_logits") if "own_logits" in read[0] else logits,
            tag_logits,
        )
    return Evaluation(
        summaries,
        confusions,
        join([batch["row"] for batch in read], np.int32),
        {name: join([batch["predictions"][name] for batch in read], np.int32) for name in vocabularies},
        outputs,
        tags={
            name: summarize_tags(scipy.special.expit(tag_logits[name]), tag_labels[name], classes)
            for name, classes in tags.items()
        },
    )
