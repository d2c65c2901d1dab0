"""All settings of a run, as dataclasses that check themselves. `config.files` reads them from files and command lines.

A setting exists only if a file in configs/ or the documentation sets it to something else than its default.
`tests/config/test_settings.py` holds the list.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from fashion_jax.config.values import choice, parse_duration, require

IMBALANCE_METHODS = ("none", "balanced", "prior", "focal")


@dataclass(slots=True)
class AugmentConfig:
    """Random changes of a training photo. Only its geometry changes, because colour is a label."""

    min_crop_area: float = 0.7  # smallest share of the photo that a random crop keeps, in (0, 1]; 1: no crops
    max_shift: float = 0.0  # largest move by whole pixels, as a share of the side, in [0, 0.5)
    flip_probability: float = 0.5  # of the mirror image
    max_rotation: float = 6.0  # degrees, to the left or right
    erase_probability: float = 0.2  # of a white rectangle (random erasing)
    rand_operations: int = 0  # RandAugment's number of operations, geometric ones only; 0: off; usual is 2
    rand_magnitude: float = 0.3  # RandAugment's strength, in [0, 1]

    def validate(self) -> None:
        require(0 < self.min_crop_area <= 1, "data.augment.min_crop_area", self.min_crop_area, "in (0, 1]")
        require(0 <= self.max_shift < 0.5, "data.augment.max_shift", self.max_shift, "in [0, 0.5) of the side")
        require(0 <= self.flip_probability <= 1, "data.augment.flip_probability", self.flip_probability, "in [0, 1]")
        require(0 <= self.max_rotation <= 180, "data.augment.max_rotation", self.max_rotation, "in [0, 180] degrees")
        require(0 <= self.erase_probability <= 1, "data.augment.erase_probability", self.erase_probability, "in [0, 1]")
        require(0 <= self.rand_operations <= 16, "data.augment.rand_operations", self.rand_operations, "in [0, 16]")
        require(0 <= self.rand_magnitude <= 1, "data.augment.rand_magnitude", self.rand_magnitude, "in [0, 1]")


@dataclass(slots=True)
class MixConfig:
    """Mixup and CutMix: one photo made of two products. Mixed photos train every attribute except colours."""

    probability: float = 0.5  # share of the rows that are mixed, with mixup or CutMix on; the rest trains colours too
    mixup_alpha: float = 0.0  # of mixup's Beta distribution; 0: no mixup; usual is 0.2
    cutmix_alpha: float = 0.0  # of CutMix's Beta distribution; 0: no CutMix; usual is 1; with both, each row draws one
    until: str = "100 percent"  # of the run; later photos are not mixed

    def validate(self) -> None:
        require(0 <= self.probability <= 1, "train.mix.probability", self.probability, "in [0, 1]")
        require(self.mixup_alpha >= 0, "train.mix.mixup_alpha", self.mixup_alpha, "at least 0")
        require(self.cutmix_alpha >= 0, "train.mix.cutmix_alpha", self.cutmix_alpha, "at least 0")
        parse_duration(self.until, "train.mix.until")

    @property
    def active(self) -> bool:
        """Whether anything is mixed."""
        return self.probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


@dataclass(slots=True)
class DataConfig:
    """Where the products come from and how they become batches."""

    source: str = "synthetic"  # anything that `fashion-jax prepare --source` reads, or a prepared folder
    schema: str = ""  # a schema.json that says what the columns mean; empty: known data sets by name, else inferred
    corrections: str = ""  # a table of corrected labels, such as an audit's findings; empty: none
    # attributes to train, in the order of the heads; empty: every attribute of the schema
    attributes: tuple[str, ...] = ()
    height: int = 80  # pixels to which photos are fitted
    width: int = 60  # pixels to which photos are fitted
    mean: tuple[float, ...] = ()  # subtracted from RGB in [0, 1]; empty: that of the pretrained weights, else 0.5
    std: tuple[float, ...] = ()  # RGB in [0, 1] is divided by it; empty: that of the pretrained weights, else 0.5
    max_side: int = 256  # pixels; larger photos are scaled down to it once, at preparation
    max_bad_fraction: float = 0.05  # share of unusable rows above which preparation stops
    split: str = "group"  # "group" (near-duplicates stay together), "random", "column" or "file:PATH" (a splits.csv)
    split_fractions: tuple[float, ...] = (0.7, 0.1, 0.2)  # shares of training, validation and test rows
    split_seed: int = 0  # seed of the split
    storage: str = "auto"  # decoded photos are kept on the "device" or the "host"; "stream" decodes them in each epoch
    test_time_flip: bool = False  # score and predict with the mean probabilities of a photo and its mirror image
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def validate(self) -> None:
        require(bool(self.source), "data.source", self.source, "a path, synthetic[:N], kaggle:O/N or hf:O/N")
        require(8 <= self.height <= 4096, "data.height", self.height, "in [8, 4096] pixels")
        require(8 <= self.width <= 4096, "data.width", self.width, "in [8, 4096] pixels")
        for name, values, low in (("mean", self.mean, 0.0), ("std", self.std, 1e-6)):
            sound = len(values) in (0, 3) and all(low <= v <= 1 for v in values)
            require(sound, f"data.{name}", values, f"3 in [{low:g}, 1], or none")
        require(16 <= self.max_side <= 8192, "data.max_side", self.max_side, "in [16, 8192] pixels")
        side = max(self.height, self.width)
        enough = f"at least the photos' size, {side}, or they are scaled down and up again"
        require(self.max_side >= side, "data.max_side", self.max_side, enough)
        require(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction", self.max_bad_fraction, "in [0, 1]")
        known = self.split in ("group", "random", "column") or self.split.startswith("file:")
        require(known, "data.split", self.split, "'group', 'random', 'column' or 'file:PATH'")
        shares = self.split_fractions
        sound = len(shares) == 3 and all(0 < share < 1 for share in shares) and abs(sum(shares) - 1) < 1e-6
        require(sound, "data.split_fractions", shares, "3 shares that sum to 1")
        require(0 <= self.split_seed < 2**32, "data.split_seed", self.split_seed, "in [0, 2**32)")
        choice("data.storage", self.storage, ("auto", "device", "host", "stream"))
        self.augment.validate()


@dataclass(slots=True)
class ModelConfig:
    """The backbone and the heads.

    Pretrained weights bring their own depth, width and stem where these settings have their defaults.
    A package with GeM brings its pooling too.
    """

    pretrained: str = ""  # "small", a Hub name (OWNER/NAME[@REVISION]), a package, folder or .safetensors file
    depth: int = 18  # of the ResNet: 10, 18, 34, 50, 101 or 152
    width: int = 64  # channels of the first stage; published networks have 64
    stem: str = "auto"  # "imagenet", "small" (3x3, no pooling), "deep" or "resnet_d"; auto: small up to 96 pixels
    drop_path: float = 0.0  # stochastic depth: probability of skipping the last block in training
    pooling: str = "average"  # "average", or "gem": the generalised mean with a learned power
    colour_heads: tuple[str, ...] = ()  # attributes whose head also sees colour features; ("auto",): those named so
    second_heads: tuple[str, ...] = ()  # attributes whose head gets a second one after training; ("auto",): all
    dtype: str = "auto"  # of convolutions: "float32", "bfloat16"; auto: bfloat16 where it is faster

    def validate(self) -> None:
        choice("model.depth", self.depth, (10, 18, 34, 50, 101, 152))
        require(1 <= self.width <= 1024, "model.width", self.width, "in [1, 1024] channels")
        choice("model.stem", self.stem, ("auto", "imagenet", "small", "deep", "resnet_d"))
        deep = self.stem in ("deep", "resnet_d")
        require(not deep or self.width >= 2, "model.width", self.width, "at least 2 with a deep stem")
        require(0 <= self.drop_path < 1, "model.drop_path", self.drop_path, "in [0, 1)")
        choice("model.pooling", self.pooling, ("average", "gem"))
        choice("model.dtype", self.dtype, ("auto", "float32", "bfloat16"))


@dataclass(slots=True)
class OptimizerConfig:
    """One of optax's optimisers under a learning-rate schedule.

    Patterns are of parameters' paths, such as "backbone/stages/3/*", "heads/colour" or "*/norm/*"; `*` crosses slashes,
    and a module's path stands for all in it. See training/fine_tuning.py.
    """

    name: str = "adamw"  # "adamw", "sgd" (Nesterov momentum 0.9) or "lamb"
    learning_rate: float = 4e-3  # the highest learning rate, after the warm-up
    schedule: str = "cosine"  # of the learning rate after the warm-up: "cosine" or "linear" to 0, or "constant"
    warmup: str = "10 percent"  # duration of the linear rise of the learning rate from 0
    weight_decay: float = 0.05  # on kernels, never on biases or batch norm
    clip_norm: float = 0.0  # largest global norm of the gradient; 0: no clipping
    # pattern -> factor of the learning rate; the first match counts
    multipliers: dict[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0  # learning rate of a block as a share of the next block's; heads have the whole rate
    freeze: tuple[str, ...] = ()  # patterns of parameters that are never trained
    # pattern -> duration after which these parameters are trained
    unfreeze: dict[str, str] = field(default_factory=dict)
    freeze_batch_norm: bool = False  # keep the backbone's batch norms as they are: statistics, scale and bias

    def validate(self) -> None:
        choice("optimizer.name", self.name, ("adamw", "sgd", "lamb"))
        require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "above 0")
        choice("optimizer.schedule", self.schedule, ("cosine", "linear", "constant"))
        parse_duration(self.warmup, "optimizer.warmup")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "at least 0")
        require(self.clip_norm >= 0, "optimizer.clip_norm", self.clip_norm, "at least 0")
        for pattern, factor in self.multipliers.items():
            require(0 < factor <= 1e6, f"optimizer.multipliers[{pattern}]", factor, "in (0, 1e6]")
        require(0 < self.layer_decay <= 1, "optimizer.layer_decay", self.layer_decay, "in (0, 1]")
        for pattern, duration in self.unfreeze.items():
            parse_duration(duration, f"optimizer.unfreeze[{pattern}]")


@dataclass(slots=True)
class LossConfig:
    """Cross-entropy per head, over the rows that hold its label."""

    label_smoothing: float = 0.0  # share of the probability that is spread over all classes, in [0, 1)
    # label smoothing of the rarest class (label-aware smoothing); below 0: as for others
    rare_label_smoothing: float = -1.0
    head_label_smoothing: dict[str, float] = field(default_factory=dict)  # attribute -> label smoothing of its head
    # attribute -> weight of its head's loss; 1 where absent
    head_weights: dict[str, float] = field(default_factory=dict)
    imbalance: str = "none"  # against rare classes: "prior", "focal", "balanced"; see training/losses.py

    def validate(self) -> None:
        choice("loss.imbalance", self.imbalance, IMBALANCE_METHODS)
        rare = self.rare_label_smoothing
        require(rare < 1, "loss.rare_label_smoothing", rare, "in [0, 1), or -1")
        for name, value in {"": self.label_smoothing, **self.head_label_smoothing}.items():
            where = f"loss.head_label_smoothing[{name}]" if name else "loss.label_smoothing"
            require(0 <= value < 1, where, value, "in [0, 1)")
        for name, value in self.head_weights.items():
            require(value >= 0, f"loss.head_weights[{name}]", value, "at least 0")


@dataclass(slots=True)
class TrainConfig:
    """How long, how much at once, and what is kept. Durations are "10 epochs", "500 steps", "20000 examples",
    or "5 percent" of the whole."""

    duration: str = "10 epochs"  # length of the run
    batch_size: int = 128  # photos of a step, over all devices and processes
    accumulation_steps: int = 1  # parts of a batch that are computed one after another, to save memory
    seed: int = 0  # of everything random in training
    evaluate_every: str = "1 epochs"  # time between two scores of the validation split
    checkpoint_every: str = "1 epochs"  # time between two checkpoints
    # of the moving average of the weights (EMA), which is scored and packaged; 0: no average
    average_decay: float = 0.0
    progressive_scale: float = 1.0  # scale of the photos' sides until `progressive_until`; small photos train faster
    progressive_until: str = "50 percent"  # of the run; later photos have their full size
    mix: MixConfig = field(default_factory=MixConfig)
    best_metric: str = "mean/accuracy"  # validation score that chooses the best checkpoint
    early_stopping_patience: int = 0  # evaluations without a better `best_metric` after which the run ends; 0: never

    def validate(self) -> None:
        for name in ("duration", "evaluate_every", "checkpoint_every"):
            amount, unit = parse_duration(getattr(self, name), f"train.{name}")
            require(amount > 0, f"train.{name}", getattr(self, name), "above 0")
            require(name != "duration" or unit != "percent", "train.duration", self.duration, "not in percent")
        require(self.batch_size >= 1, "train.batch_size", self.batch_size, "at least 1")
        require(self.accumulation_steps >= 1, "train.accumulation_steps", self.accumulation_steps, "at least 1")
        parts = self.accumulation_steps
        whole = self.batch_size % parts == 0
        require(whole, "train.batch_size", self.batch_size, f"divisible by train.accumulation_steps={parts}")
        require(0 <= self.seed < 2**32, "train.seed", self.seed, "in [0, 2**32)")
        require(0 <= self.average_decay < 1, "train.average_decay", self.average_decay, "in [0, 1)")
        require(0.25 <= self.progressive_scale <= 1, "train.progressive_scale", self.progressive_scale, "in [0.25, 1]")
        parse_duration(self.progressive_until, "train.progressive_until")
        self.mix.validate()
        require(bool(self.best_metric), "train.best_metric", self.best_metric, "the name of a validation metric")
        patience = self.early_stopping_patience
        require(patience >= 0, "train.early_stopping_patience", patience, "at least 0")


@dataclass(slots=True)
class DecisionConfig:
    """Which promises are fitted on the validation split after training."""

    precision: float = 0.98  # share of accepted labels that should be right
    label_set_coverage: float = 0.95  # share of products whose label set should hold the true label; 0: no label sets

    def validate(self) -> None:
        require(0 < self.precision < 1, "decision.precision", self.precision, "in (0, 1); no number of rows promises 1")
        require(0 <= self.label_set_coverage < 1, "decision.label_set_coverage", self.label_set_coverage, "in [0, 1)")


@dataclass(slots=True)
class EmbeddingConfig:
    """What the package's embeddings are made of. They are fitted after training."""

    # attributes whose predicted labels are compared; auto: those that no finer one determines; empty: none, only the
    # pooled features
    attributes: tuple[str, ...] = ("auto",)
    size: int = 256  # largest number of values in an embedding
    appearance: float = 0.15  # share of the pooled features in the similarity, in [0, 1)

    def validate(self) -> None:
        require(2 <= self.size <= 65536, "embedding.size", self.size, "in [2, 65536]")
        require(0 <= self.appearance < 1, "embedding.appearance", self.appearance, "in [0, 1)")


@dataclass(slots=True)
class RuntimeConfig:
    """What does not change the result: it may differ when a run is resumed."""

    cpu_devices: int = 0  # number of JAX devices on a CPU; 0: chosen by the number of cores
    tensorboard: bool = False  # also write event files to WORKDIR/tensorboard; needs the extra "tensorboard"

    def validate(self) -> None:
        require(0 <= self.cpu_devices <= 256, "runtime.cpu_devices", self.cpu_devices, "in [0, 256]")


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
