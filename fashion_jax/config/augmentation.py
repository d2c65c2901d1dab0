"""Typed configuration of what happens to training photos; part of `config`."""

from __future__ import annotations

from dataclasses import dataclass

from fashion_jax.config.values import parse_duration, require


@dataclass(slots=True)
class AugmentConfig:
    """Random changes of a training photo; geometry only, because colour is a label."""

    min_crop_area: float = 0.7  # smallest share of the photo that a resized crop keeps, in (0, 1]
    max_shift: float = 0.0  # largest move, by whole pixels, as a share of the side, in [0, 0.5)
    flip_probability: float = 0.5
    max_rotation: float = 6.0  # degrees, either way
    erase_probability: float = 0.2
    max_erase_area: float = 0.15  # largest share of the photo that erasing covers, in [0, 1)
    rand_operations: int = 0  # of RandAugment, geometry alone, one after another; 0: off, usual is 2
    rand_magnitude: float = 0.3  # of each of them, in [0, 1]

    def validate(self) -> None:
        require(0 < self.min_crop_area <= 1, "data.augment.min_crop_area", self.min_crop_area, "in (0, 1]")
        require(0 <= self.max_shift < 0.5, "data.augment.max_shift", self.max_shift, "in [0, 0.5) of the side")
        require(0 <= self.flip_probability <= 1, "data.augment.flip_probability", self.flip_probability, "in [0, 1]")
        require(0 <= self.max_rotation <= 180, "data.augment.max_rotation", self.max_rotation, "in [0, 180] degrees")
        require(0 <= self.erase_probability <= 1, "data.augment.erase_probability", self.erase_probability, "in [0, 1]")
        require(0 <= self.max_erase_area < 1, "data.augment.max_erase_area", self.max_erase_area, "in [0, 1)")
        require(0 <= self.rand_operations <= 16, "data.augment.rand_operations", self.rand_operations, "in [0, 16]")
        require(0 <= self.rand_magnitude <= 1, "data.augment.rand_magnitude", self.rand_magnitude, "in [0, 1]")


@dataclass(slots=True)
class MixConfig:
    """Photos of two products in one, for the losses of all attributes but colours; see training/mixing.py."""

    probability: float = 0.5  # share of the rows that are mixed, where one of the two is on; the rest teaches colours
    mixup_alpha: float = 0.0  # of the Beta distribution of shares; 0: off; usual is 0.2
    cutmix_alpha: float = 0.0  # likewise of areas; usual is 1; with both on, each row draws one of them
    until: str = "100 percent"  # of the run; from then on photos are whole, and all of them teach colours

    def validate(self) -> None:
        require(0 <= self.probability <= 1, "train.mix.probability", self.probability, "in [0, 1]")
        require(self.mixup_alpha >= 0, "train.mix.mixup_alpha", self.mixup_alpha, "at least 0")
        require(self.cutmix_alpha >= 0, "train.mix.cutmix_alpha", self.cutmix_alpha, "at least 0")
        parse_duration(self.until, "train.mix.until")

    @property
    def active(self) -> bool:
        """Whether anything is mixed."""
        return self.probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)
