"""What a model says of photos: arrays for programs, labels by name for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from fashion_jax.decision import decisions as deciding
from fashion_jax.decision.decisions import Decision


class NetworkOutputs(NamedTuple):
    """What a network itself says of photos.

    Attributes:
        logits: attribute -> float32 (n, classes); means of a photo and its mirror image where that was asked for.
        features: float32 (n, pooled features).
        energies: float32 (n,).
        embeddings: float32 (n, size), as the package makes them; the features where it does not say how.
        colour: float32 (n, size), what colour heads see besides the features; of no size without them.
    """

    logits: dict[str, np.ndarray]
    features: np.ndarray
    energies: np.ndarray
    embeddings: np.ndarray
    colour: np.ndarray


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the model says of n photos.

    Attributes:
        probabilities: attribute -> float32 (n, classes), each row sums to 1; calibrated where the package has what was
            fitted on validation rows.
        features: float32 (n, pooled features), at least 0, not normalised.
        embeddings: float32 (n, size), what photos are compared by: of length 1 where the package says what they are
            made of, else the features.
        labels: attribute -> int64 (n,), the class that is said.
        accepted: attribute -> bool (n,), whether the label is sure enough to be taken over unseen; empty where nothing
            was fitted.
        out_of_catalogue: float32 (n,), how strange the photo is to the catalogue; None where that was not fitted.
        is_out_of_catalogue: bool (n,), whether that is above the threshold; None likewise.
        label_sets: attribute -> bool (n, classes), the classes that hold the true one as often as was asked for; empty
            where none were fitted.
    """

    probabilities: dict[str, Float32[np.ndarray, "n classes"]]
    features: Float32[np.ndarray, "n features"]
    embeddings: Float32[np.ndarray, "n size"]
    labels: dict[str, Int64[np.ndarray, " n"]]
    accepted: dict[str, Bool[np.ndarray, " n"]] = field(default_factory=dict)
    out_of_catalogue: Float32[np.ndarray, " n"] | None = None
    is_out_of_catalogue: Bool[np.ndarray, " n"] | None = None
    label_sets: dict[str, Bool[np.ndarray, "n classes"]] = field(default_factory=dict)


class Prediction(dict[str, tuple[str, float]]):
    """What is said of one photo: attribute -> (class, probability), and beside it how far that can be trusted.

    Attributes:
        accepted: attribute -> whether the label is sure enough to be taken over unseen; empty where nothing was fitted.
        out_of_catalogue: how strange the photo is to the catalogue; None where that was not fitted.
        is_out_of_catalogue: whether that is above the threshold; None likewise.
        label_sets: attribute -> the classes of its label set, the likeliest first; empty where none were fitted.
    """

    def __init__(
        self,
        labels: dict[str, tuple[str, float]],
        *,
        accepted: dict[str, bool] | None = None,
        out_of_catalogue: float | None = None,
        is_out_of_catalogue: bool | None = None,
        label_sets: dict[str, list[str]] | None = None,
    ) -> None:
        super().__init__(labels)
        self.accepted = accepted or {}
        self.out_of_catalogue, self.is_out_of_catalogue = out_of_catalogue, is_out_of_catalogue
        self.label_sets = label_sets or {}


def join_outputs(
    parts: Sequence[NetworkOutputs], classes: Mapping[str, int], features: int, embedding: int, colour: int
) -> NetworkOutputs:
    """Returns the rows of all parts, of which there may be none.

    Args:
        parts: in order.
        classes: attribute -> number of classes.
        features: pooled features.
        embedding: size of an embedding.
        colour: size of what colour heads see.
    """

    def join(arrays: list[np.ndarray], *width: int) -> np.ndarray:
        return np.concatenate([np.empty((0, *width), np.float32), *arrays])

    return NetworkOutputs(
        {name: join([p.logits[name] for p in parts], count) for name, count in classes.items()},
        join([p.features for p in parts], features),
        join([p.energies for p in parts]),
        join([p.embeddings for p in parts], embedding),
        join([p.colour for p in parts], colour),
    )


def decide(
    decision: Decision | None,
    logits: Mapping[str, Float32[np.ndarray, "n classes"]],
    features: Float32[np.ndarray, "n features"],
    energies: Float32[np.ndarray, " n"],
    operating_point: str = "accuracy",
    *,
    embeddings: Float32[np.ndarray, "n size"] | None = None,
) -> Outputs:
    """Turns what a network says of photos into what is said of them.

    Args:
        decision: what was fitted; None: probabilities are softmax(logits), labels the likeliest classes.
        logits: attribute -> the network's.
        features: pooled, of the photos.
        energies: of the photos.
        operating_point: whose labels are said.
        embeddings: of the photos; None where they are the features.
    """
    embeddings = features if embeddings is None else embeddings
    if decision is None:
        plain = {name: np.exp(deciding.scale(values, 1.0)).astype(np.float32) for name, values in logits.items()}
        return Outputs(plain, features, embeddings, {name: values.argmax(1) for name, values in logits.items()})
    log_probs = deciding.log_probabilities(decision, logits)
    labels = deciding.choose_labels(decision, log_probs, operating_point)
    sure = deciding.confidences(log_probs, labels)
    score = decision.out_of_catalogue
    strange = None if score is None else score.scores(features, energies)
    return Outputs(
        {name: np.exp(values).astype(np.float32) for name, values in log_probs.items()},
        features,
        embeddings,
        labels,
        deciding.accepted(decision, sure, operating_point),
        None if strange is None else strange.astype(np.float32),
        None if strange is None or score is None else strange > score.threshold,
        deciding.choose_sets(decision, log_probs, labels),
    )


def name_labels(outputs: Outputs, vocabularies: Mapping[str, tuple[str, ...]]) -> list[Prediction]:
    """Returns per photo, attribute -> (the class that is said, its probability).

    Args:
        outputs: of photos.
        vocabularies: attribute -> class names, in the order of the heads.
    """
    strange, flagged = outputs.out_of_catalogue, outputs.is_out_of_catalogue

    def named(i: int) -> dict[str, tuple[str, float]]:
        said = {name: int(outputs.labels[name][i]) for name in vocabularies}
        return {n: (vocabularies[n][c], float(outputs.probabilities[n][i, c])) for n, c in said.items()}

    def members(name: str, i: int) -> list[str]:
        chosen = np.flatnonzero(outputs.label_sets[name][i])
        order = np.argsort(-outputs.probabilities[name][i, chosen], kind="stable")
        return [vocabularies[name][c] for c in chosen[order].tolist()]

    return [
        Prediction(
            named(i),
            accepted={name: bool(outputs.accepted[name][i]) for name in vocabularies if name in outputs.accepted},
            out_of_catalogue=None if strange is None else float(strange[i]),
            is_out_of_catalogue=None if flagged is None else bool(flagged[i]),
            label_sets={name: members(name, i) for name in vocabularies if name in outputs.label_sets},
        )
        for i in range(len(outputs.embeddings))
    ]
