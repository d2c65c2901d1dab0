"""What a model predicts for photos: arrays for programs, names of classes for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from fashion_jax.decision import decisions as deciding
from fashion_jax.decision.decisions import Decision
from fashion_jax.decision.tags import choose_tags, tag_probabilities

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model predicts for n photos."""

    # attribute -> float32 (n, classes); each row sums to 1. They are calibrated where the package has a decision.
    probabilities: dict[str, Float32[np.ndarray, "n classes"]]
    # float32 (n, features), what the backbone pools; at least 0, not normalised
    features: Float32[np.ndarray, "n features"]
    # float32 (n, size), compared by their cosine; of length 1, or the features where the package does not define
    # embeddings
    embeddings: Float32[np.ndarray, "n size"]
    labels: dict[str, Int64[np.ndarray, " n"]]  # attribute -> int64 (n,), the predicted class
    # attribute -> bool (n,), whether the label is sure enough to be used without a check by a person; empty where the
    # package has no decision
    accepted: dict[str, Bool[np.ndarray, " n"]] = field(default_factory=dict)
    # float32 (n,), higher for a photo that differs more from the catalogue's; None where it was not fitted
    out_of_catalogue: Float32[np.ndarray, " n"] | None = None
    # bool (n,), whether `out_of_catalogue` is above its threshold; None where it was not fitted
    is_out_of_catalogue: Bool[np.ndarray, " n"] | None = None
    # attribute -> bool (n, classes), the classes that contain the true one with the probability that was asked for in
    # training; empty where none were asked for
    label_sets: dict[str, Bool[np.ndarray, "n classes"]] = field(default_factory=dict)
    # float32 (n, size), what colour heads see besides the features; (0, 0) without colour heads
    colour_features: Float32[np.ndarray, "n size"] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    # multi-valued attribute -> float32 (n, classes), the probability of each class
    tag_probabilities: dict[str, Float32[np.ndarray, "n classes"]] = field(default_factory=dict)
    # multi-valued attribute -> bool (n, classes), the predicted classes
    tags: dict[str, Bool[np.ndarray, "n classes"]] = field(default_factory=dict)

    def take(self, rows: Sequence[int]) -> Outputs:
        """Returns the outputs of some photos, without their colour features."""
        return _map_arrays(lambda arrays: arrays[0][np.asarray(rows, np.int64)], [self])

    @staticmethod
    def join(parts: Sequence[Outputs]) -> Outputs:
        """Returns the outputs of all photos of several outputs, one at least, without their colour features."""
        return _map_arrays(np.concatenate, parts)


def _map_arrays(change: Callable[[list[np.ndarray]], np.ndarray], parts: Sequence[Outputs]) -> Outputs:
    """Returns outputs whose arrays are made of the arrays at the same places of other outputs."""

    def make(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: change([value[name] for value in values]) for name in values[0]}
        return None if values[0] is None else change(values)

    names = [field.name for field in fields(Outputs) if field.name != "colour_features"]
    return Outputs(**{name: make([getattr(part, name) for part in parts]) for name in names})


