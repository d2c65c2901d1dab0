"""What training and evaluation of one workdir share: resolved configuration, records, mesh, model, batches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import UInt8

from fashion_jax.config.fields import Config, MixConfig
from fashion_jax.config.values import resolve_steps
from fashion_jax.data.class_colours import class_colours, colour_differences
from fashion_jax.data.loader import (
    Batch,
    PhotoSource,
    ResidentPhotos,
    StreamedPhotos,
    choose_storage,
    evaluation_batches,
    training_batches,
)
from fashion_jax.data.records import Prepared
from fashion_jax.data.schema import MISSING
from fashion_jax.evaluation.evaluate import Evaluation, EvaluationStep, evaluate_split, make_evaluation_step
from fashion_jax.models.classifier import abstract_classifier, frozen_norm_classifier
from fashion_jax.system.devices import make_mesh
from fashion_jax.training.fine_tuning import parameter_paths, plan_fine_tuning
from fashion_jax.training.loop import Schedule
from fashion_jax.training.losses import HeadLoss, make_head_loss
from fashion_jax.training.optimizer import make_optimizer, make_schedule
from fashion_jax.training.resident import DevicePhotos, free_device_bytes
from fashion_jax.training.state import TrainState, abstract_state, model_arguments, resolve_colour_heads
from fashion_jax.training.step import TrainStep, make_train_step

LOG_EVERY = 50  # steps between two lines of training metrics
EVALUATION_BATCH_SIZE = 512

DeviceBatch = dict[str, jax.Array]
Complete = Callable[[DeviceBatch], DeviceBatch]


@dataclass
class Session:
    """A resolved run: everything that follows from its configuration and records.

    Attributes:
        config: as `resolve` returns it.
        prepared: the records.
        workdir: of the run.
        mesh: all devices.
        progress: whether to show what is going on.
        second_heads: attributes with a second head, which is fitted after training; for scoring alone.
    """

    config: Config
    prepared: Prepared
    workdir: Path
    mesh: Mesh = field(default_factory=make_mesh)
    progress: bool = True
    second_heads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        train = self.config.train
        self.attributes = self.config.data.attributes
        self.columns = tuple(self.prepared.attributes.index(name) for name in self.attributes)
        self.vocabularies = {name: self.prepared.vocabularies[name] for name in self.attributes}
        self.num_examples = len(self.prepared.indices("train"))
        data = self.config.data
        classes = {name: len(v) for name, v in self.vocabularies.items()}
        self.arguments = model_arguments(self.config.model, data, classes, second_heads=self.second_heads)
        self.graph, params, _ = abstract_classifier(self.arguments)
        self._training_graph, norms = self.graph, frozenset[str]()
        if self.config.optimizer.freeze_batch_norm:
            self._training_graph, norms = frozen_norm_classifier(self.arguments)
        self._train_steps: dict[tuple[float, bool], TrainStep] = {}
        self.total_steps = self.steps(train.duration)
        self.learning_rate = make_schedule(
            self.config.optimizer,
            total_steps=self.total_steps,
            num_examples=self.num_examples,
            batch_size=train.batch_size,
        )
        self.fine_tuning = plan_fine_tuning(
            self.config.optimizer, parameter_paths(params), norms=norms, resolve=self.steps
        )
        self.optimizer: optax.GradientTransformation = make_optimizer(
            self.config.optimizer, self.learning_rate, self.fine_tuning
        )
        self.storage = choose_storage(
            data.storage, len(self.prepared), data.height, data.width, device_bytes=free_device_bytes()
        )

    @cached_property
    def target(self) -> TrainState:
        """Shapes, dtypes and shardings of the run's state, which a checkpoint is restored to."""
        return abstract_state(self.arguments, self.optimizer, self.mesh, averaged=self.averaged)

    @property
    def averaged(self) -> bool:
        """Whether the run keeps a moving average of its weights."""
        return self.config.train.average_decay > 0

    @property
    def colours(self) -> tuple[str, ...]:
        """The attributes that are colours: those with a colour head, and those that are named so."""
        named = resolve_colour_heads(("auto",), self.attributes)
        return tuple(dict.fromkeys((*self.config.model.colour_heads, *named)))

    @cached_property
    def colour_differences(self) -> dict[str, np.ndarray]:
        """How different the classes of each colour attribute look, by their mean colours in training photos."""
        return {
            name: colour_differences(class_colours(self.prepared, name, progress=self.progress))
            for name in self.colours
        }

    def steps(self, duration: str) -> int:
        """Returns a duration in steps of this run."""
        return resolve_steps(
            duration,
            num_examples=self.num_examples,
            batch_size=self.config.train.batch_size,
            total_steps=getattr(self, "total_steps", None),
        )

    def schedule(self) -> Schedule:
        """Returns the run's events in steps."""
        train = self.config.train
        return Schedule(
            total=self.total_steps,
            log=LOG_EVERY,
            evaluate=self.steps(train.evaluate_every),
            checkpoint=self.steps(train.checkpoint_every),
            patience=train.early_stopping_patience,
        )

    def train_step(self, step: int = 0) -> TrainStep:
        """Returns the jitted function that computes a step, given by its number."""
        train = self.config.train
        scale = train.progressive_scale if step < self.steps(train.progressive_until) else 1.0
        mix = train.mix if train.mix.active and step < self.steps(train.mix.until) else MixConfig()
        kind = (scale, mix.active)
        if kind not in self._train_steps:
            self._train_steps[kind] = self._make_train_step(scale, mix)
        return self._train_steps[kind]

    def with_second_heads(self, names: tuple[str, ...]) -> Session:
        """Returns a session to score the network with, once it has second heads for these attributes."""
        complete = dataclasses.replace(self, second_heads=names)
        complete.storage = self.storage
        return complete

    @cached_property
    def head_losses(self) -> dict[str, HeadLoss]:
        """How each attribute's loss is computed."""
        labels = self.prepared.labels[self.prepared.indices("train")]
        losses = {}
        for name, column in zip(self.attributes, self.columns, strict=True):
            known = labels[labels[:, column] != MISSING, column]
            counts = np.bincount(known, minlength=len(self.vocabularies[name]))
            losses[name] = make_head_loss(name, counts, self.config.loss)
        return losses

    def _make_train_step(self, scale: float, mix: MixConfig) -> TrainStep:
        train, data = self.config.train, self.config.data
        return make_train_step(
            self._training_graph,
            self.optimizer,
            self.mesh,
            attributes=self.attributes,
            columns=self.columns,
            losses=self.head_losses,
            mean=data.mean,
            std=data.std,
            augmentation=data.augment,
            mix=mix,
            never_mixed=self.colours,
            scale=scale,
            accumulation_steps=train.accumulation_steps,
            average_decay=train.average_decay,
            seed=train.seed,
            dtype=self.arguments["dtype"],
            hold=self.fine_tuning.hold,
        )

    def _photos(self, split: str) -> tuple[PhotoSource | None, Complete]:
        """Returns what reads a split's photos on the host, and what adds them on the devices."""
        data = self.config.data
        if self.storage == "stream":
            return StreamedPhotos(self.prepared, data.height, data.width), _unchanged
        rows = self.prepared.indices(split)
        resident = ResidentPhotos(self.prepared, rows, data.height, data.width, label=split, progress=self.progress)
        if self.storage == "host":
            return resident, _unchanged
        return None, DevicePhotos(resident.images, resident.places, self.mesh).add_images

    def training_batches(self, start_step: int) -> tuple[Iterator[Batch], Complete]:
        """Returns this process's batches from a step on, and what completes them on the devices."""
        photos, complete = self._photos("train")
        batches = training_batches(
            self.prepared,
            photos,
            batch_size=self.config.train.batch_size,
            seed=self.config.train.seed,
            start_step=start_step,
            process_index=jax.process_index(),
            num_processes=jax.process_count(),
        )
        return batches, complete

    def batch_ids(self, step: int) -> list[str]:
        """Returns the product ids of a step's whole batch."""
        batches = training_batches(
            self.prepared, None, batch_size=self.config.train.batch_size, seed=self.config.train.seed, start_step=step
        )
        return [str(self.prepared.ids[row]) for row in next(batches)["row"]]

    @cached_property
    def _evaluation_step(self) -> EvaluationStep:
        data = self.config.data
        return make_evaluation_step(
            self.graph,
            self.mesh,
            attributes=self.attributes,
            columns=self.columns,
            mean=data.mean,
            std=data.std,
            dtype=self.arguments["dtype"],
            test_time_flip=data.test_time_flip,
        )

    @property
    def _evaluation_batch_size(self) -> int:
        """The same for all splits, so that the evaluation step is compiled once."""
        largest = max(len(self.prepared.indices(split)) for split in ("validation", "test"))
        return -(-min(EVALUATION_BATCH_SIZE, max(largest, 1)) // self.mesh.size) * self.mesh.size

    def evaluator(
        self, split: str, *, rows: np.ndarray | None = None, keep_outputs: bool = False
    ) -> Callable[[TrainState], Evaluation]:
        """Returns state -> scores of a split; takes what `split_batches` takes.

        Args:
            split: see there.
            rows: see there.
            keep_outputs: whether to keep what the network says of every row.
        """
        batches = self.split_batches(split, rows)
        return lambda state: self._evaluate(state, *batches(), keep_outputs)

    def split_batches(
        self, split: str, rows: np.ndarray | None = None
    ) -> Callable[[], tuple[Iterator[Batch], Complete]]:
        """Returns what gives this process's batches of a split, every row once, and what completes them on the devices.

        The photos are read when it is first called, and kept where they fit.

        Args:
            split: "train", "validation" or "test".
            rows: row numbers of some of its rows, whose photos are read one after another; None for all.
        """
        data, some = self.config.data, rows is not None
        chosen = self.prepared.indices(split) if rows is None else rows
        batch_size = self._evaluation_batch_size
        stream = StreamedPhotos(self.prepared, data.height, data.width)
        photos_once = functools.cache(lambda: (stream, _unchanged) if some else self._photos(split))

        def batches() -> tuple[Iterator[Batch], Complete]:
            photos, complete = photos_once()
            place = {"process_index": jax.process_index(), "num_processes": jax.process_count()}
            return evaluation_batches(self.prepared, photos, chosen, batch_size=batch_size, **place), complete

        return batches

    def evaluate_images(self, state: TrainState, images: UInt8[np.ndarray, "n height width 3"]) -> Evaluation:
        """Returns what the network says of photos that are no rows of the records; rows are counted from 0."""
        size = self._evaluation_batch_size
        part = size // jax.process_count()
        mine = slice(jax.process_index() * part, (jax.process_index() + 1) * part)

        def batches() -> Iterator[Batch]:
            for start in range(0, len(images), size):
                rows = np.arange(start, start + size, dtype=np.int32)
                valid = rows < len(images)
                batch = {
                    "image": images[np.where(valid, rows, 0)],
                    "row": rows,
                    "label": np.full((size, len(self.prepared.attributes)), MISSING, np.int32),
                    "valid": valid,
                }
                yield {name: array[mine] for name, array in batch.items()}

        return self._evaluate(state, batches(), _unchanged, True)

    def _evaluate(
        self,
        state: TrainState,
        batches: Iterator[Batch],
        complete: Complete,
        keep_outputs: bool,
    ) -> Evaluation:
        return evaluate_split(
            self._evaluation_step,
            *state.scored,
            batches,
            mesh=self.mesh,
            vocabularies=self.vocabularies,
            prepare_batch=complete,
            keep_outputs=keep_outputs,
        )


def _unchanged(batch: DeviceBatch) -> DeviceBatch:
    return batch
