"""All settings of a run, as dataclasses that check themselves. `config.files` reads them from files and command lines.

A setting exists only if a file in configs/ or the documentation sets it to something else than its default.
`tests/config/test_config.py` holds the list.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any

from fashion_jax.config.values import choice, parse_duration, require, within

IMBALANCE_METHODS = ("none", "balanced", "prior", "focal")


@dataclass(slots=True)
class AugmentConfig:
    """Random changes of training photos. Colours are not changed, because colour is a label."""

    min_crop_area: float = 0.7  # smallest share of a photo's area that a random crop keeps; 1: no crops
    max_shift: float = 0.0  # largest shift of a photo, as a share of its height or width, below 0.5; 0: none
    flip_probability: float = 0.5  # probability that a photo is mirrored
    max_rotation: float = 6.0  # largest rotation of a photo to either side, in degrees
    erase_probability: float = 0.2  # probability that a white rectangle covers a part of a photo (random erasing)
    rand_operations: int = 0  # number of random geometric changes of a photo (RandAugment); 0: none; 2 is usual
    rand_magnitude: float = 0.3  # strength of these changes, from 0 to 1

    def validate(self) -> None:
        within(self, "data.augment.min_crop_area", 0, 1, without="low")
        within(self, "data.augment.max_shift", 0, 0.5, without="high", unit="of the side")
        within(self, "data.augment.flip_probability", 0, 1)
        within(self, "data.augment.max_rotation", 0, 180, unit="degrees")
        within(self, "data.augment.erase_probability", 0, 1)
        within(self, "data.augment.rand_operations", 0, 16)
        within(self, "data.augment.rand_magnitude", 0, 1)
        # On TPUs the memory of augmentation grows with what all changes together may move.
        bounded = self.rand_operations * self.rand_magnitude <= 4
        most = f"at most 4 together with rand_magnitude={self.rand_magnitude:g}, as their product"
        require(bounded, "data.augment.rand_operations", self.rand_operations, most)


@dataclass(slots=True)
class MixConfig:
    """Mixup and CutMix make one photo of two products. Colours are learned only from photos that are not mixed."""

    probability: float = 0.5  # share of the rows that are mixed, if mixup or CutMix is on
    mixup_alpha: float = 0.0  # strength of mixup (parameter of its Beta distribution); 0: off; 0.2 is usual
    # strength of CutMix (parameter of its Beta distribution); 0: off; 1 is usual; with both on, chance chooses for each
    # row
    cutmix_alpha: float = 0.0
    until: str = "100 percent"  # time after which no photo is mixed

    def validate(self) -> None:
        within(self, "train.mix.probability", 0, 1)
        within(self, "train.mix.mixup_alpha", 0)
        within(self, "train.mix.cutmix_alpha", 0)
        parse_duration(self.until, "train.mix.until")

    @property
    def active(self) -> bool:
        """Whether anything is mixed."""
        return self.probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


@dataclass(slots=True)
class DataConfig:
    """Which products are used, and how their photos are read."""

    source: str = "synthetic"  # products: anything that `fashion-jax prepare --source` reads, or a folder that it wrote
    # a schema.json that says what the columns mean; empty: the library knows Kaggle's table, and guesses for others
    schema: str = ""
    corrections: str = ""  # a table of corrected labels, such as the findings of an audit; empty: no corrections
    # attributes to train, in the order of the heads; empty: all attributes of the schema
    attributes: tuple[str, ...] = ()
    height: int = 80  # height of the network's input, in pixels; photos are scaled to fit, and padded with white
    width: int = 60  # width of the network's input, in pixels
    # mean of red, green and blue (0 to 1), which is subtracted; empty: that of the pretrained weights, or 0.5
    mean: tuple[float, ...] = ()
    # standard deviation of red, green and blue, by which they are divided; empty: that of the pretrained weights, or
    # 0.5
    std: tuple[float, ...] = ()
    max_side: int = 256  # photos whose longer side has more pixels are scaled down once, when the catalogue is read
    max_bad_fraction: float = 0.05  # preparation stops if a larger share of the rows cannot be used
    # "group": near-duplicates stay together; "random"; "column": the schema names it; "file:PATH": a splits.csv
    split: str = "group"
    split_fractions: tuple[float, ...] = (0.7, 0.1, 0.2)  # shares of training, validation and test rows
    split_seed: int = 0  # random seed of the split
    # keep decoded photos in the memory of the "device" or "host", or decode each epoch ("stream"); auto: the first that
    # fits
    storage: str = "auto"
    test_time_flip: bool = False  # predict with the mean probabilities of a photo and its mirror image
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def validate(self) -> None:
        sources = "a path, synthetic:COUNT, kaggle:OWNER/NAME or hf:OWNER/NAME"
        require(bool(self.source), "data.source", self.source, sources)
        within(self, "data.height", 8, 4096, unit="pixels")
        within(self, "data.width", 8, 4096, unit="pixels")
        for name, values, low in (("mean", self.mean, 0.0), ("std", self.std, 1e-6)):
            sound = len(values) in (0, 3) and all(low <= v <= 1 for v in values)
            require(sound, f"data.{name}", values, f"three numbers (red, green, blue) from {low:g} to 1, or none")
        within(self, "data.max_side", 16, 8192, unit="pixels")
        side = max(self.height, self.width)
        enough = f"at least the photos' size, {side}, or they are scaled down and up again"
        require(self.max_side >= side, "data.max_side", self.max_side, enough)
        within(self, "data.max_bad_fraction", 0, 1)
        known = self.split in ("group", "random", "column") or self.split.startswith("file:")
        require(known, "data.split", self.split, "'group', 'random', 'column' or 'file:PATH'")
        shares = self.split_fractions
        sound = len(shares) == 3 and all(0 < share < 1 for share in shares) and abs(sum(shares) - 1) < 1e-6
        require(sound, "data.split_fractions", shares, "3 shares that sum to 1")
        within(self, "data.split_seed", 0, 2**32 - 1)
        choice("data.storage", self.storage, ("auto", "device", "host", "stream"))
        self.augment.validate()


@dataclass(slots=True)
class ModelConfig:
    """The backbone (all layers before the heads) and the heads.

    Pretrained weights bring their own depth, width and stem; other values are refused. A package with GeM brings its
    pooling too.
    """

    # weights to start from: "small", OWNER/NAME[@REVISION] of the Hub, a package, folder or .safetensors file; empty:
    # random weights
    pretrained: str = ""
    depth: int = 18  # number of layers of the ResNet: 10, 18, 34, 50, 101 or 152
    width: int = 64  # channels of the first stage; published networks have 64
    # first layers: "imagenet", "small" (for small photos), "deep" or "resnet_d"; auto: small up to 96 pixels, else
    # imagenet
    stem: str = "auto"
    # probability that a training step skips the last block; lower for earlier blocks (stochastic depth)
    drop_path: float = 0.0
    # how the features of all places are joined: "average", or "gem" (generalised mean, which strong features dominate)
    pooling: str = "average"
    # attributes whose head also sees the product's colours; auto: those with colour or color in their name
    colour_heads: tuple[str, ...] = ()
    # attributes with a second head, trained after the network and kept if it is better; needs colour_heads; auto: all
    second_heads: tuple[str, ...] = ()
    # smallest number of photos over which batch norm takes its statistics in training; larger batches are cut into
    # groups, so that devices wait less for each other
    norm_group: int = 128
    dtype: str = "auto"  # number type of the convolutions: "float32" or "bfloat16"; auto: bfloat16 where it is faster

    def validate(self) -> None:
        choice("model.depth", self.depth, (10, 18, 34, 50, 101, 152))
        choice("model.stem", self.stem, ("auto", "imagenet", "small", "deep", "resnet_d"))
        within(self, "model.width", 2 if self.stem in ("deep", "resnet_d") else 1, 1024, unit="channels")
        within(self, "model.drop_path", 0, 1, without="high")
        choice("model.pooling", self.pooling, ("average", "gem"))
        within(self, "model.norm_group", 1)
        choice("model.dtype", self.dtype, ("auto", "float32", "bfloat16"))


@dataclass(slots=True)
class OptimizerConfig:
    """The optimiser, its learning rates, and which layers are trained.

    Patterns such as "backbone/stages/3/*" or "*/norm/*" choose parameters by their names. `*` also matches slashes.
    "backbone" alone chooses all whose names begin with "backbone/".
    """

    name: str = "adamw"  # "adamw", "sgd" (with Nesterov momentum 0.9) or "lamb"
    learning_rate: float = 4e-3  # highest learning rate, after the warm-up
    # how the learning rate falls after the warm-up: "cosine" or "linear" (both to 0), or "constant" (not at all)
    schedule: str = "cosine"
    warmup: str = "10 percent"  # duration in which the learning rate rises from 0
    weight_decay: float = 0.05  # strength of the weight decay of weights; biases and batch norms have none
    clip_norm: float = 0.0  # largest norm of the whole gradient; 0: no limit
    # pattern -> factor of the learning rate; the first match counts
    multipliers: dict[str, float] = field(default_factory=dict)
    # learning rate of a block, divided by that of the next block; the heads have the full rate
    layer_decay: float = 1.0
    freeze: tuple[str, ...] = ()  # patterns of parameters that are never trained
    # pattern -> duration after which these parameters are trained; until then they are frozen
    unfreeze: dict[str, str] = field(default_factory=dict)
    freeze_batch_norm: bool = False  # keep the backbone's batch norms as they are: statistics, scale and bias

    def validate(self) -> None:
        choice("optimizer.name", self.name, ("adamw", "sgd", "lamb"))
        within(self, "optimizer.learning_rate", 0, without="low")
        choice("optimizer.schedule", self.schedule, ("cosine", "linear", "constant"))
        parse_duration(self.warmup, "optimizer.warmup")
        within(self, "optimizer.weight_decay", 0)
        within(self, "optimizer.clip_norm", 0)
        for pattern, factor in self.multipliers.items():
            require(0 < factor <= 1e6, f"optimizer.multipliers[{pattern}]", factor, "above 0, at most 1000000")
        within(self, "optimizer.layer_decay", 0, 1, without="low")
        for pattern, duration in self.unfreeze.items():
            parse_duration(duration, f"optimizer.unfreeze[{pattern}]")


@dataclass(slots=True)
class LossConfig:
    """The loss of each head. A row without the attribute's label does not count."""

    label_smoothing: float = 0.0  # share of the probability that is spread over all classes, below 1
    # label smoothing of the rarest class; others have values in between; -1: all have `loss.label_smoothing`
    rare_label_smoothing: float = -1.0
    head_label_smoothing: dict[str, float] = field(default_factory=dict)  # attribute -> its own `loss.label_smoothing`
    head_weights: dict[str, float] = field(default_factory=dict)  # attribute -> weight of its loss; others have 1
    # help for rare classes: "none"; "prior": biases start at the log-frequencies; "focal": uncertain rows count more;
    # "balanced": all classes weigh the same
    imbalance: str = "none"

    def validate(self) -> None:
        choice("loss.imbalance", self.imbalance, IMBALANCE_METHODS)
        within(self, "loss.label_smoothing", 0, 1, without="high")
        rare = self.rare_label_smoothing
        require(rare < 1, "loss.rare_label_smoothing", rare, "below 1; negative to use loss.label_smoothing")
        for name, value in self.head_label_smoothing.items():
            require(0 <= value < 1, f"loss.head_label_smoothing[{name}]", value, "at least 0, below 1")
        for name, value in self.head_weights.items():
            require(value >= 0, f"loss.head_weights[{name}]", value, "at least 0")


