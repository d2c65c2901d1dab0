"""Typed configuration: dataclasses that check themselves. `config_files` reads them from files and command lines.

This module imports nothing else of the package but its parts and what it checks with, and no third-party code.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from fashion_jax.config.augmentation import AugmentConfig, MixConfig
from fashion_jax.config.fitted import EmbeddingConfig, TrustConfig
from fashion_jax.config.values import choice, parse_duration, require

METRIC_LOSSES = ("normalised_softmax", "supervised_contrastive", "proxy_anchor")
IMBALANCE_METHODS = ("none", "balanced", "effective", "logit_adjustment", "prior", "focal")


@dataclass(slots=True)
class DataConfig:
    """Where the products come from and how they become batches."""

    source: str = "synthetic"  # anything that `fashion-jax prepare --source` reads, or a prepared folder
    prepared: str = ""  # folder for the records; empty: WORKDIR/records
    schema: str = ""  # a schema.json; empty: known data sets by name, else inferred
    corrections: str = ""  # a table of corrected labels, such as an audit's findings; empty: none
    attributes: tuple[str, ...] = ()  # heads to train, in order; empty: every attribute of the schema
    height: int = 80
    width: int = 60
    mean: tuple[float, ...] = ()  # of RGB in [0, 1], subtracted; empty: the pretrained weights', else 0.5
    std: tuple[float, ...] = ()  # of RGB in [0, 1], divided by; empty: the pretrained weights', else 0.5
    max_side: int = 256  # pixels; larger photos are scaled down once, at preparation
    max_bad_fraction: float = 0.05  # share of unusable rows above which preparation stops
    split: str = "group"  # "group", "random", "column" (the schema's split column) or "file:PATH" (a splits.csv)
    split_fractions: tuple[float, ...] = (0.7, 0.1, 0.2)  # train, validation, test
    split_seed: int = 0
    storage: str = "auto"  # decoded photos "device", "host", or decoded as they are needed: "stream"
    test_time_flip: bool = False  # score and predict by the mean probabilities of a photo and its mirror image
    num_workers: int = 0  # processes that decode in "stream"; 0: threads of this process
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def validate(self) -> None:
        require(bool(self.source), "data.source", self.source, "a path, synthetic[:N], kaggle:O/N or hf:O/N")
        require(8 <= self.height <= 4096, "data.height", self.height, "in [8, 4096] pixels")
        require(8 <= self.width <= 4096, "data.width", self.width, "in [8, 4096] pixels")
        for name, values, low in (("mean", self.mean, 0.0), ("std", self.std, 1e-6)):
            sound = len(values) in (0, 3) and all(low <= v <= 1 for v in values)
            require(sound, f"data.{name}", values, f"3 in [{low:g}, 1], or none")
        require(16 <= self.max_side <= 8192, "data.max_side", self.max_side, "in [16, 8192] pixels")
        require(
            self.max_side >= max(self.height, self.width),
            "data.max_side",
            self.max_side,
            f"at least the photos' size, {max(self.height, self.width)}, or they are scaled down and up again",
        )
        require(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction", self.max_bad_fraction, "in [0, 1]")
        require(
            self.split in ("group", "random", "column") or self.split.startswith("file:"),
            "data.split",
            self.split,
            "'group', 'random', 'column' or 'file:PATH'",
        )
        require(
            len(self.split_fractions) == 3
            and all(0 < f < 1 for f in self.split_fractions)
            and abs(sum(self.split_fractions) - 1) < 1e-6,
            "data.split_fractions",
            self.split_fractions,
            "3 shares that sum to 1",
        )
        require(0 <= self.split_seed < 2**32, "data.split_seed", self.split_seed, "in [0, 2**32)")
        choice("data.storage", self.storage, ("auto", "device", "host", "stream"))
        require(self.num_workers >= 0, "data.num_workers", self.num_workers, "at least 0")
        self.augment.validate()


@dataclass(slots=True)
class ModelConfig:
    """The backbone and the heads.

    Pretrained weights bring their own depth, width, stem and deep_shortcut where these are left as they are here, and
    our own packages with GeM their pooling.
    """

    pretrained: str = ""  # OWNER/NAME[@REVISION] on the Hub, a .safetensors file, a folder, a package; see README
    pretrained_digest: str = ""  # sha256 that the pretrained weights' file must have; empty: any, and it is noted here
    depth: int = 18
    width: int = 64  # channels of the first stage; 64 is the published size
    stem: str = "auto"  # "imagenet", "small" (3x3, no pooling), "deep" (ResNet-D); auto: small up to 96 pixels
    deep_shortcut: bool = False  # ResNet-D's average pooling before the shortcut's 1x1 convolution
    head: str = "linear"  # or "mlp"
    head_hidden: tuple[int, ...] = (512,)  # of "mlp"
    dropout: float = 0.0  # of "mlp"
    drop_path: float = 0.0  # stochastic depth: probability of skipping the last block in training
    pooling: str = "average"  # or "gem", the generalised mean with a learned power
    colour_heads: tuple[str, ...] = ()  # attributes whose head sees early features too; ("auto",): by their names
    colour_histogram: bool = False  # colour heads also see a histogram of CIELAB and the colours of the photo's parts
    colour_dropout: float = 0.0  # of what colour heads see, and of their hidden values where `dropout` is less
    stacked_heads: tuple[str, ...] = ()  # beside which, after training, a second head is fitted; ("auto",): all
    metric_heads: dict[str, int] = field(default_factory=dict)  # attribute -> size of vectors that `loss.metric` learns
    dtype: str = "auto"  # of the convolutions: "float32", "bfloat16"; auto: bfloat16 where that is faster (BUILD.md)

    def validate(self) -> None:
        choice("model.depth", self.depth, (10, 18, 34, 50, 101, 152))
        digest = self.pretrained_digest
        sound = not digest or (len(digest) == 64 and set(digest) <= set("0123456789abcdef"))
        require(sound, "model.pretrained_digest", digest, "64 hexadecimal digits")
        require(1 <= self.width <= 1024, "model.width", self.width, "in [1, 1024] channels")
        choice("model.stem", self.stem, ("auto", "imagenet", "small", "deep"))
        require(self.stem != "deep" or self.width >= 2, "model.width", self.width, "at least 2 with the deep stem")
        choice("model.head", self.head, ("linear", "mlp"))
        require(all(h >= 1 for h in self.head_hidden), "model.head_hidden", self.head_hidden, "sizes of at least 1")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "in [0, 1)")
        require(0 <= self.drop_path < 1, "model.drop_path", self.drop_path, "in [0, 1)")
        require(0 <= self.colour_dropout < 1, "model.colour_dropout", self.colour_dropout, "in [0, 1)")
        choice("model.pooling", self.pooling, ("average", "gem"))
        for name, size in self.metric_heads.items():
            require(2 <= size <= 4096, f"model.metric_heads[{name}]", size, "in [2, 4096] features")
        choice("model.dtype", self.dtype, ("auto", "float32", "bfloat16"))


@dataclass(slots=True)
class OptimizerConfig:
    """One of optax's optimisers under a learning-rate schedule.

    Patterns are of parameters' paths, such as "backbone/stages/3/*", "heads/colour" or "*/norm/*"; `*` crosses slashes,
    and a module's path stands for all in it. See training/fine_tuning.py.
    """

    name: str = "adamw"  # or "sgd" (Nesterov momentum), "lamb"
    learning_rate: float = 4e-3  # the peak
    schedule: str = "cosine"  # or "linear", "constant", after the warm-up
    warmup: str = "10 percent"  # duration of the linear rise from 0
    final_fraction: float = 0.0  # of the peak, at the end
    weight_decay: float = 0.05  # on kernels and metric heads' proxies, never on biases or batch norm
    momentum: float = 0.9  # sgd
    beta1: float = 0.9  # adamw, lamb
    beta2: float = 0.999  # adamw, lamb
    epsilon: float = 1e-8  # adamw, lamb
    clip_norm: float = 0.0  # largest global norm of the gradient; 0: not clipped
    multipliers: dict[str, float] = field(default_factory=dict)  # pattern -> factor of the rate; the first match counts
    layer_decay: float = 1.0  # each block's rate as a share of the next one's; the heads have the whole
    freeze: tuple[str, ...] = ()  # patterns of what is not trained
    unfreeze: dict[str, str] = field(default_factory=dict)  # pattern -> duration after which it is trained
    freeze_batch_norm: bool = False  # the backbone's: running statistics are used and kept, scale and bias are frozen

    def validate(self) -> None:
        choice("optimizer.name", self.name, ("adamw", "sgd", "lamb"))
        require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "above 0")
        choice("optimizer.schedule", self.schedule, ("cosine", "linear", "constant"))
        parse_duration(self.warmup, "optimizer.warmup")
        require(0 <= self.final_fraction <= 1, "optimizer.final_fraction", self.final_fraction, "in [0, 1]")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "at least 0")
        for name, value in (("momentum", self.momentum), ("beta1", self.beta1), ("beta2", self.beta2)):
            require(0 <= value < 1, f"optimizer.{name}", value, "in [0, 1)")
        require(self.epsilon > 0, "optimizer.epsilon", self.epsilon, "above 0")
        require(self.clip_norm >= 0, "optimizer.clip_norm", self.clip_norm, "at least 0")
        for pattern, factor in self.multipliers.items():
            require(0 < factor <= 1e6, f"optimizer.multipliers[{pattern}]", factor, "in (0, 1e6]")
        require(0 < self.layer_decay <= 1, "optimizer.layer_decay", self.layer_decay, "in (0, 1]")
        for pattern, duration in self.unfreeze.items():
            parse_duration(duration, f"optimizer.unfreeze[{pattern}]")


@dataclass(slots=True)
class LossConfig:
    """Cross-entropy per head, over the rows that hold its label."""

    label_smoothing: float = 0.0
    rare_label_smoothing: float = -1.0  # of the rarest class, others in between (label-aware); below 0: as the others
    head_label_smoothing: dict[str, float] = field(default_factory=dict)  # overrides, by attribute
    head_weights: dict[str, float] = field(default_factory=dict)  # by attribute; 1 where absent
    imbalance: str = "none"  # against rare classes; see training/imbalance.py; "auto": what short runs find best
    pilot_duration: str = "5 percent"  # of each of these runs; a share is of the run's own
    head_imbalance: dict[str, str] = field(default_factory=dict)  # overrides, by attribute
    effective_beta: float = 0.999  # of "effective"
    logit_adjustment: float = 1.0  # strength of "logit_adjustment" and "prior"
    focal_gamma: float = 2.0  # of "focal"
    colour_softness: float = 0.0  # share of a colour's probability that it shares with colours like it
    colour_scale: float = 5.0  # CIEDE2000 difference at which another's part of it is 1/e of its own
    metric: str = "normalised_softmax"  # of model.metric_heads; see training/metric_losses.py
    metric_weight: float = 0.5  # of each metric head's loss
    metric_temperature: float = 0.1  # by which cosines are divided

    def validate(self) -> None:
        for name, method in {"": self.imbalance, **self.head_imbalance}.items():
            choice(f"loss.head_imbalance[{name}]" if name else "loss.imbalance", method, (*IMBALANCE_METHODS, "auto"))
        amount, _ = parse_duration(self.pilot_duration, "loss.pilot_duration")
        require(amount > 0, "loss.pilot_duration", self.pilot_duration, "above 0")
        require(0 <= self.effective_beta < 1, "loss.effective_beta", self.effective_beta, "in [0, 1)")
        require(self.logit_adjustment >= 0, "loss.logit_adjustment", self.logit_adjustment, "at least 0")
        require(self.focal_gamma >= 0, "loss.focal_gamma", self.focal_gamma, "at least 0")
        choice("loss.metric", self.metric, METRIC_LOSSES)
        require(self.metric_weight >= 0, "loss.metric_weight", self.metric_weight, "at least 0")
        require(self.metric_temperature > 0, "loss.metric_temperature", self.metric_temperature, "above 0")
        require(0 <= self.colour_softness < 1, "loss.colour_softness", self.colour_softness, "in [0, 1)")
        require(self.colour_scale > 0, "loss.colour_scale", self.colour_scale, "above 0")
        require(
            self.rare_label_smoothing < 1, "loss.rare_label_smoothing", self.rare_label_smoothing, "in [0, 1), or -1"
        )
        for name, value in {"": self.label_smoothing, **self.head_label_smoothing}.items():
            where = f"loss.head_label_smoothing[{name}]" if name else "loss.label_smoothing"
            require(0 <= value < 1, where, value, "in [0, 1)")
        for name, value in self.head_weights.items():
            require(value >= 0, f"loss.head_weights[{name}]", value, "at least 0")


@dataclass(slots=True)
class TrainConfig:
    """How long, how much at once, and what is kept. Durations are "10 epochs", "500 steps", "20000 examples",
    or "5 percent" of the whole."""

    duration: str = "10 epochs"
    batch_size: int = 128  # over all devices and processes
    accumulation_steps: int = 1  # parts of a batch that are computed one after another
    seed: int = 0
    log_every: str = "50 steps"
    evaluate_every: str = "1 epochs"  # on the validation split
    checkpoint_every: str = "1 epochs"
    average_decay: float = 0.0  # of the moving average of the weights, which is what is scored and kept; 0: none
    progressive_scale: float = 1.0  # of the photos' sides until `progressive_until`: small ones train faster
    progressive_until: str = "50 percent"
    mix: MixConfig = field(default_factory=MixConfig)
    best_metric: str = "mean/accuracy"  # of the validation split; the best checkpoint has the highest ("loss": lowest)
    early_stopping_patience: int = 0  # evaluations without a better best_metric before the run ends; 0: never

    def validate(self) -> None:
        for name in ("duration", "log_every", "evaluate_every", "checkpoint_every"):
            amount, unit = parse_duration(getattr(self, name), f"train.{name}")
            require(amount > 0, f"train.{name}", getattr(self, name), "above 0")
            require(name != "duration" or unit != "percent", "train.duration", self.duration, "not in percent")
        require(self.batch_size >= 1, "train.batch_size", self.batch_size, "at least 1")
        require(self.accumulation_steps >= 1, "train.accumulation_steps", self.accumulation_steps, "at least 1")
        require(
            self.batch_size % self.accumulation_steps == 0,
            "train.batch_size",
            self.batch_size,
            f"divisible by train.accumulation_steps={self.accumulation_steps}",
        )
        require(0 <= self.seed < 2**32, "train.seed", self.seed, "in [0, 2**32)")
        require(0 <= self.average_decay < 1, "train.average_decay", self.average_decay, "in [0, 1)")
        require(0.25 <= self.progressive_scale <= 1, "train.progressive_scale", self.progressive_scale, "in [0.25, 1]")
        parse_duration(self.progressive_until, "train.progressive_until")
        self.mix.validate()
        require(bool(self.best_metric), "train.best_metric", self.best_metric, "the name of a validation metric")
        require(
            self.early_stopping_patience >= 0, "train.early_stopping_patience", self.early_stopping_patience, ">= 0"
        )


@dataclass(slots=True)
class RuntimeConfig:
    """What does not change the result: it may differ when a run is resumed."""

    cpu_devices: int = 0  # that JAX sees without accelerator; 0: 4 a core, 8 at most; bfloat16: 1 a core
    evaluation_batch_size: int = 512
    tensorboard: bool = False  # event files in WORKDIR/tensorboard; needs the extra "tensorboard"

    def validate(self) -> None:
        require(0 <= self.cpu_devices <= 256, "runtime.cpu_devices", self.cpu_devices, "in [0, 256]")
        require(self.evaluation_batch_size >= 1, "runtime.evaluation_batch_size", self.evaluation_batch_size, ">= 1")


@dataclass(slots=True)
class Config:
    """Everything that a run needs; `validate()` raises UserError for a value out of range."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    trust: TrustConfig = field(default_factory=TrustConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def validate(self) -> None:
        for part in dataclasses.fields(self):
            getattr(self, part.name).validate()

    def to_dict(self) -> dict[str, Any]:
        """Returns nested JSON values (tuples as lists)."""
        return json.loads(json.dumps(dataclasses.asdict(self)))
