"""What training and scoring of one run share: its network, its optimiser, its batches, and its compiled steps."""

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
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Int, UInt8

from fashion_jax.config.fields import Config, MixConfig
from fashion_jax.data.loader import (
    STORAGES,
    TAGS,
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
from fashion_jax.evaluation.colour_report import class_colours, colour_differences
from fashion_jax.evaluation.evaluate import Evaluation, EvaluationStep, evaluate_split, make_evaluation_step
from fashion_jax.models.classifier import Classifier, abstract_classifier, training_classifier
from fashion_jax.run.resolve import colours, run_steps
from fashion_jax.run.start import read_weights
from fashion_jax.system.devices import make_mesh
from fashion_jax.system.progress import say
from fashion_jax.training.fine_tuning import parameter_paths, plan_fine_tuning
from fashion_jax.training.loop import Schedule
from fashion_jax.training.losses import HeadLoss, log_odds, make_head_loss
from fashion_jax.training.optimizer import make_optimizer, make_schedule
from fashion_jax.training.placement import DevicePhotos, free_device_bytes, norm_groups
from fashion_jax.training.state import TrainState, abstract_state, create_state, model_arguments
from fashion_jax.training.step import NetworkSpec, StepOptions, TrainStep, make_train_step

LOG_EVERY = 50  # steps between two lines of training metrics
EVALUATION_BATCH_SIZE = 512  # photos on all devices together, at least; fewer if the splits have fewer
EVALUATION_PHOTOS_PER_DEVICE = 128  # at least, on GPUs and TPUs

DeviceBatch = dict[str, jax.Array]
AddPhotos = Callable[[DeviceBatch], DeviceBatch]  # adds photos that lie on the devices to a batch there


@dataclass(frozen=True)
class Batches:
    """This process's part of every batch. Every method also returns what adds the photos that lie on the devices."""

    config: Config  # resolved
    prepared: Prepared  # the records
    mesh: Mesh  # all devices
    storage: str  # where decoded photos are kept: "device", "host", or "stream" for nowhere
    progress: bool  # whether to show bars

    def training(self, start_step: int) -> tuple[Iterator[Batch], AddPhotos]:
        """Returns training batches without end, beginning with the batch of a step."""
        photos, add_photos = self._photos("train")
        batches = training_batches(
            self.prepared,
            photos,
            batch_size=self.config.train.photos,
            seed=self.config.train.seed,
            start_step=start_step,
            process_index=jax.process_index(),
            num_processes=jax.process_count(),
        )
        return batches, add_photos

    def training_ids(self, step: int) -> list[str]:
        """Returns the product ids of a step's whole batch."""
        size, seed = self.config.train.photos, self.config.train.seed
        batches = training_batches(self.prepared, None, batch_size=size, seed=seed, start_step=step)
        return [str(self.prepared.ids[row]) for row in next(batches)["row"]]

    def split(
        self, name: str, rows: Int[np.ndarray, " n"] | None = None
    ) -> Callable[[], tuple[Iterator[Batch], AddPhotos]]:
        """Returns a function that starts a pass over a split, in which every row comes once.

        The photos are read at the first pass, and kept where they fit.

        Args:
            name: "train", "validation" or "test".
            rows: row numbers of a part of the split, whose photos are read anew at each pass; None for all rows.
        """
        chosen = self.prepared.indices(name) if rows is None else rows
        stream = StreamedPhotos(self.prepared, self.config.data.height, self.config.data.width)
        photos_once = functools.cache(lambda: self._photos(name) if rows is None else (stream, _unchanged))
        place = {"process_index": jax.process_index(), "num_processes": jax.process_count()}

        def batches() -> tuple[Iterator[Batch], AddPhotos]:
            photos, add_photos = photos_once()
            size = self._evaluation_size
            return evaluation_batches(self.prepared, photos, chosen, batch_size=size, **place), add_photos

        return batches

    def images(self, images: UInt8[np.ndarray, "n height width 3"]) -> Iterator[Batch]:
        """Yields photos that are not in the records; their rows are counted from 0, and they have no labels."""
        size = self._evaluation_size
        part = size // jax.process_count()
        mine = slice(jax.process_index() * part, (jax.process_index() + 1) * part)
        for start in range(0, len(images), size):
            rows = np.arange(start, start + size, dtype=np.int32)
            valid = rows < len(images)
            batch = {
                "image": images[np.where(valid, rows, 0)],
                "row": rows,
                "label": np.full((size, len(self.prepared.attributes)), MISSING, np.int32),
                "valid": valid,
            }
            for name, classes in self.prepared.tag_vocabularies.items():
                batch[f"{TAGS}{name}"] = np.full((size, len(classes)), MISSING, np.int8)
            yield {name: array[mine] for name, array in batch.items()}

    def _photos(self, split: str) -> tuple[PhotoSource | None, AddPhotos]:
        height, width = self.config.data.height, self.config.data.width
        if self.storage == "stream":
            return StreamedPhotos(self.prepared, height, width), _unchanged
        rows = self.prepared.indices(split)
        resident = ResidentPhotos(self.prepared, rows, height, width, label=split, progress=self.progress)
        if self.storage == "host":
            return resident, _unchanged
        return None, DevicePhotos(resident.images, resident.places, self.mesh).add_images

    @property
    def _evaluation_size(self) -> int:
        """One batch size for all splits, so that the evaluation step is compiled once."""
        largest = max(len(self.prepared.indices(split)) for split in ("validation", "test"))
        wanted = EVALUATION_BATCH_SIZE
        if self.mesh.devices.flat[0].platform != "cpu":
            wanted = max(wanted, EVALUATION_PHOTOS_PER_DEVICE * self.mesh.size)
        return -(-min(wanted, max(largest, 1)) // self.mesh.size) * self.mesh.size


@dataclass
class Session:
    """A run, ready to train and to score: all that follows from its configuration and its records."""

    config: Config  # as `resolve` returns it
    prepared: Prepared  # the records
    workdir: Path  # of the run
    mesh: Mesh = field(default_factory=make_mesh)  # all devices
    progress: bool = True  # whether to show progress on standard error
    # attributes with a second head, which is fitted after training; only for scoring
    second_heads: tuple[str, ...] = ()
    # where decoded photos are kept: "device", "host", or "stream" for nowhere; chosen here where empty
    storage: str = ""

    def __post_init__(self) -> None:
        config, data = self.config, self.config.data
        self.attributes = tuple(name for name in data.attributes if name in self.prepared.attributes)
        self.tags = {
            name: self.prepared.tag_vocabularies[name] for name in data.attributes if name in self.prepared.tags
        }
        self.columns = tuple(self.prepared.attributes.index(name) for name in self.attributes)
        self.vocabularies = {name: self.prepared.vocabularies[name] for name in self.attributes}
        self.num_examples = len(self.prepared.indices("train"))
        self.total_steps = run_steps(config, self.prepared)
        self.averaged = config.train.average_decay > 0
        classes = {name: len(vocabulary) for name, vocabulary in self.vocabularies.items()}
        tags = {name: len(vocabulary) for name, vocabulary in self.tags.items()}
        self.arguments = model_arguments(config.model, data, classes, second_heads=self.second_heads, tags=tags)
        self.graph, params, _ = abstract_classifier(self.arguments)
        part, devices = config.train.photos // config.train.accumulation_steps, self.mesh.size
        self.norm_groups = groups = norm_groups(part, devices, config.model.norm_group)
        self.devices_alone = devices > 1 and groups % devices == 0
        self.training_graph, norms = training_classifier(
            self.arguments,
            groups=groups // devices if self.devices_alone else groups,
            freeze=config.optimizer.freeze_batch_norm,
        )
        self.learning_rate = make_schedule(
            config.optimizer,
            total_steps=self.total_steps,
            num_examples=self.num_examples,
            batch_size=config.train.photos,
        )
        self.fine_tuning = plan_fine_tuning(config.optimizer, parameter_paths(params), norms=norms, resolve=self.steps)
        self.optimizer: optax.GradientTransformation = make_optimizer(
            config.optimizer, self.learning_rate, self.fine_tuning
        )
        self._train_steps: dict[tuple[float, bool], TrainStep] = {}
        self.storage = self.storage or _agree(
            choose_storage(data.storage, len(self.prepared), data.height, data.width, device_bytes=free_device_bytes())
        )
        self.batches = Batches(config, self.prepared, self.mesh, self.storage, self.progress)

    def steps(self, duration: str) -> int:
        """Returns a duration in steps of this run."""
        return run_steps(self.config, self.prepared, duration)

    def column(self, name: str) -> int:
        """Returns the column of an attribute in the records' labels."""
        return self.columns[self.attributes.index(name)]

    def with_second_heads(self, names: tuple[str, ...]) -> Session:
        """Returns a session that scores the network with second heads for these attributes."""
        return dataclasses.replace(self, second_heads=names)

    @cached_property
    def target(self) -> TrainState:
        """Shapes, dtypes and shardings of the run's state, to which a checkpoint is restored."""
        return abstract_state(self.arguments, self.optimizer, self.mesh, averaged=self.averaged)

    def first_state(self) -> TrainState:
        """Returns a new run's state on all devices.

        It holds the workdir's pretrained weights, and first biases where the losses give them; the rest is drawn.
        """
        given = read_weights(self.workdir, self.arguments) if self.config.model.pretrained else {}
        drawn = sorted(path for path in self.fine_tuning.frozen if f"params/{path}" not in given)
        if drawn:
            say(
                f"note: {len(drawn)} frozen parameters are not in the pretrained weights and keep random values, "
                f"such as {drawn[0]}; to train them, freeze fewer parameters with config.optimizer.freeze",
                show=self.progress,
            )
        for name, loss in self.head_losses.items():
            if loss.first_bias is not None:
                given[f"params/heads/{name}/output/bias"] = loss.first_bias
        seed = self.config.train.seed
        return create_state(self.arguments, self.optimizer, seed, self.mesh, averaged=self.averaged, pretrained=given)

    @property
    def colours(self) -> tuple[str, ...]:
        """The attributes of one value that are colours."""
        return tuple(name for name in colours(self.config) if name in self.attributes)

    @cached_property
    def colour_differences(self) -> dict[str, np.ndarray]:
        """Colour attribute -> how different its classes look, by their mean colours in training photos."""
        return {
            name: colour_differences(class_colours(self.prepared, name, progress=self.progress))
            for name in self.colours
        }

    @cached_property
    def head_losses(self) -> dict[str, HeadLoss]:
        """How the loss of each attribute is computed."""
        labels = self.prepared.labels[self.prepared.indices("train")]
        losses = {}
        for name, column in zip(self.attributes, self.columns, strict=True):
            known = labels[labels[:, column] != MISSING, column]
            counts = np.bincount(known, minlength=len(self.vocabularies[name]))
            losses[name] = make_head_loss(name, counts, self.config.loss)
        for name in self.tags:
            vectors = self.prepared.tags[name][self.prepared.indices("train")]
            vectors = vectors[(vectors != MISSING).all(1)]
            # Biases start at the classes' frequencies (Lin et al., ICCV 2017, section 3.3).
            bias = log_odds(vectors.sum(0, dtype=np.int64), len(vectors))
            losses[name] = HeadLoss(weight=self.config.loss.head_weights.get(name, 1.0), first_bias=bias)
        return losses

    def schedule(self) -> Schedule:
        """Returns the steps at which the run logs, evaluates, saves and ends."""
        train = self.config.train
        return Schedule(
            total=self.total_steps,
            log=LOG_EVERY,
            evaluate=self.steps(train.evaluate_every),
            checkpoint=self.steps(train.checkpoint_every),
            patience=train.early_stopping_patience,
        )

    def train_step(self, step: int = 0) -> TrainStep:
        """Returns the jitted function that computes a step; photos may be small or mixed in an earlier part."""
        train = self.config.train
        scale = train.progressive_scale if step < self.steps(train.progressive_until) else 1.0
        mix = train.mix if train.mix.active and step < self.steps(train.mix.until) else MixConfig()
        kind = (scale, mix.active)
        if kind not in self._train_steps:
            self._train_steps[kind] = self._make_train_step(scale, mix)
        return self._train_steps[kind]

    def later_functions(self, step: int) -> list[TrainStep]:
        """Returns the functions of later steps, first needed first, without the function of this step."""
        train = self.config.train
        changes = sorted({self.steps(train.progressive_until), self.steps(train.mix.until)})
        later = [self.train_step(change) for change in changes if step < change < self.total_steps]
        return [function for function in dict.fromkeys(later) if function is not self.train_step(step)]

    def _make_train_step(self, scale: float, mix: MixConfig) -> TrainStep:
        train = self.config.train
        options = StepOptions(
            losses=self.head_losses,
            augmentation=self.config.data.augment,
            mix=mix,
            never_mixed=colours(self.config),
            scale=scale,
            accumulation_steps=train.accumulation_steps,
            alone=self.devices_alone,
            average_decay=train.average_decay,
            seed=train.seed,
            stop_gradients=self.fine_tuning.stop_gradients,
        )
        return make_train_step(self._network(self.training_graph), self.optimizer, self.mesh, options)

    @property
    def network(self) -> NetworkSpec:
        """The network for evaluation."""
        return self._network(self.graph)

    def _network(self, graph: nnx.GraphDef[Classifier]) -> NetworkSpec:
        data = self.config.data
        dtype = self.arguments["dtype"]
        return NetworkSpec(graph, self.attributes, self.columns, data.mean, data.std, dtype, tuple(self.tags))

    def evaluator(
        self, split: str, *, rows: np.ndarray | None = None, keep_outputs: bool = False
    ) -> Callable[[TrainState], Evaluation]:
        """Returns a function from a state to the scores of a split.

        Args:
            split: "train", "validation" or "test".
            rows: row numbers of a part of the split; None for all rows.
            keep_outputs: whether to keep the network's outputs for every row.
        """
        batches = self.batches.split(split, rows)
        return lambda state: self._evaluate(state, *batches(), keep_outputs)

    def evaluate_images(self, state: TrainState, images: UInt8[np.ndarray, "n height width 3"]) -> Evaluation:
        """Returns the network's outputs for photos that are not in the records."""
        return self._evaluate(state, self.batches.images(images), _unchanged, True)

    @cached_property
    def evaluation_step(self) -> EvaluationStep:
        """The jitted function that scores a batch."""
        flip = self.config.data.test_time_flip
        return make_evaluation_step(self.network, self.mesh, test_time_flip=flip)

    def _evaluate(
        self, state: TrainState, batches: Iterator[Batch], add_photos: AddPhotos, keep_outputs: bool
    ) -> Evaluation:
        return evaluate_split(
            self.evaluation_step,
            *state.scored,
            batches,
            mesh=self.mesh,
            vocabularies=self.vocabularies,
            tags=self.tags,
            prepare_batch=add_photos,
            keep_outputs=keep_outputs,
        )


def _unchanged(batch: DeviceBatch) -> DeviceBatch:
    return batch


def _agree(storage: str) -> str:
    """Returns the most careful choice of all processes: each chose by its own memory, and all must compute alike."""
    if jax.process_count() == 1:
        return storage
    choices = multihost_utils.process_allgather(np.array(STORAGES.index(storage), np.int32))
    return STORAGES[int(np.max(choices))]