@dataclass(slots=True)
class TrainConfig:
    """How long a training is, and what it keeps. A duration is "10 epochs", "500 steps", "20000 examples", or
    "5 percent" of the training."""

    duration: str = "10 epochs"  # length of the training
    # photos in a step, over all devices and processes; or a number for each device, such as "128 per device", and then
    # `optimizer.learning_rate` is that of one device and is raised for more devices (see accelerators.md)
    batch_size: int | str = 128
    accumulation_steps: int = 1  # parts of a batch that are computed one after another, to save memory
    seed: int = 0  # random seed of the training
    evaluate_every: str = "1 epochs"  # time between two scores of the validation rows
    checkpoint_every: str = "1 epochs"  # time between two checkpoints (saved states)
    # decay of a moving average of the weights (EMA), which is scored and becomes the model; 0: no average
    average_decay: float = 0.0
    progressive_scale: float = 1.0  # scale of the photos' sides until `progressive_until`; small photos train faster
    progressive_until: str = "50 percent"  # time after which photos have their full size
    mix: MixConfig = field(default_factory=MixConfig)
    # validation score that chooses the best checkpoint, such as mean/accuracy, mean/macro_f1 or gender/accuracy
    best_metric: str = "mean/accuracy"
    # the training ends after this number of evaluations without a better `best_metric`; 0: never
    early_stopping_patience: int = 0

    def validate(self) -> None:
        for name in ("duration", "evaluate_every", "checkpoint_every"):
            amount, unit = parse_duration(getattr(self, name), f"train.{name}")
            require(amount > 0, f"train.{name}", getattr(self, name), "above 0")
            wanted = "steps, epochs or examples, such as '10 epochs'"
            require(name != "duration" or unit != "percent", "train.duration", self.duration, wanted)
        counted = isinstance(self.batch_size, int) or re.fullmatch(r"[0-9]{1,9} per device", self.batch_size)
        require(bool(counted), "train.batch_size", self.batch_size, "a number, or a text such as '128 per device'")
        require(self.photos >= 1, "train.batch_size", self.batch_size, "at least 1")
        within(self, "train.accumulation_steps", 1)
        parts = self.accumulation_steps
        whole = self.photos % parts == 0
        require(whole, "train.batch_size", self.batch_size, f"divisible by train.accumulation_steps={parts}")
        within(self, "train.seed", 0, 2**32 - 1)
        within(self, "train.average_decay", 0, 1, without="high")
        within(self, "train.progressive_scale", 0.25, 1)
        parse_duration(self.progressive_until, "train.progressive_until")
        self.mix.validate()
        require(bool(self.best_metric), "train.best_metric", self.best_metric, "the name of a validation metric")
        within(self, "train.early_stopping_patience", 0)

    @property
    def photos(self) -> int:
        """The number in `batch_size`: photos in a step, once the configuration is resolved."""
        return self.batch_size if isinstance(self.batch_size, int) else int(self.batch_size.split()[0])


