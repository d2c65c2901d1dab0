"""Typed configuration of what is fitted to a trained network; part of `config`."""

from __future__ import annotations

from dataclasses import dataclass

from fashion_jax.config.values import choice, require


@dataclass(slots=True)
class TrustConfig:
    """What is fitted on the validation split after training; see decision/trust.py."""

    precision: float = 0.98  # of the labels that are accepted automatically
    label_set_coverage: float = 0.95  # share of products whose label set holds the true label; 0: no label sets
    flagged_share: float = 0.01  # of the validation photos that lie above the out-of-catalogue threshold
    spared_accuracy: float = 0.002  # at most, that the operating point "accuracy" gives for rare classes
    not_products_per_kind: int = 20  # drawn photos of each kind that judge the out-of-catalogue score; 0: none

    def validate(self) -> None:
        require(0 < self.precision < 1, "trust.precision", self.precision, "in (0, 1); no number of rows promises 1")
        require(0 <= self.label_set_coverage < 1, "trust.label_set_coverage", self.label_set_coverage, "in [0, 1)")
        require(0 < self.flagged_share < 1, "trust.flagged_share", self.flagged_share, "in (0, 1)")
        require(0 <= self.spared_accuracy < 1, "trust.spared_accuracy", self.spared_accuracy, "in [0, 1)")
        require(
            0 <= self.not_products_per_kind <= 10_000,
            "trust.not_products_per_kind",
            self.not_products_per_kind,
            "in [0, 10000]",
        )


@dataclass(slots=True)
class EmbeddingConfig:
    """What the package's embeddings are made of, fitted after training; see decision/embedding.py."""

    # "labels": predicted labels and appearance, in subspaces; "learned": what model.metric_heads learnt, and
    # appearance; "features": the pooled features as they are.
    kind: str = "labels"
    attributes: tuple[str, ...] = ("auto",)  # whose labels; auto: all that no finer one determines, as far as they fit
    size: int = 256  # features at most
    appearance: float = 0.15  # share of the pooled features in the cosine, in [0, 1)

    def validate(self) -> None:
        choice("embedding.kind", self.kind, ("labels", "learned", "features"))
        require(bool(self.attributes), "embedding.attributes", self.attributes, "attributes, or 'auto'")
        require(2 <= self.size <= 65536, "embedding.size", self.size, "in [2, 65536]")
        require(0 <= self.appearance < 1, "embedding.appearance", self.appearance, "in [0, 1)")