class Prediction(dict[str, tuple[str, float]]):
    """What a model predicts for one photo or product: attribute -> (class, probability).

    Attributes:
        accepted: attribute -> whether the label is sure enough to be used without a check by a person; empty where the
            package has no decision.
        out_of_catalogue: higher for a photo that differs more from the catalogue's; None where it was not fitted.
        is_out_of_catalogue: whether `out_of_catalogue` is above its threshold; None where it was not fitted.
        label_sets: attribute -> the classes of the label set, the most probable first; empty where none were fitted.
        num_photos: of the product; None for the prediction of a photo.
        photos_disagree: whether the product's photos alone would get different labels.
        tags: multi-valued attribute -> (class, probability) of each predicted class, the most probable first.
    """

    num_photos: int | None = None
    photos_disagree = False

    def __init__(
        self,
        labels: dict[str, tuple[str, float]],
        *,
        accepted: dict[str, bool] | None = None,
        out_of_catalogue: float | None = None,
        is_out_of_catalogue: bool | None = None,
        label_sets: dict[str, list[str]] | None = None,
        tags: dict[str, list[tuple[str, float]]] | None = None,
    ) -> None:
        super().__init__(labels)
        self.accepted = accepted or {}
        self.out_of_catalogue, self.is_out_of_catalogue = out_of_catalogue, is_out_of_catalogue
        self.label_sets, self.tags = label_sets or {}, tags or {}

    def to_dict(self) -> dict[str, Any]:
        """Returns the prediction's columns of predictions.csv: name -> value; lists for a multi-valued attribute."""
        values: dict[str, Any] = {}
        for name, (label, probability) in self.items():
            values |= {name: label, f"{name}_confidence": probability}
            if name in self.accepted:
                values[f"{name}_accepted"] = self.accepted[name]
        for name, found in self.tags.items():
            values |= {name: [label for label, _ in found], f"{name}_confidence": [share for _, share in found]}
        if self.out_of_catalogue is not None:
            values |= {"out_of_catalogue": self.out_of_catalogue, "is_out_of_catalogue": bool(self.is_out_of_catalogue)}
        if self.num_photos is not None:
            values |= {"num_photos": self.num_photos, "photos_disagree": self.photos_disagree}
        return values


