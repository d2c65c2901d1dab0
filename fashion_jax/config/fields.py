"""All settings of a run, as dataclasses that check themselves. `config.files` reads them from files and command lines.

A setting exists only if a file in configs/ or the documentation sets it to something else than its default.
`tests/config/test_settings.py` holds the list.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from fashion_jax.config.values import choice, parse_duration, require, within

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
        within(self, "data.augment.min_crop_area", 0, 1, without="low")
        within(self, "data.augment.max_shift", 0, 0.5, without="high", unit="of the side")
        within(self, "data.augment.flip_probability", 0, 1)
        within(self, "data.augment.max_rotation", 0, 180, unit="degrees")
        within(self, "data.augment.erase_probability", 0, 1)
        within(self, "data.augment.rand_operations", 0, 16)
        within(self, "data.augment.rand_magnitude", 0, 1)


@dataclass(slots=True)
class MixConfig:
    """Mixup and CutMix: one photo made of two products. Mixed photos train every attribute except colours."""

    probability: float = 0.5  # share of the rows that are mixed, with mixup or CutMix on; the rest trains colours too
    mixup_alpha: float = 0.0  # of mixup's Beta distribution; 0: no mixup; usual is 0.2
    cutmix_alpha: float = 0.0  # of CutMix's Beta distribution; 0: no CutMix; usual is 1; with both, each row draws one
    until: str = "100 percent"  # of the run; later photos are not mixed

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
        choice("model.stem", self.stem, ("auto", "imagenet", "small", "deep", "resnet_d"))
        within(self, "model.width", 2 if self.stem in ("deep", "resnet_d") else 1, 1024, unit="channels")
        within(self, "model.drop_path", 0, 1, without="high")
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
        within(self, "loss.label_smoothing", 0, 1, without="high")
        rare = self.rare_label_smoothing
        require(rare < 1, "loss.rare_label_smoothing", rare, "below 1; negative to use loss.label_smoothing")
        for name, value in self.head_label_smoothing.items():
            require(0 <= value < 1, f"loss.head_label_smoothing[{name}]", value, "at least 0, below 1")
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
            wanted = "steps, epochs or examples, such as '10 epochs'"
            require(name != "duration" or unit != "percent", "train.duration", self.duration, wanted)
        within(self, "train.batch_size", 1)
        within(self, "train.accumulation_steps", 1)
        parts = self.accumulation_steps
        whole = self.batch_size % parts == 0
        require(whole, "train.batch_size", self.batch_size, f"divisible by train.accumulation_steps={parts}")
        within(self, "train.seed", 0, 2**32 - 1)
        within(self, "train.average_decay", 0, 1, without="high")
        within(self, "train.progressive_scale", 0.25, 1)
        parse_duration(self.progressive_until, "train.progressive_until")
        self.mix.validate()
        require(bool(self.best_metric), "train.best_metric", self.best_metric, "the name of a validation metric")
        within(self, "train.early_stopping_patience", 0)


@dataclass(slots=True)
class DecisionConfig:
    """Which promises are fitted on the validation split after training."""

    precision: float = 0.98  # share of accepted labels that should be right
    label_set_coverage: float = 0.95  # share of products whose label set should hold the true label; 0: no label sets

    def validate(self) -> None:
        within(self, "decision.precision", 0, 1, without="both")
        within(self, "decision.label_set_coverage", 0, 1, without="high")


@dataclass(slots=True)
class EmbeddingConfig:
    """What the package's embeddings are made of. They are fitted after training."""

    # attributes whose predicted labels are compared; auto: those that no finer one determines; empty: none, only the
    # pooled features
    attributes: tuple[str, ...] = ("auto",)
    size: int = 256  # largest number of values in an embedding
    appearance: float = 0.15  # share of the pooled features in the similarity, in [0, 1)

    def validate(self) -> None:
        within(self, "embedding.size", 2, 65536)
        within(self, "embedding.appearance", 0, 1, without="high")


@dataclass(slots=True)
class RuntimeConfig:
    """What does not change the result: it may differ when a run is resumed."""

    cpu_devices: int = 0  # number of JAX devices on a CPU; 0: chosen by the number of cores
    tensorboard: bool = False  # also write event files to WORKDIR/tensorboard; needs the extra "tensorboard"

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