@dataclass(slots=True)
class DecisionConfig:
    """When a label is accepted. The thresholds are computed from the validation rows after training."""

    precision: float = 0.98  # share of the accepted labels that should be right
    # share of the products whose label set (see trust.md) should contain the true class; 0: no label sets
    label_set_coverage: float = 0.95

    def validate(self) -> None:
        within(self, "decision.precision", 0, 1, without="both")
        within(self, "decision.label_set_coverage", 0, 1, without="high")


@dataclass(slots=True)
class EmbeddingConfig:
    """What the model's embeddings hold. They are computed after training."""

    # attributes that count in the similarity; auto: all that do not follow from another one; empty: none, only the
    # pooled features
    attributes: tuple[str, ...] = ("auto",)
    size: int = 256  # largest size of an embedding
    appearance: float = 0.15  # share of the pooled features in the similarity, below 1

    def validate(self) -> None:
        within(self, "embedding.size", 2, 65536)
        within(self, "embedding.appearance", 0, 1, without="high")


@dataclass(slots=True)
class RuntimeConfig:
    """These settings do not change the result. They may differ when a training is continued."""

    cpu_devices: int = 0  # number of virtual JAX devices on a CPU; 0: chosen by the number of cores
    tensorboard: bool = False  # also write event files to WORKDIR/tensorboard; needs the extra [tensorboard]

    def validate(self) -> None:
        within(self, "runtime.cpu_devices", 0, 256)


@dataclass(slots=True)
class Config:
    """Everything that a run needs; `validate()` raises UserError for a value out of range."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decision: DecisionConfig = field(default_factory=DecisionConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def validate(self) -> None:
        for part in dataclasses.fields(self):
            getattr(self, part.name).validate()

    def to_dict(self) -> dict[str, Any]:
        """Returns nested JSON values (tuples as lists)."""
        return json.loads(json.dumps(dataclasses.asdict(self)))