class Predictions(list[Prediction]):
    """The predictions of several photos or products.

    Attributes:
        names: a name for each: the product's id, or the name of the photo's file, or its number.
    """

    def __init__(self, predictions: Iterable[Prediction] = (), names: Iterable[str] | None = None) -> None:
        super().__init__(predictions)
        self.names = [str(number) for number in range(len(self))] if names is None else list(names)

    def __getitem__(self, place: Any) -> Any:
        """Returns the prediction at a place; for a slice, `Predictions` with their names."""
        found = super().__getitem__(place)
        return Predictions(found, self.names[place]) if isinstance(place, slice) else found

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns name -> column of predictions.csv -> value; of equal names the last one counts."""
        return {name: prediction.to_dict() for name, prediction in zip(self.names, self, strict=True)}

    def to_frame(self) -> pd.DataFrame:
        """Returns a table with a row for each photo, the columns of predictions.csv, and the names as its index."""
        import pandas as pd

        return pd.DataFrame([prediction.to_dict() for prediction in self], pd.Index(self.names, name="id", dtype=str))


class Embeddings(np.ndarray):
    """Embeddings of several photos: float32 (n, size).

    Attributes:
        names: as in `Predictions`; None for an array that was computed from another one.
    """

    names: list[str] | None

    @classmethod
    def of(cls, vectors: Float32[np.ndarray, "n size"], names: Iterable[str]) -> Embeddings:
        """Returns the vectors with a name for each row."""
        array = vectors.view(cls)
        array.names = list(names)
        return array

    def __array_finalize__(self, source: object) -> None:
        self.names = None

    def to_dict(self) -> dict[str, list[float]]:
        """Returns name -> values; of equal names the last one counts."""
        return dict(zip(self.to_frame().index, self.tolist(), strict=True))

    def to_frame(self) -> pd.DataFrame:
        """Returns a table with a row for each photo and the names as its index."""
        import pandas as pd

        return pd.DataFrame(
            np.asarray(self), None if self.names is None else pd.Index(self.names, name="id", dtype=str)
        )


def decide(
    decision: Decision | None,
    logits: Mapping[str, Float32[np.ndarray, "n classes"]],
    features: Float32[np.ndarray, "n features"],
    energies: Float32[np.ndarray, " n"],
    operating_point: str = "accuracy",
    *,
    tags: Mapping[str, Float32[np.ndarray, "n classes"]] | None = None,
) -> Outputs:
    """Turns the outputs of a network into predictions, whose embeddings are the features.

    Args:
        decision: fitted on validation rows; None: probabilities are softmax(logits), labels the most probable classes.
        logits: attribute -> of the network.
        features: what the backbone pools.
        energies: mean over the heads of -logsumexp(logits).
        operating_point: "accuracy" or "macro_f1".
        tags: multi-valued attribute -> logits of the network.
    """
    fitted = {} if decision is None else decision.tags
    shares = tag_probabilities(fitted, tags or {})
    several: dict[str, Any] = {
        "tag_probabilities": {name: values.astype(np.float32) for name, values in shares.items()},
        "tags": choose_tags(fitted, shares),
    }
    if decision is None:
        plain = {name: np.exp(deciding.scale(values, 1.0)).astype(np.float32) for name, values in logits.items()}
        labels = {name: values.argmax(1) for name, values in logits.items()}
        return Outputs(plain, features, features, labels, **several)
    found = label_probabilities(decision, deciding.log_probabilities(decision, logits), operating_point)
    detector = decision.out_of_catalogue
    scores = None if detector is None else detector.scores(features, energies)
    return replace(
        found,
        features=features,
        embeddings=features,
        out_of_catalogue=None if scores is None else scores.astype(np.float32),
        is_out_of_catalogue=None if scores is None or detector is None else scores > detector.threshold,
        **several,
    )


def label_probabilities(
    decision: Decision | None,
    log_probs: Mapping[str, Float64[np.ndarray, "n classes"]],
    operating_point: str = "accuracy",
) -> Outputs:
    """Chooses labels, accepted labels and label sets from calibrated probabilities.

    Returns:
        Outputs without features, embeddings and scores.
    """
    probabilities = {name: np.exp(values).astype(np.float32) for name, values in log_probs.items()}
    nothing = np.empty((len(next(iter(probabilities.values()), ())), 0), np.float32)
    if decision is None:
        return Outputs(probabilities, nothing, nothing, {name: v.argmax(1) for name, v in log_probs.items()})
    labels = deciding.choose_labels(decision, log_probs, operating_point)
    confidences = deciding.confidences(log_probs, labels)
    return Outputs(
        probabilities,
        nothing,
        nothing,
        labels,
        deciding.accepted(decision, confidences, operating_point),
        label_sets=deciding.choose_sets(decision, log_probs, labels),
    )


def name_labels(
    outputs: Outputs, vocabularies: Mapping[str, tuple[str, ...]], tags: Mapping[str, tuple[str, ...]] | None = None
) -> list[Prediction]:
    """Returns the predictions of each photo with the names of the classes.

    Args:
        vocabularies: attribute -> names of the classes, in the order of the probabilities.
        tags: the same of multi-valued attributes.
    """
    several = tags or {}
    scores, flags = outputs.out_of_catalogue, outputs.is_out_of_catalogue

    def label(name: str, i: int) -> tuple[str, float]:
        number = int(outputs.labels[name][i])
        return vocabularies[name][number], float(outputs.probabilities[name][i, number])

    def label_set(name: str, i: int) -> list[str]:
        chosen = np.flatnonzero(outputs.label_sets[name][i])
        order = np.argsort(-outputs.probabilities[name][i, chosen], kind="stable")
        return [vocabularies[name][number] for number in chosen[order].tolist()]

    def tag_list(name: str, i: int) -> list[tuple[str, float]]:
        chosen, shares = np.flatnonzero(outputs.tags[name][i]), outputs.tag_probabilities[name][i]
        order = chosen[np.argsort(-shares[chosen], kind="stable")]
        return [(several[name][number], float(shares[number])) for number in order.tolist()]

    return [
        Prediction(
            {name: label(name, i) for name in vocabularies},
            accepted={name: bool(outputs.accepted[name][i]) for name in vocabularies if name in outputs.accepted},
            out_of_catalogue=None if scores is None else float(scores[i]),
            is_out_of_catalogue=None if flags is None else bool(flags[i]),
            label_sets={name: label_set(name, i) for name in vocabularies if name in outputs.label_sets},
            tags={name: tag_list(name, i) for name in several},
        )
        for i in range(len(outputs.embeddings))
    ]
